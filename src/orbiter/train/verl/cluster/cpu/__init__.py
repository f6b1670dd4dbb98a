"""The real verl without a GPU: a platform and a rollout on verl's extension points.

verl loads `orbiter.train.verl.cluster.cpu.plugin` in each of its processes
(VERL_USE_EXTERNAL_MODULES), so that a job meant for a cluster can be rehearsed before it costs a
GPU hour. Extension points:

    PlatformRegistry, set_platform      the platform "cpu": torch.cpu, gloo, logical GPUs
    RolloutReplicaRegistry              the rollout "transformers" (`rollout.py`)
    VERL_ENGINE_DEVICE                  verl's own FSDP engines, registered for cuda and npu

What has no extension point is patched; `patches.py` lists each with its reason. Everything here was
written for the verl versions in `orbiter.train.verl.cluster.versions` and refuses any other. Left
out: speed. This runs a small model for a few steps.
"""
