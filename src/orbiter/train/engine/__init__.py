"""The machine: one process, tokens in, better weights out.

Import names from their files, such as `orbiter.train.engine.models.load`, so that importing one
loads nothing else.
"""
