"""Format the plan of a training as rows of a table."""

from __future__ import annotations

from orbiter.train.cli.output import duration
from orbiter.train.engine.plan import TrainPlan
from orbiter.train.verl.cluster.plan import Plan


def plan_lines(plan: TrainPlan | Plan) -> list[tuple[str, str]]:
    """Return a plan as pairs of label and value."""
    return _on_verl(plan) if isinstance(plan, Plan) else _here(plan)


def _here(plan: TrainPlan) -> list[tuple[str, str]]:
    later = "unknown until the model is downloaded"
    lines = [
        ("method", plan.method),
        ("model", plan.model),
        ("data", f"{plan.items} items, {plan.held_out} held out"),
        ("steps", f"{plan.steps} ({plan.updates} updates)"),
        ("tokens", later if plan.tokens is None else f"at most {plan.tokens:,}"),
    ]
    if plan.longest_item is not None:
        lines.append(("longest item", f"{plan.longest_item} tokens"))
    lines.append(("computes in", plan.computes or later))
    lines.append(("memory", plan.memory or later))
    lines.append(("time", later if plan.seconds is None else f"about {duration(plan.seconds)}"))
    return lines


def _on_verl(plan: Plan) -> list[tuple[str, str]]:
    unit = "GPUs" if plan.device == "cuda" else "CPU workers"
    return [
        ("backend", f"verl {plan.verl} on {plan.where}"),
        ("machines", f"{plan.nodes} x {plan.gpus_per_node} {unit}"),
        ("steps", str(plan.steps)),
        ("overrides", f"{len(plan.overrides)} keys of verl's configuration"),
        *(("note", note) for note in plan.notes),
    ]
