"""`compare` on models of this machine: exit codes, output, the folder, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.settings.config_file import load
from orbiter.train.cli.settings.measuring import measuring_config
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.cli.ship.compare import _side
from orbiter.train.llm import RemoteChatModel
from orbiter.train.runlog import RunLog
from orbiter.train.runlog.cost import kept_cost
from orbiter.train.verl import VeRLConfig
from tests.cli.conftest import Run
from tests.llm.raw_server import RawServer, Reply, completion

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHORT = ("train.max_response_length=4", "train.device=cpu", "train.progress=false")


@pytest.fixture
def held_out(project: Path) -> Path:
    rows = [
        {
            "state": f"question {n}",
            "action": "x",
            "reward": None,
            "metadata": {"task_type": "ab"[n % 2]},
        }
        for n in range(24)
    ]
    Path("held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("always.py").write_text("def always(output):\n    return 1.0\n")
    return Path("held_out.jsonl")


def test_exit_codes_say_whether_the_requirements_are_met(run: Run, held_out: Path) -> None:
    words = ["compare", "tiny", "tiny", *SHORT, "reward=always.py:always", "--data", held_out]
    codes = {}
    for number, bound in enumerate(("> -0.5", "> 0.5", "> 0")):
        ran = run(*words, "--require", f"reward {bound}", "--out", f"c{number}")
        codes[bound] = ran.code
    assert codes == {"> -0.5": ExitCode.OK, "> 0.5": ExitCode.NOT_MET, "> 0": ExitCode.UNDECIDED}
    assert (ExitCode.NOT_MET, ExitCode.UNDECIDED) == (9, 10)


def test_the_result_is_json_and_in_the_folder(run: Run, held_out: Path) -> None:
    ran = run(
        "compare", "tiny", "tiny", *SHORT, "reward=always.py:always", "--data", held_out,
        "--no-regressions", "--out", "c", "--json",
    )  # fmt: skip
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["verdict"] == "met"
    assert told["items"] == 24
    assert [part["value"] for part in told["slices"]] == ["a", "b"]
    assert {file.name for file in Path("c").iterdir()} == {
        *("comparison.json", "story.json", "cost.json", "report.html")
    }
    assert kept_cost(Path("c")).tokens == told["a"]["cost"]["tokens"] * 2 > 0
    assert "detectable difference" in ran.err
    assert "Comparison" in Path("c/report.html").read_text(encoding="utf-8")
    shown = run("runs", "show", "c", "--json")
    assert json.loads(shown.out)["cost"]["tokens"] == kept_cost(Path("c")).tokens
    again = run("compare", "tiny", "tiny", *SHORT, "--data", held_out, "--out", "c")
    assert again.code == ExitCode.STORAGE
    assert "choose another --out" in again.err


def test_two_runs_are_compared_by_their_models_and_shown_side_by_side(
    run: Run, held_out: Path
) -> None:
    for name in ("r1", "r2"):
        config = ("--config", "config.toml", "train.epochs=1", "train.seed=1", *SHORT)
        assert run("train", *config, "--out", name).code == ExitCode.OK
    ran = run("compare", "r1", "r2", "--data", held_out, "--out", "c", "--json")
    assert ran.code == ExitCode.OK, ran.err  # the settings and the reward are those of r2
    assert json.loads(ran.out)["b"]["name"] == "B r2/model"
    page = Path("c/report.html").read_text(encoding="utf-8")
    assert '"name":"r1"' in page
    assert '"name":"r2"' in page
    assert '"planned_items":24' in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "tiny", "--require", "reward is good"), "must look like"),
        (("tiny", "tiny", "--require", "rewardd > 0"), "did you mean 'reward'"),
        (("tiny", "tiny", "--by", "colour"), "no task has this field"),
        (("tiny", "http://127.0.0.1:9/v1"), "MODEL@URL"),
        (("tiny", "@http://127.0.0.1:9/v1"), "has no model"),
        (("tiny", "tiny", "--looks", "0"), "looks must be"),
        (("tiny", "tiny", "--confidence", "95"), "confidence must lie"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(
    run: Run, held_out: Path, words: tuple[str, ...], message: str
) -> None:
    ran = run("compare", *words[:2], "reward=always.py:always", "--data", held_out, *words[2:])
    assert ran.code in (ExitCode.USAGE, ExitCode.DATA)
    assert message in ran.err
    assert not Path("runs").exists()


def test_without_held_out_items_there_is_nothing_to_compare_on(run: Run, project: Path) -> None:
    ran = run("compare", "tiny", "tiny", "reward=rewards.py:exact")
    assert ran.code == ExitCode.USAGE
    assert "there are no held-out items" in ran.err


def test_a_run_without_a_model_is_no_contestant(run: Run, held_out: Path) -> None:
    RunLog("empty", {"seed": 0}).close()
    ran = run("compare", "tiny", "empty", "reward=always.py:always", "--data", held_out)
    assert ran.code == ExitCode.STORAGE
    assert "without a model folder" in ran.err


def test_an_endpoint_is_compared_with_its_cost(run: Run, held_out: Path) -> None:
    def reply(_number: int, body: dict[str, object]) -> Reply:
        return completion({"content": "x"}, usage={"prompt_tokens": 3, "completion_tokens": 1})

    Path("x.py").write_text("def is_x(output):\n    return float(output == 'x')\n")
    with RawServer(reply) as server:
        ran = run(
            "compare", "tiny", f"some-model@{server.url}", *SHORT, "reward=x.py:is_x",
            "llm.price={ input = 0.0, output = 1000000.0 }", "--data", held_out, "--looks", "1",
            "--require", "reward > 0", "--out", "c", "--json",
        )  # fmt: skip
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["b"]["name"] == "B some-model"
    assert told["differences"]["reward"]["mean"] == 1
    assert told["b"]["cost"]["money"] == told["b"]["cost"]["endpoint_calls"] == 24
    assert told["b"]["cost"]["endpoint_tokens"] == 96
    assert kept_cost(Path("c")).money == 24


def test_a_run_of_imitation_is_measured_with_its_own_prompt_and_length() -> None:
    words = ["sft.system_prompt=Be brief.", "sft.max_response_length=9", "sft.model=tiny"]
    given = load(None, parse_overrides(words))
    config = measuring_config(given, model="other")
    assert (config.system_prompt, config.max_response_length) == ("Be brief.", 9)
    assert config.model == "other"
    words += ["train.max_response_length=5"]
    assert measuring_config(load(None, parse_overrides(words))).max_response_length == 5
    assert measuring_config(load(None, parse_overrides(words))).system_prompt == "Be brief."


def test_an_endpoint_is_asked_greedily_with_the_settings_of_llm() -> None:
    settings = load(None, parse_overrides(["llm.concurrency=3", "llm.max_tokens=7"]))

    async def made(*, sampled: bool) -> RemoteChatModel:
        async with AsyncExitStack() as until:
            word = "org/model@1@http://127.0.0.1:9/v1"
            model = await _side(word, settings, VeRLConfig(), until, sampled=sampled)
            assert isinstance(model, RemoteChatModel)
            return model

    greedy = asyncio.run(made(sampled=False)).config
    assert (greedy.model, greedy.base_url) == ("org/model@1", "http://127.0.0.1:9/v1")
    assert greedy.parameters == {"max_tokens": 7, "temperature": 0.0}
    assert greedy.concurrency == 3
    sampled = asyncio.run(made(sampled=True)).config
    assert sampled.parameters["temperature"] == VeRLConfig().temperature


def test_a_run_is_exported_as_gguf(run: Run, project: Path) -> None:
    config = ("--config", "config.toml", "train.epochs=1", *SHORT)
    assert run("train", *config, "--out", "r").code == ExitCode.OK
    ran = run("export", "r", "--gguf", "out/m.gguf", "--type", "q8_0", "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["architecture"] == "llama"
    assert Path(told["path"]).stat().st_size == told["bytes"]
    assert Path("out/m.gguf").read_bytes()[:4] == b"GGUF"
    assert run("export", "r", "--gguf", "m.bin").code == ExitCode.USAGE
    assert run("export", "nowhere/at/all", "--gguf", "m.gguf").code == ExitCode.STORAGE
