"""Does an agent learn over two turns? A tool shows the letter that the last turn must name.

No single answer can solve it: without the tool one letter in eight is right. The model first learns
the form from a few traces, in which the tool is called rarely and its letter often not named. It
imitates them until the start is fair: the tool pays when it is called, for every letter, and the
task is not solved. An ablation that trains the first turn only learns to call the tool, and stays
at what the traces left.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import httpx
import pytest

from orbiter.train.agents import Stream, turns_to_streams
from orbiter.train.agents import runner as running
from orbiter.train.agents.streams import AnsweredPrompt
from orbiter.train.engine.batch import collate
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.objective import ImitationObjective
from orbiter.train.engine.optimiser import Optimiser, make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import logprob, update
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer

LETTERS = "abcdefgh"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
URL = "https://api.example.invalid/v1/chat/completions"
TLS = ssl.create_default_context()
"""Shared by all clients: making it anew for each episode would take most of a run's time."""
CALLS, NAMES, GUESSES = 0.25, 0.5, 0.4
"""In the traces: share that call the tool, that then name its letter, and that else guess one."""

NAMED_IF_CALLED = (0.4, 0.6)
"""Least and greatest chance that a start names the letter after a call.

With 1/8 a call is only a guess, and with more than .6 calling alone would nearly solve the task."""

EACH_NAMED_IF_CALLED = 0.2
"""Least chance for the letter that it names most rarely; at 0 no sample ever shows that it pays."""

CALLED_AND_NAMED = (0.05, 0.1)
"""Least and greatest share of a start's episodes that call the tool and name its letter."""

PATIENCE = 3
"""Batches in a row that are imitated without a mistake before the copying counts as learned."""

SHARED = {
    # With 5e-4, or without a bonus for entropy, some seeds settle on a wrong answer to one letter
    # before they have tried the right one often enough: which ones depends on the processor.
    "learning_rate": 3e-4,
    "ent_coef": 0.01,
    "batch_size": 8,  # with two tasks in a step, each a letter of eight, some seeds end below .9
    "group_size": 8,
    "epochs": 80,
    "lr_schedule": "linear",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": SHARED,
    "ppo": {**SHARED, "gae_lambda": 1.0, "credit": "turn"},
}


async def agent(task: dict[str, str]) -> str:
    """Play an ordinary loop over tools, as with any provider."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    async with httpx.AsyncClient(verify=TLS) as client:
        for _ in range(3):
            body = {"model": "gpt-5-mini", "messages": messages, "tools": TOOLS}
            answer = (await client.post(URL, json=body)).raise_for_status().json()
            message = answer["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": task["letter"]}
                for call in message["tool_calls"]
            ]
    return ""


def solved(output: str, task: dict[str, str]) -> float:
    return float(output == task["letter"])


def trace(policy: Policy, draw: random.Random, calls: float, names: float) -> Rollout:
    """An episode to imitate, token by token as an agent's turns would be."""
    tokenizer, letter = policy.tokenizer, draw.choice(LETTERS)
    token_ids: list[int] = []
    mask: list[bool] = []

    def add(text: str, trained: bool) -> None:
        new = tokenizer(text, add_special_tokens=False).input_ids
        token_ids.extend(new)
        mask.extend([trained] * len(new))

    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    question = [{"role": "user", "content": "?"}]
    template: Any = tokenizer.apply_chat_template
    add(template(question, tools=TOOLS, add_generation_prompt=True, tokenize=False), False)
    prompt = len(token_ids)
    if draw.random() < calls:
        add(f"f(){eos}", True)
        add(f"\n{bos}tool\n{letter}{eos}\n{bos}assistant\n", False)
        add((letter if draw.random() < names else "#") + eos, True)
    else:
        add((draw.choice(LETTERS) if draw.random() < GUESSES else "#") + eos, True)
    return Rollout(token_ids, mask, [0.0] * len(token_ids), prompt)


Trace = Callable[[Policy, random.Random, float, float], Rollout]


def imitate_copying(
    policy: Policy, draw: random.Random, optimiser: Optimiser, trace: Trace = trace
) -> None:
    """Learn to copy the tool's letter."""
    right = 0
    for n in range(1200):
        batch = collate([trace(policy, draw, 1.0, 1.0) for _ in range(32)])
        nll = update(policy, batch, optimiser, ImitationObjective())["nll"]
        right = right + 1 if nll < 0.01 else 0
        if right == PATIENCE:
            print(f"copies after {n + 1} updates")  # noqa: T201 - shown if the test fails
            return
    raise AssertionError(f"the tiny model never learned to copy: nll {nll:.3f}")


def within(value: float, bounds: tuple[float, float]) -> bool:
    least, greatest = bounds
    return least <= value <= greatest


class Start(NamedTuple):
    """What a model does before it is trained by reward."""

    calls: float
    """Chance that it calls the tool."""
    names: float
    """Chance that it names the letter after a call, as the mean over the letters."""
    rarest: float
    """The same for the letter that it names most rarely."""

    @property
    def fair(self) -> bool:
        """Whether the tool pays when it is called, and the task is not solved."""
        named = within(self.names, NAMED_IF_CALLED) and self.rarest >= EACH_NAMED_IF_CALLED
        return named and within(self.calls * self.names, CALLED_AND_NAMED)


def measured(policy: Policy, trace: Trace) -> Start:
    """Score the solved episode of each letter: the tokens of its call, then those of its letter."""
    draw, solved = random.Random(0), dict[tuple[int, ...], Rollout]()
    while len(solved) < len(LETTERS):
        episode = trace(policy, draw, 1.0, 1.0)
        solved[tuple(episode.token_ids)] = episode
    batch = collate(list(solved.values()))
    rows = [row[mask] for row, mask in zip(logprob(policy, batch), batch.mask, strict=True)]
    calls = [float(row[:-2].sum().exp()) for row in rows]
    names = [float(row[-2:].sum().exp()) for row in rows]  # the letter and the end of the turn
    return Start(fmean(calls), fmean(names), min(names))


def imitate_fairly(policy: Policy, seed: int, trace: Trace = trace) -> None:
    """Learn to copy the tool's letter, then the traces until the start is fair.

    The first updates on the traces can undo the copying. A call may then be worth less than a
    guess, and training by reward may rightly give up the tool.
    """
    draw = random.Random(seed)
    # Twice as much never learns to copy in some of these prompts, which are long: the loss stays at
    # that of a guess among few letters. It also undoes more of the copying later.
    optimiser = make_optimiser(policy, learning_rate=5e-4, weight_decay=0.0)
    imitate_copying(policy, draw, optimiser, trace)
    # Anew, without the gradients' averages of the copying.
    optimiser = make_optimiser(policy, learning_rate=5e-4, weight_decay=0.0)
    for n in range(600):
        batch = collate([trace(policy, draw, CALLS, NAMES) for _ in range(32)])
        update(policy, batch, optimiser, ImitationObjective())
        if n + 1 >= 60 and (now := measured(policy, trace)).fair:
            print(f"fair after {n + 1} updates: {now}")  # noqa: T201 - shown if the test fails
            return
    raise AssertionError(f"the traces left no fair start after {n + 1} updates: {now}")


async def start(
    folder: Path, seed: int, teach: Callable[[Policy, int], None] = imitate_fairly
) -> Path:
    """Save a model that has the form, and rarely the right answer."""
    loaded = load_model("tiny", device="cpu", seed=seed)
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu", seed=seed)
    await work(teach, policy, seed)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


Agent = Callable[[dict[str, str]], object]


def trainer(
    model: Path, algorithm: str, seed: int, agent: Agent = agent, **settings: object
) -> VeRLTrainer:
    config: dict[str, Any] = {
        "model": str(model),
        "device": "cpu",
        "dtype": "float32",
        "algorithm": algorithm,
        "max_response_length": 6,
        "seed": seed,
        "progress": False,
    }
    config |= SETTINGS[algorithm] | settings
    return VeRLTrainer(VeRLConfig(**config), [RewardSpec("solved", fn=solved)], agent=agent)


HELD_OUT = [{"letter": letter} for letter in LETTERS]


async def learned(
    model: Path, algorithm: str, seed: int, agent: Agent = agent, **settings: object
) -> tuple[float, float]:
    """Return the reward on the held-out tasks before and after, sampled."""
    run = trainer(model, algorithm, seed, agent, **settings)
    steps, size = int(run.config.epochs), run.config.batch_size
    draw = random.Random(seed)
    tasks = [{"letter": draw.choice(LETTERS), "n": n} for n in range(steps * size)]
    run = trainer(model, algorithm, seed, agent, **{**settings, "epochs": 1})
    before = (await run.evaluate(HELD_OUT, samples=32)).reward
    await run.train(tasks)
    after = (await run.evaluate(HELD_OUT, samples=16)).reward
    assert before is not None
    assert after is not None
    for row in run.history[::5]:
        print({k: round(row[k], 3) for k in SHOWN if k in row})  # noqa: T201 - shown if it fails
    print(algorithm, seed, before, after)  # noqa: T201
    return before, after


SHOWN = ("reward", "turns", "tool_calls", "entropy", "grad_norm", "flat_groups", "seconds")


def first_turns_only(turns: Sequence[AnsweredPrompt]) -> list[Stream]:
    streams = turns_to_streams(turns)
    for stream in streams:
        stream.mask = [m and k == 0 for m, k in zip(stream.mask, stream.turn, strict=True)]
        stream.logprobs = [
            p if m else 0.0 for p, m in zip(stream.logprobs, stream.mask, strict=True)
        ]
    return streams


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
async def test_reward_rises_from_under_a_fifth_to_over_nine_tenths(
    tmp_path: Path, algorithm: str, seed: int
) -> None:
    before, after = await learned(await start(tmp_path / "model", seed), algorithm, seed)
    assert before < 0.2
    assert after > 0.9


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
async def test_training_first_turns_only_stays_at_what_the_traces_left(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "turns_to_streams", first_turns_only)
    before, after = await learned(await start(tmp_path / "model", seed), "grpo", seed)
    assert before < 0.2
    assert after < 0.75
