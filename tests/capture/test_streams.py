"""A stream is read to its very end, however its server ends it, and kept before that is seen."""

from __future__ import annotations

import json

import pytest

from orbiter.train import TrajectoryDataset
from orbiter.train.capture.episode import Episode
from orbiter.train.capture.wire import CHAT, MESSAGES, RESPONSES, Recognised, Wire
from orbiter.train.capture.wire.events import events
from orbiter.train.chat.reply import Unreadable
from tests.capture.server import ModelServer, answer, stream_of


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b'data: {"a":1}\n\ndata:{"a":2}\n\ndata: [DONE]\n\n', [{"a": 1}, {"a": 2}]),
        (b'data: {"a":1}\r\n\r\ndata: {"a":2}\r\n', [{"a": 1}, {"a": 2}]),
        (b'data: {"a":1}\n\ndata: {"a":2}', [{"a": 1}, {"a": 2}]),
        (b'data: {"a":1}\n\ndata: {"a":', [{"a": 1}]),
        (b': ping\n\nevent: x\ndata: {"a":\ndata: 1}\n\n', [{"a": 1}]),
    ],
)
def test_every_whole_event_is_found(stream: bytes, found: list[object]) -> None:
    assert list(events(stream)) == found


def test_an_event_that_is_no_json_is_told() -> None:
    with pytest.raises(Unreadable):
        list(events(b"data: {no\n\ndata: [DONE]\n\n"))


@pytest.mark.parametrize(
    ("wire", "path"),
    [(CHAT, "/chat/completions"), (RESPONSES, "/responses"), (MESSAGES, "/messages")],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_is_kept_with_the_bytes_that_end_it(wire: Wire, path: str, size: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "input": "Hi"}
    stream = b"".join(stream_of(path, answer(ModelServer(), path, body, 0)))
    dataset = TrajectoryDataset()
    episode = Episode(dataset, episode_id="e")
    exchange = episode.begin(Recognised(wire, certain=True), json.dumps(body).encode())
    exchange.answered(200, [(b"Content-Type", b"text/event-stream; charset=utf-8")])
    for at in range(0, len(stream), size):
        assert not episode.calls
        exchange.feed(stream[at : at + size])
    assert episode.calls == 1
    (item,) = dataset.waiting
    assert item.action == "The answer is 5."
    assert item.metadata["output_tokens"] == 7
    assert "error" not in item.metadata
