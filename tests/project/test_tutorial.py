"""The tutorial's files and commands in their order, with an untrained and with the real model."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.children import run_child

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = ["support.py", "tasks.py", "teacher.py", "capture.py", "config.toml", "ask.py"]
SHORTER = {
    "orbiter-train sft ": "sft.epochs=1 sft.batch_size=16",
    "orbiter-train train ": (
        "train.batch_size=2 train.group_size=2 train.max_seconds=1 train.max_response_length=8"
    ),
    "orbiter-train eval ": "eval.samples=1 train.max_response_length=8",
}
"""Further settings of commands, for a model too small to learn the task."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def page_with_free_ports() -> str:
    page = PAGE.read_text(encoding="utf-8")
    for port in ("9000", "9001"):
        assert port in page
        page = page.replace(port, str(free_port()))
    return page


def follow(page: str, folder: Path, *, real: bool, timeout: float) -> str:
    """Write the page's files and run its commands in one shell; return what they print."""
    files = FILE.findall(page)
    assert [name for name, _ in files] == FILES
    for name, text in files:
        (folder / name).write_text(text if real else text.replace("smollm2-135m", "tiny"))
    script = ["set -e", "set -m"]
    for block in COMMANDS.findall(page)[1:]:  # the first one installs
        for line in block.splitlines():
            words = [line if real else line.replace("smollm2-135m", "tiny")]
            if not real:
                words += [more for start, more in SHORTER.items() if line.startswith(start)]
            script.append(" ".join(words))
    (folder / "script.sh").write_text("\n".join(script))
    tools = Path(sys.executable).parent
    done = run_child(
        ["bash", "script.sh"],
        cwd=folder,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        timeout=timeout,
    )
    shown = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, shown
    return shown


def check(page: str, shown: str, folder: Path) -> None:
    """Compare what the commands printed about the data with the page, and look for their files."""
    for figures in (
        "24 attempts at 12 tasks, 0 failed, 63 calls, mean reward 0.917",
        "63 items, 59 kept in good.jsonl",
        "32 kept in unique.jsonl",
        "28 items in parts/train.jsonl",
        "28 items in 10 sequences, 4 held out",
        "40 tasks, 20 held out",
    ):
        assert figures in shown
    written = " ".join(page.split())
    for words in ("24 attempts at 12 tasks, 0 failed, 63 calls, mean reward 0.917", "59 of the 63"):
        assert words in written
    assert shown.count("reward by status") == 2
    exam = [json.loads(line) for line in (folder / "exam.jsonl").read_text().splitlines()]
    assert len(exam) == 20
    for task in exam[:3]:  # what ask.py prints of the served model's work
        assert f"{task['question']} {task['status']} [" in shown
    for made in ("traces.html", "runs/rl/report.html", "runs/rl/model", "support.gguf"):
        assert (folder / made).exists(), made


@pytest.mark.slow
def test_the_tutorials_commands_work_in_their_order(tmp_path: Path) -> None:
    page = page_with_free_ports()
    check(page, follow(page, tmp_path, real=False, timeout=280), tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_tutorials_model_learns_to_help_customers(tmp_path: Path) -> None:
    page = page_with_free_ports()
    shown = follow(page, tmp_path, real=True, timeout=3500)
    check(page, shown, tmp_path)
    # Exam rewards: sampled before imitation and after it, and after learning by reward.
    sampled = [line.split()[1:] for line in shown.splitlines() if re.match(r"reward  ", line)]
    (untrained, imitated), (learned,) = (list(map(float, row)) for row in sampled)
    assert untrained == 0
    assert 0.2 < imitated < 0.9
    assert learned > imitated + 0.1
