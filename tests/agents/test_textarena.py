"""Games of the real textarena, played by a scripted policy."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from orbiter.train.agents.environments.textarena import textarena_game
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import CallbackError, ConfigError
from orbiter.train.verl import VeRLTrainer
from tests.agents.playing import tiny
from tests.agents.scripted import scripted

pytest.importorskip("textarena", reason="textarena is not installed: pip install textarena")

GUESS = "GuessTheNumber-v0"


def guesses(game: Any, seed: int) -> list[str | None]:  # noqa: ANN401 - textarena's
    seen = [game.reset(seed=seed)]
    low, high = 1, 20
    while not game.done:
        middle = (low + high) // 2
        seen.append(game.on_answer(f"My guess is [{middle}]."))
        low, high = (low, middle - 1) if "lower" in (seen[-1] or "") else (middle + 1, high)
    return seen


def test_a_game_is_played_to_its_reward_and_follows_its_seed() -> None:
    make = textarena_game(GUESS)
    games = [make() for _ in range(2)]
    state = random.getstate()
    first, second = (guesses(game, seed=3) for game in games)
    assert first == second
    assert random.getstate() == state  # ours is not touched
    assert first[-1] is None
    assert games[0].get_reward() == 1.0
    assert "You have to guess the number" in str(first[0])
    assert "You have to guess the number" not in str(first[1])  # only what is new


def test_games_side_by_side_do_not_disturb_each_other() -> None:
    make = textarena_game("Bandit-v0")
    alone = make()
    alone.reset(seed=1)
    expected = [alone.on_answer("[red]") for _ in range(4)]
    one, other = make(), make()
    one.reset(seed=1)
    other.reset(seed=2)
    seen = []
    for _ in range(4):
        seen.append(one.on_answer("[red]"))
        other.on_answer("[blue]")
    assert seen == expected


def test_an_opponent_moves_in_between_and_unfinished_games_have_their_reward() -> None:
    def first_free(seen: str) -> str:
        return str(re.findall(r"\[\d\]", seen)[0])

    game = textarena_game("TicTacToe-v0", opponents={1: first_free}, unfinished=-0.5)()
    rules = game.reset(seed=0)
    assert "Tic Tac Toe" in rules
    seen = game.on_answer("[4]")
    assert "[Player 1] [0]" in str(seen)
    assert game.get_reward() == -0.5
    second = textarena_game("TicTacToe-v0", player=1, opponents={0: first_free})()
    assert "Player 0 placed" in second.reset(seed=0)


@pytest.mark.parametrize(
    ("game", "given", "words"),
    [
        ("GuessTheNumbr-v0", {}, "no game 'GuessTheNumbr-v0'; did you mean 'GuessTheNumber-v0'"),
        ("TicTacToe-v0", {"opponents": {2: str}}, "numbered from 0, got player=0 and opponents"),
        ("TicTacToe-v0", {"opponents": {0: str}}, "numbered from 0"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused(
    game: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        textarena_game(game, **given)


async def test_a_policy_trains_on_a_game(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    del policy  # loads the model once for the session
    trainer = VeRLTrainer(
        tiny(max_response_length=8, group_size=4, max_turns=4), environment=textarena_game(GUESS)
    )
    scripted(monkeypatch, await trainer.policy(), lambda _, seed: f"[{1 + seed % 20}]")
    await trainer.train([{"seed": 1}, {"seed": 2}])
    row = trainer.history[0]
    assert row["failed"] == 0
    assert 0 <= row["reward/environment"] <= 1
    assert row["turns"] > 1
    with pytest.raises(CallbackError, match="number of players has to be 2"):
        await VeRLTrainer(tiny(), environment=textarena_game("TicTacToe-v0")).evaluate([{}])
