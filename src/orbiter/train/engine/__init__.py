"""The machine: one process, tokens in, better weights out.

The names are imported from their files (`orbiter.train.engine.models`, ...), so that asking for
one loads nothing of the others.
"""
