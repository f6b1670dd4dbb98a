"""Record where a run took place: start time, system and package versions.

Names of people, machines and paths, and environment variables, are never recorded.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from orbiter.train.storage import write_file

ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("orbiter-train", "torch", "transformers", "peft", "numpy", "verl", "ray", "vllm")
"""Packages whose version can change what a run learns."""


def keep_environment(folder: Path, further: Mapping[str, object]) -> None:
    """Record the environment at the start of a run; a resumed run keeps its first record."""
    path = folder / ENVIRONMENT_FILE
    if not path.exists():
        write_file(path, json.dumps({**environment(), **further}, indent=2).encode() + b"\n")


def environment() -> Mapping[str, object]:
    """Return the relevant facts about this machine and this process."""
    facts: dict[str, object] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    torch: Any = sys.modules.get("torch")  # used only if already loaded: this package stays light
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["accelerator"] = torch.cuda.get_device_name()
    return facts | {"packages": {name: v for name in PACKAGES if (v := _version(name))}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
