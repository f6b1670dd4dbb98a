"""Damaged files of every importer are read or refused; `fuzz_files.py` does the same for longer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.formats.fuzz_files import OWN, SAMPLES, problem_of, try_seed

FAILED_ONCE = {
    "atif": (1001221,),
    "claude-code": (1000068,),
    "codex": (1000003, 1000810),
    "datasets": (1000021, 1000087),
    "gemini-cli": (1000007, 1000460),
    "langsmith": (1000430,),
    "opencode": (1000040,),
    "pi": (1000005, 1000020),
    "verl": (1000156, 1000173, 1000199),
}
"""Seeds whose mutants gave an error that was not ours when they were first made."""


@pytest.mark.parametrize("importer", [*SAMPLES, *OWN])
def test_a_damaged_file_gives_items_or_an_error_of_ours(importer: str) -> None:
    seeds = [*FAILED_ONCE.get(importer, ()), *range(200)]
    logging.disable()  # a line for each record that is skipped takes longer than reading it
    try:
        assert [failure for seed in seeds if (failure := try_seed(importer, seed))] == []
    finally:
        logging.disable(logging.NOTSET)


def test_the_fuzzer_sees_an_error_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> list[object]:
        raise KeyError("role")

    monkeypatch.setattr("tests.formats.fuzz_files.read", fails)
    assert "read raised KeyError: 'role'" in str(problem_of("pi", tmp_path / "x.jsonl"))


def test_the_fuzzer_sees_an_item_that_changes_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"state": "s", "action": "a", "reward": 1}\n')
    assert problem_of("jsonl", path) is None
    monkeypatch.setattr(
        "tests.formats.fuzz_files.write",
        lambda *_: path.parent.joinpath("again.jsonl").write_text(
            '{"state": "s", "action": "b", "reward": 1}\n'
        ),
    )
    assert problem_of("jsonl", path) == "what was read changes on its way through JSONL"
