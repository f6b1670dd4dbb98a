"""Names the machine that a figure was measured on: processor, instruction set, cores, Python."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

WIDEST = (
    ("amx_bf16", "AVX-512 and AMX"),
    ("avx512_bf16", "AVX-512 with bfloat16"),
    ("avx512bw", "AVX-512"),
    ("avx2", "AVX2"),
    ("asimd", "NEON"),
)
"""Flags of the kernel's list, the widest first, and what to call them."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that hold torch's libraries below what the processor can do."""


def machine() -> str:
    """Return one line such as "AMD EPYC, AVX-512 with bfloat16, 2 cores, Python 3.11.7"."""
    name, flags = _processor()
    widest = next((text for flag, text in WIDEST if flag in flags), platform.machine())
    limits = [f"{limit}={os.environ[limit]}" for limit in LIMITS if limit in os.environ]
    held = f" held to {' '.join(limits)}" if limits else ""
    return f"{name}, {widest}{held}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _processor() -> tuple[str, set[str]]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.processor() or "unknown processor", set()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in info.read_text().splitlines())
    }
    return fields.get("model name", "unknown processor"), set(
        fields.get("flags", fields.get("Features", "")).split()
    )
