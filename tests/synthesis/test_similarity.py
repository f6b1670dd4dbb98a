"""The join finds exactly the near-duplicates that brute force finds, by every way in."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis.similarity import (
    Match,
    Measure,
    NearDuplicateIndex,
    compiled,
    hashing,
    join,
    kernels,
    near_duplicates,
    plain,
    ties,
)
from orbiter.train.synthesis.similarity.compiled_index import CompiledEngine
from tests.synthesis.brute_force import close_pairs, components, corpus, greedy, skeletons

LETTERS = list("abcdefgh")
ODD_WORDS = [
    "É",
    "é",
    "ﬁn",
    "fin",
    "ß",
    "SS",
    "x\x1cy",
    "exactly8",
    "seventy",
    "much-longer-word",
    "\x00",
]
CORPORA = {
    "letters": corpus(1, 120, LETTERS),
    "two words": corpus(2, 120, ["yes", "no"]),
    "many words": corpus(3, 120, [f"word{n}" for n in range(200)]),
    "odd words": corpus(4, 120, ODD_WORDS),
    "skeletons": skeletons(5, 120),
}
SETTINGS = [
    (name, threshold, ngram)
    for name in CORPORA
    for threshold, ngram in [
        ("0.5", 1),
        ("0.7", 2),
        ("0.3", 3),
        ("0.9", 3),
        ("0.8", 3),
        ("1.0", 2),
        ("0.9", 1),
    ]
]


@pytest.mark.parametrize(("name", "threshold", "ngram"), SETTINGS)
def test_every_engine_agrees_with_brute_force(name: str, threshold: str, ngram: int) -> None:
    texts, measure = CORPORA[name], Measure(float(threshold), ngram)
    pairs = close_pairs(texts, threshold, ngram)
    for reference in (0, 25):
        want = greedy(pairs, len(texts), reference)
        for engine in (plain, compiled):
            found = engine.near_duplicates(texts, measure, reference=reference)
            got = {n: (m.witness, Fraction(m.shared, m.union)) for n, m in found.items()}
            assert got == want


@pytest.mark.parametrize(("name", "threshold", "ngram"), SETTINGS[::3])
def test_ties_connect_what_brute_force_connects(name: str, threshold: str, ngram: int) -> None:
    texts, measure = CORPORA[name], Measure(float(threshold), ngram)
    pairs = close_pairs(texts, threshold, ngram)
    want = components(pairs, len(texts))
    plainly = dict.fromkeys(plain.ties(texts, measure), Fraction(1))
    fast = {(m.witness, n): Fraction(m.shared, m.union) for n, m in compiled.ties(texts, measure)}
    assert components(plainly, len(texts)) == want
    assert components(fast, len(texts)) == want
    assert all(pairs[min(pair), max(pair)] == similarity for pair, similarity in fast.items())


def test_crossing_finds_whoever_is_close_to_a_lower_side() -> None:
    draw = random.Random(7)
    texts, sides = CORPORA["letters"], [draw.randrange(3) for _ in range(120)]
    pairs = close_pairs(texts, "0.7", 2)
    across = [pair for pair in pairs if sides[pair[0]] != sides[pair[1]]]
    want = {max(pair, key=lambda number: sides[number]) for pair in across}
    assert len(want) > 10
    measure = Measure(0.7, 2)
    assert plain.crossing(texts, sides, measure).keys() == want
    assert compiled.crossing(texts, sides, measure).keys() == want


words = st.lists(st.sampled_from("ab"), max_size=9).map(" ".join)


@given(
    texts=st.lists(words, min_size=1, max_size=14),
    threshold=st.sampled_from(["0.2", "0.5", "0.75", "0.9", "1"]),
    ngram=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_small_alphabets_hide_no_pair(texts: list[str], threshold: str, ngram: int) -> None:
    measure = Measure(float(threshold), ngram)
    want = greedy(close_pairs(texts, threshold, ngram), len(texts))
    fast = compiled.near_duplicates(texts, measure)
    assert {n: (m.witness, Fraction(m.shared, m.union)) for n, m in fast.items()} == want
    assert plain.near_duplicates(texts, measure) == fast


@given(text=st.text(max_size=30), other=st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_two_texts_of_unicode_compare_alike_in_both_engines(text: str, other: str) -> None:
    texts = [text, other, text + " " + other, other.upper(), text.swapcase() + "\n"]
    measure = Measure(0.4, 2)
    assert compiled.near_duplicates(texts, measure) == plain.near_duplicates(texts, measure)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("The  quick\tbrown\nfox", "the quick brown fox"),
        ("ﬁne coffee", "fine COFFEE"),
        ("Straße nach Süden", "STRASSE NACH SÜDEN"),
        ("one\u00a0two three", "one two three"),
        ("a\x1cb c", "a b c"),
        ("", " \n"),
        ("hi", "HI "),
    ],
)
def test_case_forms_and_white_space_make_no_difference(text: str, other: str) -> None:
    for engine in (plain, compiled):
        found = engine.near_duplicates([text, other], Measure(1.0, 3))
        assert found.keys() == {1}


@pytest.mark.parametrize(
    ("text", "other"),
    [("a b c", "a c b"), ("a b", "b a"), ("a\x00", "a"), ("ab", "a b"), ("", "a")],
)
def test_what_differs_is_kept(text: str, other: str) -> None:
    for engine in (plain, compiled):
        assert engine.near_duplicates([text, other], Measure(1.0, 3)) == {}


@pytest.mark.parametrize("tenths", range(1, 11))
@pytest.mark.parametrize("scale", [1, 3, 7])
def test_the_threshold_is_the_decimal_as_written(tenths: int, scale: int) -> None:
    size, shared = 10 * scale, tenths * scale
    everything = [f"w{number}" for number in range(size)]
    texts = [" ".join(everything), " ".join(everything[:shared])]
    for engine in (plain, compiled):
        reached = engine.near_duplicates(texts, Measure(tenths / 10, 1))
        assert reached == {1: Match(0, shared, size)}
        just_above = Measure(Fraction(tenths, 10) + Fraction(1, 10**9), 1) if tenths < 10 else None
        assert just_above is None or engine.near_duplicates(texts, just_above) == {}


def test_a_threshold_with_sixteen_digits_means_what_it_says() -> None:
    texts = [" ".join(f"w{n}" for n in range(10)), " ".join(f"w{n}" for n in range(7))]
    assert 1 - 0.1 * 3 == 0.7000000000000001 or 1 - 0.1 * 3 == 0.7
    assert compiled.near_duplicates(texts, Measure(0.7000000000000001, 1)) == {}
    assert compiled.near_duplicates(texts, Measure(0.7, 1)) == {1: Match(0, 7, 10)}


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_a_threshold_without_meaning_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold must lie in"):
        Measure(threshold)


def test_an_ngram_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="ngram must be at least 1"):
        Measure(0.9, 0)


@pytest.mark.parametrize("engine", [plain.PlainEngine, CompiledEngine])
@pytest.mark.parametrize("seed", range(4))
def test_batches_of_any_size_give_the_one_pass_answer(
    engine: type[plain.PlainEngine] | type[CompiledEngine], seed: int
) -> None:
    texts, measure = skeletons(seed, 150) + corpus(seed, 150, LETTERS), Measure(0.6, 2)
    draw = random.Random(seed)
    draw.shuffle(texts)
    index = engine(measure)
    numbered = list(enumerate(texts))
    index.extend(dict(numbered[:20]))
    found: dict[int, Match] = {}
    at = 20
    while at < len(texts):
        size = draw.choice([0, 1, 5, 40])
        found |= index.admit(dict(numbered[at : at + size]))
        at += size
    assert found == plain.near_duplicates(texts, measure, reference=20)
    assert len(found) > 20


def test_the_index_goes_over_to_the_large_engine_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbiter.train.synthesis.similarity.index.FEW", 60)
    texts = corpus(11, 200, LETTERS)
    index = NearDuplicateIndex(0.8, ngram=2)
    index.extend(texts[:10])
    answers = [index.admit([text])[0] for text in texts[10:]]
    want = plain.near_duplicates(texts, Measure(0.8, 2), reference=10)
    assert {n: match for n, match in enumerate(answers, 10) if match} == want
    assert len(index) == 200 - len(want)
    assert type(index._engine) is CompiledEngine


def test_small_and_large_input_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, measure = corpus(12, 300, LETTERS), Measure(0.8, 2)
    small, small_ties = near_duplicates(texts, measure), ties(texts, measure)
    monkeypatch.setattr(join, "FEW", 1)
    assert near_duplicates(texts, measure) == small
    pairs = [dict.fromkeys(listed, Fraction(1)) for listed in (small_ties, ties(texts, measure))]
    assert components(pairs[0], 300) == components(pairs[1], 300)


def test_a_collision_of_hashes_is_found_and_hashed_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "FEW", 1)
    texts, measure = corpus(13, 60, [f"word{n}" for n in range(50)]), Measure(0.9, 3)
    want = plain.near_duplicates(texts, measure)
    honest = hashing.shingle
    salts: list[int] = []

    def colliding(*args: np.ndarray) -> np.ndarray:
        begin = honest(*args)  # type: ignore[arg-type]  # handed on as they came
        salts.append(int(args[3]))
        if salts[-1] == 0:
            args[4][:] = args[4] % 8  # eight hashes for all shingles
        return begin

    monkeypatch.setattr(hashing, "shingle", colliding)
    assert near_duplicates(texts, measure) == want
    assert salts == [0, 1]
    index = NearDuplicateIndex(0.9)
    monkeypatch.setattr("orbiter.train.synthesis.similarity.index.FEW", 1)
    answers = index.admit(texts[:30]) + index.admit(texts[30:])
    assert {n: match for n, match in enumerate(answers) if match} == want


def test_texts_are_cut_into_chunks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, measure = corpus(14, 200, ODD_WORDS + LETTERS), Measure(0.7, 2)
    whole = compiled.near_duplicates(texts, measure)
    for size in (1, 50, 333):
        monkeypatch.setattr(compiled, "CHUNK_CHARACTERS", size)
        assert compiled.near_duplicates(texts, measure) == whole


def test_no_texts_have_no_duplicates() -> None:
    assert near_duplicates([], Measure()) == {}
    assert NearDuplicateIndex().admit([]) == []


def test_long_texts_are_sorted_and_compared_like_short_ones() -> None:
    draw = random.Random(3)
    long = draw.choices([f"w{n}" for n in range(2000)], k=3000)
    near = [*long[:-50], *draw.choices(long, k=50)]
    far = draw.choices(long, k=3000)
    texts = [" ".join(words) for words in (long, near, far)]
    for engine in (plain, compiled):
        assert engine.near_duplicates(texts, Measure(0.9, 3)).keys() == {1}


def test_a_machine_without_a_writable_folder_compiles_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def twice(number: int) -> int:
        return 2 * number

    assert kernels.compiled(twice)(21) == 42
