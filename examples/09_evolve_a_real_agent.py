"""Evolve the system prompt of SmolLM2-135M on real requests, the reflecting model scripted.

python examples/09_evolve_a_real_agent.py
"""

import asyncio
from collections.abc import Mapping, Sequence

from orbiter.train import TrajectoryItem, VeRLConfig, VeRLTrainer
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.prompt import render
from orbiter.train.demo.requests import ToolRequest, load_requests
from orbiter.train.evaluation import mean_interval
from orbiter.train.evolution import (
    BestOfN,
    EvolutionConfig,
    EvolutionPipeline,
    PromptEvolution,
    Score,
    Verdict,
)

ADVICE = (
    "Answer with one call of the function.",
    "Reply with the call alone: no words before or after it.",
    "Write it like name(argument=value), with the arguments of the signature.",
    "Take every value from the request.",
    "Example: f(x: integer) / Try x of 3. -> f(x=3)",
)


async def reflector(messages: Sequence[Mapping[str, object]]) -> str:
    """Add the next piece of advice; a language model would read the traces in `messages`."""
    text = str(messages[1]["content"]).partition("<instructions>\n")[2]
    text = text.partition("\n</instructions>")[0]
    unused = [line for line in ADVICE if line not in text]
    place = len(str(messages)) % max(1, len(unused))
    return f"<instructions>{text}\n{unused[place] if unused else ''}</instructions>"


async def main() -> None:
    requests = load_requests()
    trainer = VeRLTrainer(VeRLConfig(model="smollm2-135m", max_response_length=32))

    async def agent(system: str, request: ToolRequest) -> str:
        user = {"role": "user", "content": render(request)}
        turns = [{"role": "system", "content": system}, user]
        return (await trainer.generate([TrajectoryItem(request.text, "", messages=turns)]))[0]

    def metric(request: ToolRequest, output: str) -> Verdict:
        return Verdict(score(output, request), verdict(output, request).reason)

    async def unseen(system: str) -> Score:
        each = {r.id: score(await agent(system, r), r) for r in requests[100:108]}
        print("on 8 unseen requests:", mean_interval(each.values()))
        return Score(sum(each.values()) / len(each), each)

    strategy = PromptEvolution(agent, requests[:6], metric, reflector)
    config = EvolutionConfig(mode="steady", population_size=6, concurrency=1, max_cost=36)
    pipeline = EvolutionPipeline(config, strategy, holdout=unseen, baseline=BestOfN)
    result = await pipeline.run(["You are a helpful assistant."])
    await unseen("You are a helpful assistant.")
    print(result)
    print(result.best)


if __name__ == "__main__":
    asyncio.run(main())
