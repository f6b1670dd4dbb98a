"""`import orbiter.train` is light: it costs little and loads nothing heavy."""

import sys

from tests.children import run_child

HEAVY = ("torch", "transformers", "ray", "numpy", "numba", "pyarrow", "peft", "safetensors")


def in_a_fresh_interpreter(code: str) -> str:
    return run_child([sys.executable, "-c", code], check=True).stdout.strip()


def test_no_heavy_module_is_loaded() -> None:
    code = f"import sys, orbiter.train; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert in_a_fresh_interpreter(code) == "[]"


def test_it_takes_less_than_150_ms_beyond_the_interpreter() -> None:
    code = (
        "import time; t = time.process_time(); import orbiter.train; print(time.process_time() - t)"
    )
    assert min(float(in_a_fresh_interpreter(code)) for _ in range(5)) < 0.150


def test_all_names_together_load_nothing_heavy_either() -> None:
    code = (
        "import sys; from orbiter.train import *; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert in_a_fresh_interpreter(code) == "[]"
