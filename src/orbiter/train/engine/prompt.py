"""Turn items into token ids: the prompt that the model reads, and the answer it should give.

If the tokenizer has a chat template, it is used; otherwise the text is encoded unchanged. Parts
that a template does not support (a system turn, tools, calls) are written into the text instead,
so that nothing is dropped silently. Token ids that came with an item are ignored, since they
belong to the tokenizer of the captured model. Images are not supported. The trainer decides how to
handle a prompt that is too long; `shorten` cuts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orbiter.train.chat.tool_calls import arguments_of, write_call
from orbiter.train.errors import DataError, require
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, Any]
"""One message of a chat, with text as its content."""

TOOLS_IN_WORDS = (
    "You may call these tools:\n{tools}\n"
    'To call one, answer with <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>.'
)
"""Added to the system turn if the chat template does not support tools."""


def render(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem | str, *, system: str | None = None
) -> list[int]:
    """Return the prompt of an item as token ids, up to where the model's answer begins.

    Args:
        tokenizer: The model's tokenizer; its chat template is used if it has one.
        item: The item, or its state as a string. Its `messages` are the chat; without messages,
            its `state` is the user's turn. Its `tools` are included.
        system: Replaces the system turn, or adds one.

    Raises:
        DataError: the template refuses the chat, or the prompt is empty.
    """
    text = render_text(tokenizer, item, system=system)
    if tokenizer.chat_template is None:
        token_ids: list[int] = tokenizer(text, verbose=False).input_ids
    else:
        token_ids = _encode(tokenizer, text)
    if not token_ids:
        raise DataError("the prompt has no tokens: its state is empty")
    return token_ids


def render_text(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem | str, *, system: str | None = None
) -> str:
    """Return the prompt of an item as text, before `render` encodes it into token ids."""
    item = TrajectoryItem(state=item, action="") if isinstance(item, str) else item
    if tokenizer.chat_template is None:
        return f"{system}\n\n{item.state}" if system else item.state
    return _through_template(tokenizer, item, _turns(tokenizer, item, system), prompt=True)


def render_action(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> list[int]:
    """Return the answer of an item as token ids, with the token that ends the turn.

    It begins where `render` ends. If the template supports `tool_calls`, they replace the whole
    action; otherwise the answer is `action` unchanged.
    """
    return _ended(tokenizer, _encode(tokenizer, render_action_text(tokenizer, item)))


def render_action_text(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> str:
    """Return the answer of an item as text, with the template's end-of-turn marker."""
    if tokenizer.chat_template is None:
        return item.action
    turns = _turns(tokenizer, item, None)
    prompt = _through_template(tokenizer, item, turns, prompt=True)
    whole = _through_template(tokenizer, item, [*turns, _answer(tokenizer, item)], prompt=False)
    # Some templates rewrite earlier turns, for example drop old thoughts; then the answer's text
    # cannot be cut out of the whole.
    if not whole.startswith(prompt):
        return item.action
    # Templates write a line break after the end of a turn; sampling stops before it.
    return whole.removeprefix(prompt).rstrip("\n")


def shorten(
    tokenizer: PreTrainedTokenizerBase,
    item: TrajectoryItem | str,
    longest: int,
    *,
    system: str | None = None,
) -> list[int]:
    """Return the prompt as at most `longest` token ids, cut on the left.

    The part that the template writes before the conversation (the turn markers and the system
    turn) is kept, and the oldest tokens of the conversation are removed. If the first part alone is
    too long, it is cut as well.
    """
    token_ids = render(tokenizer, item, system=system)
    if len(token_ids) <= longest:
        return token_ids
    head = _head_length(tokenizer, item, token_ids, system)
    if head >= longest:
        return token_ids[-longest:]
    return token_ids[:head] + token_ids[head - longest :]


def _head_length(
    tokenizer: PreTrainedTokenizerBase,
    item: TrajectoryItem | str,
    token_ids: list[int],
    system: str | None,
) -> int:
    """Count the leading tokens that do not depend on the conversation.

    They are found by comparing the prompt with prompts of two other texts.
    """
    given = TrajectoryItem(state=item, action="") if isinstance(item, str) else item
    turns = [*(given.messages or ())]
    kept = [turn for turn in turns if turn.get("role") == "system"]
    shared = []
    # Two texts, since one alone might begin like the item's by chance.
    for other in ("\x00", "\x01"):
        talk = [*kept, {"role": "user", "content": other}]
        changed = TrajectoryItem(state=other, action="", messages=talk, tools=given.tools)
        shared.append(_common_prefix(token_ids, render(tokenizer, changed, system=system)))
    return min(shared)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _turns(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem, system: str | None
) -> list[Turn]:
    """Return the chat in the form that the template supports."""
    template = _template(tokenizer, item)
    plain = item.messages or [{"role": "user", "content": item.state}]
    turns = [_turn(message, calls="tool_calls" in template) for message in plain]
    first = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    instructions = [system if system is not None else first]
    if item.tools and "tools" not in template:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in item.tools)
        instructions.append(TOOLS_IN_WORDS.format(tools=listed))
    text = "\n\n".join(part for part in instructions if part)
    return [{"role": "system", "content": text}, *turns] if text else turns


def _turn(message: Mapping[str, object], *, calls: bool) -> Turn:
    """Return a message with its content as text; calls stay separate if the template has them."""
    turn: Turn = dict(message) | {"content": _text(message.get("content"))}
    made = turn.pop("tool_calls", None)
    if made:
        ready = [_call(call) for call in made] if isinstance(made, Sequence) else []
        if calls:
            turn["tool_calls"] = ready
        else:
            said = [turn["content"]] if turn["content"] else []
            turn["content"] = "\n".join([*said, *map(write_call, ready)])
    return turn


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"a message's content must be text, or parts of text, got {content!r:.80}")
    return "".join(map(str, texts))


def _call(call: Mapping[str, Any]) -> Turn:
    """Return a call with its arguments as an object; OpenAI encodes them as a JSON string."""
    function = dict(call.get("function", call))
    if isinstance(function.get("arguments"), str):
        # Arguments that are not valid JSON are kept as the string that the model wrote.
        function["arguments"] = arguments_of(function["arguments"])
    return dict(call) | {"function": function} if "function" in call else function


def _answer(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> Turn:
    if item.tool_calls and "tool_calls" in _template(tokenizer, item):
        calls = [_call(call) for call in item.tool_calls]
        return {"role": "assistant", "content": "", "tool_calls": calls}
    return {"role": "assistant", "content": item.action}


def _template(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> str:
    template: str = tokenizer.get_chat_template(tools=item.tools)
    return template


def _through_template(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem, turns: list[Turn], *, prompt: bool
) -> str:
    errors = require("jinja2.exceptions", extra="train")
    tools = list(item.tools) if item.tools and "tools" in _template(tokenizer, item) else None

    def apply(chat: list[Turn]) -> str:
        text: str = tokenizer.apply_chat_template(
            chat, tools=tools, tokenize=False, add_generation_prompt=prompt
        )
        return text

    try:
        return _or_without_system(apply, turns, errors.TemplateError)
    except errors.TemplateError as error:
        raise DataError(
            f"the chat template refuses these turns ({[turn['role'] for turn in turns]}): {error}"
        ) from error


def _or_without_system(
    apply: Callable[[list[Turn]], str], turns: list[Turn], refusal: type[Exception]
) -> str:
    """Move the system text into the first user turn if the template refuses a system turn."""
    try:
        return apply(turns)
    except refusal:
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise
        # Gemma's template, for one, has no system role.
        first = f"{turns[0]['content']}\n\n{turns[1]['content']}"
        return apply([turns[1] | {"content": first}, *turns[2:]])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: the trainer itself reports a prompt that is too long.
    token_ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return token_ids


def _ended(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    """Append the end-of-text token, unless the answer already ends with a special token."""
    if token_ids and token_ids[-1] in tokenizer.all_special_ids:
        return token_ids
    return token_ids if tokenizer.eos_token_id is None else [*token_ids, tokenizer.eos_token_id]


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] | None,
    *,
    open_turn: bool,
) -> str:
    """Return a whole chat as text, as the template writes it.

    With `open_turn` it ends where the next answer begins, which is the text `render` encodes.
    """
    item = TrajectoryItem("", "", messages=list(messages), tools=list(tools) if tools else None)
    return _through_template(tokenizer, item, _turns(tokenizer, item, None), prompt=open_turn)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of part of a chat; special tokens in it are recognised, none added."""
    return _encode(tokenizer, text)
