import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from orbiter.train.errors import (
    CallbackError,
    ConfigError,
    DataError,
    StateError,
    StorageError,
    TrainingError,
)
from orbiter.train.runlog import read_run
from orbiter.train.trainer import TrainerState
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer

PROMPTS = ["Say something.", "Name a colour.", "Sing.", "Sing."]


def vowels(output: str) -> float:
    return sum(character in "aeiouAEIOU" for character in output) / max(1, len(output))


def spread(output: str) -> float:
    """Tell any two outputs apart, so that every group has something to teach."""
    return (sum(output.encode("utf-8", "replace")) % 97) / 97


def tiny(**settings: object) -> VeRLConfig:
    small: dict[str, Any] = {
        "model": "tiny",
        "batch_size": 2,
        "group_size": 4,
        "max_response_length": 6,
        "learning_rate": 1e-3,
    }
    return VeRLConfig(**(small | settings))


def trainer(
    fn: Callable[..., object] = spread, *, eval_dataset: object = None, **settings: object
) -> VeRLTrainer:
    spec = RewardSpec(name="probe", weight=1.0, fn=fn)  # type: ignore[arg-type] # some give nonsense
    return VeRLTrainer(tiny(**settings), [spec], eval_dataset=eval_dataset)


async def weights(of: VeRLTrainer) -> dict[str, torch.Tensor]:
    policy = await of.policy()
    return {name: p.detach().clone() for name, p in policy.named_trainable().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def untimed(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    times = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in history]


async def test_the_guides_training_works_as_written() -> None:
    dataset = TrajectoryDataset()
    for prompt in PROMPTS:
        dataset.capture(TrajectoryItem(state=prompt, action="x", reward=0.5))
    config = tiny(algorithm=VeRLAlgorithm.PPO, epochs=2, kl_coef=0.1, clip_range=0.2)
    reward = RewardSpec(name="helpfulness", weight=1.0, fn=vowels)
    trainer = VeRLTrainer(config=config, rewards=[reward])
    metrics = await trainer.train(dataset)
    assert metrics.loss is not None
    assert metrics.reward is not None
    last_epoch = trainer.history[2:]
    assert metrics.reward == pytest.approx(sum(row["reward"] for row in last_epoch) / 2)
    assert metrics["reward/helpfulness"] == metrics.reward
    assert trainer.state is TrainerState.TRAINED


async def test_a_step_shows_what_there_is_to_watch() -> None:
    grpo = trainer(kl_coef=0.01)
    await grpo.train(PROMPTS)
    shown = {"loss", "pg_loss", "grad_norm", "kl", "clip_fraction", "entropy", "reward", "length"}
    assert shown <= grpo.history[0].keys()
    assert [row["step"] for row in grpo.history] == [1, 2]
    ppo = trainer(algorithm="ppo")
    await ppo.train(PROMPTS)
    assert {*shown - {"kl"}, "explained_variance", "vf_loss", "value"} <= ppo.history[0].keys()


async def test_the_forms_of_a_data_set_give_the_same_run() -> None:
    items = [TrajectoryItem(state=prompt, action="") for prompt in PROMPTS]
    captured = TrajectoryDataset()
    captured.extend(TrajectoryItem(state=prompt, action="", reward=0.0) for prompt in PROMPTS)
    ends = []
    for dataset in (PROMPTS, items, captured):
        run = trainer()
        await run.train(dataset)
        assert len(run.history) == 2, "four prompts, repeats kept, two a step"
        ends.append(await weights(run))
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
async def test_the_same_seed_gives_the_same_bits_and_another_seed_others(algorithm: str) -> None:
    ends, histories = [], []
    for seed in (1, 1, 2):
        run = trainer(algorithm=algorithm, seed=seed, ppo_epochs=2, minibatch_size=4)
        await run.train(PROMPTS)
        ends.append(await weights(run))
        histories.append(untimed(run.history))
    assert equal(ends[0], ends[1])
    assert histories[0] == histories[1]
    assert not equal(ends[0], ends[2])


async def test_training_again_goes_on_from_the_trained_weights() -> None:
    run = trainer()
    await run.train(PROMPTS)
    once = await weights(run)
    await run.train(PROMPTS)
    assert not equal(once, await weights(run))


@pytest.mark.parametrize(
    ("rewards", "dataset", "words"),
    [
        ([], PROMPTS, "rewards is empty"),
        ([vowels], PROMPTS, "rewards must hold RewardSpec"),
        ([RewardSpec("a", 1.0, len), RewardSpec("a", 1.0, len)], PROMPTS, "have the same name"),
        ([RewardSpec("a", 0.0, len)], PROMPTS, "weight 0"),
        ([RewardSpec("a", 1.0, len)], [], "the data set is empty"),
        ([RewardSpec("a", 1.0, len)], None, "there is no data set"),
        ([RewardSpec("a", 1.0, len)], "one prompt", "got str"),
        ([RewardSpec("a", 1.0, len)], [{"prompt": "x"}], "entry 0 of the data set is of type dict"),
    ],
)
async def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    rewards: list[RewardSpec], dataset: object, words: str
) -> None:
    run = VeRLTrainer(tiny(model="no/such/model"), rewards)
    with pytest.raises(ConfigError, match=words):
        await run.train(dataset)
    assert run.state is TrainerState.ERROR
    with pytest.raises(StateError, match="reset"):
        await run.train(PROMPTS)


async def test_a_validation_without_data_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="eval_every=1 needs eval_dataset="):
        await trainer(eval_every=1).train(PROMPTS)


async def test_a_reward_that_never_tells_apart_ends_the_run_with_the_cause() -> None:
    run = trainer(lambda _: 0.0, epochs=5, max_flat_steps=3)
    with pytest.raises(TrainingError, match="nothing can be learned: in all 3 steps"):
        await run.train(PROMPTS)
    assert len(run.history) == 3
    ppo = trainer(lambda _: 1.0, algorithm="ppo", epochs=5, max_flat_steps=2)
    with pytest.raises(TrainingError, match="nothing can be learned"):
        await ppo.train(PROMPTS)


async def test_weights_too_large_to_have_a_gradient_end_the_run_with_the_cause() -> None:
    run = trainer(learning_rate=1e6, epochs=40, max_flat_steps=3)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        await run.train(PROMPTS)
    assert len(run.history) < 80
    with pytest.raises(StateError, match="no trained model to save"):
        await run.save("unused")


async def test_a_negative_number_of_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples must be"):
        await trainer().evaluate(PROMPTS, samples=-1)


def test_a_scale_for_adapters_that_are_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_alpha=8 scales adapters"):
        tiny(lora_alpha=8)


async def test_flat_groups_leave_the_weights_as_they_were() -> None:
    run = trainer(lambda _: 0.5)
    before = await weights(run)
    await run.train(PROMPTS)
    assert equal(before, await weights(run))
    assert run.history[0]["flat_groups"] == 1.0


async def test_a_run_with_nothing_left_to_learn_ends_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    def teaches_once(output: str) -> float:
        nonlocal calls
        calls += 1
        return spread(output) if calls <= 8 else 1.0

    run = trainer(teaches_once, epochs=5, max_flat_steps=2, reward_concurrency=1)
    with caplog.at_level(logging.WARNING):
        metrics = await run.train(PROMPTS)
    assert len(run.history) == 3
    assert metrics.reward == 1.0
    assert "nothing left to learn" in caplog.text


async def test_a_diverging_run_stops_and_names_the_learning_rate(tmp_path: Path) -> None:
    run = trainer(learning_rate=1e30, output_dir=tmp_path, save_every=1, epochs=3)
    with pytest.raises(TrainingError, match=r"learning_rate=1e\+30"):
        await run.train(PROMPTS)
    assert run.state is TrainerState.ERROR
    run.reset()
    after = await weights(run)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert finite_files(tmp_path)


def finite_files(folder: Path) -> bool:
    saved = [load_file(path) for path in folder.rglob("*.safetensors")]
    tensors = [tensor for file in saved for tensor in file.values() if tensor.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
async def test_a_skipped_sample_is_in_no_batch_and_in_no_mean(algorithm: str) -> None:
    calls = 0

    def fails_at_first(output: str) -> float:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("broken")
        return spread(output)

    run = trainer(fails_at_first, algorithm=algorithm, on_reward_error="skip", reward_concurrency=1)
    await run.train(PROMPTS[:2])
    assert run.history[0]["reward_faults"] == 1
    assert run.train_metrics is not None
    calls = 0
    with pytest.raises(CallbackError, match="reward 'probe' on item 0"):
        await trainer(fails_at_first, reward_concurrency=1).train(PROMPTS)


async def test_a_run_whose_samples_are_all_skipped_says_so() -> None:
    def broken(output: str) -> float:
        raise ValueError("broken")

    with pytest.raises(TrainingError, match="every sample was skipped"):
        await trainer(broken, on_reward_error="skip", max_flat_steps=2, epochs=3).train(PROMPTS)


async def test_a_prompt_that_does_not_fit_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    prompts = ["x" * 200, "short"]
    with pytest.raises(DataError, match=r"the prompt of item 0 has \d+ tokens, and 60 fit"):
        await trainer(max_prompt_length=60).train(prompts)
    dropping = trainer(max_prompt_length=60, on_long_prompt="drop")
    with caplog.at_level(logging.WARNING):
        await dropping.train(prompts)
    assert "1 of 2 prompts have more tokens than fit: 1 left out" in caplog.text
    cutting = trainer(max_prompt_length=60, on_long_prompt="truncate-left")
    with caplog.at_level(logging.WARNING):
        await cutting.train(prompts)
    assert "0 left out, 1 cut on the left" in caplog.text
    with pytest.raises(DataError, match="no prompt fits"):
        await trainer(max_prompt_length=3, on_long_prompt="drop").train(prompts)


async def test_lengths_beyond_the_context_are_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"max_prompt_length=4092 \+ max_response_length=6 = 4098"
    ):
        await trainer(max_prompt_length=4092).train(PROMPTS)


async def test_the_event_loop_stays_responsive_and_a_cancelled_run_can_start_again() -> None:
    run = trainer(epochs=500)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(0.001)
            longest = max(longest, clock() - before)

    watching = asyncio.create_task(watch())
    training = asyncio.create_task(run.train(PROMPTS))
    await asyncio.sleep(1.5)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    watching.cancel()
    assert 0 < len(run.history) < 1000
    assert longest < 0.5
    assert run.state is TrainerState.VALIDATED
    run.config = tiny(epochs=1)
    assert (await run.train(PROMPTS)).reward is not None


async def test_an_evaluation_is_greedy_and_has_an_interval() -> None:
    run = trainer(vowels)
    first = await run.evaluate(PROMPTS[:3])
    again = await run.evaluate(PROMPTS[:3])
    assert run.state is TrainerState.CREATED
    assert first == again
    assert first.reward_interval is not None
    assert first.reward_interval.n == 3
    assert first["reward/probe"] == pytest.approx(first.reward)
    answers = await run.generate(PROMPTS[:3])
    assert first.reward == pytest.approx(sum(map(vowels, answers)) / 3)


async def test_sampled_evaluation_measures_pass_at_k() -> None:
    run = trainer(lambda output: "a" in output.lower(), max_response_length=32)
    metrics = await run.evaluate(PROMPTS[:3], samples=6)
    assert metrics["pass@1"] == pytest.approx(metrics.reward)
    assert 0 < metrics["pass@1"] < metrics["pass@6"] <= 1


@pytest.mark.usefixtures("each_processor")
async def test_generate_answers_in_order_and_samples_by_seed() -> None:
    run = trainer()
    both = await run.generate(["Sing.", "Say something."])
    assert both == [*await run.generate(["Sing."]), *await run.generate(["Say something."])]
    four = await run.generate(["Sing."], temperature=1.0, samples=4, seed=3)
    assert len(set(four)) == 4
    assert four == await run.generate(["Sing."], temperature=1.0, samples=4, seed=3)
    assert await run.generate([]) == []
    with pytest.raises(DataError, match="a list of prompts"):
        await run.generate("Sing.")


async def test_an_agents_instructions_stand_before_every_prompt() -> None:
    class Agent:
        instructions = "Answer in vowels."

    agent = VeRLTrainer(tiny(), [RewardSpec("probe", 1.0, spread)], agent=Agent())
    config = trainer(system_prompt="Answer in vowels.")
    without = trainer()
    for run in (agent, config, without):
        await run.train(PROMPTS)
    assert equal(await weights(agent), await weights(config))
    assert not equal(await weights(agent), await weights(without))
    speechless = VeRLTrainer(tiny(), [RewardSpec("probe", 1.0, spread)], agent=object())
    with pytest.raises(ConfigError, match="agent must have `instructions` as a text"):
        await speechless.train(PROMPTS)


async def test_a_run_leaves_a_folder_with_metrics_and_samples(tmp_path: Path) -> None:
    run = trainer(vowels, output_dir=tmp_path / "run")
    await run.train(PROMPTS)
    read = read_run(tmp_path / "run")
    assert [row["reward"] for row in read.metrics] == [row["reward"] for row in run.history]
    assert len(read.samples) == len(PROMPTS)
    outputs = cast("list[dict[str, Any]]", read.samples[0]["outputs"])
    assert [o["reward"] for o in outputs] == [o["rewards"]["probe"] for o in outputs]
    assert sum(o["advantage"] for o in outputs) == pytest.approx(0, abs=1e-4)
    assert read.config["learning_rate"] == 1e-3
    with pytest.raises(StorageError, match="holds a run already; set resume=True"):
        await trainer(vowels, output_dir=tmp_path / "run").train(PROMPTS)


async def test_validation_during_training_keeps_the_best_model(tmp_path: Path) -> None:
    run = trainer(
        vowels,
        eval_dataset=PROMPTS[:2],
        eval_every=2,
        epochs=6,
        output_dir=tmp_path,
        learning_rate=3e-3,
        max_response_length=12,
    )
    await run.train(PROMPTS)
    measured = {int(row["step"]): row["eval/reward"] for row in run.history if "eval/reward" in row}
    assert list(measured) == [2, 4, 6, 8, 10, 12]
    best = VeRLTrainer(
        tiny(model=str(tmp_path / "best"), max_response_length=12),
        [RewardSpec("probe", 1.0, vowels)],
    )
    assert (await best.evaluate(PROMPTS[:2])).reward == pytest.approx(max(measured.values()))


async def test_warm_up_and_decay_set_the_learning_rate() -> None:
    run = trainer(epochs=4, warmup_steps=3, lr_schedule="linear")
    await run.train(PROMPTS)
    rates = [row["learning_rate"] / 1e-3 for row in run.history]
    assert rates == pytest.approx([1 / 3, 2 / 3 * 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


async def test_a_time_budget_ends_the_run_behind_a_step() -> None:
    run = trainer(epochs=1000, max_seconds=0.5)
    await run.train(PROMPTS)
    assert 1 <= len(run.history) < 1000


async def test_a_step_takes_as_many_updates_as_its_settings_say() -> None:
    run = trainer(ppo_epochs=3, minibatch_size=4, warmup_steps=100)
    await run.train(PROMPTS[:2])
    # 8 samples in minibatches of 4, three times: six updates, whose mean warm-up is 3.5 of 100.
    assert run.history[0]["learning_rate"] == pytest.approx(1e-3 * 3.5 / 100)


async def test_target_kl_ends_the_updates_of_a_step() -> None:
    free = trainer(ppo_epochs=4, minibatch_size=4, warmup_steps=100, learning_rate=1.0)
    await free.train(PROMPTS[:2])
    tight = trainer(
        ppo_epochs=4, minibatch_size=4, warmup_steps=100, learning_rate=1.0, target_kl=1e-6
    )
    await tight.train(PROMPTS[:2])
    assert tight.history[0]["learning_rate"] < free.history[0]["learning_rate"]


async def test_the_first_update_is_on_policy() -> None:
    run = trainer(loss_aggregation="sequence")
    await run.train(PROMPTS)
    assert run.history
    for row in run.history:
        assert row["clip_fraction"] == 0
        assert row["approx_kl"] == 0
        assert abs(row["pg_loss"]) < 1e-5, "0 by construction where every sample counts alike"
        assert row["grad_norm"] > 0


async def test_the_value_function_learns_what_a_sample_is_worth() -> None:
    run = trainer(algorithm="ppo", epochs=6, learning_rate=1e-2, clip_range_value=None)
    await run.train(PROMPTS)
    wrong = [abs(row["value"] - row["reward"]) for row in run.history]
    assert run.history[0]["value"] == 0
    assert sum(wrong[-4:]) / 4 < wrong[0] / 2, "a frozen value function stays as wrong as it was"


async def test_a_kl_price_holds_the_policy_back() -> None:
    for algorithm in ("grpo", "ppo"):
        ends = []
        for kl_coef in (1e-9, 20.0):
            run = trainer(vowels, algorithm=algorithm, kl_coef=kl_coef, epochs=6)
            await run.train(PROMPTS)
            ends.append(run.history[-1]["kl"])
        assert ends[1] < ends[0] / 2, algorithm


def adapters_in_bfloat16(algorithm: str, **settings: object) -> VeRLTrainer:
    shared = {"dtype": "bfloat16", "lora_rank": 4, "kl_coef": 0.05}
    return trainer(vowels, algorithm=algorithm, **shared, **settings)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
async def test_a_kl_of_adapters_needs_no_second_copy_of_the_weights(algorithm: str) -> None:
    run = adapters_in_bfloat16(algorithm, learning_rate=2e-2, epochs=12)
    await run.train(PROMPTS)
    policy = await run.policy()
    assert policy.reference_forward is None
    assert run.history[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert max(row["kl"] for row in run.history) > 0.01


@pytest.mark.slow
async def test_adapters_learn_in_bfloat16() -> None:
    """Over seeds: how much one of them learns depends on how the processor rounds.

    Measured over these seeds: 1.47 times with AVX-512, 1.44 times with AVX2.
    """
    early = late = 0.0
    for seed in range(4):
        run = adapters_in_bfloat16("grpo", learning_rate=1e-2, epochs=40, seed=seed)
        await run.train(PROMPTS)
        early += sum(row["reward"] for row in run.history[:6])
        late += sum(row["reward"] for row in run.history[-6:])
    assert late > 1.3 * early


@pytest.mark.parametrize("rank", [0, 4])
async def test_a_saved_model_is_the_trained_one(tmp_path: Path, rank: int) -> None:
    run = trainer(vowels, lora_rank=rank, learning_rate=2e-2, epochs=4)
    before = await run.generate(PROMPTS)
    await run.train(PROMPTS)
    said = await run.generate(PROMPTS)
    assert said != before
    folder = await run.save(tmp_path / "model")
    merged = await run.save(tmp_path / "merged", merge=True)
    assert await run.generate(PROMPTS) == said, "saving changes nothing"
    for saved in (folder, merged):
        assert await trainer(model=str(saved)).generate(PROMPTS) == said
    names = {path.name for path in folder.iterdir()}
    assert ("adapter_model.safetensors" if rank else "model.safetensors") in names
    assert {"README.md", "tokenizer.json", "chat_template.jinja"} <= names
    assert (merged / "model.safetensors").exists()
    if rank:
        described = json.loads((folder / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == "tiny"
    else:
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True


async def test_a_model_card_states_the_facts_of_the_run(tmp_path: Path) -> None:
    run = trainer()
    await run.train(PROMPTS)
    card = ((await run.save(tmp_path / "model")) / "README.md").read_text()
    for fact in (
        "base_model: tiny",
        "GRPO",
        "| learning_rate | `0.001` |",
        "| reward |",
        "4 prompts",
    ):
        assert fact in card
    assert str(tmp_path) not in card


async def test_saving_never_overwrites_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    run = trainer()
    with pytest.raises(StorageError, match="is not a saved model"):
        await run.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    await run.save(tmp_path / "model")
    await run.save(tmp_path / "model")


async def test_the_opening_says_that_grpos_loss_is_near_zero(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        await trainer().train(PROMPTS)
    assert "near 0 by construction" in caplog.text
    assert "2 steps of 2 prompts x 4 samples" in caplog.text
    assert "memory" in caplog.text
