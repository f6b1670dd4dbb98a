"""The verl versions that this package was tested with, and the command to install one."""

from __future__ import annotations

import sys

TESTED = ("0.9.1",)
"""The versions of verl that `make test-verl` tests; any other is refused."""
ROLLOUT = "transformers"
"""The name under which the CPU rollout is registered with verl."""


def untested(version: str) -> str:
    """Return an error message for an untested verl, with the command to install a tested one."""
    return (
        f"verl {version} was never tested with this release, which knows the keys and internals "
        f"of verl {', '.join(TESTED)}; run: {install_command()}"
    )


def install_command(python: str = sys.executable) -> str:
    """Return the command that installs what the backend needs for an interpreter."""
    return f"{python} -m pip install -c constraints-verl.txt 'orbiter-train[verl]'"
