"""Loading models from folders, the hub or a package, and saving trained ones."""
