"""Games of the package textarena as environments: the policy's answers are its moves.

    VeRLTrainer(config, environment=textarena_game("GuessTheNumber-v0"))
    await trainer.train([{"seed": seed} for seed in range(64)])

Tested with textarena 0.7.4. Equal seeds give equal games: textarena uses Python's global random
generator, whose state is swapped for the game's own during each move, so games can run
concurrently.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError, did_you_mean, require

Foreign = Any
"""An object of textarena, which need not be installed."""
Opponent = Callable[[str], str]
"""Returns a move, given the observations since the player's last move."""

_RANDOM = threading.Lock()
"""Held while the global random generator has the state of a game."""


def textarena_game(
    game: str,
    *,
    player: int = 0,
    opponents: Mapping[int, Opponent] | None = None,
    unfinished: float = 0.0,
    **settings: object,
) -> Callable[[], TextArenaGame]:
    """Return a function that makes a game, to be passed as `environment=`.

    A task may have a `seed`, which decides the game, and a `prompt` to put before its rules.

    Args:
        game: The game's name, such as "GuessTheNumber-v0".
        player: The policy's number among the players.
        opponents: For each other player's number, a plain function that moves for it.
        unfinished: The reward of a game that a limit ended.
        **settings: Passed to `textarena.make`.

    Raises:
        ConfigError: there is no such game, or a player's number is used twice.
        MissingExtraError: textarena is not installed.
    """
    registration: Foreign = require("textarena.envs.registration", extra="environments")
    # The registry lists each game with and without wrappers; the bare one has the suffix "-raw".
    known = [name.removesuffix("-raw") for name in registration.ENV_REGISTRY if "-raw" in name]
    if game not in known:
        raise ConfigError(f"textarena has no game {game!r}{did_you_mean(game, known)}")
    others = dict(opponents or {})
    if sorted([player, *others]) != list(range(len(others) + 1)):
        raise ConfigError(
            f"the players must be numbered from 0, got player={player} and opponents for "
            f"{sorted(others) or 'nobody'}"
        )

    def make() -> TextArenaGame:
        return TextArenaGame(
            registration.make(f"{game}-raw", **settings),
            player=player,
            opponents=others,
            unfinished=unfinished,
        )

    make.__name__ = game
    make.has_reward = True  # type: ignore[attr-defined] # `kind_of` reads it
    return make


class TextArenaGame:
    """One game."""

    def __init__(
        self, game: Foreign, *, player: int, opponents: Mapping[int, Opponent], unfinished: float
    ) -> None:
        """Wrap a bare game of textarena; created by `textarena_game`."""
        self._game, self._player, self._opponents = game, player, opponents
        self._unfinished = unfinished
        self._random = random.Random().getstate()
        self.done = False

    def reset(self, seed: int | None = None) -> str:
        """Begin the game; return the rules."""
        self._random = random.Random(seed).getstate()
        # Under the lock for the whole move, because games run in several threads.
        with self._own_random():
            self._game.reset(num_players=len(self._opponents) + 1, seed=seed)
        self._let_others_move()
        return self._observation()

    def on_answer(self, text: str) -> str | None:
        """Make a move; return the events until the policy's next move, or None after the end."""
        self._move(text)
        self._let_others_move()
        return None if self.done else self._observation()

    def get_reward(self) -> float:
        """Return the game's reward of this player."""
        # close() returns the rewards; before the end of a game it has none.
        rewards = self._game.close()[0] if self.done else None
        reward = self._unfinished if rewards is None else rewards.get(self._player, 0.0)
        if not is_finite_number(reward):
            raise CallbackError(f"the game's reward is {shown(reward)}, not a finite number")
        return float(reward)

    def _let_others_move(self) -> None:
        while not self.done and self._game.state.current_player_id != self._player:
            mover = self._game.state.current_player_id
            if mover not in self._opponents:
                raise ConfigError(f"the game has a player {mover} without an opponent")
            self._move(self._opponents[mover](self._observation()))

    def _move(self, text: str) -> None:
        with self._own_random():
            self.done, _ = self._game.step(action=text)

    def _observation(self) -> str:
        """Return the events that the current player has not seen yet, without its own moves."""
        reader, seen = self._game.get_observation()
        lines = [
            # A negative sender is the game itself.
            text if sender < 0 else f"[Player {sender}] {text}"
            for sender, text, _ in seen
            if sender != reader
        ]
        return "\n".join(lines) or "Your move."

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        with _RANDOM:
            # The process's own random state is put back after the move.
            others = random.getstate()
            random.setstate(self._random)
            try:
                yield
            finally:
                self._random = random.getstate()
                random.setstate(others)
