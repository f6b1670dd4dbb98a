"""The strength of the noise is what was asked for, measured by true edit distance."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis import augment_add_noise
from orbiter.train.synthesis.augment.noise import ALL_OPS, Noise, NoiseOp, _draws, clusters
from orbiter.train.synthesis.augment.protect import free_spans

SENTENCES = (
    "The quick agent wrote an answer about decorators while another reader asked for examples.",
    "Why does the weather tool fail, and what should a careful user try before giving up?",
    "Memory ordering is subtle; please explain it slowly, with words that a beginner knows.",
    "Because of an earlier mistake the order was sent to the wrong town, so they called again.",
)


def prose(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        words = " ".join(rng.sample(SENTENCES, rng.randint(1, 3))).split()
        rng.shuffle(words)
        texts.append(" ".join(words))
    return texts


def levenshtein(one: str, other: str) -> int:
    """Myers' bit-parallel distance (as Hyyrö wrote it): one big integer a column."""
    places: dict[str, int] = {}
    for index, char in enumerate(one):
        places[char] = places.get(char, 0) | 1 << index
    full, last = (1 << len(one)) - 1, 1 << max(0, len(one) - 1)
    up, down, distance = full, 0, len(one)
    for char in other:
        equal = places.get(char, 0)
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        rise, fall = down | (~(horizontal | up) & full), up & horizontal
        distance += bool(rise & last) - bool(fall & last)
        rise, fall = (rise << 1 | 1) & full, (fall << 1) & full
        up, down = fall | (~(vertical | rise) & full), rise & vertical
    return distance


def error_rate(texts: Sequence[str], level: float, ops: Sequence[NoiseOp] = ALL_OPS) -> float:
    rows = [{"input": text} for text in texts]
    noisy = [str(row["input"]) for row in augment_add_noise(rows, level, ops=ops, seed=1)]
    edits = sum(map(levenshtein, texts, noisy))
    return edits / sum(map(len, texts))


def test_the_distance_used_here_is_levenshteins() -> None:
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("ab", "ba") == 2
    assert levenshtein("abc", "") == 3
    assert levenshtein("", "") == 0


@pytest.mark.parametrize("level", [0.02, 0.1, 0.3, 0.5])
def test_the_error_rate_is_the_level(level: float) -> None:
    assert error_rate(prose(0, 800), level) == pytest.approx(level, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_the_error_rate_is_the_level_over_ten_thousand_texts(level: float) -> None:
    assert error_rate(prose(1, 10_000), level) == pytest.approx(level, rel=0.015)


def test_between_protected_spans_the_error_rate_is_the_level_too() -> None:
    texts = []
    for text in prose(5, 600):
        words = text.split()
        texts.append(" 42 ".join(" ".join(words[at : at + 3]) for at in range(0, len(words), 3)))
    rows = [{"input": text} for text in texts]
    noisy = [str(row["input"]) for row in augment_add_noise(rows, 0.1)]
    free = sum(end - start for text in texts for start, end in free_spans(text))
    assert free < 0.85 * sum(map(len, texts))
    assert sum(map(levenshtein, texts, noisy)) / free == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("op", ALL_OPS)
def test_every_kind_of_slip_alone_reaches_the_level(op: NoiseOp) -> None:
    assert error_rate(prose(2, 500), 0.1, [op]) == pytest.approx(0.1, rel=0.06)


def test_every_level_up_to_one_can_be_asked_for() -> None:
    rates = [error_rate(prose(3, 60), level) for level in (0.6, 0.8, 1.0)]
    assert rates == sorted(rates)
    assert rates[-1] > 0.6


def test_deletions_alone_only_shorten() -> None:
    texts = prose(4, 20)
    noise = Noise.of(0.2, ["delete"])
    for text in texts:
        noisy = noise.apply(text, [(0, len(text))], "k")
        rest = iter(text)
        assert len(noisy) < len(text)
        assert all(char in rest for char in noisy)


def test_swaps_alone_keep_every_character() -> None:
    text = " ".join(SENTENCES)
    noisy = Noise.of(0.2, ["swap"]).apply(text.lower(), [(0, len(text))], "k")
    lost = sum((a != b) for a, b in zip(sorted(text.lower()), sorted(noisy), strict=False))
    assert noisy != text.lower()
    assert len(noisy) == len(text)
    assert lost < 0.1 * len(text)  # at a text's end or between equal letters a swap substitutes


def test_slips_speak_the_texts_own_script() -> None:
    text = "Почему погода сегодня такая холодная, зачем это надо делать дальше " * 4
    noisy = Noise.of(0.3, ["substitute"]).apply(text, [(0, len(text))], "k")
    latin = sum(char.isascii() and char.isalpha() for char in noisy)
    assert latin == 0
    assert noisy != text


def test_too_few_draws_are_noticed_and_more_begin_with_the_same() -> None:
    noise, text = Noise.of(0.9, ["insert"]), "a" * 500
    assert noise._edit(text, [(0, 500)], _draws("k", 300)) is None
    assert len(noise._edit(text, [(0, 500)], _draws("k", 600)) or "") > 900
    assert _draws("k", 600)[:300] == _draws("k", 300)


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan"), True])
def test_a_level_that_is_no_rate_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="noise_level"):
        Noise.of(level)


def test_unknown_slips_are_refused() -> None:
    with pytest.raises(ConfigError, match="ops"):
        Noise.of(0.1, ["teleport"])  # type: ignore[list-item]  # what is refused
    with pytest.raises(ConfigError, match="ops"):
        Noise.of(0.1, [])


# ruff: noqa: RUF001 - letters of other scripts are the point
SCRIPTS = {
    "Russian": "почему погода сегодня такая холодная зачем это надо делать дальше объясни мне",
    "Greek": "γιατί ο καιρός είναι σήμερα τόσο κρύος και τι πρέπει να κάνω μετά από αυτό",
    "Chinese": "请问今天的天气为什么这么冷我应该怎么做才能解决这个问题谢谢你的帮助与耐心解释",
    "Japanese": "今日の天気はなぜこんなに寒いのですかこの問題を解決するにはどうすればよいですか",
    "Thai": "ทำไมวันนี้อากาศหนาวมากและฉันควรทำอย่างไรต่อไปเพื่อแก้ปัญหานี้",
    "Hindi": "आज मौसम इतना ठंडा क्यों है और मुझे आगे क्या करना चाहिए कृपया समझाइए",
    "Korean": "오늘 날씨가 왜 이렇게 추운지 그리고 다음에 무엇을 해야 하는지 설명해 주세요",
    "Arabic": "لماذا الطقس بارد جدا اليوم وماذا يجب أن أفعل بعد ذلك من فضلك اشرح لي",
    "decomposed": unicodedata.normalize("NFD", "Việt nam có gà và cá ở biển"),
}


def in_script(seed: int, script: str, count: int) -> list[str]:
    rng = random.Random(seed)
    text = SCRIPTS[script]
    words = text.split() if " " in text else clusters(text)
    joint = " " if " " in text else ""
    return [joint.join(rng.choices(words, k=2 * len(words))) for _ in range(count)]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_in_every_script_the_error_rate_is_the_level(script: str, level: float) -> None:
    assert error_rate(in_script(0, script, 300), level) == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "decomposed"])
def test_no_text_gets_letters_of_another_script(script: str) -> None:
    rows = [{"input": text} for text in in_script(1, script, 50)]
    noisy = augment_add_noise(rows, 0.4)
    assert noisy != rows
    for row in noisy:
        assert not re.search("[A-Za-z]", str(row["input"]))


def test_no_mark_leaves_its_letter_and_no_emoji_is_torn() -> None:
    family, wave = "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44b\U0001f3fd"
    text = f"Hi {family} wave {wave} e\u0301a\u0308 go \U0001f1e6\U0001f1f9 \u2764\ufe0f"
    whole = set(clusters(text * 3))
    for seed in range(200):
        noisy = str(augment_add_noise([{"input": text * 3}], 0.4, seed=seed)[0]["input"])
        torn = {each for each in clusters(noisy) if len(each) > 1 or not each.isascii()} - whole
        assert not torn, f"seed {seed}: {torn}"


def test_a_text_without_letters_is_only_shortened_and_swapped() -> None:
    for seed in range(20):
        noisy = str(
            augment_add_noise([{"input": "\u2600\u2601\u2602\u2603" * 9}], 0.3, seed=seed)[0][
                "input"
            ]
        )
        assert set(noisy) <= set("\u2600\u2601\u2602\u2603")
