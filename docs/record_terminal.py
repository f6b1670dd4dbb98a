"""Record what each command of `orbiter-train` shows on a terminal of 80 columns.

    python docs/record_terminal.py            # writes docs/terminal.md
    python docs/record_terminal.py --columns 40 --out /tmp/narrow.md

Each command runs in a pseudo-terminal in a new project, with the smallest model. What the screen
shows at the end is recorded as plain text, progress bars included.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

PAIRS = "data.train=pairs.jsonl data.eval=pairs.jsonl"
COMMANDS: list[tuple[str, str, float | None]] = [
    # Title, command, and after how many seconds Ctrl-C ends it.
    ("init", "init my-agent", None),
    ("doctor", "doctor", None),
    ("data check", "data check data.jsonl", None),
    ("data stats", "data stats data.jsonl", None),
    ("data show", "data show data.jsonl -n 2", None),
    ("data filter", "data filter data.jsonl --min-reward 1 -o good.jsonl", None),
    ("data merge", "data merge data.jsonl eval.jsonl -o all.jsonl", None),
    ("data dedup", "data dedup all.jsonl -o once.jsonl", None),
    ("data split", "data split all.jsonl -o parts", None),
    ("convert", "convert data.jsonl data.csv", None),
    ("synth", "synth -c config.toml", None),
    ("synth, prolonged", "synth -c config.toml synth.target_size=100", None),
    ("train --dry-run", "train -c config.toml --dry-run", None),
    ("train", "train -c config.toml --out runs/grpo", None),
    ("sft", "sft -c config.toml --out runs/imitation", None),
    ("prefer", f"prefer -c config.toml {PAIRS} prefer.model=tiny --out runs/preferred", None),
    (
        "reward-model",
        f"reward-model -c config.toml {PAIRS} reward-model.model=tiny --out runs/scorer",
        None,
    ),
    ("offline, without captured token ids", "offline -c config.toml", None),
    ("eval", "eval --run runs/grpo", None),
    ("compare", "compare tiny runs/grpo --data eval.jsonl", None),
    ("generate", "generate -m runs/grpo/model --max-tokens 8 'Name a bird.'", None),
    ("evolve", "evolve -c config.toml evolve.strategy=longer.py:Longer evolve.epochs=5", None),
    ("report", "report runs/grpo", None),
    ("runs list", "runs list", None),
    ("runs show", "runs show runs/preferred", None),
    ("runs compare", "runs compare runs/grpo runs/imitation", None),
    ("runs resume", "runs resume runs/grpo", None),
    ("settings", "settings synth", None),
    ("export", "export runs/grpo/model --gguf model.gguf", None),
    ("label", "label pairs.jsonl --rater ann", 6.0),
    ("labels", "labels pairs.jsonl.labels.jsonl", None),
    ("serve", "serve runs/grpo/model --port 0", 12.0),
    ("proxy", "proxy --to http://127.0.0.1:9/v1 -o captured.jsonl --port 0", 6.0),
    ("an unknown setting", "train -c config.toml train.lerning_rate=1", None),
]
STRATEGY = """\
from orbiter.train import EvolutionStrategy


class Longer(EvolutionStrategy):
    async def evaluate(self, candidate):
        return -abs(len(candidate) - 30)

    async def mutate(self, candidate):
        return candidate + self.context.rng.choice(" ab")
"""
_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[=>]|[\r\n\b]")


def pairs() -> str:
    """Return JSON lines with a good and a bad answer to each of six tasks."""
    words = ("sea", "moon", "idea", "ocean", "rain", "tree")
    attempts = [
        (word, answer, reward) for word in words for answer, reward in ((word, 1), ("no", 0))
    ]
    return "".join(
        json.dumps({"state": f"Say {word}.", "action": answer, "reward": float(reward)}) + "\n"
        for word, answer, reward in attempts
    )


class Screen:
    """As much of a terminal as progress bars need: lines, a cursor, and erasing."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self._row, self._column = 0, 0

    def write(self, text: str) -> None:
        """Show text and obey its control sequences; colours are dropped."""
        position = 0
        for control in _CONTROL.finditer(text):
            self._put(text[position : control.start()])
            self._obey(control)
            position = control.end()
        self._put(text[position:])

    def _put(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _obey(self, control: re.Match[str]) -> None:
        if control[0] == "\r":
            self._column = 0
        elif control[0] == "\n":
            self._row += 1
            while len(self.lines) <= self._row:
                self.lines.append("")
        elif control[0] == "\b":
            self._column = max(0, self._column - 1)
        elif control[2] == "A":
            self._row = max(0, self._row - int(control[1] or 1))
        elif control[2] == "K":
            kept = "" if control[1] == "2" else self.lines[self._row][: self._column]
            self.lines[self._row] = kept

    def text(self) -> str:
        """Return what is shown, without trailing space."""
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


def record(command: str, folder: Path, columns: int, ctrl_c_after: float | None) -> str:
    """Run a command in a terminal of this width; return what it shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore"}
    environment.pop("NO_COLOR", None)
    environment.pop("COLUMNS", None)
    if command == "doctor":
        environment["HOME"] = "/home/you"
    process = subprocess.Popen(
        [sys.executable, "-m", "orbiter.train.cli", *shlex.split(command)],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    data, begin, is_stopped = b"", time.monotonic(), False
    while True:
        if select.select([master], [], [], 0.2)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux reports the end of a pseudo-terminal so
                break
            if not piece:
                break
            data += piece
        elif process.poll() is not None:
            break
        if ctrl_c_after is not None and not is_stopped and time.monotonic() - begin > ctrl_c_after:
            process.send_signal(signal.SIGINT)
            is_stopped = True
    os.close(master)
    process.wait()
    screen = Screen()
    screen.write(data.decode("utf-8", "replace"))
    shown = screen.text()
    return f"{shown}\n(exit code {process.returncode})" if process.returncode else shown


def main() -> None:
    """Record all commands and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("terminal.md"))
    parser.add_argument("--only", nargs="*", help="titles of the commands to record")
    given = parser.parse_args()
    page = [
        "# What the commands show",
        f"Recorded at {given.columns} columns by `python docs/record_terminal.py`, in the project "
        "that `orbiter-train init` creates, with the model `tiny`.",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for title, command, ctrl_c_after in COMMANDS:
            if given.only and title not in (*given.only, "init"):
                continue
            text = record(command, folder, given.columns, ctrl_c_after)
            text = text.replace(temporary, "/home/you")
            ended = "\n^C" if ctrl_c_after is not None else ""
            page.append(f"## {title}\n\n```text\n$ orbiter-train {command}{ended}\n{text}\n```")
            if title == "init":
                folder /= "my-agent"
                (folder / "longer.py").write_text(STRATEGY)
                (folder / "pairs.jsonl").write_text(pairs())
            sys.stdout.write(f"{title}: recorded\n")
            sys.stdout.flush()
    given.out.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
