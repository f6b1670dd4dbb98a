"""Which verl this package was tried with, and how it is had. Knows names only; imports nothing."""

from __future__ import annotations

import sys

TESTED = ("0.9.1",)
"""The versions of verl that `make test-verl` runs; any other is refused."""
ROLLOUT = "transformers"
"""The name under which the CPU rollout is registered with verl."""


def untested(version: str) -> str:
    """Say that this verl was never tried, and what to install."""
    return (
        f"verl {version} was never tried with this release, which knows the keys and the inner "
        f"workings of verl {', '.join(TESTED)}; run: {install_command()}"
    )


def install_command(python: str = sys.executable) -> str:
    """Return the command that makes an interpreter fit for the backend."""
    return f"{python} -m pip install -c constraints-verl.txt 'orbiter-train[verl]'"
