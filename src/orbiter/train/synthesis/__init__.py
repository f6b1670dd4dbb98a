"""Make more data, keep the good, split it without leaks."""
