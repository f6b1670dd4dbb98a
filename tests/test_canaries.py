"""Each kind of secret is put into each thing that we write, and must not be found there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
from orbiter.train.capture.proxy import proxy_app
from orbiter.train.cli.exits import report_error
from orbiter.train.cli.settings.config_file import write_run_config
from orbiter.train.engine.models.export import Card, card_text
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.errors import ConfigError, TrainError
from orbiter.train.formats.registry import write
from orbiter.train.llm import ClientConfig, RemoteChatModel
from orbiter.train.report import write_report
from orbiter.train.runlog import RunLog
from orbiter.train.runlog.trackers import Tracked
from tests.capture.server import ModelServer

MARK = "canary0123456789abcdef"
"""A part of every secret, which no other text holds."""
HIDDEN = "plain-looking value " + MARK
"""A secret that is known by its name alone."""
LOOKS: dict[str, str] = {
    "OpenAI": f"sk-{MARK}",
    "OpenAI project": f"sk-proj-{MARK}",
    "Anthropic": f"sk-ant-api03-{MARK}",
    "Groq": f"gsk_{MARK}",
    "Hugging Face": f"hf_{MARK}",
    "GitHub": f"ghp_{MARK}",
    "GitHub fine-grained": f"github_pat_{MARK}",
    "GitLab": f"glpat-{MARK}",
    "Slack": f"xoxb-{MARK}",
    "Google": f"AIza{MARK}{MARK}",
    "JWT": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.{MARK}",
    "bearer": f"Bearer {MARK}",
    "PEM": f"-----BEGIN PRIVATE KEY-----\n{MARK}\n-----END PRIVATE KEY-----",
    "password in an address": f"https://me:{MARK}@host/v1",
    "key in an address": f"https://host/v1?api_key={MARK}&x=1",
    "token in an address": f"https://host/v1?access_token={MARK}",
    "option of a command": f"agent --api-key {MARK} --model m",
    "option with a sign": f"agent --token={MARK}",
    "variable of the environment": f"the value is {HIDDEN}",
}
"""Secrets that are known by their looks, inside a text."""
NAMES: dict[str, Any] = {
    "api_key": {"api_key": HIDDEN},
    "apiKey": {"apiKey": HIDDEN},
    "Authorization": {"Authorization": HIDDEN},
    "authorization of MCP": {"type": "mcp", "authorization": HIDDEN},
    "headers of MCP": {"type": "mcp", "headers": {"Authorization": HIDDEN, "X-Team": HIDDEN}},
    "extra_headers": {"extra_headers": {"x-anything": HIDDEN}},
    "password": {"db": {"password": HIDDEN}},
    "variables": {"env": {"AZURE_OPENAI_KEY": HIDDEN, "ORBITER_TRAIN_UPSTREAM_KEY": HIDDEN}},
    "tracking token": {"MLFLOW_TRACKING_TOKEN": HIDDEN},
    "hub token": {"hub_token": HIDDEN},
    "list of arguments": {"command": ["npx", "server", "--api-key", HIDDEN]},
    "cookie": {"cookie": HIDDEN},
    "client secret": {"client_secret": HIDDEN},
    "private key": {"privateKey": HIDDEN},
    "session token": {"session_token": HIDDEN},
}
"""Secrets that are known by the name that they are kept under."""
KINDS: dict[str, dict[str, Any]] = {name: {"note": text} for name, text in LOOKS.items()} | NAMES


def run_folder(secret: dict[str, Any], folder: Path) -> None:
    with RunLog(folder, {"model": "tiny", **secret}) as log:
        log.write(1, {"loss": 1.0})
        log.sample(1, {"prompt": "p", "completion": json.dumps(secret), "reward": 1.0, **secret})


def tracker(secret: dict[str, Any], folder: Path) -> None:
    class Writes:
        def start(self, run: Tracked) -> None:
            (folder / "tracked").write_text(repr(run))

        def write(self, step: int, metrics: object) -> None:
            pass

        def finish(self) -> None:
            pass

    with RunLog(folder / "run", secret, trackers=[Writes()]):
        pass


def config_file(secret: dict[str, Any], folder: Path) -> None:
    write_run_config(folder, {"train": {"model": "tiny"}, "llm": secret})


def report(secret: dict[str, Any], folder: Path) -> None:
    """A page over a folder that another program wrote, with nothing masked in it."""
    run_folder({}, folder)
    config = {"format": 1, "config": {"model": "tiny", **secret}}
    (folder / "run.json").write_text(json.dumps(config))
    page = write_report(folder).read_text()
    (folder / "run.json").unlink()
    (folder / "report.html").write_text(page)


def model_card(secret: dict[str, Any], folder: Path) -> None:
    card = Card(base_model="tiny", method="grpo", settings={"x": json.dumps(secret), **secret})
    (folder / "README.md").write_text(card_text(card, tiny_policy()))


@functools.cache
def tiny_policy() -> Policy:
    loaded = load_model("tiny", device="cpu")
    return make_policy(loaded.model, loaded.tokenizer, device="cpu")


def tools_of_a_captured_call(secret: dict[str, Any], folder: Path) -> None:
    captured(
        folder, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}} | secret]
    )


def settings_of_a_captured_call(secret: dict[str, Any], folder: Path) -> None:
    captured(folder, extra_body={"metadata": secret, **secret})


def captured(folder: Path, **more: Any) -> None:  # noqa: ANN401 - the client's own arguments
    with ModelServer() as server, TrajectoryDataset(path=folder / "journal") as dataset:
        with record(dataset) as episode, openai.OpenAI(base_url=server.url, api_key="x" * 20) as ai:
            message: Any = {"role": "user", "content": "Hello"}
            ai.chat.completions.create(model="m", messages=[message], **more)
            episode.reward(1.0)
        write(list(dataset), folder / "export.jsonl")


BY_NAME: dict[str, Callable[[dict[str, Any], Path], None]] = {
    function.__name__: function
    for function in (
        run_folder, tracker, config_file, report, model_card, tools_of_a_captured_call,
        settings_of_a_captured_call,
    )
}  # fmt: skip


def failed_attempt(text: str, folder: Path) -> None:
    """A model's error that repeats a secret, as an upstream does with a wrong key."""
    fails_first: Any = lambda n: "answer" if n else "status_500"  # noqa: E731
    with (
        ModelServer(plan=fails_first, failure=text) as server,
        TrajectoryDataset(path=folder / "journal") as dataset,
        record(dataset) as episode,
        openai.OpenAI(base_url=server.url, api_key="x" * 20, max_retries=0) as ai,
    ):
        ask_twice(ai)
        episode.reward(1.0)
    assert "failed_attempts" in (folder / "journal").read_text()


def ask_twice(ai: openai.OpenAI) -> None:
    message: Any = {"role": "user", "content": "Hello"}
    for _ in range(2):
        with contextlib.suppress(openai.APIError):
            ai.chat.completions.create(model="m", messages=[message])


def proxy(text: str, folder: Path) -> None:
    """The same behind the proxy, which has a key of its own."""
    fails_first: Any = lambda n: "answer" if n else "status_500"  # noqa: E731
    with (
        ModelServer(plan=fails_first, failure=f"{text} for {HIDDEN}") as server,
        TrajectoryDataset(path=folder / "journal") as dataset,
        TestClient(
            proxy_app(server.url, dataset, api_key=HIDDEN), base_url="http://127.0.0.1"
        ) as to,
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        for _ in range(2):
            to.post("/s/one/v1/chat/completions", json=body)
        to.post("/s/one/reward", json={"reward": 1.0})


def message_of_a_command(text: str, folder: Path) -> None:
    for as_json, name in ((False, "line"), (True, "json")):
        stream = io.StringIO()
        with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
            report_error(ConfigError(f"the server said: {text}"), as_json=as_json)
        (folder / name).write_text(stream.getvalue())


def error_of_an_endpoint(text: str, folder: Path) -> None:
    async def ask() -> None:
        config = ClientConfig(model="m", base_url=server.url, attempts=1)
        async with RemoteChatModel(config, api_key="x" * 20) as client:
            await client([{"role": "user", "content": "Hello"}])

    with ModelServer(plan=lambda _: "status_500", failure=text) as server:
        try:
            asyncio.run(ask())
        except TrainError as error:
            (folder / "error").write_text(str(error))


IN_TEXT: dict[str, Callable[[str, Path], None]] = {
    function.__name__: function
    for function in (failed_attempt, proxy, message_of_a_command, error_of_an_endpoint)
}


def everything_in(folder: Path) -> str:
    return "\n".join(
        path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()
    )


@pytest.mark.parametrize("output", BY_NAME)
@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_in_a_structure_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, kind: str
) -> None:
    monkeypatch.setenv("SOME_SERVICE_API_KEY", HIDDEN)
    BY_NAME[output](KINDS[kind], tmp_path)
    written = everything_in(tmp_path)
    assert written
    assert MARK not in written


@pytest.mark.parametrize("output", IN_TEXT)
@pytest.mark.parametrize("kind", LOOKS)
def test_a_secret_in_a_text_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, kind: str
) -> None:
    monkeypatch.setenv("SOME_SERVICE_API_KEY", HIDDEN)
    IN_TEXT[output](LOOKS[kind], tmp_path)
    written = everything_in(tmp_path)
    assert written
    assert MARK not in written


def test_the_table_has_as_many_cells_as_it_should() -> None:
    assert len(BY_NAME) * len(KINDS) + len(IN_TEXT) * len(LOOKS) >= 300
