"""Log probabilities of answers under the frozen reference, each computed once and kept.

The reference is the model that the policy began as. With LoRA it is the policy with its adapters
switched off; without, it is the policy before its first update, or the model loaded once more. So
no copy stays in memory. The numbers are kept in the run's folder, by a hash of the answer's tokens:

    {"model": "smollm2-135m", "dtype": "bfloat16", "weights": "9c1e..."}
    {"answer": "51ab...", "logprob": -41.29}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from orbiter.train.engine.policy import Policy
from orbiter.train.engine.update import logprob, ref_logprob
from orbiter.train.errors import StorageError
from orbiter.train.preference.encoding import EncodedAttempt, batch_of
from orbiter.train.resume_journal import ResumeJournal, differences

FILE = "reference.jsonl"
"""The file of a run's folder that keeps the log probabilities."""


class ReferenceLogprobs:
    """The log probabilities that are known; some may be kept in a run's folder."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def missing(self, attempts: Sequence[EncodedAttempt]) -> list[EncodedAttempt]:
        """Return the distinct attempts whose log probability is not known yet."""
        # Attempts of several pairs are computed once.
        by_digest = {attempt.digest: attempt for attempt in attempts}
        return [each for digest, each in by_digest.items() if digest not in self._known]

    def of(self, attempt: EncodedAttempt) -> float:
        """Return the log probability of an attempt's answers, in nats."""
        return self._known[attempt.digest]

    def add(self, attempts: Sequence[EncodedAttempt], numbers: Sequence[float]) -> None:
        """Remember log probabilities."""
        self._known |= {each.digest: n for each, n in zip(attempts, numbers, strict=True)}

    @contextmanager
    def kept_in(
        self, folder: Path | None, about: Mapping[str, str], *, is_new_run: bool
    ) -> Iterator[Callable[[Sequence[EncodedAttempt], Sequence[float]], None]]:
        """Read a run's file, and yield a function like `add` that also writes to it.

        Args:
            folder: The run's folder; None stores nothing on disk.
            about: What the numbers depend on besides the answer.
            is_new_run: Whether numbers of another model are discarded, instead of refused.

        Raises:
            StorageError: the file is damaged, of another model, or cannot be written.
        """
        if folder is None:
            yield self.add
            return
        # Opened first: the journal's lock keeps a second run out of the folder.
        journal = ResumeJournal(folder / FILE)
        try:
            self._read(journal, about, is_new_run=is_new_run)

            def keep(attempts: Sequence[EncodedAttempt], numbers: Sequence[float]) -> None:
                for each, number in zip(attempts, numbers, strict=True):
                    # Written before it is remembered, so what is known is also on disk.
                    journal.append(_encoded({"answer": each.digest, "logprob": number}))
                self.add(attempts, numbers)

            yield keep
            # Only at the end: a lost number costs one computation, not a wrong result.
            journal.sync()
        finally:
            journal.close()

    def _read(self, journal: ResumeJournal, about: Mapping[str, str], *, is_new_run: bool) -> None:
        records = [json.loads(line.record) for line in journal.replay()]
        before = records[0] if records else None
        if before is not None and (changed := differences(before, about)):
            if not is_new_run:
                raise StorageError(
                    f"{journal.path} holds log probabilities of another reference: its "
                    f"{changed[0]} was {before.get(changed[0])!r} and is "
                    f"{about.get(changed[0])!r} now; resume with the model that the run began with"
                )
            journal.clear()
            before = None
        if before is None:
            journal.append(_encoded(about))
            return
        self._known |= {record["answer"]: float(record["logprob"]) for record in records[1:]}


def logprobs_of(
    policy: Policy,
    attempts: Sequence[EncodedAttempt],
    *,
    micro_batch_tokens: int,
    reference: bool,
) -> list[float]:
    """Return the log probability of each attempt's answers, in nats.

    Args:
        policy: The policy, or the reference itself.
        attempts: The attempts.
        micro_batch_tokens: Tokens of one forward pass.
        reference: Whether to use the policy's frozen reference instead of its present weights.
    """
    batch = batch_of([[each] for each in attempts], policy.device)
    score = ref_logprob if reference else logprob
    of_tokens = score(policy, batch, micro_batch_tokens=micro_batch_tokens)
    assert batch.unit is not None
    # In float64, since a long answer adds up thousands of numbers.
    total = torch.zeros(len(attempts), dtype=torch.float64)
    sums: list[float] = total.index_add(
        0, batch.unit.cpu(), of_tokens.double().sum(-1).cpu()
    ).tolist()
    return sums


def weights_digest(policy: Policy) -> str:
    """Return a hash of a policy's weights without adapters; names and processors do not matter."""
    parts = sorted(
        # A sum of the bit patterns: exact, and the same whatever the order of the additions.
        (tuple(weight.shape), int(weight.detach().contiguous().view(torch.int32).sum()))
        for name, weight in policy.model.named_parameters()
        if "lora_" not in name
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _encoded(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode()
