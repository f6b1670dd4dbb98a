"""Makes candidates until the target number is accepted, or reports why it was not reached.

    config = SynthesisConfig(target_size=1000, min_score=0.7, dedup_threshold=0.9)
    pipeline = SynthesisPipeline(config=config, scorer=judge, run_dir="runs/questions")
    result = await pipeline.add_step(my_synthesiser).run(seed_data)

Columns that depend on one another, validators by language and personas are not built in; write them
as a `DataSynthesiser`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import os
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from orbiter.train.errors import ConfigError, StateError
from orbiter.train.fingerprint import settings_text
from orbiter.train.interrupts import TwoStepInterrupt
from orbiter.train.progress import LOG_SECONDS, make_progress
from orbiter.train.synthesis.journal import AnswerJournal, FileAnswerJournal, NoJournal
from orbiter.train.synthesis.pipeline.asking import Desk, Scorer, Validator, item_of
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.synthesis.pipeline.result import SynthesisResult
from orbiter.train.synthesis.pipeline.run import PipelineRun
from orbiter.train.synthesis.records import Records
from orbiter.train.synthesis.synthesiser import DataSynthesiser
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem


class SynthesisPipeline:
    """Generates, validates, scores and deduplicates in rounds until enough items are accepted.

    The steps form a chain: the first one makes items, each later one gets the output of the
    previous one in `context.items`, and the output of the last one are the candidates. A round
    asks for as many as the acceptance so far suggests. The result is the same at any concurrency.

    With `run_dir`, every answer is on disk before it is used. Run again in the same folder, a
    killed run continues where it was and repeats no question that was answered; `target_size` may
    have grown. Cancelling the task raises `CancelledError` as usual; `stop()` and Ctrl-C end `run`
    with the items accepted so far and the stop reason "cancelled".
    """

    def __init__(
        self,
        config: SynthesisConfig | None = None,
        *,
        scorer: Scorer | None = None,
        validator: Validator | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Make a pipeline without steps.

        Args:
            config: The goal and the limits; None uses the defaults.
            scorer: Called with every candidate that has no reward; its answer, a number or a
                `Verdict`, becomes the reward. A plain function runs in a thread.
            validator: Returns whether a candidate is usable at all; a quick check.
            run_dir: A folder for the journal; without one, a killed run is lost.
            progress: Whether to show a bar on stderr; None shows it on a terminal.
        """
        self.config = config or SynthesisConfig()
        self.result: SynthesisResult | None = None
        """The result of the last run; after `stream`, it is only here."""
        self._scorer = scorer
        self._validator = validator
        self._run_dir = run_dir
        self._progress = progress
        self._steps: list[DataSynthesiser] = []
        self._run: PipelineRun | None = None

    def add_step(self, step: DataSynthesiser) -> SynthesisPipeline:
        """Add a step to the end of the chain and return the pipeline.

        Raises:
            ConfigError: it is not a `DataSynthesiser`, or its `generate` takes other arguments.
        """
        if not isinstance(step, DataSynthesiser):
            raise ConfigError(
                f"a step must be a DataSynthesiser, got {step!r:.80}; write a subclass with "
                "async def generate(self, count, *, context=None)"
            )
        try:
            # Now, and not after the first answers of other steps were paid for.
            inspect.signature(step.generate).bind(1, context=None)
        except TypeError as error:
            raise ConfigError(
                f"{type(step).__name__}.generate must take (count, *, context=None): {error}"
            ) from error
        self._steps.append(step)
        return self

    async def run(
        self,
        seed_data: TrajectoryDataset
        | Sequence[TrajectoryItem]
        | Sequence[Mapping[str, object]] = (),
    ) -> SynthesisResult:
        """Run until `target_size` items are accepted or something else ends it.

        Raises:
            CallbackError: a step, the scorer or the validator raised; with `run_dir`, everything
                answered before is kept.
            ConfigError: there is no step, or `run_dir` belongs to a run with other settings.
        """
        with _ctrl_c_calls(self.stop):
            async with contextlib.aclosing(self.stream(seed_data)) as items:
                async for _ in items:
                    pass
        assert self.result is not None, "a stream that ends has set the result"
        return self.result

    async def stream(
        self,
        seed_data: TrajectoryDataset
        | Sequence[TrajectoryItem]
        | Sequence[Mapping[str, object]] = (),
    ) -> AsyncGenerator[TrajectoryItem, None]:
        """Yield every item as soon as it is accepted; afterwards the summary is in `result`.

        Leaving the loop early abandons the calls in progress; use `contextlib.aclosing` to do that
        at once.
        """
        self._run = run = self._begin(seed_data)
        self.result = None
        progress = make_progress(
            "accepted", self.config.target_size, shown=self._progress, every_seconds=LOG_SECONDS
        )
        try:
            async with contextlib.aclosing(run.items()) as items:
                with progress:
                    async for item in items:
                        progress.update(
                            len(run.accepted),
                            f"{run.generated} made  {len(run.rejections)} rejected",
                        )
                        yield item
        finally:
            # Also when the caller leaves the loop, so that another run may open the folder.
            run.desk.journal.close()
            self.result, self._run = run.result(), None

    def stop(self) -> None:
        """End the current run with the items accepted so far; does nothing if there is no run."""
        if self._run is not None:
            self._run.stop()

    def _begin(
        self,
        seed_data: TrajectoryDataset | Sequence[TrajectoryItem] | Sequence[Mapping[str, object]],
    ) -> PipelineRun:
        if not self._steps:
            raise ConfigError("the pipeline has no step; add one with add_step(synthesiser)")
        if self._run is not None:
            raise StateError("this pipeline is running; stop() it, or make another one")
        seeds = [item_of(row) for row in Records.of(seed_data).rows]
        least = self.config.min_score
        # An unscored seed is not known to be bad.
        used = [s for s in seeds if least is None or s.reward is None or s.reward >= least]
        journal = self._journal(seeds)
        desk = Desk(
            self.config, self._steps, used, journal, self._scorer, self._validator, journal.cost
        )
        return PipelineRun(desk, unused_seed_count=len(seeds) - len(used))

    def _journal(self, seeds: Sequence[TrajectoryItem]) -> AnswerJournal:
        if self._run_dir is None:
            return NoJournal()
        # Not target_size, max_candidates and patience: a run may be prolonged.
        shaping = ("min_score", "dedup_threshold", "unscored", "batch_size", "seed")
        run: dict[str, object] = {name: getattr(self.config, name) for name in shaping}
        for number, step in enumerate(self._steps, start=1):
            run[f"step {number}"] = step.fingerprint
        # Ids have a fixed length, so joining them is unambiguous.
        ids = "".join(seed.id for seed in seeds)
        run["seeds"] = hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()
        return FileAnswerJournal(self._run_dir, run, scorer=_described(self._scorer))


def _described(scorer: Scorer | None) -> str:
    """Return what decides a scorer's scores; one with a `fingerprint` decides that itself."""
    own = getattr(scorer, "fingerprint", None)
    if isinstance(own, str):
        return own
    return "" if scorer is None else settings_text(scorer)


def _ctrl_c_calls(stop: Callable[[], None]) -> TwoStepInterrupt:
    """Make the first Ctrl-C call `stop` during a run; a second one interrupts as usual."""
    loop = asyncio.get_running_loop()
    return TwoStepInterrupt(lambda: loop.call_soon_threadsafe(stop), signals=(signal.SIGINT,))
