"""`python -m orbiter.train.demo.guessing`: a model learns a game of textarena by playing it.

The game is GuessTheNumber-v0: a number from 1 to 20, and after each guess the hint "higher" or
"lower". The rules say that there are five guesses; the game in fact accepts six. A player who
halves what is left needs at most five, and one who ignores the hints wins three games in ten. The
model first imitates a few games of a player who guesses anywhere between the bounds that the
hints leave, then learns from its own games; only a won game is worth 1. An exam on other seeds of
the game measures it before and after.

Options: --quick (seconds, on a model too small to learn it), --seed N, --minutes M, --out FOLDER.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orbiter.train.agents.environments.textarena import textarena_game
from orbiter.train.demo.course import Course, carry_out, command_line, take
from orbiter.train.evaluation import Interval
from orbiter.train.report import Task
from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem

GAME = "GuessTheNumber-v0"
HIGHEST = 20
GUESSES = 5
"""As the rules say; the game ends with the guess after that."""
EXAM_SEEDS = 100_000
"""The first seed of the exam's games; all other games have smaller seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a run is."""

    model: str = "smollm2-135m"
    shown: int = 8
    """Games to imitate."""
    tasks: int = 400
    """Games for learning by playing."""
    held_out: int = 40
    """Games of the exam, which have other seeds."""
    attempts: int = 2
    """How often each game of an exam is played."""
    batch_size: int = 4
    group_size: int = 8
    sft_epochs: int = 2
    sft_learning_rate: float = 4e-5
    learning_rate: float = 3e-5
    minutes: float = 6.0
    """Time for learning by playing; the rest takes about two minutes."""


QUICK = Sizes(
    model="tiny",
    shown=2,
    tasks=4,
    held_out=2,
    attempts=1,
    batch_size=2,
    group_size=2,
    sft_epochs=1,
    minutes=0.02,
)
"""Every stage within seconds, on a model too small to learn the game: for tests."""


class Guessing:
    """The environment: textarena's game, which is either won or not."""

    def __init__(self) -> None:
        """Make a game."""
        self._game = textarena_game(GAME, max_number=HIGHEST, max_turns=GUESSES)()

    @property
    def done(self) -> bool:
        """Whether the game has ended."""
        return self._game.done

    def reset(self, seed: int) -> str:
        """Begin the game of a seed; return its rules."""
        return self._game.reset(seed)

    def on_answer(self, text: str) -> str | None:
        """Make a guess; return the hint, or None after the end."""
        return self._game.on_answer(text)

    def get_reward(self) -> float:
        """Return 1 for a won game.

        The game's own reward of a lost one is the closeness of the last guess: 0.95 next to it.
        """
        return float(self._game.get_reward() == 1)


def play(seed: int, generator: random.Random) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Play a game well, not perfectly; yield the messages before each guess, and the guess."""
    game = Guessing()
    messages = [{"role": "user", "content": game.reset(seed)}]
    low, high = 1, HIGHEST
    while not game.done:
        guess = generator.randint(low, high)
        answer = f"[{guess}]"
        yield list(messages), answer
        hint = game.on_answer(answer)
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": hint or ""},
        ]
        low, high = (low, guess - 1) if "lower" in (hint or "") else (guess + 1, high)


def lessons(count: int, seed: int) -> list[TrajectoryItem]:
    """Return every guess of some won games, to imitate."""
    generator = sub_random(seed, "guessing")
    items: list[TrajectoryItem] = []
    while count:
        game = generator.randrange(EXAM_SEEDS)
        turns = list(play(game, generator))
        if len(turns) > GUESSES:
            continue  # may be lost
        items += [_item(f"game {game}", messages, answer) for messages, answer in turns]
        count -= 1
    return items


def _item(game: str, messages: Sequence[dict[str, Any]], answer: str) -> TrajectoryItem:
    rules = str(messages[0]["content"])
    return TrajectoryItem(rules, answer, 1.0, messages=messages, task_id=game, episode_id=game)


def make_course(sizes: Sizes, seed: int) -> Course:
    """Return the course: lessons, tasks and exam."""
    generator = sub_random(seed, "games")
    held_out = range(EXAM_SEEDS, EXAM_SEEDS + sizes.held_out)
    return Course(
        title="A game of textarena, learned by playing",
        summary=f"{GAME}, from 1 to {HIGHEST} with {GUESSES} guesses. A won game is worth 1. The "
        "exam has other seeds.",
        model=sizes.model,
        environment=Guessing,
        lessons=lessons(sizes.shown, seed),
        tasks=[{"seed": each} for each in generator.sample(range(EXAM_SEEDS), sizes.tasks)],
        held_out=[{"seed": each} for each in held_out],
        shown=[Task(prompt=f"The game of seed {each}", expected="won") for each in held_out],
        attempts=sizes.attempts,
        minutes=sizes.minutes,
        sft={
            "epochs": sizes.sft_epochs,
            "batch_size": 2,
            "learning_rate": sizes.sft_learning_rate,
        },
        settings={
            "batch_size": sizes.batch_size,
            "group_size": sizes.group_size,
            "learning_rate": sizes.learning_rate,
            "max_response_length": 8,
            "max_turns": 2 * (GUESSES + 1),  # the game allows one invalid move before each guess
        },
    )


async def run(sizes: Sizes, folder: Path, seed: int) -> Interval:
    """Take the course; return the paired gain of the share of won games.

    Raises:
        TrainError: something that the run needs is missing, or it cannot learn.
    """
    return await take(make_course(sizes, seed), folder, seed)


def main() -> int:
    """Run the demo; return 0, or 1 if something that it needs is missing."""
    parser = command_line("orbiter.train.demo.guessing", "A game of textarena, learned by playing.")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few games")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    if options.minutes is not None:
        sizes = replace(sizes, minutes=options.minutes)
    return carry_out(lambda folder: run(sizes, folder, options.seed), options.out, "guessing")


if __name__ == "__main__":
    sys.exit(main())
