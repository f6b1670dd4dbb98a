"""Decode token ids to text as they arrive: whole characters only, up to a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""The character that a tokenizer writes for bytes that are not a complete character."""

Decode = Callable[[Sequence[int]], str]
"""Decodes token ids to text, without special tokens."""


class AnswerText:
    """The text of an answer, as far as it is known.

    A character whose bytes are spread over several tokens appears with the last of them.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        """Create an empty text; `stops` are texts that end the answer and are not part of it."""
        self._decode, self._stops = decode, tuple(stops)
        self._token_ids: list[int] = []
        self._anchor, self._read, self._head = 0, 0, ""
        self.known = ""
        """All whole characters so far."""
        self.stopped_by: str | None = None
        """The stop text that ended the answer, if one did."""

    def note(self, token_id: int) -> None:
        """Add a token whose text is not needed before the end."""
        self._token_ids.append(token_id)

    def push(self, token_id: int) -> bool:
        """Add a token; return whether the text reached a stop text, before which it then ends."""
        self.note(token_id)
        fresh = self._fresh()
        # An incomplete character is kept back until its last bytes arrive.
        return bool(fresh) and not fresh.endswith(BROKEN) and self._grow(fresh)

    def finish(self) -> bool:
        """Add the remaining bytes, complete or not; return whether that reached a stop text."""
        fresh = self._fresh()
        return bool(fresh) and self._grow(fresh)

    def settled(self) -> int:
        """Count the characters that cannot become part of a stop text."""
        # At most all but the last character of a stop text can be pending.
        longest = max(map(len, self._stops), default=1) - 1
        for held in range(min(longest, len(self.known)), 0, -1):
            if any(stop.startswith(self.known[-held:]) for stop in self._stops):
                return len(self.known) - held
        return len(self.known)

    def _fresh(self) -> str:
        """Decode the new tokens after a few known ones, on which their spelling may depend."""
        # SentencePiece writes a word differently at the beginning of a text, hence the known
        # tokens.
        return self._decode(self._token_ids[self._anchor :])[len(self._head) :]

    def _grow(self, fresh: str) -> bool:
        before = len(self.known)
        self.known += fresh
        self._anchor, self._read = self._read, len(self._token_ids)
        self._head = self._decode(self._token_ids[self._anchor : self._read])
        ends = [
            (start, stop)
            for stop in self._stops
            # A stop text may have begun in the part that was known before.
            if (start := self.known.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if not ends:
            return False
        # The earliest one wins, whichever stop text is listed first.
        end, self.stopped_by = min(ends)
        self.known = self.known[:end]
        return True
