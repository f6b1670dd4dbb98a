"""Commands that ask a model: which model they take, and what they refuse before loading one."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from orbiter.train.cli.chat import chat_model
from orbiter.train.cli.exits import ExitCode, code_of
from orbiter.train.cli.settings.config_file import load
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.errors import (
    CallbackError,
    ConfigError,
    DataError,
    MissingExtraError,
    StateError,
    StorageError,
    TrainError,
    TrainingError,
)
from orbiter.train.llm import ChatModel, LocalChatModel, RemoteChatModel
from tests.cli.conftest import Run


async def model_of(*settings: str) -> ChatModel:
    async with AsyncExitStack() as until:
        return await chat_model(load(None, parse_overrides(settings)), until)


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "Qwen/Qwen3-0.6B", "openai/gpt-oss-20b"])
async def test_a_model_without_an_endpoint_runs_on_this_machine(name: str) -> None:
    assert isinstance(await model_of(f"llm.model={name}"), LocalChatModel)
    assert isinstance(await model_of(f"llm.model={name}", "llm.base_url=none"), LocalChatModel)


def test_a_folder_is_a_local_model_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt-4o").mkdir()
    assert isinstance(asyncio.run(model_of("llm.model=gpt-4o")), LocalChatModel)


@pytest.mark.parametrize(
    "name", ["gpt-5.4", "openai/gpt-4o", "claude-opus-4-6", "o3-mini", "google/gemini-3", "mymodel"]
)
async def test_a_hosted_model_needs_an_endpoint_and_gets_the_key_of_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"the model '{name}' needs an endpoint: set base_url"):
        await model_of(f"llm.model={name}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    at = "llm.base_url=http://127.0.0.1:9/v1"
    assert isinstance(await model_of(f"llm.model={name}", at), RemoteChatModel)


@pytest.mark.parametrize(
    "price", ["3", "[1, 2]", '{input = "much", output = 1}', "{inputs = 1, output = 2}"]
)
async def test_a_price_must_have_an_input_and_an_output(price: str) -> None:
    at = "llm.base_url=http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError, match=r"llm\.price: price must (be \{ input =|map names)"):
        await model_of("llm.model=m", at, f"llm.price={price}")


async def test_without_a_model_the_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r'there is no language model: set model = "..." under'):
        await model_of("llm.max_tokens=5")


def test_generate_answers_the_lines_of_its_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Say a word.\n\nAnother.\n"))
    ran = run("generate", "-", "-m", "tiny", "--max-tokens", "3", "--device", "cpu", "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["model"] == "tiny"
    assert [each["prompt"] for each in told["answers"]] == ["Say a word.", "Another."]
    assert [len(each["answers"]) for each in told["answers"]] == [1, 1]


def test_generate_without_any_input_is_an_error_of_the_data(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    ran = run("generate", "-", "-m", "tiny")
    assert ran.code == ExitCode.DATA
    assert ran.err == "error: there is nothing to answer: the input is empty\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--run", "runs/a", "-c", "config.toml"], ExitCode.USAGE, "give either --run or --config"),
        (["--run", "runs/a"], ExitCode.STORAGE, "runs/a has no model yet; give one with --model"),
        (["-c", "config.toml", "--data", "gone.jsonl"], ExitCode.STORAGE, "gone.jsonl"),
        (["--model", "tiny"], ExitCode.USAGE, "there is no evaluation data: give --data FILE"),
        (["--data", "eval.jsonl"], ExitCode.USAGE, "there is no model: give --model"),
    ],
)
def test_eval_says_what_it_lacks(
    run: Run, project: Path, words: list[str], code: ExitCode, message: str
) -> None:
    folder = project / "runs/a"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text((project / "config.toml").read_text())
    ran = run("eval", *words)
    assert ran.code == code
    assert message in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), ExitCode.USAGE),
        (DataError("x"), ExitCode.DATA),
        (CallbackError("x"), ExitCode.CALLBACK),
        (TrainingError("x"), ExitCode.TRAINING),
        (StorageError("x"), ExitCode.STORAGE),
        (MissingExtraError("x"), ExitCode.MISSING),
        (StateError("x"), ExitCode.STATE),
        (TrainError("x"), ExitCode.UNEXPECTED),
        (FileNotFoundError(2, "No such file", "x"), ExitCode.STORAGE),
        (OSError(28, "No space left on device"), ExitCode.STORAGE),
        (OSError(104, "Connection reset by peer"), ExitCode.UNEXPECTED),
        (ZeroDivisionError(), ExitCode.UNEXPECTED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: ExitCode) -> None:
    assert code_of(error) is code
