"""Pydantic candidates: equal content is one candidate, and a resumed run reads them back."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, EvolutionStrategy
from orbiter.train.identity import Codec


class Style(BaseModel):
    tone: str = "plain"
    words: tuple[str, ...] = ()


class Agent(BaseModel):
    prompt: str
    style: Style = Style()
    temperature: float = Field(default=0.5, alias="temp")


class Grow(EvolutionStrategy[Agent]):
    """Longer prompts score higher, up to a point; counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def evaluate(self, candidate: Agent) -> float:
        self.asked += 1
        return -abs(len(candidate.prompt) - 9.0)

    async def mutate(self, candidate: Agent) -> Agent:
        letter = self.context.rng.choice("ab")
        return candidate.model_copy(update={"prompt": candidate.prompt + letter})


def test_a_model_is_read_back_equal_and_of_the_same_types() -> None:
    codec = Codec()
    agent = Agent(prompt="Answer.", style=Style(words=("yes", "no")), temp=0.25)
    written = codec.write(agent)
    assert written is not None
    back = codec.read(written)
    assert back == agent
    assert isinstance(back, Agent)
    assert back.style.words == ("yes", "no")


def test_equal_models_are_written_alike_and_different_ones_are_not() -> None:
    codec = Codec()
    assert codec.write(Agent(prompt="a")) == codec.write(Agent(prompt="a", temp=0.5))
    assert codec.write(Agent(prompt="a")) != codec.write(Agent(prompt="a", temp=0.6))


async def test_a_resumed_run_of_models_pays_for_nothing_twice(tmp_path: Path) -> None:
    start = [Agent(prompt="a"), Agent(prompt="a"), Agent(prompt="b")]

    async def run(strategy: Grow, most: int | None) -> tuple[Agent | None, int]:
        config = EvolutionConfig(
            epochs=6, population_size=4, run_dir=tmp_path, max_evaluations=most
        )
        result = await EvolutionPipeline(config, strategy).run(start)
        return result.best, result.evaluations

    first, second = Grow(), Grow()
    await run(first, 9)
    best, evaluations = await run(second, None)
    assert first.asked == 9
    assert second.asked == evaluations - 9
    assert best is not None
    assert isinstance(best, Agent)
