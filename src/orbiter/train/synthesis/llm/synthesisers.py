"""Makes data with a language model: new tasks, harder tasks, tasks for answers, checked answers.

    teacher = RemoteChatModel(ClientConfig(model="qwen3-32b", base_url=...), cache="answers.sqlite")
    pipeline = SynthesisPipeline(config, scorer=Judge(teacher, "Is the answer right and short?"))
    pipeline.add_step(SelfInstruct(teacher)).add_step(Respond(teacher))

Any `ChatModel` will do. The questions depend only on the context that a pipeline gives, so a killed
run asks the same questions again and finds the answers in the model's cache. A candidate that a
step itself rejects (it repeats the pool, no answer passed the verifier) is a `Rejection`, and is
counted. Conversations of several turns and answers that call tools are not supported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from typing_extensions import override

from orbiter.train.callback import call
from orbiter.train.errors import ConfigError, boundary
from orbiter.train.llm.chat import ChatModel
from orbiter.train.llm.reasoning import strip_reasoning
from orbiter.train.seeding import sub_random, sub_seed
from orbiter.train.synthesis.llm.asking import (
    ChatSynthesiser,
    Made,
    check_slot,
    if_novel,
    is_cut_off,
    new_answer,
    new_task,
    sample_index,
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
    "its subject. Reply with the complete new task alone, between <task> and </task>.\n\n"
    "Task: {state}"
)
BROADEN = (
    "Write a new task in the same field as this one, but about something less common. Reply with "
    "the complete new task alone, between <task> and </task>.\n\nTask: {state}"
)
ASKED_FOR = (
    "Somebody asked for something and got the answer below. Write what was asked. Reply with the "
    "complete question or instruction alone, between <task> and </task>.\n\nAnswer: {action}"
)


class SelfInstruct(ChatSynthesiser):
    """Makes new tasks modelled on existing ones, but different from all of them.

    Wang et al. 2023, section 3, https://arxiv.org/abs/2212.10560: the model sees a few tasks of the
    pool (seeds and accepted items) and writes another one; it is rejected if it is too similar to
    one of the pool. We ask for one task at a time, so that each answer is cached and paid alone.
    The action stays empty: a `Respond` after it answers.
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
            model: The model to ask.
            shown: Number of tasks of the pool in each question.
            novelty: Highest ROUGE-L similarity to a task of the pool or of the batch.
            instruction: The question; `{shown}` stands for the tasks.
            system: The system message.
        """
        super().__init__(model, system=system)
        check_slot(instruction, "shown")
        if shown < 1 or not 0 < novelty <= 1:
            raise ConfigError(
                f"shown must be at least 1 and novelty in (0, 1], got {shown=}, {novelty=}"
            )
        self.shown, self.novelty, self.instruction = shown, novelty, instruction

    @override
    async def make(self, source: TrajectoryItem, position: int, context: SynthesisContext) -> Made:
        """Ask for one task; it counts as derived from `source`."""
        rng = sub_random(context.seed, "shown", position)
        # By identity: two seeds may be equal.
        others = [item for item in (*context.seeds, *context.accepted) if item is not source]
        shown = [source, *rng.sample(others, min(self.shown - 1, len(others)))]
        # So that the source is not always in the same place.
        rng.shuffle(shown)
        listed = "\n\n".join(f"Task: {item.state}" for item in shown)
        seed = sub_seed(context.seed, "self-instruct", position)
        # Not str.format: tasks hold braces.
        question = self.instruction.replace("{shown}", listed)
        answer = await self.ask(question, sample_index(seed), context)
        return new_task(source, answer, "self-instruct", seed, action="")

    @override
    def screened(self, made: Sequence[Made], pool: list[str]) -> Sequence[Made]:
        """Reject tasks that are too similar to the pool or to an earlier task of the batch."""
        screened: list[Made] = []
        for candidate in made:
            checked = if_novel(candidate, pool, self.novelty)
            if isinstance(checked, TrajectoryItem):
                # So that the next task of the batch is compared with this one too.
                pool.append(checked.state)
            screened.append(checked)
        return screened


class Evolve(ChatSynthesiser):
    """Makes harder and less common tasks out of existing ones.

    Xu et al. 2023, section 3, https://arxiv.org/abs/2304.12244, with one instruction in depth and
    one in breadth, drawn at random. A result too similar to its parent is rejected.
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

    @override
    async def make(self, source: TrajectoryItem, position: int, context: SynthesisContext) -> Made:
        """Evolve one task."""
        instruction = sub_random(context.seed, "way", position).choice(self.instructions)
        seed = sub_seed(context.seed, "evolve", position)
        question = instruction.replace("{state}", source.state)
        answer = await self.ask(question, sample_index(seed), context)
        evolved = new_task(source, answer, "evolve", seed, action="")
        return if_novel(evolved, [source.state], self.novelty)


class BackTranslate(ChatSynthesiser):
    """Writes the question to an answer: the action stays, the state is new.

    Li et al. 2023, section 2, https://arxiv.org/abs/2308.06259. Each seed is used once. The reward
    is dropped, because it judged the answer to another question.
    """

    finite = True

    def __init__(
        self, model: ChatModel, *, instruction: str = ASKED_FOR, system: str | None = None
    ) -> None:
        """Make a synthesiser; `{action}` in the instruction stands for the answer."""
        super().__init__(model, system=system)
        check_slot(instruction, "action")
        self.instruction = instruction

    @override
    async def make(self, source: TrajectoryItem, position: int, context: SynthesisContext) -> Made:
        """Ask for the question to one answer."""
        shown = strip_reasoning(source.action).strip()
        if not shown:
            return Rejection(source, "invalid", "there is no answer to write a question for")
        seed = sub_seed(context.seed, "back-translate", position)
        question = self.instruction.replace("{action}", shown)
        answer = await self.ask(question, sample_index(seed), context)
        return new_task(source, answer, "back-translate", seed)


class Respond(ChatSynthesiser):
    """Answers tasks; with a verifier, takes the first of k answers that passes.

    Samples are drawn one after another, so that none is paid for after one has passed. An answer
    that was cut off does not count. The reward is left to the pipeline's scorer.
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
            model: The model to ask.
            samples: Maximum number of answers to one task.
            verifier: Returns whether an item with its answer is right; sync or async.
            system: The system message.
        """
        super().__init__(model, system=system)
        if samples < 1 or (samples > 1 and verifier is None):
            raise ConfigError(
                f"samples must be 1, or more with a verifier to choose by, got {samples}"
            )
        self.samples, self.verifier = samples, verifier

    @override
    async def make(self, source: TrajectoryItem, position: int, context: SynthesisContext) -> Made:
        """Answer one task."""
        objections: list[str] = []
        # One after the other, since a later answer is only paid for if it is needed.
        for index in range(self.samples):
            seed = sub_seed(context.seed, "respond", position, index)
            answer = await self.ask(source.state, sample_index(seed), context)
            made = new_answer(source, answer, "respond", seed)
            if is_cut_off(answer):
                objections.append("was cut off; raise max_tokens")
            elif not answer.text:
                objections.append("is empty")
            # Last, because a verifier may be expensive.
            elif await self._passes(made):
                return made
            else:
                objections.append("did not pass the verifier")
        which = (
            "the answer" if self.samples == 1 else f"none of {self.samples} answers passed: each"
        )
        detail = f"{which} {' or '.join(dict.fromkeys(objections))} ({source.state!r:.60})"
        return Rejection(source, "invalid", detail)

    async def _passes(self, item: TrajectoryItem) -> bool:
        if self.verifier is None:
            return True
        with boundary("the verifier"):
            return bool(await call(self.verifier, item))
