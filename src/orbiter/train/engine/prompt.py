"""Turn items into token ids: the model's prompt, and the answer it should give.

If the tokenizer has a chat template, it is used; otherwise the text is encoded unchanged. Parts
that a template does not support (a system turn, tools, calls) are written into the text instead,
so that nothing is dropped silently. Token ids that came with an item are ignored here, since they
may belong to another tokenizer; `agents/logged.py` uses them. Images are not supported. The trainer
decides how to handle a prompt that is too long; `shorten` cuts it.

Where an answer ends is in `turn_end.py`, and the tokens at the seams in `encoding.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.chat.tool_calls import arguments_of, name_of, parse_calls, write_call
from orbiter.train.chat.transcript import content_of, write_transcript
from orbiter.train.engine.encoding import encode, encode_opening
from orbiter.train.errors import DataError, require
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",  # OpenAI's later name for it, which no chat template knows
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""The roles of a chat, and the names under which templates know them."""
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
    # A tokenizer with a template writes its beginning token through the template.
    opening = encode_opening if tokenizer.chat_template is None else encode
    token_ids = opening(tokenizer, text)
    if not token_ids:
        raise DataError("the prompt has no tokens: its state is empty")
    return token_ids


def render_text(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem | str, *, system: str | None = None
) -> str:
    """Return the prompt of an item as text, before `render` encodes it into token ids."""
    item = TrajectoryItem(state=item, action="") if isinstance(item, str) else item
    if tokenizer.chat_template is None:
        return _without_template(item, system)
    return _through_template(tokenizer, item, _turns(tokenizer, item, system), prompt=True)


class PromptedAnswer(NamedTuple):
    """The text of an answer, and the prompt that it follows."""

    prompt: str
    answer: str
    """The answer, with the text that the template writes after it."""


def answer_text(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> PromptedAnswer:
    """Return the answer of an item as text, with the template's end-of-turn marker.

    If the template supports `tool_calls`, they are written by it, after the text of the answer;
    otherwise the answer is `action` unchanged.
    """
    if tokenizer.chat_template is None:
        return PromptedAnswer(_without_template(item, None), item.action)
    turns = _turns(tokenizer, item, None)
    prompt = _through_template(tokenizer, item, turns, prompt=True)
    given = [*_plain_turns(item), _answer(tokenizer, item)]
    whole = _through_template(tokenizer, item, _turns(tokenizer, item, None, given), prompt=False)
    # Some templates rewrite earlier turns, for example drop old thoughts; then the answer's text
    # cannot be cut out of the whole.
    if not whole.startswith(prompt):
        return PromptedAnswer(prompt, item.action)
    return PromptedAnswer(prompt, whole.removeprefix(prompt))


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
    # Most prompts fit, so the head is only looked for when it is needed.
    if len(token_ids) <= longest:
        return token_ids
    # The instructions and tools must survive, or the model would not know its task.
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
    kept = [turn for turn in turns if ROLES.get(str(turn.get("role"))) == "system"]
    shared = []
    # Two texts, since one alone might begin like the item's by chance.
    for text in ("\x00", "\x01"):
        talk = [*kept, {"role": "user", "content": text}]
        changed = TrajectoryItem(state=text, action="", messages=talk, tools=given.tools)
        shared.append(_common_prefix(token_ids, render(tokenizer, changed, system=system)))
    return min(shared)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))


def _without_template(item: TrajectoryItem, system: str | None) -> str:
    """Return a prompt for a model whose tokenizer has no chat template.

    A lone user message or a plain state is the text itself, for the model to continue; system turn
    and tools come before it. Any other conversation is written with its roles.
    """
    turns = [_turn(message, calls=True) for message in _plain_turns(item)]
    first = str(turns.pop(0)["content"]) if turns[0]["role"] == "system" else ""
    head = [system if system is not None else first, tools_in_words(item)]
    if len(turns) <= 1 and all(turn["role"] == "user" for turn in turns):
        talk = str(turns[0]["content"]) if turns else ""
    else:
        # Ends with an open assistant turn, the place where the model answers.
        talk = write_transcript([*turns, {"role": "assistant", "content": ""}]) + "\n"
    return "\n\n".join([*(part for part in head if part), talk])


def _plain_turns(item: TrajectoryItem) -> Sequence[Mapping[str, object]]:
    return item.messages or [{"role": "user", "content": item.state}]


def _turns(
    tokenizer: PreTrainedTokenizerBase,
    item: TrajectoryItem,
    system: str | None,
    messages: Sequence[Mapping[str, object]] | None = None,
) -> list[Turn]:
    """Return the chat of an item, or other messages, in the form that the template supports."""
    # Templates differ in which features they have; the name in the source is the only sign.
    template = _template(tokenizer, item)
    plain = _plain_turns(item) if messages is None else messages
    turns = [_turn(message, calls="tool_calls" in template) for message in numbered_calls(plain)]
    # System text is taken out of the chat, since a caller's system prompt replaces it.
    first = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    instructions = [system if system is not None else first]
    if "tools" not in template:
        instructions.append(tools_in_words(item))
    text = "\n\n".join(part for part in instructions if part)
    return [{"role": "system", "content": text}, *turns] if text else turns


def tools_in_words(item: TrajectoryItem) -> str:
    """Return the tools of an item as text for the system turn; "" if it has none."""
    if not item.tools:
        return ""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in item.tools)
    return TOOLS_IN_WORDS.format(tools=listed)


def numbered_calls(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Return a chat whose call ids are numbers by order, in nine digits.

    The ids that servers give are random, so a model would learn noise from them, and some templates
    accept no other form.
    """
    known: dict[object, str] = {}
    numbered: list[Mapping[str, object]] = []
    count = 0
    for message in messages:
        changed = dict(message)
        calls = message.get("tool_calls")
        if isinstance(calls, Sequence) and calls and not isinstance(calls, str):
            renamed = []
            for call in calls:
                count += 1
                known[call.get("id")] = f"{count:09d}"
                renamed.append({**call, "id": known[call.get("id")]} if "id" in call else call)
            changed["tool_calls"] = renamed
        if message.get("tool_call_id") is not None:
            of_call = message["tool_call_id"]
            changed["tool_call_id"] = known.get(of_call, of_call)
        numbered.append(changed)
    return numbered


def _turn(message: Mapping[str, object], *, calls: bool) -> Turn:
    """Return a message with its content as text; calls stay separate if the template has them."""
    turn: Turn = dict(message) | {"content": _text(message.get("content"))}
    turn["role"] = ROLES.get(str(turn.get("role")), turn.get("role"))
    made = turn.pop("tool_calls", None)
    if made:
        ready = [_call(call) for call in made] if isinstance(made, Sequence) else []
        if calls:
            turn["tool_calls"] = ready
        else:
            words = [turn["content"]] if turn["content"] else []
            turn["content"] = "\n".join([*words, *map(write_call, ready)])
    return turn


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    # An image or audio part cannot be read here; skipping it would train on half a prompt.
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
    """Return the answer of an item as a message, with thoughts where the template has them."""
    template = _template(tokenizer, item)
    answer: Turn = {"role": "assistant", "content": item.action}
    if item.tool_calls and "tool_calls" in template:
        answer["content"] = _words_beside_calls(item.action, item.tool_calls)
        answer["tool_calls"] = list(item.tool_calls)
    thoughts = item.metadata.get("reasoning")
    if isinstance(thoughts, str) and "reasoning_content" in template:
        answer["reasoning_content"] = thoughts
    return answer


def _words_beside_calls(action: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of an answer without its calls, in whichever form the action writes them."""
    # Captured actions may write calls in our form or in the model's own.
    words = content_of(action, calls)
    if words != action:
        return words
    parsed = parse_calls(action, [name_of(call) for call in calls])
    return parsed.content if parsed.calls else action


def _template(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> str:
    template: str = tokenizer.get_chat_template(tools=item.tools)
    return template


def _through_template(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem, turns: list[Turn], *, prompt: bool
) -> str:
    errors = require("jinja2.exceptions", extra="train")
    # Passing tools to a template without support would make them vanish silently.
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
    # Tried first with a system turn: only the template itself knows whether it accepts one.
    try:
        return apply(turns)
    except refusal:
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise
        # Gemma's template, for one, has no system role.
        first = f"{turns[0]['content']}\n\n{turns[1]['content']}"
        return apply([turns[1] | {"content": first}, *turns[2:]])


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] | None,
    *,
    open_turn: bool,
) -> str:
    """Return a whole chat as text, as the template writes it.

    With `open_turn` it ends where the next answer begins, which is the text `render` encodes.

    Raises:
        DataError: the template refuses the chat.
    """
    item = TrajectoryItem("", "", messages=list(messages), tools=list(tools) if tools else None)
    return _through_template(tokenizer, item, _turns(tokenizer, item, None), prompt=open_turn)
