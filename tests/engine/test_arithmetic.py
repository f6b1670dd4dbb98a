"""What the processor can do is measured and tried, and nothing unknown ends a run."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from orbiter.train.engine import arithmetic
from orbiter.train.engine.arithmetic import choose_dtype, packed_linear, processor
from orbiter.train.errors import ConfigError
from tests.children import run_child

CPU = torch.device("cpu")
measured_gain = arithmetic.bfloat16_gain  # the real one: tests/conftest.py replaces it


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no measurement in this process."""
    monkeypatch.setenv("ORBITER_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(arithmetic, "bfloat16_gain", measured_gain)
    measured_gain.cache_clear()
    yield tmp_path / "cache"
    measured_gain.cache_clear()


@pytest.mark.parametrize(
    ("gain", "chosen"), [(4.6, "bfloat16"), (1.05, "float32"), (0.2, "float32")]
)
def test_auto_takes_bfloat16_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, chosen: str
) -> None:
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: gain)
    choice = choose_dtype("auto", CPU)
    assert choice.dtype == chosen
    assert "measured" in choice.reason


def test_slow_bfloat16_is_kept_if_asked_for_and_the_warning_says_how_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: 0.2)
    assert choose_dtype("bfloat16", CPU).dtype == "bfloat16"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "take 5.0 times as long" in record.getMessage()
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: 2.0)
    choose_dtype("bfloat16", CPU)
    assert len(caplog.records) == 1


def test_float32_is_never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: pytest.fail("measured"))
    assert choose_dtype("float32", CPU).dtype == "float32"


def test_an_accelerator_that_nobody_measured_computes_in_float32() -> None:
    assert choose_dtype("auto", torch.device("mps")).dtype == "float32"
    assert choose_dtype("bfloat16", torch.device("mps")).dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "bfloat", "", "Float32"])
def test_an_unknown_dtype_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"dtype must be one of auto, .* got '{dtype}'"):
        choose_dtype(dtype, CPU)


def test_the_measurement_is_kept_and_used_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain = measured_gain()
    assert gain > 0
    (kept,) = (cache / "arithmetic").iterdir()
    assert json.loads(kept.read_text())["bfloat16_gain"] == gain
    measured_gain.cache_clear()
    monkeypatch.setattr(arithmetic, "_measure_gain", lambda: pytest.fail("measured again"))
    assert measured_gain() == gain


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"key": 1}', "NaN", "\x00\xff"],
)
def test_a_damaged_measurement_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(arithmetic, "_measure_gain", lambda: 3.0)
    measured_gain()
    (kept,) = (cache / "arithmetic").iterdir()
    key = json.loads(kept.read_text())["key"]
    for text in (damage, *(json.dumps({"key": key, "bfloat16_gain": g}) for g in ("x", -1, 0))):
        kept.write_text(text, encoding="latin-1")
        measured_gain.cache_clear()
        assert measured_gain() == 3.0
        assert json.loads(kept.read_text())["bfloat16_gain"] == 3.0


def test_a_cache_that_cannot_be_written_costs_a_measurement_only(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_measure_gain", lambda: 3.0)
    cache.write_text("a file stands where the folder should be")
    assert measured_gain() == 3.0


def test_another_torch_or_limit_is_measured_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_measure_gain", lambda: 3.0)
    measured_gain()
    monkeypatch.setattr(torch, "__version__", "99.0")
    measured_gain.cache_clear()
    measured_gain()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    measured_gain.cache_clear()
    measured_gain()
    assert len(list((cache / "arithmetic").iterdir())) == 3


def test_measuring_leaves_threads_and_random_state_alone() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert 0.001 < arithmetic._measure_gain() < 1000
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(8, 16), (512, 300)])
def test_the_packed_product_is_the_plain_product(
    each_processor: str, dtype: torch.dtype, biased: bool, shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator) for size in (shape, (5, shape[1])))
    bias = torch.randn(shape[0], generator=generator) if biased else None
    got = packed_linear(weight, bias, dtype)(x.to(dtype))
    assert got.dtype == dtype
    exact = functional.linear(x, weight, bias)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((got.float() - exact).abs().max() / exact.abs().max()) < near


@pytest.mark.parametrize("each_processor", ["no packed weights"], indirect=True)
def test_a_kernel_that_fails_is_named_in_one_line(
    each_processor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        packed_linear(torch.ones(8, 8), None, torch.float32)
    (record,) = caplog.records
    assert "oneDNN's packed product in torch.float32 does not work here" in record.getMessage()


def test_a_kernel_with_wrong_results_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    x = torch.ones(3)
    assert arithmetic._works("k", lambda: x * (1 + 1e-6), x)
    for wrong in (x * 1.01, x * torch.nan):
        assert not arithmetic._works("k", lambda: wrong, x)  # noqa: B023 - called at once
    assert len(caplog.records) == 2


def test_fused_attention_is_replaced_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from orbiter.train.engine.forward.attend import attend

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 600, 16, generator=generator) for heads in (4, 2, 2))
    bias = torch.zeros(1, 600, 600).masked_fill_(~torch.ones(600, 600).tril().bool(), -torch.inf)
    fused = attend(q, k, v, bias)

    def missing(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel for this processor")

    arithmetic.fused_attention_works.cache_clear()
    monkeypatch.setattr(functional, "scaled_dot_product_attention", missing)
    try:
        assert torch.allclose(attend(q, k, v, bias), fused, atol=1e-5)
    finally:
        arithmetic.fused_attention_works.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 5])
def test_attention_over_a_part_of_a_cache_is_softmax_attention(
    dtype: torch.dtype, queries: int
) -> None:
    from orbiter.train.engine.forward.attend import attend

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, queries, 16, generator=generator).to(dtype)
    # Slots of a cache: the rows and cells at the end are not part of the product.
    k, v = (torch.randn(4, 2, 32, 16, generator=generator).to(dtype)[:3, :, :20] for _ in range(2))
    seen = torch.rand(3, queries, 20, generator=generator) < 0.5
    seen[..., 0] = True
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
    kept = bias.clone()
    wide_k, wide_v = (x.float().repeat_interleave(2, dim=1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q.float(), wide_k) / 4
    expected = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ wide_v
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    assert torch.allclose(attend(q, k, v, bias).float(), expected, atol=tolerance)
    assert torch.equal(bias, kept)


def test_the_processor_is_named() -> None:
    on = processor()
    assert on.name
    assert on.instruction_set
    assert str(on) == f"{on.name}, {on.instruction_set}, 1 thread" or on.threads > 1


OLDER = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Holds torch to what a processor without AVX-512 can do."""
DRAW = """
import torch
from orbiter.train.engine.arithmetic import packing_works
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.sample import sample
from orbiter.train.engine import arithmetic
arithmetic.PREPACK_FROM = 1
loaded = load_model("tiny", device="cpu")
for dtype in ("bfloat16", "float32", "auto"):
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=dtype, device="cpu")
    print(policy.dtype, sample(policy, [[1, 2, 3]], n=2, max_new_tokens=4)[0].token_ids)
print(packing_works(torch.float32), packing_works(torch.bfloat16))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="oneDNN's limit is known for Linux on x86")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="for x86 only"
)
def test_a_processor_held_to_avx2_draws_in_every_dtype(tmp_path: Path) -> None:
    done = run_child(
        [sys.executable, "-W", "ignore", "-c", DRAW],
        env=os.environ | OLDER | {"ORBITER_TRAIN_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    *drawn, packs = done.stdout.splitlines()
    assert [line.split()[0] for line in drawn] == ["bfloat16", "float32", "float32"]
    assert drawn[1].split()[1:] == drawn[2].split()[1:]
    assert packs == "True False"
    assert "bfloat16 products take" in done.stderr  # the warning


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_kernel_that_works_is_used_also_if_it_is_first_tried_while_sampling(
    context: Callable[[], AbstractContextManager[None]],
) -> None:
    """The answer is kept for the whole process, so it must not depend on the first caller."""
    arithmetic.fused_attention_works.cache_clear()
    expected = arithmetic.fused_attention_works(torch.float32, "cpu")
    arithmetic.fused_attention_works.cache_clear()
    with context():
        assert arithmetic.fused_attention_works(torch.float32, "cpu") is expected
    assert expected
