"""Endpoints that answer unlike OpenAI's: every call ends in an answer or a named error, in time."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.llm import Answer, ChatError, ClientConfig, RemoteChatModel, ask_for
from tests.llm.raw_server import RawServer, Reply, completion, failure, stream, text

HELLO = [{"role": "user", "content": "hello"}]


def client(server: RawServer, cache: Path | None = None, **settings: object) -> RemoteChatModel:
    known: dict[str, object] = {"attempts": 1, "give_up_seconds": 20.0}
    config = ClientConfig(model="m", base_url=server.url, **{**known, **settings})  # type: ignore[arg-type] # each test names its own
    return RemoteChatModel(config, cache=cache)


async def answer_to(reply: Reply, *, stream: bool = False) -> Answer:
    with RawServer(lambda *_: reply) as server:
        async with client(server, stream=stream) as model:
            return await model(HELLO)


@pytest.mark.parametrize(
    ("content", "expected", "reasoning"),
    [
        ("Four.", "Four.", ""),
        ([{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}], "Four.", ""),
        (["Fo", "ur."], "Four.", ""),
        ([{"type": "output_text", "text": {"value": "Four."}}], "Four.", ""),
        (
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                {"type": "text", "text": "Four."},
            ],
            "Four.",
            "Hm.",
        ),
        ([{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Four."}], "Four.", "Hm."),
        ("<think>Hm.</think>\nFour.", "Four.", "Hm."),
        ("", "", ""),
    ],
)
async def test_content_is_read_in_every_form(
    content: object, expected: str, reasoning: str
) -> None:
    answer = await answer_to(text(content))
    assert (answer.text, answer.reasoning) == (expected, reasoning)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
async def test_reasoning_beside_the_text_is_kept_beside_it(name: str) -> None:
    answer = await answer_to(completion({"content": "Four.", name: "Hm."}))
    assert (answer.text, answer.reasoning) == ("Four.", "Hm.")


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7.0, "completion_tokens": "3"}, (7, 3)),
        ({"prompt_tokens": None}, (None, None)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
async def test_odd_token_counts_cost_no_answer(
    usage: object, tokens: tuple[int | None, int | None]
) -> None:
    answer = await answer_to(completion({"content": "Four."}, usage=usage))
    assert (answer.prompt_tokens, answer.completion_tokens) == tokens


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply(b'{"choices": null}'), "answer", "no choices"),
        (Reply(b'{"choices": []}'), "answer", "no choices"),
        (Reply(b'{"choices": [null]}'), "answer", "no choices"),
        (Reply(b'{"choices": {}}'), "answer", "no choices"),
        (Reply(b"[]"), "answer", "no choices"),
        (Reply(b"null"), "answer", "no choices"),
        (Reply(b"<html>"), "answer", "not a chat completion"),
        (Reply(b'{"error": {"message": "upstream", "code": 502}}'), "server", "upstream"),
        (completion(None, "stop"), "answer", "no text"),
        (completion({"content": None, "refusal": "I cannot."}), "refused", "I cannot"),
        (completion({"content": ""}, "content_filter"), "refused", "content filter"),
        (completion({"content": None, "reasoning": "x"}, "length"), "answer", "raise max_tokens"),
        (completion({"content": 7}), "answer", "no text"),
    ],
)
async def test_a_response_without_an_answer_is_a_named_error(
    reply: Reply, kind: str, message: str
) -> None:
    with pytest.raises(ChatError, match=message) as caught:
        await answer_to(reply)
    assert caught.value.kind == kind


DONE = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def delta(content: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content}}]}


@pytest.mark.parametrize(
    "events",
    [
        [{"choices": [{"index": 0}]}, delta("Four."), DONE],
        [{"choices": [{"index": 0, "delta": None}]}, delta("Four."), DONE],
        [{"choices": None}, {"choices": []}, {}, delta("Four."), DONE],
        [delta("Fo"), delta(None), delta("ur."), DONE],
        [delta([{"type": "text", "text": "Four."}]), DONE],
        [delta("Four."), {"choices": [{"index": 0, "finish_reason": "stop"}]}],
        [{"choices": [{"message": {"content": "Four."}, "finish_reason": "stop"}]}],
        [None, [], delta("Four."), DONE],
        [{"choices": [{"delta": {"reasoning_content": "Hm."}}]}, delta("Four."), DONE],
        [delta("<think>H"), delta("m.</think>Fo"), delta("ur."), DONE],
    ],
)
async def test_odd_pieces_of_a_stream_are_joined(events: list[object]) -> None:
    assert (await answer_to(stream(*events), stream=True)).text == "Four."


@pytest.mark.parametrize(
    "header",
    [
        "Wed, 21 Oct 2015 07:28:00 -0000",
        "Wed, 21 Oct 2015 07:28:00",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "soon",
        "-5",
        "nan",
        "",
        "0",
        "Wed, 99 Oct 99999 07:28:00 GMT",
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_any_retry_after_is_waited_for_or_ignored(header: str, status: int) -> None:
    busy = failure(status, "busy", Retry_After=header)
    with RawServer(lambda number, _: busy if number == 0 else text("Four.")) as server:
        async with client(server, attempts=2) as model:
            assert (await model(HELLO)).text == "Four."


@pytest.mark.parametrize("header", ["86400", "inf", "Wed, 21 Oct 2099 07:28:00 -0000"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_of_a_day_is_given_up(header: str, status: int) -> None:
    with RawServer(lambda *_: failure(status, "busy", Retry_After=header)) as server:
        async with client(server, attempts=3, give_up_seconds=0.2) as model:
            with pytest.raises(ChatError, match=r"give_up_seconds|answered no call"):
                await asyncio.wait_for(model(HELLO), 20)
    assert len(server.seen) <= 1


async def test_a_pause_of_a_day_does_not_close_the_model_for_a_day() -> None:
    busy = failure(429, "busy", Retry_After="86400")
    with RawServer(lambda number, _: busy if number == 0 else text("Four.")) as server:
        async with client(server, give_up_seconds=1.0) as model:
            with pytest.raises(ChatError):
                await model(HELLO)
            assert (await asyncio.wait_for(model(HELLO), 20)).text == "Four."


async def test_a_silent_endpoint_is_given_up_for_everybody_who_waits() -> None:
    def silent(_number: int, _body: object) -> Reply:
        time.sleep(1.5)
        return text("too late")

    with RawServer(silent) as server:
        async with client(server, attempts=5, give_up_seconds=0.3, concurrency=1) as model:
            calls = [model([{"role": "user", "content": str(i)}]) for i in range(6)]
            ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
    assert all(isinstance(end, ChatError) for end in ends)
    assert len(server.seen) < 6, "most gave up while they waited for a turn"


@dataclass
class City:
    name: str


@pytest.mark.parametrize(
    "refusal",
    [
        failure(400, "This response_format type is unavailable now"),
        failure(422, "Extra inputs are not permitted"),
        failure(500, "failed to parse grammar"),
        failure(501, "json_schema is not supported"),
    ],
)
async def test_a_refused_schema_is_tried_once_without_and_remembered(
    refusal: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(_number: int, body: dict[str, object]) -> Reply:
        return refusal if "response_format" in body else text('{"name": "Graz"}')

    caplog.set_level(logging.WARNING)
    with RawServer(reply) as server:
        async with client(server) as model:
            for _ in range(3):
                assert (await ask_for(model, HELLO, City)).value == City("Graz")
    assert ["response_format" in body for body in server.seen] == [True, False, False, False]
    assert caplog.text.count("refuses response_format") == 1


async def test_a_refusal_that_is_not_the_schemas_fault_is_not_remembered() -> None:
    def reply(_number: int, body: dict[str, object]) -> Reply:
        bad = "bad" in str(body["messages"])
        return failure(400, "content filter") if bad else text('{"name": "Graz"}')

    with RawServer(reply) as server:
        async with client(server) as model:
            with pytest.raises(ChatError, match="content filter"):
                await ask_for(model, [{"role": "user", "content": "bad"}], City)
            await ask_for(model, HELLO, City)
    assert "response_format" in server.seen[-1]


async def test_a_wrong_key_is_not_asked_again_without_the_schema() -> None:
    with RawServer(lambda *_: failure(401, "wrong key")) as server:
        async with client(server) as model:
            with pytest.raises(ChatError, match="wrong key"):
                await ask_for(model, HELLO, City)
    assert len(server.seen) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the first loop's socket, left open
@pytest.mark.parametrize("closes", [True, False])
def test_a_model_survives_a_second_event_loop(closes: bool, tmp_path: Path) -> None:
    with RawServer(lambda _, body: text(f"echo {body['messages'][0]['content']}")) as server:
        model = client(server, tmp_path / "a.sqlite", concurrency=2)

        async def run(word: str) -> list[str]:
            texts = [f"{word} {i}" for i in range(6)]
            answers = await asyncio.gather(
                *(model([{"role": "user", "content": t}]) for t in texts)
            )
            if closes:
                await model.close()
            return [answer.text for answer in answers]

        for word in ("one", "two", "one"):
            assert asyncio.run(run(word)) == [f"echo {word} {i}" for i in range(6)]
        asyncio.run(model.close())
    assert len(server.seen) == 12


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_ended_in_the_middle_of_a_call_leaves_the_model_usable() -> None:
    def reply(number: int, _body: object) -> Reply:
        if number == 0:
            time.sleep(0.3)
        return text("Four.")

    with RawServer(reply) as server:
        model = client(server, concurrency=1)

        async def cut_short() -> None:
            calls = [asyncio.create_task(_ask(model)) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert not any(call.done() for call in calls)

        asyncio.run(cut_short())
        assert asyncio.run(_ask(model)) == "Four."
        asyncio.run(model.close())


async def _ask(model: RemoteChatModel) -> str:
    return (await model(HELLO)).text


@pytest.mark.parametrize("key", [None, "none", "EMPTY", "x", "ollama", "test", "no-key"])
async def test_a_placeholder_key_masks_no_words(key: str | None) -> None:
    message = "none of the x boxes is EMPTY: test ollama, no-key"
    with RawServer(lambda *_: failure(400, message)) as server:
        config = ClientConfig(model="m", base_url=server.url)
        async with RemoteChatModel(config, api_key=key) as model:
            with pytest.raises(ChatError) as caught:
                await model(HELLO)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel", "sk-two words", "sk-a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as caught:
        RemoteChatModel(ClientConfig(model="m", base_url="http://127.0.0.1:1/v1"), api_key=key)
    assert key not in str(caught.value)
