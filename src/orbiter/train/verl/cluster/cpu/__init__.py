"""Run the real verl without a GPU, through a platform and a rollout for its extension points.

verl loads `orbiter.train.verl.cluster.cpu.plugin` in each of its processes
(VERL_USE_EXTERNAL_MODULES), so that a job meant for a cluster can be rehearsed before it costs a
GPU hour. Extension points:

    PlatformRegistry, set_platform      the platform "cpu": torch.cpu, gloo, logical GPUs
    RolloutReplicaRegistry              the rollout "transformers" (`rollout.py`)
    VERL_ENGINE_DEVICE                  verl's own FSDP engines, registered for cuda and npu

Parts of verl without an extension point are patched; `patches.py` gives the reason for each patch.
This code works with the verl versions in `orbiter.train.verl.cluster.versions` and refuses any
other. It is not fast: it is meant to run a small model for a few steps.
"""
