"""Register the CPU platform, the rollout and the patches; verl imports this in each process.

Importing this file has these effects, so nothing else in the package may import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import verl
from typing_extensions import override
from verl.plugin.platform import PlatformRegistry, platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.workers.rollout import base as rollout_base
from verl.workers.rollout.replica import RolloutReplicaRegistry

from orbiter.train.verl.cluster.cpu.patches import apply_patches
from orbiter.train.verl.cluster.versions import ROLLOUT, TESTED, untested


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):  # type: ignore[misc] # verl is untyped here
    """A machine whose only device is its processor; Ray counts one logical GPU per worker."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module: ModuleType = torch.cpu

    @override
    def is_available(self) -> bool:
        return True

    @override
    def current_device(self) -> Any:
        return "cpu"  # used wherever verl calls .to(current_device())

    @override
    def device_count(self) -> int:
        # One logical device for each process: verl starts a process for each GPU.
        return 1

    @override
    def set_device(self, device_index: int) -> None:
        pass

    @override
    def synchronize(self, device_index: int | None = None) -> None:
        pass

    @override
    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    @override
    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    @override
    def set_allocator_settings(self, settings: str) -> None:
        pass

    @override
    def empty_cache(self) -> None:
        pass

    @override
    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    @override
    def communication_backend_name(self) -> str:
        # NCCL needs GPUs; gloo is torch's backend for processors.
        return "gloo"

    @override
    def visible_devices_envvar(self) -> str:
        # Ray sets the variable in every worker; without a GPU it has no effect.
        return "CUDA_VISIBLE_DEVICES"

    @override
    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    @override
    def profiler_start(self) -> None:
        pass

    @override
    def profiler_stop(self) -> None:
        pass

    @override
    def ray_resource_name(self) -> str:
        # Ray is started with this many logical GPUs, so verl's placement is that of a real cluster.
        return "GPU"

    @override
    def ray_noset_envvars(self) -> list[str]:
        return []

    @override
    def is_ipc_supported(self) -> bool:
        # Without shared GPU memory, verl passes weights to the rollout by copying them.
        return False

    @override
    def cudart(self) -> Any:
        return None


def _load_replica() -> type[Any]:
    from orbiter.train.verl.cluster.cpu.rollout import TransformersReplica

    return TransformersReplica


# The patches below are only known to be right for these versions.
if verl.__version__ not in TESTED:
    raise ImportError(untested(verl.__version__))
platform_manager.set_platform(CPUPlatform())
RolloutReplicaRegistry.register(ROLLOUT, _load_replica)
# verl has no function that registers a weight adapter, so the entry is added to its dict.
rollout_base._ROLLOUT_REGISTRY[ROLLOUT, "async"] = (
    "orbiter.train.verl.cluster.cpu.rollout.WeightAdapter"
)
apply_patches()
