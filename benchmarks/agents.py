"""GRPO over whole episodes: TRL's GRPOTrainer and this engine, step by step in turn.

    python benchmarks/agents.py                     # every case, 4 steps, the first dropped
    python benchmarks/agents.py --cases tiny-4 tiny-8
    python benchmarks/agents.py --client            # also our engine with an openai client
    python benchmarks/agents.py --linear            # ours alone: 4, 8, 16 and 32 turns
    python benchmarks/agents.py --curves --steps 40 # rewards over the steps of 3 seeds

A step plays a few episodes of one or two tasks and takes one update, without KL. Both engines play
the same environment class (TRL's `environment_factory`, our `environment=`), from the same model
with the same chat template, so prompts, tool results and turns are alike. An answer has the same
number of tokens in both: no token ends it early. An untrained model writes no calls, so in both
each answer counts as a call of the tool: TRL's parser of answers is replaced for that, and ours
ends in `on_answer`. With `--client`, a function with an openai client plays the same episodes, as
an unchanged agent would. Each engine runs in its own process, only when it is its turn. TRL gets
its fastest settings here: no gradient checkpointing, and all episodes in one pass of the update, or
in four where one would need more than 20 GB. The prompts of most cases are short (some 60 tokens);
those of "tools" hold the tool descriptions of a real benchmark for agents, BFCL's TravelAPI: 2,409
tokens, the median of its 200 conversations. There one engine starts after the other has ended, as
memory holds one alone.
TRL is the `bench` extra (trl==1.16.0).
CPU seconds are printed beside wall seconds: on a shared machine they are the steadier of the two.
"""

# ruff: noqa: ANN401 - what TRL, torch and a JSON line hand over has no types

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import machine
from trl_peer import trl_settings
from turns import Race, await_turn, race, say_peak, tell, versions

FOLDER = Path(__file__).parent.parent / "build" / "bench-agents"
QUESTION = "Find out what is in the box. Ask the tool as often as you like."
TEMPLATE = """\
{%- if tools -%}
{{ '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>' + ((call.function or call) | tojson) + '</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
"""Of SmolLM2, with tools: its own template leaves them out, which TRL refuses."""


@dataclass(frozen=True, slots=True)
class Case:
    """One setting that both engines run."""

    model: str
    dtype: str
    turns: int
    answer_tokens: int
    group: int = 8
    """Episodes of each task."""
    threads: int = 1
    tasks: int = 2
    """Tasks of a step."""
    passes: int = 1
    """Passes into which TRL splits an update, so that it fits in memory."""
    tools: bool = False
    """Whether the prompt describes tools at the length that is usual for agents."""
    target: float = 0.0
    """How many times TRL's episodes a second are asked for."""
    learning_rate: float = 1e-6
    seed: int = 0


SMOL = "smollm2-135m"
CASES = {
    "tiny-4": Case("tiny", "float32", 4, 16, target=4.0),
    "tiny-8": Case("tiny", "float32", 8, 16, target=4.0),
    "smol-4": Case(SMOL, "bfloat16", 4, 24, group=4, target=8.0),
    "smol-8": Case(SMOL, "bfloat16", 8, 24, group=4, target=12.0),
    "tools-4": Case(SMOL, "bfloat16", 4, 24, tasks=1, passes=4, tools=True, target=8.0),
    "tools-8": Case(SMOL, "bfloat16", 8, 24, tasks=1, passes=4, tools=True, target=12.0),
}
IN_FLOAT32 = {
    f"{name}-float32": replace(CASES[name], dtype="float32") for name in ("smol-4", "smol-8")
}
"""TRL's autocast casts every weight at every token, so float32 may be its faster dtype."""
LINEAR = {
    f"linear-{model}-{turns}": replace(CASES[like], turns=turns, target=0.0)
    for model, like in (("tiny", "tiny-4"), (SMOL, "smol-4"))
    for turns in (4, 8, 16, 32)
}
CURVES = {
    f"curve-{seed}": Case("tiny", "float32", 3, 8, learning_rate=2e-3, seed=seed)
    for seed in range(3)
}
CASES_OF_WORKERS = CASES | IN_FLOAT32 | LINEAR | CURVES


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--cases", nargs="+", choices=CASES | IN_FLOAT32, default=list(CASES))
    arguments.add_argument("--steps", type=int, default=4)
    arguments.add_argument("--linear", nargs="?", const="tiny", choices=["tiny", SMOL])
    arguments.add_argument("--curves", action="store_true")
    arguments.add_argument("--client", action="store_true")
    arguments.add_argument("--threads", type=int, default=1, help="threads of each engine")
    arguments.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        engine, name = options.worker
        WORKERS[engine](CASES_OF_WORKERS[name], options.steps)
        return
    print(f"{machine()}, {versions()}")
    if options.linear:
        measure_linear(options.linear, options.threads, options.steps)
        return
    if options.curves:
        measure_curves(options.steps)
        return
    for name in options.cases:
        case = replace(CASES_OF_WORKERS[name], threads=options.threads)
        model_folder(case.model)
        engines = ("trl", "ours", "client") if options.client else ("trl", "ours")
        race(race_of(name, case, engines), options.steps)


def race_of(name: str, case: Case, engines: tuple[str, ...]) -> Race:
    """Return a case as a race of these engines."""
    parts = (case.threads, case.dtype, case.target, "samples")
    return Race(__file__, name, f"{name}: {case}", *parts, engines=engines, apart=case.tools)


def measure_linear(model: str, threads: int, steps: int) -> None:
    """Print what a new token costs as episodes get longer; in a linear step it stays the same."""
    model_folder(model)
    first = 0.0
    for name in [name for name in LINEAR if name.startswith(f"linear-{model}-")]:
        case = replace(LINEAR[name], threads=threads)
        taken = race(race_of(name, case, ("ours",)), steps)["ours"]
        tokens = statistics.median(step["new"] for step in taken)
        cost = statistics.median(step["cpu"] / step["new"] for step in taken)
        first = first or cost
        print(
            f"  {case.turns} turns: {tokens:.0f} new tokens, {1e3 * cost:.3f} CPU ms for each, "
            f"{cost / first:.2f} times that of {LINEAR[f'linear-{model}-4'].turns} turns",
            flush=True,
        )


def measure_curves(steps: int) -> None:
    """Print the mean reward of each quarter of a run, for both engines and several seeds."""
    model_folder("tiny")
    ends: dict[str, list[float]] = {"trl": [], "ours": []}
    for name, case in CURVES.items():
        taken = race(race_of(name, case, tuple(ends)), steps)
        for engine, values in ends.items():
            rewards = [step["reward"] for step in taken[engine]]
            size = max(1, len(rewards) // 4)
            parts = [rewards[at : at + size] for at in range(0, size * 4, size)]
            means = [statistics.fmean(part) for part in parts if part]
            values.append(means[-1])
            print(f"  {engine:4}: reward {' '.join(f'{mean:.3f}' for mean in means)}", flush=True)
    for engine, values in ends.items():
        print(f"{engine:4}: last quarter {min(values):.3f} to {max(values):.3f} over the seeds")


class Box:
    """An environment in TRL's convention; each answer gets a few words back."""

    turns = 0
    """Answers until the end, set by the worker."""

    def reset(self, **_: object) -> str:
        """Begin an episode."""
        self._answers: list[str] = []
        return "The box is closed."

    def ask(self, text: str) -> str:
        """Ask what is in the box.

        Args:
            text: The question.
        """
        self._answers.append(text)
        return f"Answer {len(self._answers)}: it is not what you think it is."

    def get_reward(self) -> float:
        """Return the share of vowels: cheap, and different from one episode to the next."""
        text = "".join(self._answers)
        return sum(letter in "aeiou" for letter in text) / max(1, len(text))


class OurBox(Box):
    """The same, with every answer taken as a call."""

    def on_answer(self, text: str) -> str | None:
        """Take an answer as a call of `ask`; None after the last one."""
        if len(self._answers) + 1 == self.turns:
            return None
        return self.ask(text)


def question(case: Case) -> str:
    """Return the user's message, after the descriptions of many tools if the case has them."""
    if not case.tools:
        return QUESTION
    from orbiter.train.demo.multi_turn.tasks import load_tasks, tool_schemas

    task = load_tasks(classes=["TravelAPI"])[0]
    return f"You also know these tools: {json.dumps(tool_schemas(task))}\n{QUESTION}"


def model_folder(name: str) -> Path:
    """Return the model with a template that shows tools and calls, made on first use."""
    folder = FOLDER / name
    if not (folder / "config.json").exists():
        from orbiter.train.engine.models.load import load_model

        loaded = load_model(name, device="cpu")
        if name == SMOL:
            loaded.tokenizer.chat_template = TEMPLATE
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def work_ours(case: Case, steps: int) -> None:
    """Take steps with this package's trainer, which plays the environment."""
    OurBox.turns = case.turns
    train_ours(case, steps, environment=OurBox)


def work_client(case: Case, steps: int) -> None:
    """Take steps with this package's trainer, which runs an agent with an openai client."""
    from openai import AsyncOpenAI

    from orbiter.train import RewardSpec
    from orbiter.train.agents.environments.tools import make_tool

    client = AsyncOpenAI(base_url="http://policy.invalid/v1", api_key="not used")
    tools: Any = [make_tool(Box().ask).described()]

    async def agent(_: object) -> float:
        box = Box()
        messages: list[Any] = [{"role": "user", "content": f"{question(case)}\n\n{box.reset()}"}]
        for turn in range(case.turns):
            answer = await client.chat.completions.create(
                model="policy", messages=messages, tools=tools
            )
            text = answer.choices[0].message.content or ""
            if turn + 1 < case.turns:
                messages.append({"role": "assistant", "content": text})
                messages.append({"role": "user", "content": box.ask(text)})
        return box.get_reward()

    def vowels(result: float) -> float:
        return result

    train_ours(case, steps, agent=agent, rewards=[RewardSpec(name="vowels", fn=vowels)])


def train_ours(case: Case, steps: int, **how: Any) -> None:
    """Train with this package, held between the steps."""
    from orbiter.train import VeRLConfig, VeRLTrainer
    from orbiter.train.verl.episodes import Episodes

    began: dict[str, float] = {}
    draw, refresh = Episodes.draw, Episodes.refresh

    async def held_draw(self: Episodes, session: Any, step: int) -> None:
        await_turn()
        # Every answer gets the same number of tokens, as in TRL.
        self.setting.policy.stop_token_ids = frozenset()
        began.update(wall=time.perf_counter(), cpu=time.process_time())
        await draw(self, session, step)
        began["play"] = time.perf_counter() - began["wall"]
        began.update(session.position.row)
        # Answers and tool results; the prompt that all episodes share runs once.
        began["new"] = float((session.batch.length - session.batch.prompt_length).sum())

    async def told_refresh(self: Episodes) -> None:
        await refresh(self)
        if began["turns"] != case.turns:
            raise SystemExit(f"episodes had {began['turns']} turns, not {case.turns}")
        wall = time.perf_counter() - began["wall"]
        tell(
            tokens=began["tokens"],
            samples=case.group * case.tasks,
            wall=wall,
            cpu=time.process_time() - began["cpu"],
            play=began["play"],
            update=wall - began["play"],
            turns=began["turns"],
            reward=began["reward"],
            new=began["new"],
            prompts_run=began["prompt_run_share"],
        )

    Episodes.draw, Episodes.refresh = held_draw, told_refresh  # type: ignore[method-assign]
    config = VeRLConfig(
        model=str(model_folder(case.model)),
        dtype=case.dtype,  # type: ignore[arg-type]  # "float32" or "bfloat16"
        device="cpu",
        batch_size=case.tasks,
        group_size=case.group,
        max_turns=case.turns,
        max_response_length=case.answer_tokens,
        learning_rate=case.learning_rate,
        seed=case.seed,
        progress=False,
    )
    trainer = VeRLTrainer(config, **how)
    asyncio.run(
        trainer.train([{"prompt": question(case), "n": n} for n in range(case.tasks * steps)])
    )
    say_peak()


def as_call(tokenizer: Any, ids: list[int], **_: Any) -> dict[str, Any]:
    """Read any answer as a call of the tool; put in the place of TRL's parser."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    call = {"type": "function", "function": {"name": "ask", "arguments": {"text": text}}}
    return {"role": "assistant", "content": text, "tool_calls": [call]}


def with_schema(tokenizer: Any) -> Any:
    """Give a tokenizer a schema of answers: without one, TRL does not parse them at all."""
    tokenizer.response_schema = {}
    return tokenizer


def work_trl(case: Case, steps: int) -> None:
    """Take steps with TRL's trainer, every answer a call of the tool."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import grpo_trainer

    from orbiter.train.engine.models.load import load_model

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    loaded = load_model(str(model_folder(case.model)), device="cpu")
    began: dict[str, float] = {}

    grpo_trainer.parse_response = as_call
    grpo_trainer.add_response_schema = with_schema

    class Turns(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
        """Hold the trainer between steps."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            await_turn()
            began.update(wall=time.perf_counter(), cpu=time.process_time(), tokens=0, calls=0)
            began["play"] = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall = time.perf_counter() - began["wall"]
            tell(
                tokens=began["tokens"],
                samples=case.group * case.tasks,
                wall=wall,
                cpu=time.process_time() - began["cpu"],
                play=began["play"],
                update=wall - began["play"],
                turns=began["calls"] / (case.group * case.tasks),
                reward=trainer._metrics["train"]["reward"][-1],
            )

    longest = case.turns * (case.answer_tokens + 64)
    trainer = GRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        environment_factory=Box,
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": question(case)}]}] * (case.tasks * steps)
        ),
        callbacks=[Turns()],
        args=GRPOConfig(
            **trl_settings("agents", case.dtype, steps, learning_rate=case.learning_rate),
            per_device_train_batch_size=case.group * case.tasks // case.passes,
            gradient_accumulation_steps=case.passes,
            num_generations=case.group,
            max_completion_length=longest,
            max_tool_calling_iterations=case.turns - 1,
            generation_kwargs={
                "max_new_tokens": case.answer_tokens,
                "min_new_tokens": case.answer_tokens,
            },
            lr_scheduler_type="constant",
            seed=case.seed,
            shuffle_dataset=False,
            beta=0.0,
        ),
    )
    turn = trainer._generate_single_turn

    def counted(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        answers, logprobs = turn(*args, **kwargs)
        began["play"] += time.perf_counter() - start
        began["tokens"] += sum(map(len, answers))
        began["calls"] += len(answers)
        return answers, logprobs

    trainer._generate_single_turn = counted
    trainer.train()
    say_peak()


WORKERS = {"ours": work_ours, "client": work_client, "trl": work_trl}

if __name__ == "__main__":
    main()
