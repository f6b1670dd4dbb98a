"""The command line, `orbiter-train`; not needed when you use the package from Python."""
