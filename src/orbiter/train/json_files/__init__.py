"""Streaming readers of JSON and JSON-lines files."""
