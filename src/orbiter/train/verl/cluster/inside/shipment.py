"""Read what a run with an agent sends to verl's workers: agent, rewards, settings, model.

This file needs neither verl nor Ray.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from orbiter.train.agents.command import CommandAgent
from orbiter.train.agents.environments.player import EnvironmentAgent
from orbiter.train.errors import CallbackError
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.environments import reward_of
from orbiter.train.verl.reward import RewardSpec

AGENT, FAULTS, REWARDS = "agent.json", "faults", "rewards.json"
"""The agent's file, the folder for faults and the list of rewards, in the job's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentShipment:
    """The content of the agent's file."""

    agent: Mapping[str, Any]
    """See `ShippedAgent.described`."""
    settings: Mapping[str, Any]
    """The settings of the config that concern episodes."""
    stop_token_ids: list[int]
    """Tokens that end an answer of the model."""
    context_length: int
    """Tokens of a prompt and its answer at most."""
    workers: int
    """GPUs that train; a step's rows must divide evenly among them."""

    @property
    def config(self) -> VeRLConfig:
        """The settings, as a config of this process."""
        return VeRLConfig(**self.settings)


def read_shipment(path: Path) -> AgentShipment:
    """Read the agent's file."""
    return AgentShipment(**json.loads(path.read_text(encoding="utf-8")))


def load_agent(folder: Path, described: Mapping[str, Any]) -> object:
    """Make the agent from its description.

    Raises:
        CallbackError: its code or a package that it imports is not available in this process.
    """
    # All of them at once, before the import of the first one fails with a less useful message.
    missing = [name for name in described["packages"] if not _has(name)]
    if missing:
        raise CallbackError(
            f"the agent imports {', '.join(missing)}, which is not installed for {sys.executable} "
            "in verl's worker; install it on every node"
        )
    if described["kind"] == "command":
        return CommandAgent(described["words"], folder=described["folder"])
    parts = [load_object(folder, code, "the agent") for code in described["code"]]
    if described["kind"] == "function":
        return parts[0]
    environment = parts if described["kind"] == "tools" else parts[0]
    return EnvironmentAgent(environment, system_prompt=described["system_prompt"])


def _has(package: str) -> bool:
    try:
        # `find_spec` fails for some modules that are loaded already.
        return package in sys.modules or find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def load_rewards(folder: Path, agent: object) -> list[RewardSpec]:
    """Make the rewards from their list, with the one that an environment gives itself."""
    listed = json.loads((folder / REWARDS).read_text(encoding="utf-8"))["rewards"]
    specs = [spec_of(folder, each) for each in listed]
    # The environment's own reward closes over the agent, so it is made here and not sent.
    return [*specs, *reward_of(agent, specs)] if isinstance(agent, EnvironmentAgent) else specs


def spec_of(folder: Path, shipped: Mapping[str, Any]) -> RewardSpec:
    """Make a reward from its description.

    Raises:
        CallbackError: its function is not available in this process; says why.
    """
    fn = load_object(folder, shipped, f"reward {shipped['name']!r}")
    return RewardSpec(shipped["name"], shipped["weight"], fn)


def load_object(folder: Path, code: Mapping[str, Any], what: str) -> Any:
    """Load an object from the file with its source, or from its module.

    Raises:
        CallbackError: it is not available in this process; the message gives the reason.
    """
    where = code["module"]
    try:
        target: Any
        if code["file"]:
            target = _module_at(folder / code["file"])
        else:
            target = importlib.import_module(where)
        # Dotted for a method of an object or of a class.
        for name in code["function"].split("."):
            target = getattr(target, name)
    except Exception as error:  # a module of the user may raise anything
        raise CallbackError(
            f"{what}: {where}.{code['function']} cannot be loaded in verl's worker "
            f"({type(error).__name__}: {error}); its module, and what that imports, must be "
            "installed in verl's interpreter, on every node"
        ) from error
    return target


def _module_at(path: Path) -> ModuleType:
    name = f"orbiter_shipped_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as an import does: dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
