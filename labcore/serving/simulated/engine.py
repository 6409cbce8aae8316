"""The engine without its model: the same steps, on a clock that moves by what they would cost."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import cast

from labcore.cache.block_pool import BlockPool
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.model import Model
from labcore.perf.sizes import positions_seen
from labcore.serving.blocks import BlockManager
from labcore.serving.core import EngineCore
from labcore.serving.drawing import Drawn
from labcore.serving.policies import Policy
from labcore.serving.requests import Request
from labcore.serving.runner import Immediate
from labcore.serving.scheduler import Limits
from labcore.serving.sequence import Plan, Sequence
from labcore.serving.simulated.costs import Part, StepCost
from labcore.serving.swapping import SwapChoice


class VirtualClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class CostRunner(Immediate):
    """Takes a step by letting its time pass. Every request that draws gets a token that no prompt holds."""

    def __init__(self, cost: StepCost, clock: VirtualClock) -> None:
        self.cost, self.clock = cost, clock
        self._tokens: dict[str, Drawn] = {}

    def execute(self, plan: Plan) -> list[Drawn]:
        """As Immediate says."""
        drawn, parts = [], []
        for row in plan.rows:
            draws = row.draws
            parts.append(Part(row.start, row.new, draws))
            drawn.append(self.token_of(row.sequence.id) if draws and not row.sequence.lingers else _NOTHING)
        self.clock.now += self.cost.seconds(parts)
        return drawn

    def token_of(self, id: str) -> Drawn:
        """Its own, so that only what was asked for with the same tokens is found in the prefix cache."""
        if (known := self._tokens.get(id)) is None:
            known = self._tokens[id] = Drawn((-2 - len(self._tokens),))  # -1 is NO_TOKEN, and PENDING
        return known


_NOTHING = Drawn()


class ReceivingBlocks(BlockManager):
    """Blocks without tensors, in which a cache that was computed elsewhere can arrive."""

    def fetch(self, sequence: Sequence) -> None:
        """Make room for what arrived. Raises CacheFull, with nothing taken."""
        _, computed = sequence.swapped
        sequence.blocks = self.pool.allocate(self.pool.blocks_for(computed))
        sequence.computed, sequence.swapped = computed, None


class WindowedPool(BlockPool):
    """Blocks of a model with windowed layers, which let go of what lies behind their window.

    A block is block_size positions of every layer. A sequence takes as many as its layers together hold, so
    that its table is shorter than its text; only what the table reaches is found again by its prefix.
    """

    def __init__(self, num_blocks: int, block_size: int, config: ModelConfig) -> None:
        super().__init__(num_blocks, block_size)
        self.config = config

    def blocks_for(self, positions: int) -> int:
        """As BlockPool says. Of a model without windows: the same."""
        filled = super().blocks_for(positions) * self.block_size
        each = self.block_size * self.config.num_hidden_layers
        return -(-positions_seen(self.config, filled) // each)


class SimulatedEngine(EngineCore):
    """An engine whose steps are counted and not computed; `step` and everything around it is inherited.

    cost: seconds of a step. Sizes and policy as LLMEngine's, num_blocks and max_model_len to be stated. An
    answer is as long as its request's max_new_tokens (or the room) allows: nothing is known of its text, so
    that no stop string or end-of-sequence token ends it. Who is preempted is computed again, and deciding
    takes no time but what the cost says. All events are kept. config: of the model, where its layers are
    windowed. Raises ConfigError.
    """

    def __init__(
        self,
        cost: StepCost,
        policy: str | Policy = "continuous",
        *,
        num_blocks: int,
        max_model_len: int,
        block_size: int = 16,
        max_num_seqs: int = 32,
        token_budget: int = 512,
        chunked: bool = True,
        prefix_caching: bool = True,
        vocab_size: int = sys.maxsize,
        config: ModelConfig | None = None,
    ) -> None:
        if max_model_len < 2:
            raise ConfigError(f"max_model_len is {max_model_len}; a prompt and its answer take at least 2.")
        # what `add` asks of a model
        shape = SimpleNamespace(vocab_size=vocab_size, eos_token_ids=())
        model = cast(Model, SimpleNamespace(name="the simulated model", config=shape, tokenizer=None))
        self.time = VirtualClock()
        self.costs = CostRunner(cost, self.time)
        sizes = (num_blocks, block_size)
        pool = BlockPool(*sizes) if config is None else WindowedPool(*sizes, config)
        super().__init__(
            model,
            ReceivingBlocks(pool, prefix_caching=prefix_caching),
            self.costs,
            policy,
            Limits(max_num_seqs, token_budget, chunked),
            max_model_len=max_model_len,
            swap_choice=SwapChoice("recompute", 0),
            clock=self.time,
        )

    @property
    def load(self) -> int:
        """Requests here."""
        return len(self.scheduler.waiting) + len(self.scheduler.running)

    def receive(self, request: Request) -> None:
        """Take over a request whose prompt and first token were computed elsewhere and whose cache is here.

        It waits for blocks as others do. Raises as `add`.
        """
        self.add(request)
        sequence = self._sequences[request.id]
        first = self.costs.token_of(request.id).tokens[0]
        sequence.tokens.append(first)
        sequence.answer.push(first, 0.0, last=False)
        sequence.swapped = (None, sequence.prompt_length)

    def wake_s(self) -> float | None:
        """When a policy that waits would act though nobody else came; None: it would not."""
        timeout = getattr(self.scheduler.policy, "timeout_s", None)
        if timeout is None or not self.scheduler.waiting:
            return None
        oldest = min(sequence.arrival_s for sequence in self.scheduler.waiting)
        return float(max(oldest + timeout, self.time.now) + 1e-9)  # past it, however that sum was rounded
