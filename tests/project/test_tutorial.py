"""The tutorial's files and commands, run in their order with less training."""

from __future__ import annotations

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
SHORTER = {
    "orbiter-train sft ": " sft.epochs=1",
    "orbiter-train train ": (
        " train.batch_size=2 train.group_size=2 train.max_seconds=1 train.max_response_length=8"
    ),
    "orbiter-train eval ": " eval.samples=1 train.max_response_length=8",
}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
def test_the_tutorial_s_commands_work_in_their_order(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for port in ("9000", "9001"):
        assert port in page
        page = page.replace(port, str(free_port()))
    files = FILE.findall(page)
    assert [name for name, _ in files] == [
        *("support.py", "tasks.py", "teacher.py", "capture.py", "config.toml")
    ]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    script = ["set -e", "set -m"]
    for block in COMMANDS.findall(page)[1:]:  # the first one installs
        for line in block.splitlines():
            more = next((words for start, words in SHORTER.items() if line.startswith(start)), "")
            script.append(line + more)
    (tmp_path / "script.sh").write_text("\n".join(script))
    tools = Path(sys.executable).parent
    done = run_child(
        ["bash", "script.sh"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
    )
    shown = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, shown
    assert "45 tasks, 0 failed, 116 calls, mean reward 0.844" in shown
    assert "116 items, 102 kept in good.jsonl" in shown
    assert "Where is order" in shown or "order" in shown.splitlines()[-2]
    for made in ("traces.html", "runs/rl/report.html", "runs/rl/model", "good-messages.jsonl"):
        assert (tmp_path / made).exists(), made
