"""Hooks into agent frameworks: who made a call, in which branch, and the outcome of its tools.

This is what a framework knows and HTTP traffic does not show. There is one module per framework,
each used with one line; importing it does not import the framework.
"""
