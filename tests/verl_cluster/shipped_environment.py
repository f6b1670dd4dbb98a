"""An environment that verl's workers import, whose moves are plain answers."""

from __future__ import annotations

from tests.verl_cluster.shipped_agents import vowels_said


class Singing:
    """Two answers; the reward is their share of vowels."""

    def reset(self, word: str) -> str:
        """Begin with the task's word."""
        self.word, self.said = word, [""][:0]
        return f"Sing {word}."

    def on_answer(self, text: str) -> str | None:
        """Ask once more."""
        self.said.append(text)
        return "And?" if len(self.said) < 2 else None

    def get_reward(self) -> float:
        """Return the share of vowels."""
        return vowels_said(" ".join(self.said))
