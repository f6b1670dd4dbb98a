"""Hooks into agent frameworks: who made a call, in which branch, and the outcome of its tools.

HTTP traffic does not show these facts, but the framework knows them. There is one module per
framework, each used with one line; importing it does not import the framework.
"""
