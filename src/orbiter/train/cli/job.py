"""Prepare a training from the command line's settings: data, rewards, trainer, folder and plan.

What a run prints and how it ends is in `train.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orbiter.train.cli.agent import AgentChoice, load_agent, read_tasks
from orbiter.train.cli.code import load_gold, load_object, load_rewards
from orbiter.train.cli.options import new_run_folder, read_items
from orbiter.train.cli.output import command, duration
from orbiter.train.cli.settings.config_file import Settings, all_settings
from orbiter.train.engine.plan import TrainPlan
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.errors import ConfigError, MissingExtraError, boundary
from orbiter.train.offline import OfflineConfig, OfflineTrainer
from orbiter.train.preference import (
    PreferenceConfig,
    PreferenceTrainer,
    RewardModelConfig,
    RewardModelTrainer,
)
from orbiter.train.progress import is_plain
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.plan import ClusterPlan

Method = Literal["train", "sft", "offline", "prefer", "reward-model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training."""

    method: Method
    settings: Settings
    trainer: ModelTrainer
    folder: Path
    items: Sequence[Any]
    """Items to answer; with an agent its tasks, which may also be dicts."""
    held_out: Sequence[Any] | None
    rewards: Sequence[RewardSpec]
    """The functions that score answers; also used for imitation if the settings ask for it."""
    agent: AgentChoice | None = None
    """The agent or environment that works on the tasks; None if the model answers alone."""

    @property
    def scorers(self) -> list[RewardSpec]:
        """The rewards, and the gold reward."""
        gold = self.trainer.gold if isinstance(self.trainer, VeRLTrainer) else None
        return [*self.rewards, *([] if gold is None else [gold])]

    @property
    def resume_command(self) -> str:
        """The command that continues this run after it was stopped."""
        return command("runs", "resume", self.folder)

    def run_config(self) -> dict[str, object]:
        """Return all settings of the run, defaults included, for its folder."""
        values: dict[str, object] = {}
        if self.rewards:
            values["reward"] = self.settings.values["reward"]
        values["data"] = self.settings.section("data")
        if self.agent is not None:
            values["agent"] = self.agent.settings
        if self.settings.section("eval"):
            values["eval"] = self.settings.section("eval")  # for `eval --run`
        own = all_settings(self.trainer.config, self.method)
        own["trackers"] = self.settings.section(self.method).get("trackers", [])
        kept = {k: v for k, v in own.items() if k not in ("output_dir", "resume", "progress")}
        values[self.method] = kept
        return values


def make_job(method: Method, settings: Settings, *, out: Path | None, resume: bool = False) -> Job:
    """Read the data, load the rewards and make the trainer; the model is not loaded.

    Raises:
        ConfigError: a setting is wrong, or a file that it names does not exist.
        DataError: the data cannot be read.
        CallbackError: the user's file of rewards raised.
    """
    section = settings.section(method)
    folder = out or Path(str(section.get("output_dir") or new_run_folder(method)))
    fixed: dict[str, object] = {
        "output_dir": folder,
        "resume": resume or section.get("resume", False),
        "progress": section.get("progress", True) and not is_plain(sys.stderr),
        "trackers": [_tracker(name) for name in _listed(section.get("trackers", []))],
    }
    agent = load_agent(settings) if method == "train" else None
    items, held_out = _data(settings, with_agent=agent is not None)
    # An environment gives its own reward, and an agent may give rewards as it works. The other
    # methods run no agent, and a reward that judges episodes cannot judge their single answers.
    judges_episodes = method != "train" and bool(settings.section("agent"))
    # A teacher gives a signal at every token, so that rewards may be left out.
    wanted = method == "train" and agent is None and section.get("algorithm") != "distill"
    # A reward model writes no answers, so there is nothing to score.
    useful = method != "reward-model" and "reward" in settings.values and not judges_episodes
    rewards = load_rewards(settings.values.get("reward"), settings) if wanted or useful else []
    trainer = _trainer(method, settings, rewards, agent, fixed)
    trainer.dataset, trainer.eval_dataset = items, held_out
    return Job(
        method=method,
        settings=settings,
        trainer=trainer,
        folder=folder,
        items=items,
        held_out=held_out,
        rewards=rewards,
        agent=agent,
    )


def _trainer(
    method: Method,
    settings: Settings,
    rewards: Sequence[RewardSpec],
    agent: AgentChoice | None,
    fixed: dict[str, object],
) -> ModelTrainer:
    if method == "sft":
        return SFTTrainer(settings.build("sft", SFTConfig, **fixed))
    if method == "offline":
        return OfflineTrainer(settings.build("offline", OfflineConfig, **fixed))
    if method == "prefer":
        return PreferenceTrainer(settings.build("prefer", PreferenceConfig, **fixed))
    if method == "reward-model":
        return RewardModelTrainer(settings.build("reward-model", RewardModelConfig, **fixed))
    config = settings.build("train", VeRLConfig, **fixed)
    gold = load_gold(settings.values.get("reward"), settings)
    choice = agent or AgentChoice()
    return VeRLTrainer(
        config, rewards, agent=choice.agent, environment=choice.environment, gold=gold
    )


def _data(settings: Settings, *, with_agent: bool) -> tuple[Sequence[Any], Sequence[Any] | None]:
    own = settings.own("data")
    if not own.get("train"):
        raise ConfigError(
            'there is no data: set train = "data.jsonl" under [data], or data.train=FILE'
        )
    kind = own.get("format")
    format_name = None if kind is None else str(kind)
    held_out = own.get("eval")
    read: Callable[[str, str | None], Sequence[Any]] = read_tasks if with_agent else read_items
    items = read(str(own["train"]), format_name)
    return items, None if held_out is None else read(str(held_out), format_name)


def _listed(names: object) -> list[str]:
    if not isinstance(names, list | tuple):
        raise ConfigError(f'trackers must be a list such as ["wandb"], got {names!r}')
    return [str(name) for name in names]


def _tracker(name: str) -> Any:  # noqa: ANN401 - whatever the user's own function makes
    """Return a tracker's name if known and installed, or the object made by "file.py:make"."""
    if ":" in name:
        make = load_object(name, what="trackers")
        with boundary(f"tracker {name!r}"):
            return make()
    if name.isidentifier() and importlib.util.find_spec(name) is None:
        from orbiter.train.runlog.trackers import KNOWN

        if name in KNOWN:
            raise MissingExtraError(
                f"{name!r} is not installed; run: pip install 'orbiter-train[{name}]'"
            )
    return name


def plan_lines(job: Job, plan: TrainPlan | ClusterPlan) -> list[tuple[str, str]]:
    """Return a plan as pairs of label and value."""
    return _on_verl(plan) if isinstance(plan, ClusterPlan) else _here(job, plan)


def _here(job: Job, plan: TrainPlan) -> list[tuple[str, str]]:
    rows = len(job.items)
    # The turns of an episode that continue each other are one sequence.
    joined = "" if rows == plan.items else f" in {plan.items} sequences"
    unit = "items" if job.agent is None else "tasks"
    absent = "unknown until the model is downloaded"
    # The length of an agent's episodes is only known once some were played.
    played = "depends on the episodes; --dry-run plays two of them"
    later = absent if job.agent is None else played
    lines = [
        ("method", plan.method),
        ("model", plan.model),
        ("data", f"{rows} {unit}{joined}, {plan.held_out} held out"),
        ("steps", f"{plan.steps} ({plan.updates} updates)"),
        ("tokens", later if plan.tokens is None else f"at most {plan.tokens:,}"),
    ]
    if plan.longest_item is not None:
        lines.append(("longest item", f"{plan.longest_item} tokens"))
    lines.append(("computes in", plan.computes or absent))
    lines.append(("memory", plan.memory or later))
    lines.append(("time", later if plan.seconds is None else f"about {duration(plan.seconds)}"))
    if plan.judge_calls is not None:
        limit = plan.judge_max_cost
        cost = "no limit of cost" if limit is None else f"at most {limit:g}"
        lines.append(("judge", f"about {plan.judge_calls:,} calls, {cost}"))
    return lines


def _on_verl(plan: ClusterPlan) -> list[tuple[str, str]]:
    unit = "GPUs" if plan.device == "cuda" else "CPU workers"
    return [
        ("backend", f"verl {plan.verl} on {plan.where}"),
        ("machines", f"{plan.nodes} x {plan.gpus_per_node} {unit}"),
        ("steps", str(plan.steps)),
        ("overrides", f"{len(plan.overrides)} keys of verl's configuration"),
        *(("note", note) for note in plan.notes),
    ]
