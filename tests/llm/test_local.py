"""A local model as a chat model: the tiny one, which is real and fast."""

from __future__ import annotations

import asyncio

import pytest

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.llm import LocalChatModel, Message, sample_of


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


async def test_the_answer_depends_on_nobody_else_who_asks() -> None:
    model = LocalChatModel("tiny", max_tokens=12, device="cpu", batch_size=3)
    together = await asyncio.gather(*(model(say(f"question {i}")) for i in range(7)))
    alone = [await model(say(f"question {i}")) for i in range(7)]
    assert together == alone
    assert len({answer.text for answer in alone}) > 1


async def test_samples_differ_and_repeat() -> None:
    model = LocalChatModel("tiny", max_tokens=12, device="cpu")
    first, second, again = [await sample_of(model, i)(say("hi")) for i in (0, 1, 0)]
    assert first == again == await model(say("hi"))
    assert first != second


async def test_a_question_that_is_too_long_fails_alone() -> None:
    model = LocalChatModel("tiny", max_tokens=8, device="cpu")
    good, bad = await asyncio.gather(
        model(say("hi")), model(say("long " * 5000)), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert isinstance(bad, DataError)


async def test_whoever_leaves_takes_nobody_along() -> None:
    model = LocalChatModel("tiny", max_tokens=8, device="cpu")
    leaving, staying = (asyncio.create_task(model(say(text))) for text in ("a", "b"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).completion_tokens


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        LocalChatModel("tiny", max_tokens=0)
