from __future__ import annotations

import asyncio
import functools
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import CallbackError, ConfigError
from orbiter.train.judging import GroupJudge
from orbiter.train.preference import RewardModel, RewardModelConfig, RewardModelTrainer
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import encode_item
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.inside.reward import SHIPMENT, ComputeScore, load
from orbiter.train.verl.cluster.inside.shipment import FAULTS
from orbiter.train.verl.cluster.rewards import MODULE, Shipped, ship
from tests.children import run_child
from tests.judging.scripted import Scorer
from tests.preference.saved import saved_reward_model

WANTED = frozenset("aeiou")


def share(output: str) -> float:
    return sum(character in WANTED for character in output) / max(1, len(output))


def sent(fn: Callable[..., Any], name: str = "probe") -> Shipped:
    (shipped,) = ship([RewardSpec(name, 2.0, fn)])
    return shipped


def written(folder: Path, *shipped: Shipped, **said: object) -> ComputeScore:
    """What verl would call, from the files that a run would write."""
    (folder / "rewards.py").write_text(MODULE)
    for each in shipped:
        if each.file:
            (folder / each.file).write_text(each.source or "")
    kept = ("name", "weight", "module", "function", "file")
    shipment = {
        "rewards": [{name: getattr(each, name) for name in kept} for each in shipped],
        "on_error": "raise",
        "timeout_seconds": 5.0,
        "concurrency": 4,
    }
    (folder / SHIPMENT).write_text(json.dumps({**shipment, **said}))
    return load(str(folder / "rewards.py"))


def ask(compute: ComputeScore, output: str, item: TrajectoryItem | None = None) -> dict[str, float]:
    told = {"item": encode_item(item or TrajectoryItem("state", "")).decode(), "index": 3}

    async def call() -> dict[str, float]:
        return await compute(
            data_source="d", solution_str=output, ground_truth="g", extra_info=told
        )

    return asyncio.run(call())


def test_a_function_of_a_module_is_imported_where_it_runs() -> None:
    shipped = sent(math.sqrt, "root")
    assert (shipped.module, shipped.function, shipped.file) == ("math", "sqrt", None)
    assert shipped.root is None, "Python's own is there already"
    own = sent(share)
    assert own.file is None
    assert own.root == str(Path(__file__).parents[2]), "where its outermost package is found"


def test_a_function_of_a_script_travels_as_its_source_with_all_that_it_uses(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json\n"
        "import math as m\n"
        "from collections import Counter\n"
        "from orbiter.train.verl import RewardSpec\n"
        "from orbiter.train.verl.cluster.rewards import ship\n"
        "import re\n"
        "LIMIT, WORDS, NUMBER = 3, frozenset('ab'), re.compile('[0-9]+', re.ASCII)\n"
        "def counted(text):\n"
        "    return Counter(text)\n"
        "def reward(output, item, *, most=LIMIT):\n"
        "    'Uses a module, a class, a constant, a default and a function.'\n"
        "    found = NUMBER.findall(output)\n"
        "    return m.fsum(min(most, counted(output)[w]) for w in WORDS) + len(found)\n"
        "def maker(bonus):\n"
        "    def closed(output):\n"
        "        return bonus + len(output)\n"
        "    return closed\n"
        "specs = [RewardSpec('a', 1.0, reward), RewardSpec('b', 1.0, maker(0.5))]\n"
        "kept = ('name', 'weight', 'module', 'function', 'file', 'source')\n"
        "print(json.dumps([{k: getattr(s, k) for k in kept} for s in ship(specs)]))\n"
    )
    said = run_child([sys.executable, script], check=True)
    shipped = [Shipped(**each, root=None) for each in json.loads(said.stdout)]
    answer = ask(written(tmp_path, *shipped), "aaaab 12")
    assert answer["reward/a"] == 5, "three a, one b, a number"
    assert answer["reward/b"] == 8.5
    assert answer["score"] == 13.5
    assert "LIMIT = 3" in (shipped[0].source or "")


def closing_over(value: object) -> Callable[[str], float]:
    def closed(output: str) -> float:
        return float(str(value) == output)

    return closed


class Critic:
    def method(self, output: str) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda output: float(len(output)), "a lambda has no name"),
        (functools.partial(share), "a partial, which has no source"),
        (Critic().method, "of type method, which has no source"),
        (closing_over(Critic()), "it uses 'value', a Critic that cannot be written as source"),
    ],
)
def test_what_has_no_source_is_refused_with_the_way_out(fn: Callable[..., Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"reward 'probe' cannot be sent to verl: .*{why}") as no:
        sent(fn)
    assert "define it with `def`" in str(no.value)


def test_a_closure_over_plain_values_travels(tmp_path: Path) -> None:
    shipped = sent(closing_over("yes"))
    assert shipped.file == "reward_0.py"
    compute = written(tmp_path, shipped)
    assert ask(compute, "yes")["score"] == 2
    assert ask(compute, "no")["score"] == 0


def broken(output: str) -> float:
    raise ValueError(f"bad {output}")


def test_a_fault_is_left_where_the_run_looks_for_it(tmp_path: Path) -> None:
    compute = written(tmp_path, sent(broken, "strict"))
    with pytest.raises(CallbackError):
        ask(compute, "thing")
    (file,) = (tmp_path / FAULTS).iterdir()
    fault = json.loads(file.read_text())["fault"]
    assert "reward 'strict' on item 3" in fault
    assert "ValueError: bad thing" in fault


def test_a_number_stands_in_for_a_fault_where_that_was_wished(tmp_path: Path) -> None:
    compute = written(tmp_path, sent(broken), on_error=-1.0)
    answer = ask(compute, "thing")
    assert answer == {"score": -2.0, "reward/probe": -1.0, "reward_faults": 1.0}
    assert not (tmp_path / FAULTS).exists()


def test_a_module_that_the_worker_lacks_is_named(tmp_path: Path) -> None:
    away = Shipped(
        name="far",
        weight=1,
        module="no_such_module",
        function="f",
        file=None,
        source=None,
        root=None,
    )
    with pytest.raises(CallbackError, match=r"no_such_module\.f cannot be loaded in verl's worker"):
        ask(written(tmp_path, away), "x")


async def test_a_reward_model_is_sent_by_its_folder_and_scores_as_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await saved_reward_model(tmp_path / "rm")
    monkeypatch.chdir(tmp_path)
    model = RewardModel("./rm", device="cpu", micro_batch_tokens=512)
    shipped = sent(model)
    assert shipped.file == "reward_0.py"
    assert repr(str(folder.resolve())) in (shipped.source or ""), "workers have another folder"
    assert "micro_batch_tokens=512" in (shipped.source or "")
    monkeypatch.chdir("/")
    compute = written(tmp_path, shipped)
    item = TrajectoryItem("Name a colour.", "")
    for output in ("red", "a long story"):
        answer = await compute(
            data_source="d",
            solution_str=output,
            ground_truth="g",
            extra_info={"item": encode_item(item).decode(), "index": 3},
        )
        here = await RewardModel(folder, device="cpu")(output, item)
        assert answer["reward/probe"] == pytest.approx(here, abs=1e-6)
        assert answer["score"] == pytest.approx(2 * here, abs=1e-6)


async def test_a_reward_model_whose_folder_the_worker_lacks_is_named(tmp_path: Path) -> None:
    folder = await saved_reward_model(tmp_path / "rm")
    compute = written(tmp_path, sent(RewardModel(folder), "liked"))
    shutil.rmtree(folder)
    with pytest.raises(CallbackError, match=r"'liked'.* cannot be loaded in verl's worker"):
        await compute(
            data_source="d",
            solution_str="x",
            ground_truth="g",
            extra_info={"item": encode_item(TrajectoryItem("s", "")).decode(), "index": 0},
        )


async def in_memory() -> RewardModel:
    """The reward model of a trainer that has not saved it."""
    config = RewardModelConfig(model="tiny", device="cpu", dtype="float32", progress=False)
    return await RewardModelTrainer(config).reward_model()


async def one_judge() -> Judge:
    return Judge(Scorer(len), "r")


async def group_judge() -> GroupJudge:
    return GroupJudge(Scorer(len), "r")


@pytest.mark.parametrize(
    ("make", "why", "way_out"),
    [
        (in_memory, "it is in memory only|is in memory only", "save it, `await trainer.save"),
        (one_judge, "is a judge", "use backend='local', or write a function"),
        (group_judge, "is a judge", "use backend='local', or write a function"),
    ],
)
async def test_what_only_this_process_has_is_refused_before_anything_starts(
    tmp_path: Path, make: Callable[[], Any], why: str, way_out: str
) -> None:
    fn = await make()
    with pytest.raises(ConfigError, match=why) as no:
        sent(fn)
    assert "reward 'probe'" in str(no.value)
    assert way_out in str(no.value)
    config = VeRLConfig(
        model="tiny", backend="verl", device="cpu", output_dir=tmp_path / "run", progress=False
    )
    trainer = VeRLTrainer(config, [RewardSpec("probe", 1.0, fn)])
    with pytest.raises(ConfigError, match=why):
        await trainer.train(["a prompt"])
    assert not (tmp_path / "run").exists()
