"""Every rendering once before any comes twice; nothing but names in braces."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis import SynthesisContext, TemplateSynthesiser

TEMPLATES = [
    "Explain {concept} in simple terms",
    "What are the pros and cons of {concept}?",
    "Compare {concept_a} with {concept_b}",
]
VARIABLES = {
    "concept": ["Python", "JavaScript", "Rust"],
    "concept_a": ["REST", "GraphQL"],
    "concept_b": ["gRPC", "WebSocket"],
}


def guide(*, unique: bool = False, seed: int = 0) -> TemplateSynthesiser:
    return TemplateSynthesiser(TEMPLATES, VARIABLES, unique=unique, seed=seed)


async def test_exactly_as_many_as_asked_with_no_repetition_before_all_are_used() -> None:
    synthesiser = guide()
    with pytest.warns(UserWarning, match="all 10 renderings") as warned:
        items = await synthesiser.generate(count=50)
    items += await synthesiser.generate(count=20)
    assert len(items) == 70
    assert len(warned) == 1, "one warning, not one a round"
    assert synthesiser.capacity == 10
    for start in range(0, 70, 10):
        assert len({item.state for item in items[start : start + 10]}) == 10


async def test_an_item_names_its_template_and_values() -> None:
    (item,) = await TemplateSynthesiser(["Why {x}, {{and}} {x}?"], {"x": ["a"]}).generate(1)
    assert item.state == "Why a, {and} a?"
    assert (item.action, item.reward) == ("", None)
    assert item.metadata == {"template": "Why {x}, {{and}} {x}?", "values": {"x": "a"}}


async def test_unique_stops_at_the_capacity() -> None:
    synthesiser = guide(unique=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = await synthesiser.generate(7), await synthesiser.generate(7)
    assert (len(first), len(second)) == (7, 3)
    assert await synthesiser.generate(1) == []


def test_templates_take_turns() -> None:
    letters = [f"l{index}" for index in range(100)]
    synthesiser = TemplateSynthesiser(["A {x}{y}", "B {x}", "C"], {"x": letters, "y": letters})
    kinds = Counter(text[0] for text in synthesiser.texts(101))
    assert kinds == {"A": 50, "B": 50, "C": 1}


def test_the_order_is_random_and_the_seed_decides_it() -> None:
    values = {"x": list(range(1000))}
    one, same, other = (TemplateSynthesiser(["{x}"], values, seed=seed) for seed in (1, 1, 2))
    texts = one.texts(1000)
    assert same.texts(500) + same.texts(500) == texts
    assert other.texts(1000) != texts
    assert sorted(map(int, texts)) == list(range(1000))
    steps = {int(b) - int(a) for a, b in pairwise(texts)}
    assert len(steps) > 400, "no regular pattern"


def test_every_rendering_is_as_likely_to_come_first() -> None:
    first = Counter(
        TemplateSynthesiser(["{x}{y}"], {"x": ["a", "b", "c"], "y": [1, 2, 3]}, seed=seed).texts(1)[
            0
        ]
        for seed in range(900)
    )
    assert len(first) == 9
    assert min(first.values()) > 65


def test_a_huge_product_costs_only_what_is_asked_for() -> None:
    many = {f"v{index}": [f"{index}.{value}" for value in range(1000)] for index in range(20)}
    synthesiser = TemplateSynthesiser([" ".join(f"{{{name}}}" for name in many)], many)
    assert synthesiser.capacity == 1000**20
    texts = synthesiser.texts(500)
    assert len(set(texts)) == 500
    for place in range(20):
        assert len({text.split()[place] for text in texts}) > 300


@given(
    columns=st.lists(
        st.lists(st.text("ab{}", max_size=2), min_size=1, max_size=3), min_size=1, max_size=3
    ),
    shape=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_one_round_is_every_different_rendering_once(
    columns: list[list[str]], shape: list[int]
) -> None:
    names = [f"n{place % len(columns)}" for place in shape]
    variables = {f"n{index}": column for index, column in enumerate(columns)}
    template = "-".join(f"{{{name}}}" for name in names)
    synthesiser = TemplateSynthesiser([template], variables, unique=True)
    got = synthesiser.texts(1000)
    want = {""}
    chosen: list[dict[str, str]] = [{}]
    for name in dict.fromkeys(names):
        chosen = [{**one, name: value} for one in chosen for value in variables[name]]
    want = {"-".join(one[name] for name in names) for one in chosen}
    assert len(got) == len(want)
    assert set(got) == want
    assert synthesiser.capacity >= len(want)


def test_renderings_that_read_the_same_come_once() -> None:
    synthesiser = TemplateSynthesiser(["{a}{b}"], {"a": ["x", "xy"], "b": ["yz", "z"]}, unique=True)
    assert sorted(synthesiser.texts(10)) == ["xyyz", "xyz", "xz"]


def test_values_need_not_be_text_and_repeated_ones_count_once() -> None:
    synthesiser = TemplateSynthesiser(["{n}"], {"n": [1, 2.5, True, 1, "1"]}, unique=True)
    assert synthesiser.capacity == 3
    assert sorted(synthesiser.texts(9)) == ["1", "2.5", "True"]


@pytest.mark.parametrize(
    "template",
    [
        "{x.__class__}",
        "{x[0]}",
        "{x!r}",
        "{x:>10}",
        "{}",
        "{0}",
        "{x y}",
        "{x{y}}",
        "a { b",
        "a } b",
        "{x",
        "{x:{y}}",
        "{{x}",
    ],
)
def test_format_tricks_are_refused_at_construction(template: str) -> None:
    with pytest.raises(ConfigError, match=r"template .* (not supported|lone)"):
        TemplateSynthesiser([template], {"x": ["1"], "y": ["2"]})


def test_missing_variables_are_named_with_the_nearest_known() -> None:
    with pytest.raises(ConfigError, match=r"no values for concpt, other; did you mean 'concept'"):
        TemplateSynthesiser(["{concpt} {other} {concept}"], {"concept": ["x"]})


@pytest.mark.parametrize(
    ("templates", "variables"),
    [
        ("one {x}", {"x": ["1"]}),
        ([], {}),
        ([3], {}),
        (["{x}"], {"x": "text"}),
        (["{x}"], {"x": []}),
        (["{x}"], {"x": 3}),
    ],
)
def test_what_is_no_template_or_list_of_values_is_refused(
    templates: list[str], variables: dict[str, list[str]]
) -> None:
    with pytest.raises(ConfigError):
        TemplateSynthesiser(templates, variables)


async def test_a_negative_count_is_refused_and_none_is_none() -> None:
    with pytest.raises(ConfigError, match="count"):
        await guide().generate(-1)
    assert await guide().generate(0) == []


async def test_in_a_pipeline_the_offset_alone_decides_what_comes() -> None:
    whole = [item.state for item in await guide().generate(10, context=SynthesisContext())]
    synthesiser = guide()
    for offset in (7, 0, 3, 9, 3):
        items = await synthesiser.generate(3, context=SynthesisContext(offset=offset))
        assert [item.state for item in items] == whole[offset : offset + 3]
    assert await synthesiser.generate(3, context=SynthesisContext(offset=10)) == []


def test_the_fingerprint_tells_other_templates_values_and_seeds_apart() -> None:
    synthesisers = [
        guide(),
        guide(seed=1),
        TemplateSynthesiser(TEMPLATES[:2], VARIABLES),
        TemplateSynthesiser(TEMPLATES, VARIABLES | {"concept_a": ["REST"]}),
    ]
    assert len({synthesiser.fingerprint for synthesiser in synthesisers}) == 4
    assert guide().fingerprint == guide().fingerprint
