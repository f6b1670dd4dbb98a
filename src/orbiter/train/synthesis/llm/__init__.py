"""Synthesis steps and a scorer that ask a language model."""
