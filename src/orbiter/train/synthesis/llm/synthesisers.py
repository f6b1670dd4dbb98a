"""Data from a language model: new tasks, harder tasks, the task behind an answer, checked answers.

    teacher = RemoteChatModel(ClientConfig(model="qwen3-32b", base_url=...), cache="answers.sqlite")
    pipeline = SynthesisPipeline(config, scorer=Judge(teacher, "Is the answer right and short?"))
    pipeline.add_step(SelfInstruct(teacher)).add_step(Respond(teacher))

Any `ChatModel` will do. What is asked depends only on the context a pipeline gives, so a killed run
asks the same again and finds it in the model's cache. A candidate that a method itself turns down
(it repeats the pool, no answer passed the verifier) comes back as a `Rejection` where the step is
the last one, and is counted. Left out: several turns, and answers that call tools.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from typing_extensions import override

from orbiter.train.callback import call
from orbiter.train.errors import ConfigError, boundary
from orbiter.train.llm.chat import ChatModel
from orbiter.train.seeding import sub_random, sub_seed
from orbiter.train.synthesis.llm.asking import (
    ChatSynthesiser,
    Made,
    check_slot,
    derived,
    if_novel,
    sample_index,
    task_in,
)
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.synthesis.synthesiser import SynthesisContext
from orbiter.train.trajectory import TrajectoryItem

Verifier = Callable[[TrajectoryItem], bool | Awaitable[bool]]

NEW_TASK = (
    "Here are some tasks:\n\n{shown}\n\nWrite one more task of this kind, on another subject. "
    "Reply with the task alone."
)
DEEPEN = (
    "Rewrite this task so that it asks for more: add one requirement, or ask for a reason. Keep "
    "its subject. Reply with the new task alone.\n\nTask: {state}"
)
BROADEN = (
    "Write a new task in the same field as this one, but about something less common. Reply with "
    "the new task alone.\n\nTask: {state}"
)
ASKED_FOR = (
    "Somebody asked for something and got the answer below. Write what was asked. Reply with the "
    "question or instruction alone.\n\nAnswer: {action}"
)


class SelfInstruct(ChatSynthesiser):
    """New tasks after the pattern of some old ones, unlike all that are there.

    Wang et al. 2023, section 3, https://arxiv.org/abs/2212.10560: a few tasks from the pool (seeds
    and what was accepted) are shown, and one more is asked for; one that is too like the pool is
    turned down. We ask for one task at a time, so that each answer can be cached and paid alone.
    The action stays empty: a `Respond` behind it answers.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        shown: int = 3,
        novelty: float = 0.7,
        instruction: str = NEW_TASK,
        system: str | None = None,
    ) -> None:
        """Make a synthesiser.

        Args:
            model: Who is asked.
            shown: Tasks of the pool in each question.
            novelty: Highest ROUGE-L similarity to a task of the pool or of the batch.
            instruction: What is asked; `{shown}` stands for the tasks.
            system: The system turn.
        """
        super().__init__(model, system=system)
        check_slot(instruction, "shown")
        if shown < 1 or not 0 < novelty <= 1:
            raise ConfigError(
                f"shown must be at least 1 and novelty in (0, 1], got {shown=}, {novelty=}"
            )
        self.shown, self.novelty, self.instruction = shown, novelty, instruction

    @property
    @override
    def settings(self) -> list[object]:
        """What decides what is made."""
        return [self.system, self.shown, self.novelty, self.instruction]

    @override
    async def make(self, source: TrajectoryItem, place: int, context: SynthesisContext) -> Made:
        """Ask for one task; `source` is the one it counts as derived from."""
        rng = sub_random(context.seed, "shown", place)
        others = [item for item in (*context.seeds, *context.accepted) if item is not source]
        shown = [source, *rng.sample(others, min(self.shown - 1, len(others)))]
        rng.shuffle(shown)
        listed = "\n\n".join(f"Task: {item.state}" for item in shown)
        seed = sub_seed(context.seed, "self-instruct", place)
        text = await self.ask(
            self.instruction.replace("{shown}", listed), sample_index(seed), context
        )
        return derived(source, {"state": task_in(text), "action": ""}, "self-instruct", seed)

    @override
    def screened(self, made: Sequence[Made], pool: list[str]) -> Sequence[Made]:
        """Turn down what is too like the pool, or like an earlier one of the batch."""
        screened: list[Made] = []
        for candidate in made:
            checked = if_novel(candidate, pool, self.novelty)
            if isinstance(checked, TrajectoryItem):
                pool.append(checked.state)
            screened.append(checked)
        return screened


class Evolve(ChatSynthesiser):
    """Harder and less common tasks out of those that are there.

    Xu et al. 2023, section 3, https://arxiv.org/abs/2304.12244, with one way down ("deepen") and
    one aside ("broaden"); which is taken is drawn. What comes back too like its parent, or empty,
    has not evolved and is turned down.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        instructions: Sequence[str] = (DEEPEN, BROADEN),
        novelty: float = 0.9,
        system: str | None = None,
    ) -> None:
        """Make a synthesiser; each instruction holds `{state}`, and `novelty` is a ROUGE-L."""
        super().__init__(model, system=system)
        if not instructions:
            raise ConfigError("Evolve needs at least one instruction")
        for instruction in instructions:
            check_slot(instruction, "state")
        if not 0 < novelty <= 1:
            raise ConfigError(f"novelty must lie in (0, 1], got {novelty}")
        self.instructions, self.novelty = tuple(instructions), novelty

    @property
    @override
    def settings(self) -> list[object]:
        """What decides what is made."""
        return [self.system, self.instructions, self.novelty]

    @override
    async def make(self, source: TrajectoryItem, place: int, context: SynthesisContext) -> Made:
        """Evolve one task."""
        instruction = sub_random(context.seed, "way", place).choice(self.instructions)
        seed = sub_seed(context.seed, "evolve", place)
        text = await self.ask(
            instruction.replace("{state}", source.state), sample_index(seed), context
        )
        evolved = derived(source, {"state": task_in(text), "action": ""}, "evolve", seed)
        return if_novel(evolved, [source.state], self.novelty)


class BackTranslate(ChatSynthesiser):
    """The question behind an answer: the action stays, its state is written.

    Li et al. 2023, section 2, https://arxiv.org/abs/2308.06259. Each seed is used once. The reward
    is dropped: it judged the answer to another question.
    """

    finite = True

    def __init__(
        self, model: ChatModel, *, instruction: str = ASKED_FOR, system: str | None = None
    ) -> None:
        """Make a synthesiser; `{action}` in the instruction stands for the answer."""
        super().__init__(model, system=system)
        check_slot(instruction, "action")
        self.instruction = instruction

    @property
    @override
    def settings(self) -> list[object]:
        """What decides what is made."""
        return [self.system, self.instruction]

    @override
    async def make(self, source: TrajectoryItem, place: int, context: SynthesisContext) -> Made:
        """Ask what was asked."""
        if not source.action.strip():
            return Rejection(source, "invalid", "there is no answer to find the question of")
        seed = sub_seed(context.seed, "back-translate", place)
        question = self.instruction.replace("{action}", source.action)
        text = await self.ask(question, sample_index(seed), context)
        return derived(source, {"state": task_in(text)}, "back-translate", seed)


class Respond(ChatSynthesiser):
    """Answers to tasks; with a verifier, the first of up to k that passes (rejection sampling).

    Samples are drawn one after the other, so that no answer is paid for behind the one that passed.
    The reward stays open for the pipeline's scorer.
    """

    finite = True

    def __init__(
        self,
        model: ChatModel,
        *,
        samples: int = 1,
        verifier: Verifier | None = None,
        system: str | None = None,
    ) -> None:
        """Make a synthesiser.

        Args:
            model: Who is asked.
            samples: Answers drawn for one task at most.
            verifier: Says whether an item with its answer is right; sync or async.
            system: The system turn.
        """
        super().__init__(model, system=system)
        if samples < 1 or (samples > 1 and verifier is None):
            raise ConfigError(
                f"samples must be 1, or more with a verifier to choose by, got {samples}"
            )
        self.samples, self.verifier = samples, verifier

    @property
    @override
    def settings(self) -> list[object]:
        """What decides what is made."""
        return [self.system, self.samples, self.verifier is not None]

    @override
    async def make(self, source: TrajectoryItem, place: int, context: SynthesisContext) -> Made:
        """Answer one task."""
        for index in range(self.samples):
            seed = sub_seed(context.seed, "respond", place, index)
            answer = await self.ask(source.state, sample_index(seed), context)
            made = derived(source, {"action": answer}, "respond", seed)
            if isinstance(made, TrajectoryItem) and answer and await self._passes(made):
                return made
        tried = "the answer" if self.samples == 1 else f"none of {self.samples} answers"
        verdict = "did not pass" if self.samples == 1 else "passed"
        return Rejection(source, "invalid", f"{tried} {verdict} ({source.state!r:.60})")

    async def _passes(self, item: TrajectoryItem) -> bool:
        if self.verifier is None:
            return True
        with boundary("the verifier"):
            return bool(await call(self.verifier, item))
