"""A job waits for a cluster whose job agent starts later than its job server."""

from __future__ import annotations

import pytest

from orbiter.train.verl.cluster.inside import submit
from orbiter.train.verl.cluster.inside.submit import JobRequest

REQUEST = JobRequest(
    address="http://127.0.0.1:1", submission_id="one", command="true", environment={"A": "1"}
)
NO_AGENT = "Request failed with status code 500: No available agent to submit job"


class Client:
    """Ray's client of the job server, of a cluster that refuses this many submissions."""

    def __init__(self, refusals: int, why: str = NO_AGENT) -> None:
        self.refusals, self.why = refusals, why
        self.submitted: list[dict[str, object]] = []

    def submit_job(self, **job: object) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise RuntimeError(self.why)
        self.submitted.append(job)


async def test_a_job_is_submitted_once_the_cluster_has_an_agent() -> None:
    client = Client(refusals=2)
    await submit._start(client, REQUEST)
    assert client.submitted == [
        {
            "entrypoint": "true",
            "submission_id": "one",
            "runtime_env": {"env_vars": {"A": "1"}},
        }
    ]


async def test_a_cluster_without_an_agent_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "AGENT_SECONDS", 0)
    client = Client(refusals=10)
    with pytest.raises(RuntimeError, match=r"no job agent within 0 s.*dashboard-agent-listen-port"):
        await submit._start(client, REQUEST)
    assert client.submitted == []


async def test_every_other_refusal_is_passed_on_at_once() -> None:
    client = Client(refusals=1, why="Job with submission_id one already exists")
    with pytest.raises(RuntimeError, match="already exists"):
        await submit._start(client, REQUEST)
    assert client.submitted == []
