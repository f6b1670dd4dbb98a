"""Items as Hypothesis makes them: every field, any Unicode text, any finite float, any JSON."""

from __future__ import annotations

from hypothesis import strategies as st

from orbiter.train.trajectory import TrajectoryItem

texts = st.text(max_size=20) | st.sampled_from(
    ["", "'", "''=1", "=1+1", "-2", "+1", "@x", "\t", "\r", "\r\n", "\n", "\0", '"', ",", "\u2028"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=3)
optional_objects = st.none() | st.lists(objects, max_size=3)
optional_ids = st.none() | st.lists(st.integers(0, 2**40), max_size=3)


@st.composite
def items(draw: st.DrawFn, *, scored: bool = True) -> TrajectoryItem:
    tokens = draw(optional_ids)
    count = len(tokens or ())
    return TrajectoryItem(
        draw(texts),
        draw(texts),
        draw(finite) if scored else draw(st.none() | finite),
        draw(objects),
        task_id=draw(st.none() | texts),
        episode_id=draw(st.none() | st.sampled_from(["", "e1", "e2", "=3"])),
        step=draw(st.none() | st.integers()),
        agent=draw(st.none() | texts),
        messages=draw(optional_objects),
        tools=draw(optional_objects),
        tool_calls=draw(optional_objects),
        done=draw(st.none() | st.booleans()),
        timestamp=draw(st.none() | finite),
        prompt_token_ids=draw(optional_ids),
        token_ids=tokens,
        logprobs=draw(st.none() | st.lists(finite, min_size=count, max_size=count))
        if tokens
        else None,
    )
