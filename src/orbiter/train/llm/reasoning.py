"""Separate a model's reasoning from its answer.

Models mark their reasoning in several ways: `<think>...</think>` (Qwen, DeepSeek), `[THINK]...`
(Magistral), channels (gpt-oss), or a field of the message beside the text, which `wire.py` reads.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class SplitAnswer(NamedTuple):
    """An answer with its reasoning removed."""

    text: str
    """The answer alone; empty if the model was cut off during its reasoning."""
    reasoning: str
    """Everything that was marked as reasoning, blocks separated by a blank line."""


_TAG = r"(?:think|thinking|thought|reasoning)"
_OPEN = rf"(?:<{_TAG}>|\[THINK\]|◁think▷)"
_CLOSE = rf"(?:</{_TAG}>|\[/THINK\]|◁/think▷)"

# A block counts only at the start of a line: a sentence may mention the tag.
_BLOCK = re.compile(rf"^[ \t]*{_OPEN}(.*?)(?:{_CLOSE}|\Z)\s*", re.DOTALL | re.MULTILINE | re.I)
# Some chat templates put the opening tag into the prompt, so that only the closing one is written.
# One inside quotes or backticks is a mention.
_UNOPENED = re.compile(rf"\A((?:(?!{_OPEN}).)*)(?<![`\"']){_CLOSE}\s*", re.DOTALL | re.I)
# gpt-oss: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(\w+)[^<]*<\|message\|>"
    r"(.*?)(?=<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>")
# Text that was marked as content: code, and instructions that may show the tag as a format.
_CONTENT = re.compile(r"```.*?(?:```|\Z)|<instructions>.*?(?:</instructions>|\Z)", re.DOTALL)


def split_reasoning(text: str) -> SplitAnswer:
    """Split `text` into answer and reasoning; text without reasoning stays as it is."""
    if "<|channel|>" in text:
        return _split_channels(text)
    parts: list[str] = []
    if unopened := _UNOPENED.match(text):
        parts.append(unopened[1])
        text = text[unopened.end() :]
    kept: list[str] = []
    position = 0
    while block := _BLOCK.search(text, position):
        contents = _CONTENT.finditer(text, position)
        content = next((c for c in contents if c.end() > block.start()), None)
        if content is not None and content.start() < block.start():
            kept.append(text[position : content.end()])
            position = content.end()
            continue
        kept.append(text[position : block.start()])
        parts.append(block[1])
        position = block.end()
    if not parts:
        return SplitAnswer(text, "")
    kept.append(text[position:])
    return SplitAnswer("".join(kept).strip(), _joined(parts))


def strip_reasoning(text: str) -> str:
    """Return the answer in `text` without its reasoning."""
    return split_reasoning(text).text


def _split_channels(text: str) -> SplitAnswer:
    answers: list[str] = []
    reasoning: list[str] = []
    for channel in _CHANNEL.finditer(text):
        content = _CHANNEL_END.sub("", channel[2])
        (answers if channel[1] == "final" else reasoning).append(content)
    return SplitAnswer(_joined(answers), _joined(reasoning))


def _joined(parts: list[str]) -> str:
    return "\n\n".join(stripped for part in parts if (stripped := part.strip()))
