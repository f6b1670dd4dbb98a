"""The client against a real server on 127.0.0.1 that does what servers do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from pathlib import Path

import pytest

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.llm import (
    Answer,
    BudgetError,
    ChatError,
    ClientConfig,
    Price,
    RemoteChatModel,
    sample_of,
)
from tests.llm.server import ChatServer, Deed

KEY = "sk-secret-0123456789"
PRICE = Price(input=1.0, output=2.0)


def client(server: ChatServer, cache: Path | None = None, **settings: object) -> RemoteChatModel:
    known: dict[str, object] = {"read_timeout": 0.3, "connect_timeout": 2.0, "attempts": 3}
    config = ClientConfig(model="m", base_url=server.url, **{**known, **settings})  # type: ignore[arg-type] # each test names its own
    return RemoteChatModel(config, api_key=KEY, cache=cache)


def say(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


async def ask_all(
    model: RemoteChatModel, texts: list[str], at_once: int | None = None
) -> list[Answer | ChatError]:
    gate = asyncio.Semaphore(at_once or len(texts))

    async def one(text: str) -> Answer | ChatError:
        async with gate:
            try:
                return await model(say(text))
            except ChatError as error:
                return error

    return await asyncio.gather(*map(one, texts))


async def test_an_answer_comes_with_its_tokens_and_cost() -> None:
    with ChatServer() as server:
        async with client(server, price=PRICE, parameters={"temperature": 0.5}) as model:
            answer = await model(say("hello"))
    assert answer == Answer("echo hello", 10, 5, cost=20e-6)
    assert server.seen[0].body["temperature"] == 0.5
    assert server.seen[0].key == f"bearer {KEY}"


@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        ("quota", "refused"),
        ("refuse", "refused"),
        ("error", "server"),
        ("stall", "timeout"),
        ("stall_within", "timeout"),
        ("break", "connection"),
        ("break_within", "connection"),
        ("broken_json", "answer"),
        ("wrong_json", "answer"),
        ("no_text", "answer"),
    ],
)
async def test_each_trouble_has_its_name(deed: Deed, kind: str) -> None:
    with ChatServer(lambda *_: deed) as server:
        async with client(server, attempts=2) as model:
            with pytest.raises(ChatError) as caught:
                await model(say("hello"))
    assert caught.value.kind == kind
    assert len(server.seen) == (1 if kind == "refused" else 2)


@pytest.mark.parametrize("deed", ["error", "break", "broken_json", "stall", "limit", "limit_wait"])
async def test_after_passing_trouble_the_answer_comes(deed: Deed) -> None:
    with ChatServer(lambda number, _: deed if number < 2 else "answer") as server:
        async with client(server) as model:
            assert (await model(say("hello"))).text == "echo hello"


async def test_a_slow_trickle_is_no_stall() -> None:
    with ChatServer(lambda *_: "pieces") as server:
        async with client(server) as model:
            assert (await model(say("hello"))).text == "echo hello"


async def test_a_trickle_without_end_runs_into_the_total_timeout() -> None:
    with ChatServer(lambda *_: "stall") as server:
        async with client(server, read_timeout=30.0, total_timeout=0.2, attempts=1) as model:
            with pytest.raises(ChatError, match="nothing arrived in time"):
                await model(say("hello"))


async def test_nobody_listening_is_a_connection_failure() -> None:
    with ChatServer() as server:
        gone = server.url
    config = ClientConfig(model="m", base_url=gone, attempts=2)
    async with RemoteChatModel(config) as model:
        with pytest.raises(ChatError, match="connection failed") as caught:
            await model(say("hello"))
    assert caught.value.kind == "connection"


async def test_a_stream_is_joined() -> None:
    with ChatServer(lambda *_: "stream", reply=lambda _: "one two  three") as server:
        async with client(server, stream=True) as model:
            assert await model(say("hello")) == Answer("one two  three", 10, 5)


@pytest.mark.parametrize(
    ("deed", "kind"), [("broken_stream", "connection"), ("bad_stream", "answer")]
)
async def test_half_a_stream_is_no_answer(deed: Deed, kind: str) -> None:
    with ChatServer(lambda *_: deed) as server:
        async with client(server, stream=True, attempts=1) as model:
            with pytest.raises(ChatError) as caught:
                await model(say("hello"))
    assert caught.value.kind == kind


async def test_a_cached_answer_costs_nothing_in_the_next_process_too(tmp_path: Path) -> None:
    with ChatServer() as server:
        for expected in (False, True):
            async with client(server, tmp_path / "a.sqlite", price=PRICE) as model:
                answer = await model(say("hello"))
                assert (answer.text, answer.cached) == ("echo hello", expected)
                assert answer.cost == (0.0 if expected else 20e-6)
    assert len(server.seen) == 1


async def test_samples_messages_and_parameters_are_told_apart(tmp_path: Path) -> None:
    with ChatServer() as server:
        async with client(server, tmp_path / "a.sqlite") as model:
            for index in (0, 1, 0, 1):
                await sample_of(model, index)(say("hello"))
            await model.shaped({"type": "object"})(say("hello"))
            await model(say("other"))
        async with client(server, tmp_path / "a.sqlite", parameters={"top_p": 0.5}) as model:
            await model(say("hello"))
    assert len(server.seen) == 5


async def test_the_same_question_at_once_is_paid_once(tmp_path: Path) -> None:
    with ChatServer(latency=0.05) as server:
        async with client(server, tmp_path / "a.sqlite") as model:
            await ask_all(model, ["hello"] * 20)
    assert len(server.seen) == 1


async def test_broken_answers_never_enter_the_cache(tmp_path: Path) -> None:
    with ChatServer(lambda number, _: "broken_json" if number == 0 else "answer") as server:
        async with client(server, tmp_path / "a.sqlite") as model:
            await model(say("hello"))
            assert (await model(say("hello"))).text == "echo hello"
    assert len(server.seen) == 2


async def test_the_key_reaches_no_file_log_or_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deeds: list[Deed] = ["answer", "refuse"]
    with ChatServer(lambda number, _: deeds[number]) as server:
        async with client(server, tmp_path / "a.sqlite") as model:
            await model(say("hello"))
            with pytest.raises(ChatError) as caught:
                await model(say("more"))
            shown = f"{model!r} {model.config!r} {caught.value!r} {caught.value.__dict__}"
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240 - small
    assert KEY not in shown + caplog.text
    assert KEY.encode() not in kept
    assert caught.value.__cause__ is None


async def test_a_key_that_the_server_repeats_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda *_: "refuse") as server:
        config = ClientConfig(model="m", base_url=server.url)
        async with RemoteChatModel(config, api_key="fire") as model:
            with pytest.raises(ChatError) as caught:
                await model(say("hello"))
    assert "fire" not in str(caught.value)
    assert "it is on ***" in str(caught.value)


async def test_the_budget_stops_before_it_is_passed(tmp_path: Path) -> None:
    settings: dict[str, object] = {"parameters": {"max_tokens": 5}, "budget": 500e-6}
    with ChatServer(latency=0.01) as server:
        spent = 0.0
        for _ in range(2):
            async with client(server, tmp_path / "a.sqlite", price=PRICE, **settings) as model:
                texts = [f"question {i}" for i in range(60)]
                with pytest.raises(BudgetError, match=r"of the budget of 0\.0005 is spent"):
                    await asyncio.gather(*(model(say(text)) for text in texts))
                await asyncio.sleep(0.1)
                spent += model.usage.cost
    assert 300e-6 < len(server.paid) * 20e-6 <= 500e-6
    assert spent == pytest.approx(len(server.paid) * 20e-6)


async def test_a_request_that_broke_off_counts_against_the_budget_at_its_most() -> None:
    with ChatServer(lambda n, _: "break_within" if n == 0 else "answer") as server:
        async with client(server, price=PRICE, parameters={"max_tokens": 5}, budget=1.0) as model:
            await model(say("hello"))
            assert model.usage.cost == 20e-6
            assert 20e-6 < model.usage.unsure_cost < 1e-3


async def test_concurrency_is_bounded() -> None:
    with ChatServer(latency=0.02) as server:
        async with client(server, concurrency=5) as model:
            await ask_all(model, [str(i) for i in range(40)])
    assert server.most_in_flight == 5


async def test_waiting_for_a_slow_limit_is_no_failure() -> None:
    with ChatServer(rate=20.0, burst=1.0) as server:
        async with client(server, attempts=1, give_up_seconds=1.0) as model:
            answers = await ask_all(model, [str(i) for i in range(30)])
    assert all(isinstance(answer, Answer) for answer in answers)


async def test_a_limit_without_end_is_given_up_by_name() -> None:
    with ChatServer(lambda *_: "limit_wait", retry_after="3600") as server:
        async with client(server, give_up_seconds=0.4) as model:
            began = time.monotonic()
            answers = await ask_all(model, [str(i) for i in range(20)])
    assert time.monotonic() - began < 3
    assert {a.kind for a in answers if isinstance(a, ChatError)} == {"rate_limit"}
    assert not any(isinstance(a, Answer) for a in answers)
    assert len(server.seen) <= 20


async def test_a_dead_endpoint_is_asked_by_one_until_it_is_back() -> None:
    back_at = time.monotonic() + 1.0
    with ChatServer(lambda *_: "error" if time.monotonic() < back_at else "answer") as server:
        async with client(server, attempts=5, concurrency=20) as model:
            answers = await ask_all(model, [str(i) for i in range(60)])
    refused = sum(seen.deed == "error" for seen in server.seen)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert refused < 30, "without the circuit breaker there are as many as there are attempts"


async def test_a_cancelled_call_leaves_the_client_usable() -> None:
    with ChatServer(latency=0.1) as server:
        async with client(server, concurrency=1) as model:
            calls = [asyncio.create_task(model(say(str(i)))) for i in range(3)]
            await asyncio.sleep(0.05)
            calls[0].cancel()
            calls[1].cancel()
            assert (await calls[2]).text == "echo 2"


async def test_a_message_that_is_no_json_is_refused_before_it_is_sent() -> None:
    with ChatServer() as server:
        async with client(server) as model:
            with pytest.raises(DataError, match="must be JSON"):
                await model([{"role": "user", "content": object()}])
    assert not server.seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model must name"),
        ({"base_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"base_url": "http://user:word@host/v1"}, "no user name, password"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"read_timeout": 0.0}, "read_timeout must be above 0"),
        ({"parameters": {"n": 2}}, "must not set n"),
        ({"budget": 1.0}, "budget needs price"),
        ({"budget": 1.0, "price": PRICE}, "budget needs price"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ClientConfig(**{"model": "m", **settings})  # type: ignore[arg-type] # each case its own


def test_no_key_for_the_default_endpoint_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        RemoteChatModel(ClientConfig(model="m"))


DEEDS: list[Deed] = [
    "answer", "answer", "answer", "answer", "answer", "answer", "answer", "answer", "answer",
    "answer", "answer", "answer", "answer", "answer", "answer", "answer", "answer", "answer",
    "pieces", "stall", "stall_within",
    "break", "break_within", "broken_json", "wrong_json", "no_text", "error", "error",
]  # fmt: skip


@pytest.mark.nightly  # its limits are seconds of wall time
async def test_two_thousand_calls_among_all_troubles_all_end(tmp_path: Path) -> None:
    began: list[float] = []

    def plan(number: int, text: str) -> Deed:
        if text.startswith("never"):
            return "error"
        began[:] = began or [time.monotonic()]
        since = time.monotonic() - began[0]
        if 1.0 < since < 1.5 or 2.5 < since < 3.0:
            return "limit" if since < 2 else "limit_wait"
        return DEEDS[(number * 7919) % len(DEEDS)]

    texts = [f"{'never' if i % 100 == 7 else 'q'} {i}" for i in range(2000)]
    with ChatServer(plan, latency=0.005) as server:
        async with client(
            server,
            tmp_path / "a.sqlite",
            concurrency=64,
            attempts=4,
            give_up_seconds=8.0,
            read_timeout=0.5,
        ) as model:
            async with asyncio.timeout(90):
                answers = await ask_all(model, texts)
            usage = model.usage
    ended = Counter(a.kind if isinstance(a, ChatError) else "answered" for a in answers)
    print(f"\n{dict(ended)} of 2000; {usage.requests} requests")  # noqa: T201 - with -s
    assert sum(ended.values()) == 2000
    assert ended["answered"] >= 1900
    assert {a.text for a in answers if isinstance(a, Answer)} <= {f"echo {t}" for t in texts}
    assert usage.requests == len(server.seen)
    assert usage.answers == ended["answered"]


@pytest.mark.nightly  # a rate in wall time: says nothing where other tests share the cores
@pytest.mark.parametrize("retry_after", [None, "0.1"])
async def test_the_client_goes_as_fast_as_the_server_lets_it_and_no_faster(
    retry_after: str | None,
) -> None:
    rate, burst, total = 200.0, 20.0, 2000
    with ChatServer(rate=rate, burst=burst, latency=0.01, retry_after=retry_after) as server:
        async with client(server, concurrency=64) as model:
            answers = await ask_all(model, [str(i) for i in range(total)])
    assert all(isinstance(answer, Answer) for answer in answers)
    arrivals = [seen.at for seen in server.seen]
    let_through = [seen.at for seen in server.seen if seen.deed == "answer"]
    took = let_through[-1] - arrivals[0]
    first = next(seen.at for seen in server.seen if seen.deed != "answer") + 0.1
    later = [at for at in arrivals if at > first]
    worst = max(sum(at <= t < at + 1 for t in later) for at in later)
    print(  # noqa: T201 - the figures of the claim, with -s
        f"\nthroughput {total / took / rate:.3f} of the allowed rate; after the first 429 "
        f"{len(later) / (later[-1] - later[0]) / rate:.3f} of it were sent, "
        f"{worst / (rate + burst):.3f} in the worst second; "
        f"{len(arrivals) - total} refused"
    )
    assert total >= 0.9 * rate * took
    assert len(later) <= 1.2 * rate * (later[-1] - later[0])
    assert worst <= 1.2 * (rate + burst)
