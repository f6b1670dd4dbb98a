"""Every example runs as its first line says, in an empty folder, and prints something."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.children import run_child

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))
ASKS_FOR_MORE = {
    "12_teacher.py": "asks a real model some hundred times",
    "08_verl_rehearsal.py": "wants the environment of verl: tests/verl_cluster runs it",
    "13_evolve_real_agent.py": "asks a real model some hundred times",
    "14_evolve_over_endpoint.py": "wants an endpoint: tests/evolution gives it one",
}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_prints(example: Path, tmp_path: Path) -> None:
    if example.name in ASKS_FOR_MORE:
        pytest.skip(ASKS_FOR_MORE[example.name])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_child([sys.executable, example], cwd=tmp_path, env=environment, check=True)
    assert done.stdout.strip()


def test_an_example_is_short() -> None:
    assert {path.name for path in EXAMPLES if len(path.read_text().splitlines()) > 60} == set()
