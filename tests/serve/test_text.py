"""Text that grows by tokens is the text of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.serve.text import AnswerText

TOKENIZER = tiny_tokenizer()


def decode(token_ids: Sequence[int]) -> str:
    text: str = TOKENIZER.decode(list(token_ids), skip_special_tokens=True)
    return text


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_the_pieces_add_up_to_the_whole(data: bytes) -> None:
    text, seen = AnswerText(decode), [""]
    for byte in data:
        text.push(byte)
        assert text.known.startswith(seen[-1])
        seen.append(text.known)
    text.finish()
    assert text.known == decode(list(data))


def test_half_a_character_is_held_back() -> None:
    text, seen = AnswerText(decode), []
    for byte in "aé😀b".encode():
        text.push(byte)
        seen.append(text.known)
    assert seen == ["a", "a", "aé", "aé", "aé", "aé", "aé😀", "aé😀b"]


@pytest.mark.parametrize(
    ("stops", "known"),
    [(["STOP"], "one "), (["two", "STOP"], "one "), (["OP t"], "one ST"), (["none"], None)],
)
def test_a_stop_text_ends_the_answer_and_stays_out_of_it(
    stops: list[str], known: str | None
) -> None:
    text, shown = AnswerText(decode, stops), ""
    for byte in b"one STOP two":
        if text.push(byte):
            break
        shown = text.known[: text.settled()]
    assert text.known == (known or "one STOP two")
    assert text.known.startswith(shown)


def test_what_may_begin_a_stop_text_is_not_settled() -> None:
    text = AnswerText(decode, ["</s>"])
    for byte in b"a </":
        text.push(byte)
    assert text.known[: text.settled()] == "a "
    text.push(ord("b"))
    assert text.settled() == len("a </b")


def test_a_stop_text_within_the_last_broken_bytes_is_found_at_the_end() -> None:
    text = AnswerText(decode, ["end"])
    for byte in b"the end":
        text.note(byte)
    assert text.finish()
    assert text.known == "the "
