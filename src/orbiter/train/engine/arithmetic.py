"""Find out which dtype is fast on this processor, and which special kernels work with this torch.

No other file inspects the processor. A special kernel is tried once on a small tensor before it is
used. If it fails, one line is logged and the plain product is used instead, so an unknown processor
or torch version makes a run slower but never fails it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.models.download import cache_folder
from orbiter.train.errors import ConfigError, StorageError, did_you_mean
from orbiter.train.storage import write_file

log = logging.getLogger(__name__)

Linear = Callable[[Tensor], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of the matrix products; trained weights stay in float32 with either."""
AUTO = "auto"
WORTH_IT = 1.1
"""How many times faster than float32 bfloat16 must be before "auto" chooses it."""
PREPACK_FROM = 1 << 17
"""Weights with at least this many elements gain from oneDNN's layout; below, the call overhead
costs more."""
PREPACK_ROWS = 32
"""Number of input rows that the layout is optimised for; typical of a sampling step."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that limit which instructions torch's libraries use."""


class Processor(NamedTuple):
    """The processor that runs the matrix products when there is no accelerator."""

    name: str
    instruction_set: str
    """The widest vector instructions that torch uses here, such as "AVX2" or "AVX512 + AMX"."""
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.name}, {self.instruction_set}, {threads}"


class Arithmetic(NamedTuple):
    """The dtype of a policy's matrix products, and why it was chosen."""

    dtype: str
    """A key of `DTYPES`."""
    reason: str

    def on(self, device: torch.device) -> str:
        """Return one line with the processor or accelerator, the dtype, and the reason for it."""
        name = str(processor()) if device.type == "cpu" else str(device)
        return f"{self.dtype} on {name} ({self.reason})"


def processor() -> Processor:
    """Describe the processor as torch sees it in this process."""
    return Processor(_processor_name(), _instruction_set(), torch.get_num_threads())


def pick_device(device: str = AUTO) -> torch.device:
    """Return the device with this name; "auto" is the first of CUDA, Apple's mps, and CPU.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if device == AUTO:
        return torch.device(next(kind for kind, is_here in available.items() if is_here()))
    kind = device.partition(":")[0]
    if kind not in available:
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    if not available[kind]():
        raise ConfigError(f"device={device!r}, but torch finds no {kind} device on this machine")
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> Arithmetic:
    """Resolve "auto" to the faster dtype on `device`; keep an explicit one, and warn if it is slow.

    Raises:
        ConfigError: `dtype` is neither "auto" nor a key of `DTYPES`.
    """
    if dtype not in (AUTO, *DTYPES):
        names = ", ".join((AUTO, *DTYPES))
        hint = did_you_mean(str(dtype), (AUTO, *DTYPES))
        raise ConfigError(f"dtype must be one of {names}, got {dtype!r}{hint}")
    if dtype == "float32":
        return Arithmetic("float32", "set in the config")
    if device.type != "cpu":
        return _on_accelerator(dtype, device)
    gain = bfloat16_gain()
    compared = (
        f"bfloat16 products are {gain:.1f} times as fast as float32's on this processor"
        if gain >= 1
        else f"bfloat16 products take {1 / gain:.1f} times as long as float32's on this processor"
    )
    # Below WORTH_IT the rounding error of bfloat16 buys nothing, so a near tie goes to float32.
    if dtype == AUTO:
        return Arithmetic("bfloat16" if gain >= WORTH_IT else "float32", f"measured: {compared}")
    if gain < 1:
        log.warning('%s (%s); dtype="auto" would choose float32', compared, processor())
    return Arithmetic("bfloat16", "set in the config")


def _on_accelerator(dtype: str, device: torch.device) -> Arithmetic:
    """Choose from the vendor's documentation; nothing is measured on accelerators."""
    if dtype == "bfloat16":
        return Arithmetic("bfloat16", "set in the config")
    if device.type != "cuda":
        return Arithmetic("float32", f"bfloat16 has not been measured on {device.type}")
    # Emulated bfloat16 (before Ampere) gives the right numbers, but more slowly than float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Arithmetic("bfloat16", f"{torch.cuda.get_device_name(device)} supports it")
    return Arithmetic("float32", f"{torch.cuda.get_device_name(device)} lacks bfloat16")


# Special kernels, each tested before it is used.


def packed_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the fastest product with a weight that will not change, for a few rows at a time.

    On a CPU, large weights are reordered once into oneDNN's blocked layout, which cuts the time of
    a sampling step by up to half (docs/engine.md); small ones are transposed. On accelerators the
    weight is used unchanged.
    """
    weight = weight.detach().to(dtype)
    # Packing copies the weight on a CPU, so the bias must be copied too: `to` alone returns the
    # same tensor if the dtype fits, which training would then change.
    bias = None if bias is None else bias.detach().to(dtype, copy=True)
    if weight.device.type != "cpu":
        return lambda x: functional.linear(x, weight, bias)
    if weight.numel() >= PREPACK_FROM and packing_works(dtype):
        return _prepacked(weight, bias)
    # torch.mm prefers the [in, out] layout for few rows; the copy is made once per packing.
    transposed = weight.t().contiguous()
    if bias is None:
        return lambda x: torch.mm(x, transposed)
    return lambda x: torch.addmm(bias, x, transposed)


def _prepacked(weight: Tensor, bias: Tensor | None) -> Linear:
    """Reorder the weight for oneDNN. These operators ship with torch but are not public."""
    operators = torch.ops.mkldnn
    blocks = operators._reorder_linear_weight(weight, PREPACK_ROWS)
    run = operators._linear_pointwise.default
    return lambda x: run(x, blocks, bias, "none", [], "")


@functools.cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed product runs in `dtype` here and gives the right result."""
    if not torch.backends.mkldnn.is_available():
        log.info("this torch was built without oneDNN: sampling multiplies by plain weights")
        return False
    weight, x = _trial_tensor(512, 256).to(dtype), _trial_tensor(4, 256).to(dtype)
    return _works(
        f"oneDNN's packed product in {dtype}",
        lambda: _prepacked(weight, None)(x),
        functional.linear(x.float(), weight.float()),
    )


@functools.cache
def fused_attention_works(dtype: torch.dtype, device_type: str) -> bool:
    """Whether torch's fused attention works here with a mask and with shared key heads."""
    # The answer is kept, so it must not depend on a caller that samples without gradients. Tensors
    # that are made in inference mode never get any, so the trial's are made outside it.
    with torch.inference_mode(mode=False), torch.enable_grad():
        return _try_fused_attention(dtype, device_type)


def _try_fused_attention(dtype: torch.dtype, device_type: str) -> bool:
    device = torch.device(device_type)
    q, k, v = (
        _trial_tensor(1, heads, 8, 16).to(device, dtype, copy=True).requires_grad_()
        for heads in (4, 2, 2)
    )
    # A mask of zeros changes no value, but it makes torch choose the kernel that takes a mask.
    mask = torch.zeros(1, 1, 8, 8, device=device, dtype=dtype)

    def trial() -> Tensor:
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        # Backward is tried too: a kernel may support only the forward pass.
        mixed.sum().backward()
        return mixed.detach()

    # The reference: plain attention in float32, with the shared heads repeated.
    q32, k32, v32 = (x.detach().float() for x in (q, k, v))
    k32, v32 = (x.repeat_interleave(2, 1) for x in (k32, v32))
    plain = (q32 @ k32.transpose(-1, -2) / 4).softmax(-1) @ v32  # 4 = sqrt(head width)
    return _works(f"fused attention in {dtype} on {device_type}", trial, plain)


def _works(kernel: str, trial: Callable[[], Tensor], expected: Tensor) -> bool:
    """Try a kernel once; log one line if it raises or its result is wrong."""
    try:
        result = trial()
    except Exception as error:  # whatever an unsupported kernel raises
        reason = " ".join(str(error).split())[:200]
        log.info("%s does not work here, using plain products instead: %s", kernel, reason)
        return False
    # A bfloat16 number has 8 significant bits, so 2e-2 allows a few roundings and no wrong
    # kernel.
    tolerance = 1e-4 if result.dtype == torch.float32 else 2e-2
    distance = float((result.float() - expected).abs().max() / expected.abs().max())
    if not distance <= tolerance:  # `not (x <= y)` is also true for NaN
        log.info("%s is wrong by %.1e here, using plain products instead", *(kernel, distance))
        return False
    return True


def _trial_tensor(*shape: int) -> Tensor:
    """Return smooth values in [-1, 1] without touching the random state."""
    return torch.arange(math.prod(shape), dtype=torch.float32).sin().reshape(shape)


# Measuring bfloat16 against float32.


@functools.cache
def bfloat16_gain() -> float:
    """Return float32's time divided by bfloat16's on this processor; below 1, bfloat16 is slower.

    Measured once per machine, in about a tenth of a second, and stored in the cache folder. If the
    cache is damaged or cannot be written, the only cost is another measurement.
    """
    # Everything that may change the answer is in the key, so a cache shared between machines works.
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    key = "|".join([_processor_name(), _instruction_set(), f"torch {torch.__version__}", *limits])
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    path = cache_folder() / "arithmetic" / f"{name}.json"
    gain = _kept_gain(path, key)
    if gain is None:
        gain = _measure_gain()
        _keep_gain(path, key, gain)
    return gain


def _kept_gain(path: Path, key: str) -> float | None:
    """Read an earlier measurement; None if it is missing or cannot be trusted."""
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
        gain = float(kept["bfloat16_gain"]) if kept["key"] == key else math.nan
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return gain if math.isfinite(gain) and gain > 0 else None


def _keep_gain(path: Path, key: str, gain: float) -> None:
    try:
        # Atomic, so a process that starts meanwhile never reads half a file.
        write_file(path, json.dumps({"key": key, "bfloat16_gain": gain}).encode())
    except StorageError as error:
        log.debug("the measurement of this processor is not kept: %s", error)


def _measure_gain() -> float:
    """Time an update's and a sampling step's products in both dtypes, alternating, on one thread.

    With several threads, the time they wait for each other on a busy machine would distort the
    comparison. The smallest time of each dtype counts, as the least disturbed.
    """
    threads = torch.get_num_threads()
    # The setting is global to the process, so it must be restored even if a trial fails.
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            trials = {name: _trial_step(dtype) for name, dtype in DTYPES.items()}
            seconds = dict.fromkeys(trials, math.inf)
            for _ in range(6):  # the first round warms up: kernels are generated when first called
                for name, step in trials.items():
                    began = time.perf_counter()
                    step()
                    seconds[name] = min(seconds[name], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return seconds["float32"] / seconds["bfloat16"]


def _trial_step(dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that runs the products of a small update and of one sampling step.

    The update consists of the weight's cast, the forward product and both gradients.
    """
    weight = _trial_tensor(1024, 512)
    read, drawn = _trial_tensor(128, 512).to(dtype), _trial_tensor(PREPACK_ROWS, 512).to(dtype)
    # Packed once, outside `step`: sampling packs after an update, not at every token.
    packed = packed_linear(weight, None, dtype)

    def step() -> None:
        narrow = weight.to(dtype)
        out = functional.linear(read, narrow)
        torch.mm(out, narrow)
        torch.mm(out.t(), read)
        packed(drawn)

    return step


def _instruction_set() -> str:
    """Name the vector instructions that torch uses, and any matrix instructions."""
    parts = [torch.backends.cpu.get_cpu_capability()]
    # Both extensions only exist on processors with AVX-512.
    if parts[0].startswith("AVX512"):
        extras = {"bfloat16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
        parts += [name for name, probe in extras.items() if _supports(probe)]
    try:
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # this torch has no oneDNN
        fast = False
    return " + ".join(parts) + ("" if fast else " (no bfloat16 in oneDNN)")


def _supports(probe: str) -> bool:
    """Call a probe of torch.cpu; the probes are not public, so a missing one counts as no."""
    ask: Any = getattr(torch.cpu, probe, None)
    return ask is not None and bool(ask())


@functools.cache
def _processor_name() -> str:
    """Return the vendor's name of the processor, or the best name the system offers."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            field, _, value = line.partition(":")
            if field.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"
