"""Prepare the input files of a job on verl: model, prompts as rows, and rewards.

Weights are written only for a model that verl cannot load directly (built in, or adapters).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.disk import disk_errors
from orbiter.train.engine.config import longest_prompt
from orbiter.train.engine.models.architectures import context_of
from orbiter.train.engine.models.download import hub_folder
from orbiter.train.engine.models.gguf import SMOLLM2, ensure_smollm2
from orbiter.train.engine.models.load import TINY, is_path, load_model, saved_kind
from orbiter.train.engine.models.pretrained import load_config, load_tokenizer
from orbiter.train.engine.models.saved_files import check_model_files
from orbiter.train.engine.models.tiny import CONTEXT, tiny_tokenizer
from orbiter.train.engine.tasks import as_items, make_tasks
from orbiter.train.engine.turn_end import configured_stops, stop_token_ids
from orbiter.train.errors import ConfigError, DataError, require
from orbiter.train.formats.verl_rows import prompt_of, write_rows
from orbiter.train.storage import write_file
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.cluster.agents import ShippedAgent, written_tasks
from orbiter.train.verl.cluster.inside.reward import SHIPMENT
from orbiter.train.verl.cluster.inside.shipment import FAULTS, AgentShipment
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.overrides import AGENT_LOOP
from orbiter.train.verl.cluster.rewards import MODULE, Shipped
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.tasks import as_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOOP = "orbiter.train.verl.cluster.inside.agent_loop.EpisodeLoop"
"""The agent loop that verl makes for each episode."""
SENT = (
    *("algorithm", "batch_size", "group_size", "minibatch_size", "loss_aggregation"),
    *("max_response_length", "temperature", "max_turns", "max_episode_tokens"),
    *("episode_timeout_seconds", "episode_retries", "max_failed_share", "on_truncation"),
    "on_agent_error",
    *("on_reward_error", "reward_timeout_seconds", "reward_concurrency", "policy_models"),
    "episode_concurrency",
)
"""Settings that the workers of an agent need."""


class ModelFiles(NamedTuple):
    """The files from which verl loads a model."""

    path: str
    """A folder, or a name on the hub."""
    written: bool
    """Whether the folder still has to be written."""
    tokenizer: PreTrainedTokenizerBase
    context: int
    """Context length of the model, in tokens."""
    stops: frozenset[int]
    """Tokens that end an answer."""


def model_files(name: str, folder: Path) -> ModelFiles:
    """Find a model for verl; one that verl cannot load directly will be written to `folder`.

    Raises:
        StorageError: the model does not exist.
        ConfigError: its tokenizer has no chat template, which verl applies to every prompt.
    """
    path = Path(name).expanduser()
    # verl loads models from files, and this one is made by code.
    if name == TINY:
        tokenizer = tiny_tokenizer()
        files = ModelFiles(str(folder), True, tokenizer, CONTEXT, stop_token_ids(tokenizer))
    elif name == SMOLLM2:
        files = _described(ensure_smollm2().folder)
    elif is_path(name) and saved_kind(path) == "adapter":
        loaded = load_model(name, device="cpu")
        context = context_of(loaded.model.config)
        stops = configured_stops(loaded.model) | stop_token_ids(loaded.tokenizer)
        files = ModelFiles(str(folder), True, loaded.tokenizer, context, stops)
    else:
        # A hub name stays a name, since the workers of other machines load it themselves.
        files = _described(path.resolve()) if is_path(name) else _described(hub_folder(name), name)
    if files.tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {name} has no chat template, and verl renders every prompt with it"
        )
    return files


def _described(folder: Path, name: str | None = None) -> ModelFiles:
    """Describe a model that verl loads itself: from `folder`, or by its `name` on the hub."""
    check_model_files(folder)
    context, tokenizer = context_of(load_config(folder)), load_tokenizer(folder)
    stops = stops_of_folder(folder) | stop_token_ids(tokenizer)
    return ModelFiles(name or str(folder), False, tokenizer, context, stops)


def stops_of_folder(folder: Path) -> frozenset[int]:
    """Return the tokens that end an answer by the generation configuration of a saved model."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    known = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    # Transformers allows one token or several here.
    listed = known if isinstance(known, list) else [known]
    return frozenset(token_id for token_id in listed if isinstance(token_id, int))


def write_model(name: str, files: ModelFiles) -> None:
    """Write the weights of a model that verl cannot load directly, unless they already exist."""
    if not files.written or (Path(files.path) / "config.json").is_file():
        return
    loaded = load_model(name, device="cpu")
    if loaded.model.generation_config is not None:  # an adapter's base does not know its stops
        stops = configured_stops(loaded.model) | stop_token_ids(loaded.tokenizer)
        # The samplers stop by this file, and training by the tokenizer: both must agree.
        loaded.model.generation_config.eos_token_id = sorted(stops)
    loaded.model.save_pretrained(files.path)
    loaded.tokenizer.save_pretrained(files.path)


def describe_model(name: str, files: ModelFiles, folder: Path) -> str:
    """Return a folder with the model's configuration and tokenizer; it may lack the weights.

    verl reads a critic's configuration and tokenizer when it validates a plan. If the model has not
    been written yet, both are written to `folder`.
    """
    if not files.written or (Path(files.path) / "config.json").is_file():
        return files.path
    model = load_model(name, device="cpu").model
    # Unset in a model that was never saved, and verl reads it.
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    files.tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingPrompts:
    """The tasks whose prompts fit into the context."""

    items: list[TrajectoryItem]
    held_out: list[TrajectoryItem]
    longest: int
    """Length of the longest prompt, in tokens."""
    system: str | None
    tasks: Sequence[str | None] | None = None
    """For an agent: its tasks as JSON; None for a task that is its item."""
    held_out_tasks: Sequence[str | None] | None = None


def make_prompts(
    config: VeRLConfig, files: ModelFiles, dataset: object, held_out: object, system: str | None
) -> FittingPrompts:
    """Select the tasks for verl by the length of their prompts as verl renders them.

    Raises:
        DataError: a prompt is too long and `on_long_prompt` is "error", or no prompt is left.
        ConfigError: prompt and response do not fit into the model's context.
    """
    room = longest_prompt(config, files.context)
    encode = _encoder(files.tokenizer, system)

    def fitting(given: object) -> tuple[list[TrajectoryItem], int]:
        tasks = make_tasks(
            as_items(given),
            encode,
            room=lambda item: room,  # noqa: ARG005 - the same for all
            on_long_prompt=config.on_long_prompt,
        )
        return tasks.items, max(map(len, tasks.prompts))

    items, longest = fitting(dataset)
    evaluated, longest_evaluated = ([], 0) if held_out is None else fitting(held_out)
    return FittingPrompts(
        items=items, held_out=evaluated, longest=max(longest, longest_evaluated), system=system
    )


def make_agent_tasks(
    config: VeRLConfig, files: ModelFiles, dataset: object, held_out: object
) -> FittingPrompts:
    """Return the tasks of an agent; how long its prompts are shows only when it runs.

    Raises:
        DataError: a task cannot be written as JSON.
        ConfigError: an answer leaves no room for a prompt.
    """
    tasks = as_tasks(dataset)
    evaluated = None if held_out is None else as_tasks(held_out)
    context = min(files.context, config.max_episode_tokens or files.context)
    if config.max_response_length >= context:
        raise ConfigError(
            f"max_response_length={config.max_response_length} leaves no room for a prompt: an "
            f"episode of {config.model} may have {context} tokens; lower it, or raise "
            "max_episode_tokens"
        )
    return FittingPrompts(
        items=tasks.items,
        held_out=[] if evaluated is None else evaluated.items,
        # The longest prompt that an episode could have, since the real ones are not known.
        longest=context - config.max_response_length,
        system=None,
        tasks=written_tasks(tasks.tasks),
        held_out_tasks=None if evaluated is None else written_tasks(evaluated.tasks),
    )


def _encoder(
    tokenizer: PreTrainedTokenizerBase, system: str | None
) -> Callable[[TrajectoryItem, int | None], list[int]]:
    """Return a function that encodes an item as verl's agent loop encodes its row."""
    errors = require("jinja2.exceptions", extra="train")

    def encode(item: TrajectoryItem, longest: int | None) -> list[int]:
        turns: Sequence[Any] = prompt_of(item, system=system, tools_as_text=True)
        try:
            text = tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True
            )
        except errors.TemplateError as error:
            roles = [turn["role"] for turn in turns]
            raise DataError(f"the chat template refuses these turns ({roles}): {error}") from error
        token_ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        # verl cuts on the left by tokens, without regard to turns; the plan has a note about it.
        return token_ids if longest is None else token_ids[-longest:]

    return encode


class Inputs(NamedTuple):
    """The inputs of a job."""

    model: ModelFiles
    prompts: FittingPrompts
    rewards: Sequence[Shipped]
    agent: ShippedAgent | None
    plan: str
    """The plan as text, which is stored with the files."""


def write_files(config: VeRLConfig, layout: Layout, inputs: Inputs) -> None:
    """Write all files that the job reads, and remove the reports of an earlier start.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    with disk_errors(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True)
    # A fault of the earlier start would end this one at once.
    shutil.rmtree(layout.folder / FAULTS, ignore_errors=True)
    shutil.rmtree(layout.samples, ignore_errors=True)
    layout.metrics_file.unlink(missing_ok=True)
    prompts = inputs.prompts
    with disk_errors(Path(inputs.model.path)):
        # Before the rows, so that a full disk shows before the long work.
        write_model(config.model, inputs.model)
    write_rows(
        prompts.items,
        layout.train_file,
        system=prompts.system,
        tools_as_text=True,
        tasks=prompts.tasks,
    )
    if layout.validates:
        write_rows(
            prompts.held_out,
            layout.held_out_file,
            system=prompts.system,
            tools_as_text=True,
            tasks=prompts.held_out_tasks,
        )
    files = {layout.reward_file.name: MODULE, SHIPMENT: _shipment(config, inputs.rewards)}
    files |= {str(each.file): each.source or "" for each in inputs.rewards if each.file}
    if inputs.agent is not None:
        files |= _agent_files(config, layout, inputs.model, inputs.agent)
    files["plan.txt"] = f"{inputs.plan}\n"
    for name, text in files.items():
        write_file(layout.folder / name, text.encode())


def _agent_files(
    config: VeRLConfig, layout: Layout, model: ModelFiles, agent: ShippedAgent
) -> dict[str, str]:
    """Return the files from which verl's workers make the agent, by name."""
    shipment = AgentShipment(
        agent=agent.described(),
        settings={name: getattr(config, name) for name in SENT},
        stop_token_ids=sorted(model.stops),
        context_length=layout.longest_prompt + config.max_response_length,
        workers=config.nodes * config.gpus_per_node,
    )
    loop = {"name": AGENT_LOOP, "_target_": LOOP, "shipment": str(layout.agent_file)}
    files = {each.file: each.source or "" for each in agent.code if each.file}
    files[layout.agent_file.name] = json.dumps(asdict(shipment), indent=2)
    return files | {layout.loop_file.name: json.dumps([loop], indent=2)}  # JSON is YAML


def _shipment(config: VeRLConfig, rewards: Sequence[Shipped]) -> str:
    """Return the rewards and their limits as JSON for the reward module."""
    kept = ("name", "weight", "module", "function", "file")
    shipment = {
        "rewards": [{name: getattr(each, name) for name in kept} for each in rewards],
        "on_error": config.on_reward_error,
        "timeout_seconds": config.reward_timeout_seconds,
        "concurrency": config.reward_concurrency,
    }
    return json.dumps(shipment, indent=2)
