"""Makes items from templates: each combination of values once, in random order.

A template is text with `{name}` fields; `{{` and `}}` are literal braces. Nothing else of Python's
format language is supported (no attributes, indices, conversions or widths), so an untrusted
template cannot read anything. For conditions and loops, write a `DataSynthesiser`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from orbiter.train.errors import ConfigError, did_you_mean
from orbiter.train.seeding import sub_random
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.trajectory import TrajectoryItem


class TemplateSynthesiser(DataSynthesiser):
    """Fills templates with values: the text is in `state`, and the action is empty.

    No rendering is repeated before all have been used. Templates take turns as long as each has
    new renderings. The next call continues where the last one stopped. Inside a pipeline, which
    would drop repeated texts anyway, it stops when all have been used.
    """

    def __init__(
        self,
        templates: Sequence[str],
        variables: Mapping[str, Sequence[object]] | None = None,
        *,
        unique: bool = False,
        seed: int = 0,
    ) -> None:
        """Check the templates against the variables.

        Args:
            templates: Texts with `{name}` fields. A name used twice in a text gets one value.
            variables: The values of each name; values that are not text are converted by `str`.
            unique: Stop when all renderings have been used, returning fewer than requested.
            seed: The seed of the random order.

        Raises:
            ConfigError: a template uses a name without values, or asks for more than a name.
        """
        if isinstance(templates, str) or not templates:
            raise ConfigError(f"templates must be a list of at least one text, got {templates!r}")
        values = {name: _values(name, given) for name, given in (variables or {}).items()}
        # A template given twice would make every text twice.
        self._templates = [_parse(text, values) for text in dict.fromkeys(templates)]
        self._unique = unique
        self._seed = seed
        self._by_hand = _Walk(self._templates, seed, endless=not unique)
        self._in_pipeline = _Walk(self._templates, seed, endless=False)
        self._warned = False

    @property
    def capacity(self) -> int:
        """The number of combinations of a template and its values.

        If two of them give the same text (`{a}{b}` with "x" and "yz", or "xy" and "z"), that text
        is made once, so there are fewer renderings than combinations.
        """
        return sum(template.capacity for template in self._templates)

    @property
    def fingerprint(self) -> str:
        """A hash of the templates, values and seed, which together determine the items."""
        content = [[t.source, t.values] for t in self._templates]
        digest = hashlib.blake2b(json.dumps([content, self._seed]).encode(), digest_size=8)
        return f"{type(self).__qualname__}:{digest.hexdigest()}"

    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> list[TrajectoryItem]:
        """Return `count` items; fewer only with `unique=True` or inside a pipeline."""
        if context is None:
            renderings = self._next(count)
        else:
            # A resumed run, or batches out of order: the place decides what comes next, not the
            # calls so far.
            if self._in_pipeline.place != context.offset:
                self._in_pipeline = _Walk(self._templates, self._seed, endless=False)
                self._in_pipeline.take(context.offset)
            renderings = self._in_pipeline.take(count)
        return [
            TrajectoryItem(text, "", metadata={"template": t.source, "values": t.chosen(index)})
            for t, index, text in renderings
        ]

    def texts(self, count: int) -> list[str]:
        """Return the next `count` renderings as plain texts."""
        return [text for _, _, text in self._next(count)]

    def _next(self, count: int) -> list[_Rendering]:
        renderings = self._by_hand.take(count)
        if self._by_hand.round > 0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"all {self.capacity} renderings have been used and will repeat; give more "
                f"values, or unique=True to stop there",
                stacklevel=3,
            )
        return renderings


_Rendering: TypeAlias = tuple["_Template", int, str]
"""A template, the number of its combination, and the text."""


class _TemplateField(NamedTuple):
    """A field of a template, to be filled with a value."""

    name: str
    pieces: tuple[str, ...]
    """The values, each with the template's text up to the next slot."""
    stride: int
    size: int
    """Combination i has value number i // stride % size here."""


@dataclass(frozen=True, slots=True)
class _Template:
    """A parsed template; a combination of its values is a number below `capacity`."""

    source: str
    head: str
    """The text before the first slot."""
    slots: tuple[_TemplateField, ...]
    values: Mapping[str, tuple[str, ...]]
    capacity: int

    def text(self, index: int) -> str:
        """Return the rendering of combination `index`."""
        text = self.head
        for _, pieces, stride, size in self.slots:
            text += pieces[index // stride % size]
        return text

    def chosen(self, index: int) -> dict[str, str]:
        """Return the values of combination `index` by name."""
        return {s.name: self.values[s.name][index // s.stride % s.size] for s in self.slots}


class _Walk:
    """An iteration over all renderings, repeated in rounds if `endless`."""

    def __init__(self, templates: Sequence[_Template], seed: int, *, endless: bool) -> None:
        self.place = 0
        """The number of renderings requested so far."""
        self.round = 0
        self._templates = templates
        self._seed = seed
        self._renderings = self._rounds(endless=endless)

    def take(self, count: int) -> list[_Rendering]:
        """Return the next `count` renderings, fewer at the end."""
        if count < 0:
            raise ConfigError(f"count must not be negative, got {count}")
        self.place += count
        return list(itertools.islice(self._renderings, count))

    def _rounds(self, *, endless: bool) -> Iterator[_Rendering]:
        yield from self._one_round()
        while endless:
            self.round += 1
            yield from self._one_round()

    def _one_round(self) -> Iterator[_Rendering]:
        seen: set[str] = set()
        decks = [
            (
                template,
                _deal(template.capacity, sub_random(self._seed, "deal", self.round, position)),
            )
            for position, template in enumerate(self._templates)
        ]
        while decks:
            # One from each in turn; a copy, since a deck that is used up is removed.
            for deck in tuple(decks):
                template, indices = deck
                for index in indices:
                    text = template.text(index)
                    # Two combinations may give the same text.
                    if text not in seen:
                        seen.add(text)
                        yield template, index, text
                        break
                else:
                    decks.remove(deck)


def _deal(size: int, rng: random.Random) -> Iterator[int]:
    """Yield the numbers below `size` in random order, each once.

    Fisher and Yates' shuffle that stores only the positions it has touched: memory grows with the
    numbers dealt, not with `size`.
    """
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        # A float has 53 bits, so beyond that not every number could be drawn.
        pick = rng.randrange(last + 1) if last >> 50 else int(rng.random() * (last + 1))
        # A position that was not touched still holds its own number.
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)


_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def _parse(source: str, values: Mapping[str, tuple[str, ...]]) -> _Template:
    texts, names = _pieces(source)
    missing = [name for name in names if name not in values]
    if missing:
        hint = did_you_mean(missing[0], values)
        raise ConfigError(
            f"template {source!r} has no values for {', '.join(dict.fromkeys(missing))}{hint}"
        )
    strides: dict[str, int] = {}
    capacity = 1
    # A name used twice gets one stride, and so one value in both places.
    for name in dict.fromkeys(names):
        strides[name] = capacity
        capacity *= len(values[name])
    slots = tuple(
        _TemplateField(
            name, tuple(v + tail for v in values[name]), strides[name], len(values[name])
        )
        for name, tail in zip(names, texts[1:], strict=True)
    )
    return _Template(source, texts[0], slots, {name: values[name] for name in strides}, capacity)


def _pieces(source: str) -> tuple[list[str], list[str]]:
    """Return the texts around the fields, one more than there are fields, and the fields' names."""
    if not isinstance(source, str):
        raise ConfigError(f"a template must be text, got {source!r}")
    texts, names, at = [""], list[str](), 0
    for match in _FIELD.finditer(source):
        texts[-1] += source[at : match.start()]
        at = match.end()
        if match.group() in {"{{", "}}"}:
            texts[-1] += match.group()[0]
        else:
            names.append(_field_name(source, match))
            texts.append("")
    texts[-1] += source[at:]
    return texts, names


def _field_name(source: str, match: re.Match[str]) -> str:
    name = match.group(1)
    if name is None:
        raise ConfigError(
            f"template {source!r} has a lone {match.group()!r} at character {match.start()}; "
            f"double it if it is part of the text"
        )
    if not name.isidentifier():
        raise ConfigError(
            f"template {source!r}: a field is one name in braces, got {match.group()!r}; "
            "attributes, indices, conversions and formats are not supported"
        )
    return name


def _values(name: str, given: Sequence[object]) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"variable {name!r} must be a list of values, got {given!r}")
    if not given:
        raise ConfigError(f"variable {name!r} has no values")
    # Values that are equal as text would make combinations with equal texts.
    return tuple(dict.fromkeys(map(str, given)))
