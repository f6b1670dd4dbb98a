"""Code that runs in verl's interpreter: the check of a plan, rewards, metrics, job submission.

These files may import verl and Ray. They are started by name (`python -m`, or by verl through its
configuration).
"""
