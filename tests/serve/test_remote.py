from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from orbiter.train.agents import CommandAgent, Episode, run_episode
from orbiter.train.engine.models.tiny import CONTEXT, tiny_tokenizer
from orbiter.train.engine.turn_end import stop_token_ids
from orbiter.train.errors import StateError
from orbiter.train.serve.remote import Generated, LoopThread, RemotePolicy, ServedModel

NOWHERE = "https://api.example.invalid/v1"
TOKENIZER = tiny_tokenizer()
MODEL = ServedModel(
    tokenizer=TOKENIZER, stop_token_ids=stop_token_ids(TOKENIZER), context_length=CONTEXT
)


class Says:
    """An engine that gives fixed answers, and remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, list[int], int]]()

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        self.asked.append((session, list(prompt_ids), max_new_tokens))
        text = self.answers[min(len(self.asked), len(self.answers)) - 1]
        ids = [*TOKENIZER(text, add_special_tokens=False).input_ids, TOKENIZER.eos_token_id]
        ids = ids[:max_new_tokens]
        return Generated(ids, [-0.5] * len(ids), 3, 4)


class Never(Says):
    """An engine that does not answer."""

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        self.asked.append((session, list(prompt_ids), max_new_tokens))
        await asyncio.sleep(3600)
        raise AssertionError


class Dead(Says):
    """An engine whose process has died."""

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        raise RuntimeError("the actor died")


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    with closing(LoopThread("test")) as thread:
        yield thread


@contextmanager
def remote(engine: Says, loop: LoopThread, max_new_tokens: int = 32) -> Iterator[RemotePolicy]:
    live = RemotePolicy(
        MODEL, engine, loop, name="e1", max_new_tokens=max_new_tokens, temperature=0.7
    )
    with closing(live):
        yield live


async def play(
    agent: Callable[[Any], Any],
    engine: Says,
    loop: LoopThread,
    **limits: Any,  # noqa: ANN401
) -> Episode:
    with remote(engine, loop) as live:
        return await run_episode(agent, "task", live, seed=0, **limits)


async def ask(messages: list[dict[str, Any]], **settings: object) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        body = {"model": "any", "messages": messages, **settings}
        answer = await client.post(f"{NOWHERE}/chat/completions", json=body)
    answer.raise_for_status()
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


async def two_turns(task: str) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    messages.append(await ask(messages))
    messages.append({"role": "user", "content": "And?"})
    return str((await ask(messages))["content"])


async def test_two_turns_are_one_stream_of_the_engines_tokens(loop: LoopThread) -> None:
    engine = Says("one", "two")
    episode = await play(two_turns, engine, loop)
    assert episode.stop_reason == "done"
    assert episode.result == "two"
    (stream,) = episode.streams
    trained = [t for t, trains in zip(stream.token_ids, stream.mask, strict=True) if trains]
    assert TOKENIZER.decode(trained, skip_special_tokens=True) == "onetwo"
    sampled = [v for v, trains in zip(stream.logprobs, stream.mask, strict=True) if trains]
    assert sampled == [-0.5] * 8
    first, second = engine.asked
    assert first[0] == second[0] == "e1", "one sticky session"
    answer = [*first[1], *TOKENIZER("one", add_special_tokens=False).input_ids]
    assert second[1][: len(answer)] == answer, "the next prompt begins with the sampled tokens"
    assert {turn.temperature for turn in episode.turns} == {0.7}


async def test_versions_of_the_weights_are_kept(loop: LoopThread) -> None:
    with remote(Says("x"), loop) as live:
        await run_episode(two_turns, "task", live, seed=0)
        assert live.versions == [3, 4, 3, 4]
        assert live.version == 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("responses", {"input": "Hi"}),
        ("messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_api_is_answered_whole_and_streamed(
    loop: LoopThread, path: str, body: dict[str, Any], stream: bool
) -> None:
    async def agent(task: str) -> str:
        del task
        async with httpx.AsyncClient() as client:
            asked = {"model": "any", "stream": stream, **body}
            async with client.stream("POST", f"{NOWHERE}/{path}", json=asked) as answer:
                return "".join([part async for part in answer.aiter_text()])

    episode = await play(agent, Says("hello"), loop)
    assert episode.stop_reason == "done", episode.error
    assert "hello" in episode.output
    assert ("data:" in episode.output) == stream
    assert episode.sampled_tokens == len("hello") + 1


async def test_a_blocking_client_in_an_async_agent_gets_its_answer(loop: LoopThread) -> None:
    async def agent(task: str) -> str:
        body = {"model": "any", "messages": [{"role": "user", "content": task}]}
        with httpx.Client() as client:
            answer = client.post(f"{NOWHERE}/chat/completions", json=body)  # noqa: ASYNC212 - the point
        return str(answer.json()["choices"][0]["message"]["content"])

    assert (await play(agent, Says("fine"), loop)).result == "fine"


async def test_limits_hold(loop: LoopThread) -> None:
    engine = Says("long answer of the engine")
    episode = await play(two_turns, engine, loop, max_turns=1)
    assert episode.stop_reason == "max_turns"
    assert len(engine.asked) == 1
    with remote(Says("long answer"), loop, max_new_tokens=4) as live:
        episode = await run_episode(two_turns, "task", live, seed=0)
    assert [turn.finish_reason for turn in episode.turns] == ["length", "length"]
    assert [len(turn.token_ids) for turn in episode.turns] == [4, 4]


async def test_a_stop_text_cuts_the_answer_where_the_engine_went_on(loop: LoopThread) -> None:
    async def agent(task: str) -> str:
        return str((await ask([{"role": "user", "content": task}], stop=["END"]))["content"])

    episode = await play(agent, Says("said END and more"), loop)
    assert episode.result == "said "
    assert TOKENIZER.decode(episode.turns[0].token_ids) == "said END", "later tokens are dropped"
    assert episode.turns[0].finish_reason == "stop"


async def test_several_answers_are_as_many_requests(loop: LoopThread) -> None:
    async def agent(task: str) -> None:
        await ask([{"role": "user", "content": task}], n=3)

    engine = Says("a", "b", "c")
    episode = await play(agent, engine, loop)
    assert len(engine.asked) == 3
    assert len(episode.streams) == 3


async def test_an_engine_that_never_answers_ends_with_the_episode(loop: LoopThread) -> None:
    engine = Never("x")
    episode = await play(two_turns, engine, loop, timeout_seconds=0.2)
    assert episode.stop_reason == "timeout"
    assert episode.streams == ()
    assert len(engine.asked) == 1


async def test_a_dead_engine_is_the_agents_error_with_its_cause(loop: LoopThread) -> None:
    async def agent(task: str) -> str:
        async with httpx.AsyncClient() as client:
            body = {"model": "any", "messages": [{"role": "user", "content": task}]}
            answer = await client.post(f"{NOWHERE}/chat/completions", json=body)
        raise RuntimeError(json.dumps(answer.json()))

    episode = await play(agent, Dead("x"), loop)
    assert episode.stop_reason == "agent_error"
    assert "the actor died" in str(episode.error)


SCRIPT = (
    "import json, os, sys, urllib.request as u\n"
    "body = {'model': 'm', 'messages': [{'role': 'user', 'content': sys.stdin.read()}]}\n"
    "at = os.environ['OPENAI_BASE_URL'] + '/chat/completions'\n"
    "request = u.Request(at, json.dumps(body).encode(), {'content-type': 'application/json'})\n"
    "said = json.load(u.urlopen(request))['choices'][0]['message']['content']\n"
    "print(json.dumps({'output': said, 'reward': 0.5}))\n"
)


async def test_a_command_runs_on_the_loop_of_another_thread(loop: LoopThread) -> None:
    agent = CommandAgent([sys.executable, "-c", SCRIPT])
    with closing(LoopThread("agents")) as agents, remote(Says("yes"), loop) as live:
        playing = agents.submit(run_episode(agent, "task", live, seed=0, timeout_seconds=60))
        episode = await asyncio.wrap_future(playing)
    assert episode.stop_reason == "done", episode.error
    assert episode.output.count("yes") == 1
    assert episode.step_rewards == (0.5,)


async def test_tokens_without_log_probabilities_are_refused(loop: LoopThread) -> None:
    class Bare(Says):
        async def generate(
            self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
        ) -> Generated:
            return Generated([65, 66], [])

    episode = await play(two_turns, Bare("x"), loop)
    assert episode.stop_reason == "agent_error"
    assert episode.turns == ()


async def test_a_closed_loop_says_so() -> None:
    loop = LoopThread("closed")
    loop.close()
    with remote(Says("x"), loop) as live, pytest.raises(StateError, match="closed"):
        live.submit(asyncio.sleep(0))
