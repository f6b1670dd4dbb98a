"""Near-duplicates by comparing every pair: slow, short, and written apart from the package."""

import random
import unicodedata
from fractions import Fraction

Pairs = dict[tuple[int, int], Fraction]


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")


def split_words(text: str) -> list[str]:
    """Words between white space; where a script has no spaces, a letter with its marks."""
    words: list[str] = []
    inside = False  # whether the last word is a spaced one that goes on
    for char in text:
        unspaced = unicodedata.name(char, "").split(" ")[0] in UNSPACED
        if char.isspace():
            inside = False
        elif unspaced and unicodedata.category(char) in {"Mn", "Mc"} and words and not inside:
            words[-1] += char
        elif unspaced:
            words.append(char)
            inside = False
        elif inside:
            words[-1] += char
        else:
            words.append(char)
            inside = True
    return words


def shingle_set(text: str, ngram: int) -> set[str]:
    words = split_words(unicodedata.normalize("NFKC", text).casefold())
    if len(words) < ngram:
        return {f"short:{words}"}
    return {repr(words[at : at + ngram]) for at in range(len(words) - ngram + 1)}


def close_pairs(texts: list[str], threshold: str, ngram: int) -> Pairs:
    sets = [shingle_set(text, ngram) for text in texts]
    found: Pairs = {}
    for later in range(len(texts)):
        for earlier in range(later):
            shared = len(sets[later] & sets[earlier])
            similarity = Fraction(shared, len(sets[later]) + len(sets[earlier]) - shared)
            if similarity >= Fraction(threshold):
                found[earlier, later] = similarity
    return found


def greedy(pairs: Pairs, count: int, reference: int = 0) -> dict[int, tuple[int, Fraction]]:
    """Whom the one pass in order leaves out: (closest kept one, earliest of those, similarity)."""
    kept = list(range(reference))
    out: dict[int, tuple[int, Fraction]] = {}
    for number in range(reference, count):
        close = [(-pairs[other, number], other) for other in kept if (other, number) in pairs]
        if close:
            similarity, witness = min(close)
            out[number] = (witness, -similarity)
        else:
            kept.append(number)
    return out


def components(pairs: Pairs, count: int) -> list[int]:
    """The smallest member of every text's component."""
    label = list(range(count))
    changed = True
    while changed:
        changed = False
        for one, other in pairs:
            low = min(label[one], label[other])
            changed |= label[one] != low or label[other] != low
            label[one] = label[other] = low
    return label


def corpus(seed: int, count: int, vocabulary: list[str]) -> list[str]:
    """Texts of few words with many copies, most of them edited."""
    draw = random.Random(seed)
    originals = [draw.choices(vocabulary, k=draw.randint(0, 25)) for _ in range(max(1, count // 3))]
    texts = []
    for _ in range(count):
        words = list(draw.choice(originals))
        for _ in range(draw.randint(0, 3)):
            words.insert(draw.randint(0, len(words)), draw.choice(vocabulary))
        texts.append(draw.choice([" ", "  ", "\n", "\t"]).join(words) + draw.choice(["", " "]))
    return texts


def skeletons(seed: int, count: int) -> list[str]:
    """Agent-like texts: a few long templates with slots of few values."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(300)]
    templates = [draw.choices(words, k=30) for _ in range(4)]
    texts = []
    for _ in range(count):
        filled = list(draw.choice(templates))
        for place in draw.sample(range(30), 2):
            filled[place] = draw.choice(words[:20])
        texts.append(" ".join(filled))
    return texts
