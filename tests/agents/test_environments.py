"""Environments: a class with tools is played to its end, and a bad one is refused in words."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from orbiter.train.agents import current_episode, run_episode
from orbiter.train.agents.environments import EnvironmentAgent, Played, make_tool
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import CallbackError, ConfigError
from orbiter.train.serve.live import LivePolicy
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLTrainer
from tests.agents.playing import tiny
from tests.agents.scripted import scripted, tool_call


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Safe:
    """A safe that opens with a code."""

    closed: list[Safe] = []  # noqa: RUF012 - what the tests read

    def reset(self, code: str, hint: str = "") -> str | None:
        self.code, self.opened, self.tried = code, False, 0
        return f"Open the safe. {hint}".strip()

    def turn(self, digits: str, times: int = 1) -> str:
        """Enter digits.

        Args:
            digits: Four of them,
                as one text.
            times: How often.

        Returns:
            Whether it opened.
        """
        self.tried += times
        if digits == "0000":
            raise RuntimeError("the dial is stuck")
        if digits == "exit":
            raise SystemExit(2)
        if digits == "silent":
            raise SilentError
        self.opened = digits == self.code
        return "open" if self.opened else "closed"

    async def look(self) -> dict[str, int]:
        """Look at the counter."""
        await asyncio.sleep(0)
        return {"tried": self.tried}

    def get_reward(self) -> float:
        return float(self.opened)

    def close(self) -> None:
        Safe.closed.append(self)

    def _private(self) -> None: ...


def test_methods_become_tools_with_a_schema_from_their_signature() -> None:
    tool = make_tool(Safe().turn)
    assert tool.described() == {
        "type": "function",
        "function": {
            "name": "turn",
            "description": "Enter digits.",
            "parameters": {
                "type": "object",
                "properties": {
                    "digits": {"type": "string", "description": "Four of them, as one text."},
                    "times": {"type": "integer", "description": "How often."},
                },
                "required": ["digits"],
                "additionalProperties": False,
            },
        },
    }


@dataclass
class Point:
    x: int
    y: int


async def test_schemas_know_lists_choices_dataclasses_and_absent_arguments() -> None:
    seen: list[object] = []

    def draw(
        points: list[Point],
        colour: Literal["red", "blue"] = "red",
        name: str | None = None,
        extra: Any = None,  # noqa: ANN401
        self_closing: bool = True,
    ) -> None:
        """Draw."""
        seen.append((points, colour, name, extra, self_closing))

    tool = make_tool(draw)
    properties = tool.parameters["properties"]
    assert properties["points"] == {"type": "array", "items": {"$ref": "#/$defs/Point"}}
    assert tool.parameters["$defs"]["Point"]["required"] == ["x", "y"]
    assert sorted(properties["colour"]["enum"]) == ["blue", "red"]
    assert tool.parameters["required"] == ["points"]
    assert await tool.run('{"points": [{"x": 1, "y": 2}]}') == ""
    assert await tool.run('{"points": [], "colour": "blue", "name": null, "extra": [1]}') == ""
    assert seen == [
        ([Point(1, 2)], "red", None, None, True),
        ([], "blue", None, [1], True),
    ]


Answers = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> Answers:
    """Answer the n-th request of an episode with the n-th text."""

    def install(*answers: str) -> None:
        def answer(prompt: str, _: int) -> str:
            asked = prompt.count("<|bos|>assistant\n") - 1
            return answers[min(asked, len(answers) - 1)]

        scripted(monkeypatch, policy, answer)

    return install


@pytest.fixture
async def roomy(policy: Policy) -> AsyncIterator[LivePolicy]:
    async with LivePolicy(policy, max_new_tokens=200) as opened:
        yield opened


async def test_an_episode_is_played_and_its_reward_is_the_environments(
    roomy: LivePolicy, script: Answers
) -> None:
    Safe.closed.clear()
    script(tool_call("look"), tool_call("turn", digits="1234"), "It is open.")
    agent = EnvironmentAgent(Safe, system_prompt="You open safes.")
    task = {"code": "1234", "prompt": "Hello.", "unused": 7}
    episode = await run_episode(agent, task, roomy, seed=0)
    assert episode.error is None
    assert episode.stop_reason == "done"
    assert len(episode.turns) == 3
    assert len(episode.streams) == 1  # token-exact: every turn continues the first
    assert episode.output == "It is open."
    played = episode.result
    assert isinstance(played, Played)
    assert (played.reward, played.calls, played.invalid_calls) == (1.0, 2, 0)
    assert [m["role"] for m in played.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "tool", "assistant"),
    ]
    assert played.messages[1]["content"] == "Hello.\n\nOpen the safe."
    assert played.messages[3]["content"] == '{"tried":0}'
    assert played.messages[5]["content"] == "open"
    assert Safe.closed == [played.environment]


@pytest.mark.parametrize(
    ("call", "answer", "invalid"),
    [
        (tool_call("turn", digits="0000"), "Error: RuntimeError: the dial is stuck", 0),
        (tool_call("turn", digits="silent"), "Error: SilentError", 0),
        (tool_call("turn", digits="exit"), "Error: SystemExit: 2", 0),
        (tool_call("trun", digits="1"), "no tool 'trun'; did you mean 'turn'?; the tools are", 1),
        (tool_call("turn", digits=7), "wrong arguments for turn: Expected `str`, got `int`", 1),
        (tool_call("turn", digit="7"), "wrong arguments for turn: ", 1),
        (tool_call("turn"), "wrong arguments for turn: ", 1),
        (tool_call("get_reward"), "there is no tool 'get_reward'", 1),
        (tool_call("_private"), "there is no tool '_private'", 1),
        ("<tool_call>{name: turn}</tool_call>", "Error: the tool call could not be read", 1),
        ("<tool_call>", "Error: the tool call could not be read", 1),
    ],
)
async def test_whatever_is_wrong_with_a_call_is_told_to_the_model(
    roomy: LivePolicy, script: Answers, call: str, answer: str, invalid: int
) -> None:
    script(call, "Well.")
    episode = await run_episode(EnvironmentAgent(Safe), {"code": "1"}, roomy, seed=0)
    assert episode.error is None
    played = episode.result
    assert isinstance(played, Played)
    assert answer in played.messages[-2]["content"]
    assert (played.calls, played.invalid_calls, played.reward) == (1, invalid, 0.0)
    assert len(episode.streams) == 1


async def test_several_calls_of_one_answer_are_carried_out_in_order(
    roomy: LivePolicy, script: Answers
) -> None:
    both = tool_call("turn", digits="1") + "\n" + tool_call("turn", digits="2")
    script(both, "Done.")
    episode = await run_episode(EnvironmentAgent(Safe), {"code": "2"}, roomy, seed=0)
    played = episode.result
    assert isinstance(played, Played)
    assert [m["content"] for m in played.messages if m["role"] == "tool"] == ["closed", "open"]


async def test_a_limit_ends_the_episode_and_its_reward_still_counts(
    roomy: LivePolicy, script: Answers
) -> None:
    script(tool_call("turn", digits="1234"))
    agent = EnvironmentAgent(Safe)
    episode = await run_episode(agent, {"code": "1234"}, roomy, seed=0, max_turns=3)
    assert (episode.stop_reason, len(episode.turns)) == ("max_turns", 3)
    assert not episode.failed
    assert isinstance(episode.result, Played)
    assert episode.result.reward == 1.0


class Guess:
    """A game without tools: the answers themselves are the moves."""

    def reset(self, secret: int) -> str:
        self.secret, self.done, self.moves = secret, False, 0
        return "Guess a number."

    def on_answer(self, text: str) -> str | None:
        self.moves += 1
        current_episode().step_reward(0.125)
        self.done = text == str(self.secret)
        return "higher" if text < str(self.secret) else "lower"

    def get_reward(self) -> float:
        return 1 / self.moves


async def test_answers_without_calls_can_be_moves_and_done_ends_the_game(
    roomy: LivePolicy, script: Answers
) -> None:
    script("3", "5", "4", "never")
    episode = await run_episode(EnvironmentAgent(Guess), {"secret": 4}, roomy, seed=0)
    assert episode.error is None
    assert len(episode.turns) == 3
    assert isinstance(episode.result, Played)
    assert [m["content"] for m in episode.result.messages[::2]] == [
        *("Guess a number.", "higher", "lower", "lower"),
    ]
    assert episode.result.reward == pytest.approx(1 / 3)
    assert episode.step_rewards == (0.125,) * 3


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


async def wait(n: int = 1) -> str:
    """Wait."""
    await asyncio.sleep(0)
    return f"waited {n}, in {threading.current_thread().name}"


async def test_a_list_of_functions_is_an_environment(roomy: LivePolicy, script: Answers) -> None:
    script(tool_call("double", n=21), tool_call("wait"), "42")
    item = TrajectoryItem("What is twice 21?", "42", metadata={"topic": "sums"})
    episode = await run_episode(EnvironmentAgent([double, wait]), item, roomy, seed=0)
    played = episode.result
    assert isinstance(played, Played)
    assert played.messages[0] == {"role": "user", "content": "What is twice 21?"}
    assert played.messages[2]["content"] == "42"
    assert played.messages[4]["content"] == "waited 1, in MainThread"
    assert played.reward is None
    assert played.environment is None


class NoReset:
    def act(self) -> str:
        """Act."""
        return ""


class NoMethod:
    def reset(self) -> str:
        return ""

    def get_reward(self) -> float:
        return 0.0


class NoReward:
    def reset(self) -> str:
        return "Go."

    def act(self) -> str:
        """Act."""
        return ""


class NeedsArguments(NoReward):
    def __init__(self, url: str) -> None: ...


def _with(method: Callable[..., object]) -> type:
    return type("Env", (NoMethod,), {"act": method})


def undocumented(self: object) -> str:
    return ""


def unhinted(self: object, x) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Act."""
    return ""


def starred(self: object, *rest: int) -> str:
    """Act."""
    return ""


def positional(self: object, x: int, /) -> str:
    """Act."""
    return ""


def odd(self: object, x: asyncio.Lock) -> str:
    """Act."""
    return ""


def unknown(self: object, x: Nowhere) -> str:  # type: ignore[name-defined]
    """Act."""
    return ""


class Taskset:
    """As verifiers names its own; that package cannot be installed beside this one's tools."""

    __module__ = "verifiers.v1.taskset"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (NoReset, "NoReset has no reset"),
        (NoMethod, "NoMethod has no public method besides reset, get_reward"),
        (NoReward, "NoReward has no get_reward\\(\\), and there are no rewards"),
        (NeedsArguments, "NeedsArguments\\(\\) needs url.*environment=lambda: NeedsArguments"),
        (Safe(), "an instance of Safe, which all episodes would share"),
        (Taskset, "Taskset of the package verifiers, which is not supported"),
        (Taskset(), "Taskset of the package verifiers, which is not supported"),
        (type("Mine", (Taskset,), {}), "Mine of the package verifiers"),
        (7, "environment= must be a class .* got 7"),
        ("env.py:Env", "environment= must be a class"),
        ([], "environment= is an empty list"),
        ([Safe], "environment= must list functions"),
        ([double, double], "two tools with the name 'double'"),
        ([double], "tool functions give no reward"),
        ([lambda x: x], "tool <lambda> has no name"),
        (_with(undocumented), "tool Env.* has no docstring"),
        (_with(unhinted), "has no type hint for 'x'"),
        (_with(starred), "takes \\*rest; a tool needs a name for each argument"),
        (_with(positional), "takes 'x' by position only"),
        (_with(odd), "a type hint that JSON cannot express: Lock"),
        (_with(unknown), "type hints that cannot be resolved: name 'Nowhere'"),
    ],
)
def test_a_bad_environment_is_refused_before_anything_runs(environment: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VeRLTrainer(tiny(), environment=environment)


def test_an_agent_and_an_environment_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="give agent= or environment=, not both"):
        VeRLTrainer(tiny(), agent=print, environment=Safe)


class Broken(Safe):
    def reset(self, code: str, hint: str = "") -> str | None:
        if code == "raise":
            raise OSError("the server is down")
        if code == "number":
            return 7  # type: ignore[return-value]
        return None if code == "silent" else "Go."

    def get_reward(self) -> float:
        return {"text": "much", "nan": float("nan"), "list": [1.0]}[self.reward]  # type: ignore

    @property
    def reward(self) -> str:
        return "text"


class NotANumber(Broken):
    reward = "nan"


@pytest.mark.parametrize(
    ("environment", "task", "words"),
    [
        (Broken, {"code": "raise"}, "Broken.reset\\(\\) raised OSError: the server is down"),
        (Broken, {"code": "number"}, "reset\\(\\) must return a text or None, got 7"),
        (Broken, {"code": "silent"}, "nothing for the model to read"),
        (Broken, {"cod": "1"}, "reset\\(\\) asks for 'code', and the task has 'cod'"),
        (Broken, {"code": "1", "prompt": 7}, "prompt must be a text or a list of messages, got 7"),
        (Broken, {"code": "1"}, "get_reward\\(\\) must return a finite number, got 'much'"),
        (NotANumber, {"code": "1"}, "get_reward\\(\\) must return a finite number, got nan"),
        (lambda: None, {"code": "1"}, "made None, which has no reset"),
        (lambda: 1 / 0, {"code": "1"}, "making <lambda> raised ZeroDivisionError"),
        (NoReward, "x", "without get_reward"),
    ],
)
async def test_an_environment_that_fails_says_how(
    environment: object, task: object, words: str
) -> None:
    if environment is NoReward:
        environment = lambda: NoReward()  # noqa: E731, PLW0108 - made where only playing shows it
    trainer = VeRLTrainer(tiny(), environment=environment)
    with pytest.raises((CallbackError, ConfigError), match=words):
        await trainer.evaluate([task])


async def test_training_in_an_environment_counts_its_reward_beside_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = VeRLTrainer(
        tiny(epochs=1, max_response_length=60, max_turns=3, system_prompt="Open it."),
        [RewardSpec("brief", 0.5, lambda episode: 1 / len(episode.turns))],
        environment=Safe,
    )
    policy = await trainer.policy()

    def script(prompt: str, seed: int) -> str:
        acted = "tool\n" in prompt.partition("user\n")[2]
        return "Done." if acted or seed % 2 else tool_call("turn", digits="12")

    scripted(monkeypatch, policy, script)
    await trainer.train([{"code": "12"}, {"code": "34"}])
    row = trainer.history[0]
    assert 0 <= row["reward/environment"] <= 1
    assert row["reward"] == pytest.approx(row["reward/environment"] + 0.5 * row["reward/brief"])
    assert row["failed"] == 0


def test_the_tools_of_a_task_survive_json() -> None:
    described = make_tool(Safe().turn).described()
    assert json.loads(json.dumps(described)) == described
