"""What the engine's suites share: tiny models, answers alone, a clock, and a runner that computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

import labcore
from labcore.cache.paged import BlockStore
from labcore.config import ModelConfig
from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping
from labcore.model import Model
from labcore.model.transformer import Transformer
from labcore.serving import LLMEngine, Request, RequestOutput
from labcore.serving.drawing import Drawn
from labcore.serving.runner import Immediate
from labcore.serving.sequence import Plan, Row

VOCAB, CONTEXT, EOS = 16, 64, 15


def small_model(
    seed: int = 0, *, eos: bool = True, heads: tuple[int, int] = (4, 2), context: int = CONTEXT
) -> Model:
    """Random weights, large enough that its greedy answers wander. heads: of queries and of keys."""
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=heads[0], num_key_value_heads=heads[1],
        head_dim=8, intermediate_size=48, vocab_size=VOCAB, max_position_embeddings=context,
        eos_token_ids=(EOS,) if eos else (),
    )  # fmt: skip
    torch.manual_seed(seed)
    transformer = Transformer(config).requires_grad_(False).eval()
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return Model("small", config, transformer, tokenizer=None, random_weights=True)


def prompt(length: int, seed: int = 0, vocab: int = VOCAB - 1) -> tuple[int, ...]:
    """Random tokens; never the end-of-sequence token."""
    stream = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab, (length,), generator=stream).tolist())


def request(id: str, tokens: Iterable[int], new: int = 8, **settings: Any) -> Request:
    """A request with the settings of `SamplingParams`, `Stopping` and `Request` side by side."""
    of = {name: settings.pop(name) for name in ("priority", "logprobs", "arrival_s") if name in settings}
    ends = {name: settings.pop(name) for name in ("stop", "ignore_eos") if name in settings}
    return Request(id, tuple(tokens), SamplingParams(**settings), Stopping(new, **ends), **of)


def alone(model: Model, one: Request) -> labcore.generation.Output:
    """What `labcore.generate` answers to it, without anybody else."""
    sampling, stopping = one.sampling, one.stopping
    found = labcore.generate(
        model, list(one.prompt), max_new_tokens=stopping.max_new_tokens, stop=stopping.stop,
        ignore_eos=stopping.ignore_eos, temperature=sampling.temperature, top_k=sampling.top_k,
        top_p=sampling.top_p, min_p=sampling.min_p, repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
    )  # fmt: skip
    assert isinstance(found, labcore.generation.Output)
    return found


class Heard:
    """Everything that one request was told, held against itself as it comes."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.logprobs: list[Any] = []
        self.reason: str | None = None
        self.cached = 0

    def hear(self, output: RequestOutput) -> None:
        """The next output."""
        assert self.reason is None, "told something after its end"
        self.tokens += output.tokens
        self.text += output.text
        self.logprobs += output.logprobs
        self.reason = output.finish_reason
        self.cached = output.num_cached_tokens
        assert output.num_output_tokens == len(self.tokens)


def take(engine: LLMEngine, steps: int = 1, heard: dict[str, Heard] | None = None) -> dict[str, Heard]:
    """So many steps, every count checked after each; what was heard, added to what was heard before."""
    heard = {} if heard is None else heard
    for _ in range(steps):
        for output in engine.step():
            heard.setdefault(output.id, Heard()).hear(output)
        check(engine)
    return heard


def drain(engine: LLMEngine, steps: int = 3000, heard: dict[str, Heard] | None = None) -> dict[str, Heard]:
    """Step until nobody is left; fails after so many steps."""
    heard = {} if heard is None else heard
    for _ in range(steps):
        if not engine.has_work:
            return heard
        take(engine, 1, heard)
    raise AssertionError(f"not over after {steps} steps: {engine.stats}")


def check(engine: LLMEngine) -> None:
    """What holds between any two steps."""
    plans = engine.scheduler
    for one in plans.waiting:
        assert not any((one.blocks, one.computed, one.drafted)), f"{one.id} waits and holds something"
        if one.swapped is not None:
            copies, computed = one.swapped
            assert copies[0].shape[2] == engine.blocks.pool.blocks_for(computed), "more than was computed"
    engine.blocks.check([*plans.running, *plans.waiting])
    assert len(plans.running) <= plans.limits.max_num_seqs
    for one in plans.running:
        assert one.lingers or 0 <= one.computed < len(one.tokens)
        assert len(one.tokens) + len(one.drafted) < one.limit or not one.drafted
    if (tree := engine.blocks.tree) is not None:  # what is said to be free can be had
        for node in tree.nodes():
            idle = tree.pool.refs(node.block) == 1
            assert not idle or all(tree.pool.refs(below.block) == 1 for below in node.children.values())
    stats, event = engine.stats, engine.last_event
    assert 0 <= stats.blocks_used <= stats.blocks_total
    assert stats.accepted <= stats.drafted
    assert stats.prefix_hits <= stats.prefix_queries
    if event is not None and plans.limits.chunked:
        assert event.tokens <= plans.limits.token_budget


def empty(engine: LLMEngine) -> None:
    """Nothing is left: no request, no block that a sequence holds, nothing aside."""
    assert not engine.has_work
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    engine.blocks.check([])
    assert engine.stats.blocks_used == 0
    assert not engine.swap_choice.aside
    if engine.blocks.tree is not None:
        engine.blocks.tree.clear()
    assert engine.blocks.pool.num_free == engine.blocks.pool.num_blocks


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self, each: float = 0.0) -> None:
        self.now, self.each = 0.0, each

    def __call__(self) -> float:
        self.now += self.each
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        assert seconds > 0
        self.now += seconds


Follow = Callable[[list[int]], int]


def follow(tokens: list[int]) -> int:
    """A next token that depends on everything before it; now and then the end."""
    return hash((7, *tokens)) % VOCAB


class ShadowRunner(Immediate):
    """Computes nothing, and knows everything: in the place of keys it writes what stands there.

    A row must find, in its blocks, its own tokens before it; it must not write where somebody else reads;
    its guesses are checked as greedy ones are. next: the model, tokens so far -> token.
    """

    def __init__(self, store: BlockStore, next: Follow = follow) -> None:
        self.store, self.next = store, next
        self.rows: list[Row] = []

    def execute(self, plan: Plan) -> list[Drawn]:
        """Check the plan, write, and draw."""
        assert plan.rows, "a step without rows"
        assert len({id(row.sequence) for row in plan.rows}) == len(plan.rows), "a row twice"
        self.rows = list(plan.rows)
        for row in plan.rows:
            self._read(row)
        for row in plan.rows:
            self._write(row)
        return [self._draw(row) for row in plan.rows]

    def _place(self, row: Row, position: int) -> list[torch.Tensor]:
        size = self.store.pool.block_size
        block, offset = row.sequence.blocks[position // size], position % size
        return [layer[part, -part, block, offset] for layer in self.store.layers for part in (0, 1)]

    def _known(self, row: Row) -> list[int]:
        return row.sequence.tokens + row.sequence.drafted

    def _read(self, row: Row) -> None:
        assert row.new >= 1
        assert row.start >= 0
        assert row.start + row.new <= len(self._known(row)), "computes what nobody knows"
        assert len(row.sequence.blocks) >= self.store.pool.blocks_for(row.start + row.new), "no room"
        for position in range(row.start):
            for place in self._place(row, position):
                assert float(place[0]) == _mark(self._known(row), position), (
                    f"{row.sequence.id} reads another's keys at {position}"
                )

    def _write(self, row: Row) -> None:
        size = self.store.pool.block_size
        for position in range(row.start, row.start + row.new):
            block = row.sequence.blocks[position // size]
            assert row.sequence.lingers or self.store.pool.refs(block) == 1, "a shared block is written"
            for place in self._place(row, position):
                place.fill_(_mark(self._known(row), position))

    def _draw(self, row: Row) -> Drawn:
        if row.sequence.lingers or not row.draws:
            return Drawn()
        tokens: list[int] = []
        for guess in [*row.sequence.drafted, None]:
            tokens.append(self.next(row.sequence.tokens + tokens))
            if tokens[-1] != guess:
                break
        return Drawn(tuple(tokens))


class InstantRunner(Immediate):
    """Draws and does nothing else, for prompts that are too long to be looked at token by token."""

    def __init__(self, next: Follow = follow) -> None:
        self.next = next

    def execute(self, plan: Plan) -> list[Drawn]:
        """A token for each row that draws."""
        draws = [row.draws and not row.sequence.lingers for row in plan.rows]
        return [
            Drawn((self.next(row.sequence.tokens),)) if drawing else Drawn()
            for row, drawing in zip(plan.rows, draws, strict=True)
        ]


def _mark(tokens: list[int], position: int) -> int:
    """Stands for the keys at a position: they depend on all tokens up to there."""
    return hash(tuple(tokens[: position + 1])) % (1 << 22) + 1


def followed(one: Request, limit: int, next: Follow = follow, eos: int = EOS) -> list[int]:
    """What `next` answers to a request alone. limit: tokens in all."""
    tokens = list(one.prompt)
    for _ in range(min(one.stopping.max_new_tokens, limit - len(one.prompt))):
        tokens.append(next(tokens))
        if tokens[-1] == eos and not one.stopping.ignore_eos:
            break
    return tokens[len(one.prompt) :]


def shadowed(
    model: Model, policy: Any = "continuous", *, next: Follow = follow, **settings: Any
) -> LLMEngine:
    """The real engine over a shadow runner."""
    engine = LLMEngine(model, policy, **settings)
    assert engine.blocks.store is not None
    engine.runner = ShadowRunner(engine.blocks.store, next)
    return engine
