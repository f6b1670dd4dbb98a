"""What runs inside verl's own interpreter: the check of a plan, rewards, metrics, submission.

These files may import verl and Ray; nothing in the package imports them. They are started by name
(`python -m`, or by verl through its configuration).
"""
