"""Run the command line as `python -m orbiter.train.cli`, without an installed script."""

from orbiter.train.cli.app import main

main()
