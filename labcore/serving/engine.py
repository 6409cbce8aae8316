"""The serving engine. Everything that serves many requests goes through its `step`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from labcore.cache.paged import BlockStore
from labcore.errors import ConfigError
from labcore.generation.speculation import Drafter
from labcore.model import Model
from labcore.serving.admission import usual_blocks
from labcore.serving.blocks import BlockManager
from labcore.serving.captured import graphs_for
from labcore.serving.core import EngineCore
from labcore.serving.policies import Policy, policy_of
from labcore.serving.requests import Request
from labcore.serving.runner import ModelRunner
from labcore.serving.scheduler import Limits
from labcore.serving.swapping import Preemption, SwapChoice

EVENTS = 100_000  # that are kept


class LLMEngine(EngineCore):
    """Many requests on one model, step by step. Single-threaded: whoever calls `step` calls everything else.

    policy: a name or a Policy. num_blocks of block_size positions: the pool (default: a quarter of the free
    memory, off a GPU at most 65,536 positions). Of one step: max_num_seqs requests, token_budget tokens;
    chunked: prompts may go in parts. max_model_len: prompt and answer (default: the model's context).
    preemption: "recompute", "swap", or "auto", whichever is cheaper by what was measured. speculation: a
    Drafter (see `speculation`). overlap: launch each step before what the one before drew is known, so that a
    GPU does not wait for Python; outputs come one step later ("auto": on a GPU, where that is possible).
    Raises ConfigError and OutOfMemory.
    """

    def __init__(
        self,
        model: Model,
        policy: str | Policy = "continuous",
        *,
        num_blocks: int | None = None,
        block_size: int = 16,
        max_num_seqs: int = 32,
        token_budget: int = 512,
        chunked: bool = True,
        prefix_caching: bool = True,
        max_model_len: int | None = None,
        preemption: Preemption = "auto",
        speculation: Drafter | None = None,
        overlap: bool | Literal["auto"] = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        context = model.config.max_position_embeddings
        if max_model_len is not None and not 1 < max_model_len <= context:
            raise ConfigError(
                f"max_model_len is {max_model_len}; {model.name!r} holds 2 to {context} tokens."
            )
        policy = policy_of(policy)
        possible = speculation is None and not policy.fixed_batch
        if overlap == "auto":
            overlap = possible and model.device.type == "cuda"
        if overlap and not possible:
            raise ConfigError(
                "Steps cannot overlap with speculation or in a fixed batch, where deciding needs the tokens "
                "of the step before; leave overlap out, or take the policy 'continuous' without speculation."
            )
        blocks = usual_blocks(model, block_size) if num_blocks is None else num_blocks
        store = BlockStore(model.config, blocks, block_size, model.device, model.dtype)
        super().__init__(
            model,
            BlockManager(store.pool, store, prefix_caching=prefix_caching),
            ModelRunner(model, store, graphs_for(model, store, max_num_seqs, max_model_len or context)),
            policy,
            Limits(max_num_seqs, token_budget, chunked),
            max_model_len=max_model_len or context,
            swap_choice=SwapChoice(preemption, store.block_bytes),
            clock=clock,
            speculation=speculation,
            overlap=overlap,
            most_events=EVENTS,
        )
        self._weights = model.transformer.weights()

    def add(self, request: Request) -> None:
        """As EngineCore's. Keys of weights that were changed are forgotten, where nobody else is served."""
        if not self._sequences and (weights := self.model.transformer.weights()) != self._weights:
            self._weights = weights
            if self.blocks.tree is not None:
                self.blocks.tree.clear()
            if isinstance(self.runner, ModelRunner) and self.runner.graphs is not None:
                self.runner.graphs.forget()
        super().add(request)

    def warm_up(self) -> None:
        """Record the decode steps of every batch size now, on a GPU, rather than when each first occurs."""
        assert isinstance(self.runner, ModelRunner)
        if self.runner.graphs is not None:
            self.runner.graphs.warm_up()
