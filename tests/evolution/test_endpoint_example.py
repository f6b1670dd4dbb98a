"""The example on an endpoint, against a real server whose model follows the prompt it is given."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.children import run_child
from tests.llm.server import ChatServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "14_evolve_over_endpoint.py"
CITY = {"Switzerland": "Bern", "New Zealand": "Wellington", "Ecuador": "Quito"}
ADVICE = ("Use lower case.", "Reply with one word.")


def follow(text: str) -> str:
    """Answer as the prompt says; asked for a better prompt, add the advice that it lacks."""
    if "<instructions>" in text:
        prompt = text.partition("<instructions>\n")[2].partition("\n</instructions>")[0]
        missing = [line for line in ADVICE if line not in prompt]
        return f"<instructions>{prompt}\n{missing[0] if missing else 'Be sure.'}</instructions>"
    country = re.findall(r"capital of ([\w ]+)\?", text)[-1]
    city = CITY.get(country) or CAPITALS[country].capitalize()
    city = city.lower() if ADVICE[0] in text else city
    return city if ADVICE[1] in text else f"It is {city}, of course."


CAPITALS = dict(re.findall(r'"([\w ]+)": "(\w+)"', EXAMPLE.read_text(encoding="utf-8")))


def run(folder: Path, server: ChatServer) -> str:
    done = run_child(
        [sys.executable, str(EXAMPLE)],
        cwd=folder,
        env={
            **os.environ,
            "MODEL": "scripted",
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "none",
        },
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_the_prompt_gets_better_on_unseen_questions_and_nothing_is_paid_twice(
    tmp_path: Path,
) -> None:
    with ChatServer(reply=follow) as server:
        said = run(tmp_path, server)
        paid = len(server.paid)
        again = run(tmp_path, server)
        assert len(server.paid) == paid
    first, best = (float(n) for n in re.findall(r"prompt: ([\d.]+) ", said))
    assert first == 0.5
    assert best == 1.0
    assert "BestOfN" in said
    assert all(advice in said for advice in ADVICE)
    assert said == again
