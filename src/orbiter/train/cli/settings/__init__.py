"""Settings of the command line: config files, overrides, and paths inside them."""
