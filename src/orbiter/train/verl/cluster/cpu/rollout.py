"""Sample on CPU with transformers: a Ray actor that answers batches, and its weight updates.

Reported logprobs are taken from the full softmax at the requested temperature. Several processes
for one model and images are not supported, and nothing is optimised for speed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor
from typing_extensions import override
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

ROWS_AT_ONCE = 128
"""Largest number of requests in one forward pass."""
GATHERING_SECONDS = 0.02
"""Time that the first request waits for others to join its batch."""


class SamplingRequest(NamedTuple):
    """One prompt to answer."""

    prompt_ids: list[int]
    limit: int
    """Largest number of tokens in the answer."""
    temperature: float
    """Sampling temperature; 0 means greedy."""
    top_k: int
    """Number of likeliest tokens to sample from; -1 means all."""
    top_p: float
    answer: asyncio.Future[TokenOutput]


class Sampler:
    """One copy of the policy, which answers all waiting requests as one batch."""

    def __init__(self, model_path: str, response_length: int, context: int, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        # Several samplers share the machine; more threads each would compete.
        torch.set_num_threads(1)
        self.random = torch.Generator().manual_seed(seed)
        self.model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        ).eval()
        known = self.model.generation_config
        ends = known.eos_token_id if known.eos_token_id is not None else []
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.pad = known.pad_token_id if known.pad_token_id is not None else 0
        self.response_length, self.context = response_length, context
        self.version: int | None = None
        self.waiting: list[SamplingRequest] = []
        self.at_work: asyncio.Task[None] | None = None
        self.open = asyncio.Event()
        """Set unless verl has paused the sampling for an update (`colocate_async`)."""
        self.open.set()
        self.busy = asyncio.Lock()
        """Held while the model runs."""

    async def ready(self) -> bool:
        """Return once the model is loaded."""
        return True

    async def generate(
        self,
        request_id: str,  # noqa: ARG002 - verl passes it by name
        prompt_ids: list[int],
        sampling_params: Mapping[str, Any],
        **_: object,
    ) -> TokenOutput:
        """Answer one prompt; verl's other arguments (images, videos) are ignored."""
        asked = sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens")
        request = SamplingRequest(
            list(prompt_ids),
            # The answer must fit into the context after the prompt.
            min(asked or self.response_length, self.context - len(prompt_ids)),
            float(sampling_params.get("temperature", 1.0)),
            int(sampling_params.get("top_k", -1)),
            float(sampling_params.get("top_p", 1.0)),
            asyncio.get_running_loop().create_future(),
        )
        self.waiting.append(request)
        # One task answers all waiting requests; those that come meanwhile join its next batch.
        if self.at_work is None or self.at_work.done():
            self.at_work = asyncio.create_task(self._answer_all())
        return await request.answer

    async def _answer_all(self) -> None:
        # verl sends the prompts of a batch one by one.
        await asyncio.sleep(GATHERING_SECONDS)
        while self.waiting:
            await self.open.wait()
            batch, self.waiting = self.waiting[:ROWS_AT_ONCE], self.waiting[ROWS_AT_ONCE:]
            try:
                # In a thread, so that further requests are accepted while the model runs.
                async with self.busy:
                    answers = await asyncio.to_thread(self._sample, batch)
            except Exception as error:
                for request in batch:
                    request.answer.set_exception(error)
                raise
            for request, answer in zip(batch, answers, strict=True):
                request.answer.set_result(answer)

    @torch.no_grad()
    def _sample(self, batch: list[SamplingRequest]) -> list[TokenOutput]:
        """Extend all prompts token by token until each has ended or reached its limit."""
        ids, mask = self._padded(batch)
        # Positions count real tokens only; the padding is on the left.
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        drawn: list[list[int]] = [[] for _ in batch]
        logprob: list[list[float]] = [[] for _ in batch]
        live = torch.tensor([request.limit > 0 for request in batch])
        past = None
        # Paused, the answers end as they are; verl's client asks for their rest afterwards.
        while live.any() and self.open.is_set():
            seen = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=past,
                use_cache=True,
            )
            past = seen.past_key_values
            # In float32: the reported log probabilities enter the ratio of the loss.
            token, chosen = self._draw(seen.logits[:, -1].float(), batch)
            # Rows that have ended are still run, but nothing more is recorded for them.
            for row in live.nonzero()[:, 0].tolist():
                drawn[row].append(int(token[row]))
                logprob[row].append(float(chosen[row]))
                ended = int(token[row]) in self.ends or len(drawn[row]) >= batch[row].limit
                live[row] = not ended
            ids = token[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            position = position[:, -1:] + 1
        rows = zip(drawn, logprob, live.tolist(), strict=True)
        return [self._output(*row) for row in rows]

    def _padded(self, batch: list[SamplingRequest]) -> tuple[Tensor, Tensor]:
        """Return the prompts padded on the left, with their mask."""
        width = max(len(request.prompt_ids) for request in batch)
        ids = torch.full((len(batch), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        return ids, mask

    def _draw(self, logits: Tensor, batch: list[SamplingRequest]) -> tuple[Tensor, Tensor]:
        """Sample a token for each row; return it with its logprob at the row's temperature."""
        heat = torch.tensor([request.temperature or 1.0 for request in batch])
        # From the full softmax, before top-k and top-p, as the loss computes it.
        logprob = torch.log_softmax(logits / heat[:, None], dim=-1)
        chance = logprob.exp()
        for row, request in enumerate(batch):
            chance[row] = _narrowed(chance[row], request)
        token = torch.multinomial(chance, 1, generator=self.random)
        return token[:, 0], logprob.gather(1, token)[:, 0]

    def _output(
        self, token_ids: list[int], log_probs: list[float], interrupted: bool
    ) -> TokenOutput:
        ended = bool(token_ids) and token_ids[-1] in self.ends
        reason = "completed" if ended else "length"
        return TokenOutput(
            token_ids=token_ids,
            log_probs=log_probs,
            stop_reason="aborted" if interrupted else reason,
            extra_fields={"global_steps": self.version},
        )

    async def update_weights(self, state: Mapping[str, Tensor], version: int | None) -> None:
        """Load the trainer's weights; there must be at least one, and the model must have each."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        # Rotary tables are buffers, which some versions send as well.
        strange = sorted(name for name in state if name not in own and "rotary" not in name)
        if strange or not state:
            raise RuntimeError(f"weights that the rollout does not know: {strange[:3] or 'none'}")
        with torch.no_grad():
            for name, value in state.items():
                if name in own:
                    own[name].copy_(value)
        self.version = version

    async def abort_all_requests(self, *, reject_request: bool = False) -> None:  # noqa: ARG002
        """Interrupt the answers, and return when the model has stopped; later requests wait."""
        self.open.clear()
        async with self.busy:
            pass

    async def resume_generation(self) -> None:
        """Answer again, with the weights that are loaded now."""
        self.open.set()

    async def _nothing(self, *_: object, **__: object) -> None:
        """Do nothing, since this server keeps no cache and frees no memory."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    start_profile = stop_profile = _nothing


def _narrowed(chance: Tensor, request: SamplingRequest) -> Tensor:
    """Set the probabilities to zero that greedy sampling, top-k or top-p exclude."""
    if request.temperature == 0:
        return torch.zeros_like(chance).index_fill(0, chance.argmax(), 1.0)
    if request.top_k > 0:
        least = chance.topk(min(request.top_k, len(chance))).values[-1]
        chance = chance.where(chance >= least, 0.0)
    if request.top_p < 1:
        sorted_chance, order = chance.sort(descending=True)
        # Mass before a token, so that the token that crosses top_p is kept.
        beyond = sorted_chance.cumsum(0) - sorted_chance > request.top_p
        chance = chance.index_fill(0, order[beyond], 0.0)
    return chance


def _name(replica_rank: int) -> str:
    return f"orbiter_sampler_{replica_rank}"


class TransformersReplica(RolloutReplica):  # type: ignore[misc] # verl is untyped here
    """One sampler behind the interface of verl's rollout servers."""

    @override
    async def launch_servers(self) -> None:
        config, model = self.config, self.model_config
        context = config.max_model_len or config.prompt_length + config.response_length
        path = getattr(model, "local_path", None) or model["path"]
        options = {"num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = (
            ray.remote(Sampler)
            .options(name=_name(self.replica_rank), **options)
            .remote(path, config.response_length, context, config.seed + self.replica_rank)
        )
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{_name(self.replica_rank)}:0"


class WeightAdapter(BaseRollout):  # type: ignore[misc] # verl is untyped here
    """Sends the trainer's weights to the sampler."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        rank = int(os.environ["RANK"])
        size = self.config.tensor_model_parallel_size
        self.replica_rank = rank // size if replica_rank == -1 else replica_rank
        # One rank of a group sends; the others only take part in gathering.
        self.leads = rank % size == 0

    @override
    async def resume(self, tags: list[str]) -> None:
        pass

    @override
    async def release(self) -> None:
        pass

    @override
    async def update_weights(
        self,
        weights: Iterator[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        peft_config: object = None,
        **_: object,
    ) -> None:
        """Send the weights; every rank iterates over them, since gathering each is collective."""
        if wire_format != "named_tensors" or peft_config is not None:
            raise RuntimeError(
                "the transformers rollout takes whole weights: model.lora.merge=True, "
                f"got wire format {wire_format!r}"
            )
        state = {name: value.detach().to("cpu", torch.float32).clone() for name, value in weights}
        if self.leads:
            server = ray.get_actor(_name(self.replica_rank))
            await server.update_weights.remote(state, global_steps)
