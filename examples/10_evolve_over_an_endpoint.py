"""Evolve a prompt with any OpenAI-compatible endpoint, which both answers and reflects.

    export MODEL=qwen3-32b OPENAI_BASE_URL=http://localhost:8000/v1
    python examples/10_evolve_over_an_endpoint.py

Every call is cached in answers.sqlite and every evaluation journalled in runs/capitals: stopped and
started again, it goes on without paying for anything twice.
"""

import asyncio
import os

from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, PromptEvolution, Verdict
from orbiter.train.llm.chat import ask
from orbiter.train.llm.client import RemoteChatModel
from orbiter.train.llm.config import ClientConfig

QUESTIONS = {
    "Which city is the capital of Australia?": "canberra",
    "Which city is the capital of Turkey?": "ankara",
    "Which city is the capital of Brazil?": "brasilia",
    "Which city is the capital of Canada?": "ottawa",
}


def metric(question: str, output: object) -> Verdict:
    wanted = QUESTIONS[question]
    if str(output).strip() == wanted:
        return Verdict(1.0)
    return Verdict(0.5 * (wanted in str(output).lower()), f"the reply must be exactly {wanted!r}")


async def main() -> None:
    config = ClientConfig(model=os.environ["MODEL"], base_url=os.environ["OPENAI_BASE_URL"])
    async with RemoteChatModel(config, cache="answers.sqlite") as model:

        async def agent(system: str, question: str) -> str:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            return (await ask(model, turns)).text

        strategy = PromptEvolution(agent, list(QUESTIONS), metric, model)
        settings = EvolutionConfig(
            mode="steady", concurrency=4, target=1.0, max_cost=100, run_dir="runs/capitals"
        )
        result = await EvolutionPipeline(settings, strategy).run(["Answer the question."])
    print(result)
    print(result.best)


if __name__ == "__main__":
    asyncio.run(main())
