"""`import orbiter.train` is light: it costs little and loads nothing heavy."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "ray", "numpy", "numba", "pyarrow", "peft", "safetensors")


def in_a_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_heavy_module_is_loaded() -> None:
    code = f"import sys, orbiter.train; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert in_a_fresh_interpreter(code) == "[]"


def test_it_takes_less_than_150_ms_beyond_the_interpreter() -> None:
    code = (
        "import time; t = time.process_time(); import orbiter.train; print(time.process_time() - t)"
    )
    # CPU time doubles while another process shares the core: the least of many is the import's own
    assert any(float(in_a_fresh_interpreter(code)) < 0.150 for _ in range(30))
