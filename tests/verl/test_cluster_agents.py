from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.agents import CommandAgent, EnvironmentAgent
from orbiter.train.cli.code import load_object
from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.agents import sendable_rewards, ship_agent, written_tasks
from orbiter.train.verl.cluster.inside.shipment import AgentShipment, load_agent, read_shipment
from orbiter.train.verl.cluster.rewards import ship
from orbiter.train.verl.environments import ENVIRONMENT
from tests.children import run_child


async def solve(task: str) -> str:
    return task


class Desk:
    async def run(self, task: str) -> str:
        return f"desk {task}"


class Coin:
    """An environment."""

    def reset(self) -> str:
        return "Guess."

    def guess(self, side: str) -> str:
        """Say heads or tails.

        Args:
            side: heads or tails
        """
        return side

    def get_reward(self) -> float:
        return 1.0


def look(key: str) -> str:
    """Look something up.

    Args:
        key: What to look up.
    """
    return key


DESK = Desk()


def carried(agent: object, folder: Path) -> Any:  # noqa: ANN401 - whatever was sent
    """The agent as a worker makes it, from what is written of it."""
    shipped = ship_agent(agent)
    for code in shipped.code:
        if code.file:
            (folder / code.file).write_text(code.source or "")
    return load_agent(folder, json.loads(json.dumps(shipped.described())))


def test_a_function_and_an_object_of_a_module_are_imported(tmp_path: Path) -> None:
    assert carried(solve, tmp_path) is solve
    assert carried(DESK, tmp_path) is DESK
    method = carried(DESK.run, tmp_path)
    assert method.__self__ is DESK
    assert not list(tmp_path.iterdir())


def test_a_function_of_a_script_is_sent_as_source(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json\n"
        "from orbiter.train.verl.cluster.agents import ship_agent\n"
        "PREFIX = 'said: '\n"
        "def helper(text):\n    return PREFIX + text\n"
        "async def agent(task):\n    return helper(json.dumps(task))\n"
        "if __name__ == '__main__':\n"
        "    (code,) = ship_agent(agent).code\n"
        "    print(json.dumps([code.file, code.source]))\n"
    )
    done = run_child([sys.executable, str(script)])
    name, source = json.loads(done.stdout)
    assert name == "agent.py"
    assert "PREFIX = 'said: '" in source
    assert "import json as json" in source
    compile(source, name, "exec")


def test_what_the_command_line_loads_from_a_file_is_imported_by_the_files_name(
    tmp_path: Path,
) -> None:
    file = tmp_path / "of_a_config.py"
    file.write_text(
        "import pytest\n"
        "class Desk:\n    async def run(self, task):\n        return task\n"
        "desk = Desk()\n"
        "async def solve(task):\n    return task\n"
        "def vowels(output):\n    return 1.0\n"
    )
    for name in ("solve", "desk"):
        shipped = ship_agent(load_object(f"{file}:{name}", what="[agent] run"))
        assert shipped.modules == ["of_a_config"]
        assert shipped.roots == [str(tmp_path)]
        assert "pytest" in shipped.packages
    (reward,) = ship([RewardSpec("vowels", fn=load_object(f"{file}:vowels", what="[reward]"))])
    assert (reward.module, reward.function, reward.root) == ("of_a_config", "vowels", str(tmp_path))
    source = f"import sys; sys.path.insert(0, {reward.root!r}); import {reward.module} as m"
    done = run_child([sys.executable, "-c", f"{source}; print(m.{reward.function}('a'))"])
    assert done.stdout == "1.0\n", done.stderr


def test_an_environment_is_made_anew_with_its_reward(tmp_path: Path) -> None:
    made = carried(EnvironmentAgent(Coin, system_prompt="Be brief."), tmp_path)
    assert isinstance(made, EnvironmentAgent)
    assert made.environment is Coin
    assert made.system_prompt == "Be brief."
    tools = carried(EnvironmentAgent([look]), tmp_path)
    assert tools.environment == [look]
    trainer = VeRLTrainer(VeRLConfig(), environment=Coin)
    assert [spec.name for spec in trainer.rewards] == [ENVIRONMENT]
    assert sendable_rewards(trainer.agent, trainer.rewards) == []


def test_a_command_goes_as_its_words(tmp_path: Path) -> None:
    made = carried(CommandAgent(["bash", "-c", "echo hi"], folder=tmp_path), tmp_path)
    assert made.words == ["bash", "-c", "echo hi"]
    assert made.folder == tmp_path


def refused() -> dict[str, tuple[object, str]]:
    secret = Desk()

    async def closing_over(task: str) -> str:
        return await secret.run(task)

    class Inside(Coin):
        pass

    return {
        "a lambda": (lambda task: task, "a lambda has no name"),
        "a partial": (functools.partial(solve), "a partial"),
        "a closure over an object": (closing_over, "'secret', a Desk that cannot be written"),
        "an object without a name": (Desk(), "no module holds it under a name"),
        "a class in a function": (EnvironmentAgent(Inside), "no module defines it"),
        "a command with variables": (
            CommandAgent("bash", variables={"KEY": "s3cret"}),
            "environment_variables",
        ),
    }


@pytest.mark.parametrize("case", refused())
def test_what_cannot_travel_is_refused_with_the_way_out(case: str) -> None:
    agent, said = refused()[case]
    with pytest.raises(ConfigError, match=said) as caught:
        ship_agent(agent)
    assert "s3cret" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("define it", "assign it", "name them"))


def test_a_package_that_the_worker_lacks_is_named(tmp_path: Path) -> None:
    described = {**ship_agent(solve).described(), "packages": {"no_such_package": "1.0"}}
    with pytest.raises(CallbackError, match=r"no_such_package.*install it on every node"):
        load_agent(tmp_path, described)


def test_the_packages_of_the_agents_module_are_found() -> None:
    packages = ship_agent(solve).packages
    assert "pytest" in packages
    assert packages["pytest"] == pytest.__version__
    assert not {"json", "sys", "tests"} & packages.keys()


def test_tasks_travel_as_json_or_are_refused() -> None:
    item = TrajectoryItem("q", "a")
    assert written_tasks(["text", {"a": [1, None]}, item]) == ['"text"', '{"a": [1, null]}', None]
    for bad in [(1, 2), {1: "a"}, {"a": {1}}, object(), float("nan")]:
        with pytest.raises(DataError, match="task 1 cannot be sent"):
            written_tasks(["fine", bad])


def test_the_settings_of_episodes_come_back_as_a_config(tmp_path: Path) -> None:
    shipment = AgentShipment(
        agent={},
        settings={"algorithm": "rloo", "max_turns": 3, "on_truncation": "mask"},
        stop_token_ids=[1],
        context_length=64,
        workers=2,
    )
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(asdict(shipment)))
    config = read_shipment(path).config
    assert (config.algorithm, config.max_turns, config.on_truncation) == ("rloo", 3, "mask")
    assert config.backend == "local", "a worker trains nothing itself"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"credit": "turn"}, "credit='turn'"),
        ({"credit": "gigpo"}, "credit='gigpo'"),
        ({"max_extra_groups": 2}, "max_extra_groups=2"),
    ],
)
def test_what_verl_has_no_estimator_for_is_refused_by_name(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        VeRLConfig(backend="verl", device="cpu", **settings)


async def test_gspo_of_episodes_is_refused() -> None:
    config = VeRLConfig(backend="verl", device="cpu", ratio="sequence")
    trainer = VeRLTrainer(config, [RewardSpec("r", fn=len)], agent=solve, dataset=["a"])
    with pytest.raises(ConfigError, match="ratio='sequence'"):
        await trainer.check_config()


@pytest.mark.parametrize(
    ("value", "said"),
    [("KEY", "must be a list of names"), (["KEY=s3cret"], "without their values"), ([""], "name")],
)
def test_environment_variables_are_names(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        VeRLConfig(environment_variables=value)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
