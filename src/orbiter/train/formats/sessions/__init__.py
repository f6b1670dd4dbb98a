"""Imports the session logs of coding agents: one module per agent, and what they share."""
