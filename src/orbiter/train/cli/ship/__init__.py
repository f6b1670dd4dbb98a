"""Commands for a finished model: compare it with another one, export it."""
