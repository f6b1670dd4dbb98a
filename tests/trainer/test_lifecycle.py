import asyncio
import gc
import pickle
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import wraps

import pytest

from orbiter.train.errors import CallbackError, ConfigError, StateError
from orbiter.train.trainer import TrainConfig, Trainer, TrainerState, TrainMetrics

S = TrainerState
WHOLE_RUN = [
    S.VALIDATING,
    S.VALIDATED,
    S.TRAINING,
    S.TRAINED,
    S.EVALUATING,
    S.COMPLETE,
]


class GuideTrainer(Trainer):
    """The trainer of the guide, as written there, with what it saw on its way."""

    async def check_agent(self) -> bool:
        return self.agent is not None

    async def check_dataset(self) -> bool:
        return len(self.dataset) > 0

    async def check_reward(self) -> bool:
        return self.reward_fn is not None

    async def check_config(self) -> bool:
        return self.config.epochs > 0

    async def train(self) -> TrainMetrics:
        return TrainMetrics(loss=0.5, accuracy=0.85)

    async def evaluate(self) -> TrainMetrics:
        return TrainMetrics(loss=0.3, accuracy=0.90)


class Ready(GuideTrainer):
    """All checks pass without anything to train on."""

    async def check_agent(self) -> bool:
        return True

    async def check_dataset(self) -> bool:
        return True

    async def check_reward(self) -> bool:
        return True


class Slow(Ready):
    """Waits inside its work until somebody lets it go on."""

    started: asyncio.Event
    go_on: asyncio.Event

    def __init__(self) -> None:  # without super().__init__(), as a user may well write it
        self.started, self.go_on = asyncio.Event(), asyncio.Event()

    async def wait(self) -> TrainMetrics:
        self.started.set()
        await self.go_on.wait()
        return TrainMetrics()

    async def train(self) -> TrainMetrics:
        return await self.wait()

    async def evaluate(self) -> TrainMetrics:
        return await self.wait()


class SlowToValidate(Slow):
    async def check_config(self) -> bool:
        await self.wait()
        return True


def watched(trainer: Trainer) -> list[TrainerState]:
    """Record every state that is entered, and see that the changes join up."""
    seen: list[TrainerState] = []

    def hook(old: TrainerState, new: TrainerState) -> None:
        assert old is (seen[-1] if seen else S.CREATED)
        assert new is trainer.state
        seen.append(new)

    trainer.on_state_change = hook
    return seen


def state(trainer: Trainer) -> TrainerState:
    """Return the state; unlike the attribute, mypy does not hold it for constant."""
    return trainer.state


def ready() -> GuideTrainer:
    return GuideTrainer(agent="agent", dataset=["item"], reward_fn=len)


def test_a_trainer_is_created_and_abstract() -> None:
    assert state(ready()) is S.CREATED
    assert str(S.CREATED) == "created"
    with pytest.raises(TypeError, match="abstract"):
        Trainer()  # type: ignore[abstract] # the mistake under test


def test_a_subclass_that_leaves_out_one_method_stays_abstract() -> None:
    class Unfinished(Trainer):
        async def train(self) -> TrainMetrics:
            return TrainMetrics()

    with pytest.raises(TypeError, match=r"check_agent.*evaluate"):
        Unfinished()  # type: ignore[abstract] # the mistake under test


async def test_run_goes_through_every_state_and_returns_the_evaluation() -> None:
    trainer = ready()
    seen = watched(trainer)
    metrics = await trainer.run()
    assert seen == WHOLE_RUN
    assert metrics == TrainMetrics(loss=0.3, accuracy=0.90) == trainer.evaluate_metrics
    assert trainer.train_metrics == TrainMetrics(loss=0.5, accuracy=0.85)


async def test_train_and_evaluate_called_directly_go_through_every_state_too() -> None:
    trainer = ready()
    seen = watched(trainer)
    assert (await trainer.train()).accuracy == 0.85
    assert state(trainer) is S.TRAINED
    assert (await trainer.evaluate()).accuracy == 0.90
    assert seen == WHOLE_RUN


async def test_a_validated_trainer_is_not_validated_twice() -> None:
    trainer = ready()
    seen = watched(trainer)
    await trainer.validate()
    await trainer.train()
    assert seen == [S.VALIDATING, S.VALIDATED, S.TRAINING, S.TRAINED]


@pytest.mark.parametrize("validated", [False, True])
async def test_evaluate_before_training_restores_the_state_it_found(validated: bool) -> None:
    trainer = ready()
    if validated:
        await trainer.validate()
    found = trainer.state
    assert (await trainer.evaluate()).accuracy == 0.90
    assert state(trainer) is found


async def test_evaluate_after_training_ends_in_complete_each_time() -> None:
    trainer = ready()
    await trainer.train()
    for _ in range(2):
        await trainer.evaluate()
        assert state(trainer) is S.COMPLETE


async def test_a_new_training_may_follow_complete_or_trained() -> None:
    trainer = ready()
    await trainer.run()
    await trainer.train()
    await trainer.train()
    assert state(trainer) is S.TRAINED
    await trainer.run()
    assert state(trainer) is S.COMPLETE


async def test_a_new_training_is_checked_again() -> None:
    trainer = ready()
    await trainer.run()
    trainer.agent = None
    with pytest.raises(ConfigError, match="check_agent"):
        await trainer.train()


async def test_every_failed_check_is_in_the_one_error() -> None:
    class Broken(GuideTrainer):
        def check_agent(self) -> bool:  # type: ignore[override] # plain, and raises
            raise KeyError("model")

        async def check_config(self) -> bool:
            return None  # type: ignore[return-value] # a forgotten return

    trainer = Broken()
    with pytest.raises(ConfigError) as info:
        await trainer.run()
    message = str(info.value)
    assert "Broken is not ready, 4 of 4 checks failed" in message
    assert "check_agent raised KeyError: 'model'" in message
    assert "check_dataset raised TypeError: object of type 'NoneType' has no len()" in message
    assert "check_reward returned False, not True" in message
    assert "check_config returned None, not True" in message
    assert isinstance(info.value.__cause__, ExceptionGroup)
    assert [type(e) for e in info.value.__cause__.exceptions] == [KeyError, TypeError]
    assert state(trainer) is S.ERROR
    assert trainer.error is info.value


async def test_one_check_that_raises_is_the_cause_itself() -> None:
    trainer = GuideTrainer(agent=1, reward_fn=len)
    with pytest.raises(ConfigError, match="1 of 4 checks failed: check_dataset raised") as info:
        await trainer.validate()
    assert isinstance(info.value.__cause__, TypeError)


class FailsAt(Ready):
    """Raises in one of its methods."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.with_ = where, error

    async def check_config(self) -> bool:
        self.fail("validate")
        return True

    async def train(self) -> TrainMetrics:
        self.fail("train")
        return TrainMetrics()

    async def evaluate(self) -> TrainMetrics:
        self.fail("evaluate")
        return TrainMetrics()

    def fail(self, where: str) -> None:
        if self.where == where:
            raise self.with_


@pytest.mark.parametrize("where", ["train", "evaluate"])
async def test_an_exception_comes_out_as_it_was_and_is_kept_as_the_cause(where: str) -> None:
    trainer = FailsAt(where, ZeroDivisionError("mine"))
    with pytest.raises(ZeroDivisionError, match="mine"):
        await trainer.run()
    assert state(trainer) is S.ERROR
    assert trainer.error is trainer.with_


@pytest.mark.parametrize("what", ["run", "validate", "train", "evaluate"])
async def test_nothing_starts_from_error_until_reset(what: str) -> None:
    trainer = FailsAt("train", ValueError("bad batch"))
    with pytest.raises(ValueError, match="bad batch"):
        await trainer.train()
    with pytest.raises(StateError, match=rf"cannot {what}.*ValueError\('bad batch'\).*reset\(\)"):
        await getattr(trainer, what)()
    assert state(trainer) is S.ERROR
    trainer.reset()
    assert state(trainer) is S.CREATED
    assert trainer.error is None
    trainer.where = "nowhere"
    await getattr(trainer, what)()


@pytest.mark.parametrize(
    ("what", "where", "ends_in"),
    [
        ("validate", "validate", S.CREATED),
        ("train", "validate", S.CREATED),
        ("train", "train", S.VALIDATED),
        ("evaluate", "evaluate", S.CREATED),
        ("run", "evaluate", S.TRAINED),
    ],
)
@pytest.mark.parametrize("signal", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
def test_an_interruption_is_no_error_and_the_work_can_start_again(
    what: str, where: str, ends_in: TrainerState, signal: type[BaseException]
) -> None:
    trainer = FailsAt(where, signal())
    with pytest.raises(signal):
        asyncio.run(getattr(trainer, what)())
    assert state(trainer) is ends_in
    assert trainer.error is None
    trainer.where = "nowhere"
    asyncio.run(getattr(trainer, what)())
    assert trainer.state is not S.ERROR


@pytest.mark.parametrize(
    ("make", "what", "ends_in"),
    [
        (Slow, "train", S.VALIDATED),
        (Slow, "evaluate", S.CREATED),
        (Slow, "run", S.VALIDATED),
        (SlowToValidate, "run", S.CREATED),
        (SlowToValidate, "train", S.CREATED),
    ],
)
async def test_cancellation_leaves_a_state_to_start_again_from(
    make: Callable[[], Slow], what: str, ends_in: TrainerState
) -> None:
    trainer = make()
    task = asyncio.create_task(getattr(trainer, what)())
    await trainer.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state(trainer) is ends_in
    trainer.go_on.set()
    await trainer.run()
    assert state(trainer) is S.COMPLETE


async def test_a_time_limit_around_training_is_a_cancellation() -> None:
    trainer = Slow()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(trainer.train(), 0.01)
    assert state(trainer) is S.VALIDATED


async def test_work_that_is_thrown_away_half_way_leaves_an_idle_trainer() -> None:
    trainer = Slow()
    work = trainer.train()
    assert isinstance(work, Awaitable)
    steps = work.__await__()
    next(steps)
    assert state(trainer) is S.TRAINING
    del steps, work
    gc.collect()
    assert state(trainer) is S.VALIDATED


@pytest.mark.parametrize("first", ["run", "train", "evaluate"])
@pytest.mark.parametrize("second", ["run", "validate", "train", "evaluate"])
async def test_a_second_start_is_refused_and_leaves_the_first_alone(
    first: str, second: str
) -> None:
    trainer = Slow()
    task = asyncio.create_task(getattr(trainer, first)())
    await trainer.started.wait()
    busy = trainer.state
    with pytest.raises(StateError, match=f"cannot {second} while {busy}"):
        await getattr(trainer, second)()
    with pytest.raises(StateError, match=f"cannot reset while {busy}"):
        trainer.reset()
    assert state(trainer) is busy
    trainer.go_on.set()
    await task
    assert trainer.state is not S.ERROR


async def test_of_two_runs_started_together_one_goes_through() -> None:
    trainer = Slow()
    asyncio.get_running_loop().call_later(0.01, trainer.go_on.set)
    results = await asyncio.gather(trainer.run(), trainer.run(), return_exceptions=True)
    assert [type(result) for result in results] == [TrainMetrics, StateError]
    assert state(trainer) is S.COMPLETE


class WithValidation(Ready):
    """Evaluates between the epochs of its own training."""

    async def train(self) -> TrainMetrics:
        during = await self.evaluate()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.look())
        return TrainMetrics(accuracy=during.accuracy)

    async def look(self) -> None:
        await self.evaluate()
        await self.validate()
        assert self.state is S.TRAINING


async def test_evaluation_during_training_is_part_of_the_training() -> None:
    trainer = WithValidation()
    seen = watched(trainer)
    assert (await trainer.train()).accuracy == 0.90
    assert seen == [S.VALIDATING, S.VALIDATED, S.TRAINING, S.TRAINED]
    await trainer.evaluate()
    assert state(trainer) is S.COMPLETE


async def test_a_task_that_outlives_the_training_is_no_longer_part_of_it() -> None:
    class Leaves(Ready):
        async def train(self) -> TrainMetrics:
            self.left = asyncio.create_task(self.later())
            return TrainMetrics()

        async def later(self) -> None:
            await asyncio.sleep(0.01)
            await self.evaluate()

    trainer = Leaves()
    await trainer.train()
    await trainer.left
    assert state(trainer) is S.COMPLETE


async def test_a_task_from_outside_does_not_count_as_part_of_the_training() -> None:
    trainer = Slow()
    outside = asyncio.create_task(trainer.started.wait())
    task = asyncio.create_task(trainer.train())
    await outside
    with pytest.raises(StateError, match="cannot evaluate while training"):
        await trainer.evaluate()
    trainer.go_on.set()
    await task


async def test_training_is_no_part_of_an_evaluation() -> None:
    class Confused(Ready):
        async def evaluate(self) -> TrainMetrics:
            return await self.train()

    trainer = Confused()
    with pytest.raises(StateError, match="cannot train while evaluating"):
        await trainer.evaluate()
    assert state(trainer) is S.ERROR


async def test_a_run_within_a_run_is_refused() -> None:
    class Nested(Ready):
        async def train(self) -> TrainMetrics:
            return await self.run()

    with pytest.raises(StateError, match="cannot run while training"):
        await Nested().run()


async def test_one_trainer_may_train_another() -> None:
    inner = ready()

    class Outer(Ready):
        async def train(self) -> TrainMetrics:
            seen = watched(inner)
            await inner.run()
            assert seen == WHOLE_RUN
            return TrainMetrics()

    outer = Outer()
    await outer.run()
    assert outer.state is inner.state is S.COMPLETE


async def test_work_inside_anothers_work_is_part_of_both() -> None:
    class Outer(Ready):
        async def train(self) -> TrainMetrics:
            return await Inner(agent=self).train()

    class Inner(Ready):
        async def train(self) -> TrainMetrics:
            metrics: TrainMetrics = await self.agent.evaluate()
            return metrics

    outer = Outer()
    assert (await outer.train()).accuracy == 0.90
    assert outer.state is S.TRAINED


async def test_ended_work_leaves_nothing_behind_in_the_task() -> None:
    trainer = ready()
    before = dict(copy_context())
    await trainer.run()
    after = {variable: value for variable, value in copy_context().items() if value != ()}
    assert after == before


async def test_the_hook_hears_of_changes_only() -> None:
    trainer = ready()
    seen = watched(trainer)
    trainer.reset()
    assert seen == []
    await trainer.run()
    trainer.reset()
    assert seen == [*WHOLE_RUN, S.CREATED]


async def test_super_chains_are_one_training() -> None:
    class Child(Ready):
        async def train(self) -> TrainMetrics:
            return TrainMetrics(loss=(await super().train()).loss, reward=1.0)

    class Grandchild(Child):
        async def train(self) -> TrainMetrics:
            metrics = await super().train()
            return TrainMetrics(loss=metrics.loss, reward=metrics["reward"] + 1)

    class Heir(Grandchild):
        pass

    for make in (Grandchild, Heir):
        trainer = make()
        seen = watched(trainer)
        assert await trainer.train() == TrainMetrics(loss=0.5, reward=2.0)
        assert seen == [S.VALIDATING, S.VALIDATED, S.TRAINING, S.TRAINED]


async def test_methods_from_a_mixin_come_under_the_lifecycle() -> None:
    class Mixin:
        async def train(self) -> TrainMetrics:
            return TrainMetrics(loss=7.0)

    class Mixed(Mixin, Ready):
        pass

    trainer = Mixed()
    seen = watched(trainer)
    assert (await trainer.run()).accuracy == 0.90
    assert trainer.train_metrics == TrainMetrics(loss=7.0)
    assert seen == WHOLE_RUN


async def test_a_decorated_method_comes_under_the_lifecycle() -> None:
    class Decorated(Ready):
        @wraps(Ready.train)
        async def train(self) -> TrainMetrics:  # type: ignore[override] # wraps hides the type
            assert self.state is S.TRAINING
            return TrainMetrics(loss=2.0)

    trainer: Trainer = Decorated()
    assert (await trainer.train()).loss == 2.0
    assert state(trainer) is S.TRAINED


async def test_plain_overrides_are_welcome_and_may_call_each_other() -> None:
    class Plain(Trainer):
        def check_agent(self) -> bool:  # type: ignore[override] # plain methods are accepted
            return True

        check_dataset = check_reward = check_config = check_agent  # type: ignore[assignment]

        def train(self) -> TrainMetrics:  # type: ignore[override] # plain methods are accepted
            during = self.evaluate()
            assert isinstance(during, TrainMetrics)
            assert self.state is S.TRAINING
            return TrainMetrics(loss=0.5, reward=during.reward)

        def evaluate(self) -> TrainMetrics:  # type: ignore[override] # plain methods are accepted
            return TrainMetrics(reward=1.0)

    trainer = Plain()
    seen = watched(trainer)
    assert await trainer.run() == TrainMetrics(reward=1.0)
    assert trainer.train_metrics == TrainMetrics(loss=0.5, reward=1.0)
    assert seen == WHOLE_RUN


class TakesData(Ready):
    """Takes its data with the call, as `VeRLTrainer` does."""

    async def check_dataset(self) -> bool:
        return bool(self.dataset)

    async def train(self, dataset: list[str] | None = None) -> TrainMetrics:
        return TrainMetrics(extra={"items": len(self.dataset), "given": dataset is not None})

    async def evaluate(self, dataset: list[str] | None = None) -> TrainMetrics:
        return TrainMetrics(extra={"items": len(dataset or self.dataset)})


async def test_data_given_to_train_is_what_the_checks_look_at() -> None:
    trainer = TakesData()
    assert (await trainer.train(["a", "b"])).extra == {"items": 2, "given": True}
    assert trainer.dataset == ["a", "b"]
    assert (await trainer.evaluate(["x"]))["items"] == 1
    assert trainer.dataset == ["a", "b"]
    assert (await trainer.train(dataset=["c"]))["items"] == 1
    assert (await trainer.train())["given"] is False
    await trainer.validate()
    with pytest.raises(ConfigError, match="check_dataset"):
        await trainer.train([])


async def test_data_given_to_a_trainer_at_work_is_not_taken() -> None:
    class SlowData(Slow):
        async def train(self, dataset: list[str] | None = None) -> TrainMetrics:
            return await self.wait()

    trainer = SlowData()
    task = asyncio.create_task(trainer.train(["first"]))
    await trainer.started.wait()
    with pytest.raises(StateError):
        await trainer.train(["second"])
    assert trainer.dataset == ["first"]
    trainer.go_on.set()
    await task


async def test_arguments_that_do_not_fit_change_nothing() -> None:
    trainer = TakesData()
    with pytest.raises(TypeError, match="data"):
        await trainer.train(data=["a"])  # type: ignore[call-arg] # the mistake under test
    assert state(trainer) is S.CREATED


async def test_a_training_that_returns_something_else_is_named() -> None:
    class Forgot(Ready):
        async def train(self) -> TrainMetrics:
            return None  # type: ignore[return-value] # the mistake under test

    trainer = Forgot()
    with pytest.raises(CallbackError, match=r"Forgot\.train must return TrainMetrics, got None"):
        await trainer.train()
    assert state(trainer) is S.ERROR


async def test_the_hook_may_be_given_or_written() -> None:
    seen: list[tuple[TrainerState, TrainerState]] = []

    class Written(Ready):
        def on_state_change(self, old: TrainerState, new: TrainerState) -> None:
            seen.append((old, new))

    await Written().validate()
    given = GuideTrainer("agent", ["item"], len, on_state_change=lambda *pair: seen.append(pair))
    await given.validate()
    assert seen == [(S.CREATED, S.VALIDATING), (S.VALIDATING, S.VALIDATED)] * 2


async def test_a_hook_that_raises_stops_the_work_and_is_named() -> None:
    trainer = ready()

    def hook(_: TrainerState, new: TrainerState) -> None:
        if new is S.TRAINED:
            raise OSError("no pager")

    trainer.on_state_change = hook
    with pytest.raises(CallbackError, match="on_state_change raised OSError: no pager"):
        await trainer.run()
    assert state(trainer) is S.ERROR


async def test_a_hook_that_raises_does_not_hide_the_error_it_is_told_of() -> None:
    trainer = FailsAt("train", ZeroDivisionError("mine"))

    def hook(_: TrainerState, new: TrainerState) -> None:
        if new is S.ERROR:
            raise OSError("no pager")

    trainer.on_state_change = hook
    with pytest.raises(ZeroDivisionError) as info:
        await trainer.train()
    assert state(trainer) is S.ERROR
    assert info.value.__notes__ == ["on_state_change raised OSError: no pager"]


def test_the_arguments_are_the_guides() -> None:
    config = TrainConfig(epochs=2)
    trainer = GuideTrainer("agent", ["item"], len, config)
    assert (trainer.agent, trainer.dataset, trainer.reward_fn) == ("agent", ["item"], len)
    assert trainer.config is config
    assert GuideTrainer().config == TrainConfig()


async def test_the_state_cannot_be_set_from_outside() -> None:
    with pytest.raises(AttributeError):
        ready().state = S.COMPLETE  # type: ignore[misc] # the mistake under test


async def test_a_trainer_can_be_pickled_in_the_state_it_is_in() -> None:
    trainer = ready()
    await trainer.train()
    copy = pickle.loads(pickle.dumps(trainer))
    assert copy.state is S.TRAINED
    await copy.evaluate()
    assert (copy.state, trainer.state) == (S.COMPLETE, S.TRAINED)


def test_one_trainer_may_be_used_from_one_event_loop_after_the_other() -> None:
    trainer = ready()
    asyncio.run(trainer.train())
    asyncio.run(trainer.evaluate())
    assert state(trainer) is S.COMPLETE
