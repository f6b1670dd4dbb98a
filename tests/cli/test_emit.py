from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.emit import ClusterJob, kuberay_manifest, slurm_script
from tests.children import run_child


def job(
    folder: str = "/shared/runs/First try!",
    *,
    agent: bool = False,
    **settings: Any,  # noqa: ANN401
) -> ClusterJob:
    known: dict[str, Any] = {"nodes": 2, "gpus_per_node": 4, "ray_address": "http://x:8265"}
    config = VeRLConfig(
        backend="verl", batch_size=8, group_size=4, output_dir=folder, **(known | settings)
    )
    return ClusterJob(config=config, folder=Path(folder), tasks=35, agent=agent)


def options(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return dict(found)


def test_the_slurm_script_asks_for_the_machines_of_the_run() -> None:
    asked = options(slurm_script(job()))
    assert asked["nodes"] == "2"
    assert asked["gpus-per-node"] == "4"
    assert asked["ntasks-per-node"] == "1"
    assert asked["cpus-per-task"] == "32"
    assert asked["mem"] == "256G"
    assert asked["job-name"] == "first-try"


@pytest.mark.parametrize("folder", ["/shared/runs/a", "/shared/My runs/it's 1"])
def test_the_slurm_script_is_valid_bash(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "run.sbatch"
    path.write_text(slurm_script(job(folder, environment_variables=["A_KEY", "B"])))
    checked = run_child(["bash", "-n", str(path)])
    assert checked.returncode == 0, checked.stderr


def test_secrets_are_named_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "very secret")
    named = job(environment_variables=["A_KEY"])
    for text in (slurm_script(named), kuberay_manifest(named, image="i", claim="c")):
        assert "A_KEY" in text
        assert "very secret" not in text


def test_the_run_is_resumed_by_a_second_start() -> None:
    command = job().command("http://127.0.0.1:8265")
    words = shlex.split(command)
    assert words[:4] == [
        "orbiter-train",
        "train",
        "--config",
        "/shared/runs/First try!/config.toml",
    ]
    assert "train.ray_address=http://127.0.0.1:8265" in words
    assert "metrics.jsonl && echo --resume" in command


def test_the_kuberay_manifest_has_the_nodes_of_the_run() -> None:
    made = json.loads(kuberay_manifest(job(), image="repo/verl:1", claim="runs"))
    assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made["metadata"]["name"])
    cluster = made["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for spec in (cluster["headGroupSpec"], group):
        (container,) = spec["template"]["spec"]["containers"]
        assert container["image"] == "repo/verl:1"
        volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "/shared/runs" in {mount["mountPath"] for mount in container["volumeMounts"]}
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}


def fields(required: str, optional: str = "", **types: object) -> dict[str, object]:
    """The schema of an object with these fields and no others."""
    names = [*required.split(), *optional.split()]
    known = {name: types.get(name, {}) for name in names}
    return {
        "type": "object",
        "required": required.split(),
        "properties": known,
        "additionalProperties": False,
    }


PARAMS = {"type": "object", "additionalProperties": TEXT}
HEAD = fields("rayStartParams template", "enableIngress headService", rayStartParams=PARAMS)
GROUP = fields(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    "suspend numOfHosts idleTimeoutSeconds scaleStrategy",
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    rayStartParams=PARAMS,
)
CLUSTER = fields(
    "headGroupSpec workerGroupSpecs",
    "rayVersion enableInTreeAutoscaling autoscalerOptions suspend managedBy",
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP},
)
RAY_JOB = fields(
    "apiVersion kind metadata spec",
    spec=fields(
        "entrypoint rayClusterSpec",
        "activeDeadlineSeconds backoffLimit submitterPodTemplate metadata clusterSelector "
        "submitterConfig runtimeEnvYAML jobId submissionMode entrypointNumCpus suspend "
        "shutdownAfterJobFinishes ttlSecondsAfterFinished",
        entrypoint=TEXT,
        rayClusterSpec=CLUSTER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=WHOLE,
    ),
)
"""The fields of a RayJob as KubeRay's API of version ray.io/v1 has them, and their types.

No package on PyPI or npm carries KubeRay's own schema. The pods in it, by far the larger part, are
checked by Kubernetes' schema.
"""


@pytest.mark.parametrize("name", ["A_KEY", None])
def test_the_kuberay_manifest_has_the_fields_of_kuberay_and_kubernetes(name: str | None) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pods = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schema is not installed")
    wanted = job(environment_variables=[name] if name else [])
    made = json.loads(kuberay_manifest(wanted, image="repo/verl:1", claim="runs"))
    jsonschema.validate(made, RAY_JOB)
    cluster = made["spec"]["rayClusterSpec"]
    for spec in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **spec["template"]}
        pods.validate(pod, pods.latest_version(), strict=True)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(pods.ValidationError, match="volumeMount"):
            pods.validate(pod, pods.latest_version(), strict=True)
    made["spec"]["entryPoint"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        jsonschema.validate(made, RAY_JOB)


def test_the_plan_counts_steps_and_tokens() -> None:
    lines = " ".join(job(epochs=2, max_response_length=100).described())
    assert "8 GPUs" in lines
    assert "8 steps of 8 x 4 samples" in lines
    assert f"{8 * 32 * 100:,} sampled tokens" in lines
    of_agent = " ".join(job(agent=True, max_turns=3, max_response_length=100).described())
    assert f"{4 * 32 * 300:,} sampled tokens" in of_agent


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "cpu"}, "'cpu' is a rehearsal"),
        ({"folder": "runs/here"}, "absolute path"),
    ],
)
def test_what_belongs_on_no_cluster_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job(**settings)


def test_a_local_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend='verl'"):
        ClusterJob(config=VeRLConfig(), folder=Path("/x"), tasks=9, agent=False)


def test_kuberay_needs_an_image_and_a_claim() -> None:
    with pytest.raises(ConfigError, match="--image"):
        kuberay_manifest(job(), image="", claim="runs")
