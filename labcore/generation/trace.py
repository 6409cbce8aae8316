"""A record of every step of one generation, for whoever wants to look inside.

Shapes, tokens and logits are the step's own; attention is computed from the very queries and keys that the
step used, after its time was taken; FLOPs and bytes come from the cost model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from labcore.cache import KVCache
from labcore.errors import ConfigError
from labcore.model import Model
from labcore.perf.costs import StepCosts, step_costs


@dataclass(frozen=True)
class TraceOptions:
    """What to record. attention: (layer, head) pairs, or "all"; top: how many candidates a step."""

    attention: Sequence[tuple[int, int]] | Literal["all"] = ()
    top: int = 10


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next, with its raw logit and its probability at temperature 1."""

    token: int
    text: str
    logit: float
    probability: float


@dataclass(frozen=True)
class TraceStep:
    """One forward pass and the token drawn from it. Bytes are bytes, seconds include the draw.

    position: of the first token fed; context: the sequence's length after the step's positions were computed;
    cache_length: positions held after the step; attention: (layer, head) -> (n, context) fp32 probabilities,
    0 where a cache has forgotten the position.
    """

    index: int
    phase: Literal["prefill", "decode"]
    input_shape: tuple[int, int]
    input_tokens: list[int]
    position: int
    context: int
    top: list[Candidate]
    token: int
    text: str
    cache_length: int
    cache_bytes: int
    costs: StepCosts
    seconds: float
    logits: Tensor
    attention: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Floating-point operations of the step, a multiply-add counted as 2."""
        return self.costs.flops

    @property
    def bytes_moved(self) -> float:
        """Bytes of weights, cache and activations that the step reads and writes."""
        return self.costs.bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without logits and attention."""
        plain = ("index", "phase", "input_shape", "input_tokens", "position", "context", "token", "text")
        numbers = ("cache_length", "cache_bytes", "flops", "bytes_moved", "seconds")
        row: dict[str, Any] = {name: getattr(self, name) for name in plain + numbers}
        return row | {"top": [vars(candidate) for candidate in self.top]}


@dataclass
class Trace:
    """All steps of one generation; the first is the prefill."""

    prompt_tokens: list[int]
    steps: list[TraceStep] = field(default_factory=list)

    @property
    def prefill(self) -> TraceStep:
        """The step that processed the prompt and gave the first token."""
        return self.steps[0]

    @property
    def decodes(self) -> list[TraceStep]:
        """The steps that gave the other tokens."""
        return self.steps[1:]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"prompt_tokens": self.prompt_tokens, "steps": [step.to_dict() for step in self.steps]}


class Recorder:
    """Fills a Trace for the first sequence of a batch."""

    def __init__(self, model: Model, cache: KVCache, options: TraceOptions, prompt: list[int]) -> None:
        self.model, self.cache, self.options = model, cache, options
        self.trace = Trace(prompt_tokens=prompt)
        self._padding = 0 if cache.padding is None else int(cache.padding[0])
        self._heads = _chosen_heads(model, options)
        self._seen: dict[int, tuple[Callable[[], Tensor], Tensor | None]] = {}
        if self._heads:
            cache.observer = self._observe

    def record(self, known: Tensor, logits: Tensor, token: int, held_before: int, seconds: float) -> None:
        """Note one step. known: (B, t) tokens up to the drawn one, that excluded; logits: (B, vocab) fp32."""
        context = known.shape[1]
        batch, new = known.shape[0], context - held_before
        config, dtype = self.model.config, str(self.model.dtype).removeprefix("torch.")
        index = len(self.trace.steps)
        self.trace.steps.append(
            TraceStep(
                index=index,
                phase="decode" if index else "prefill",
                input_shape=(batch, new),
                input_tokens=known[0, held_before:].tolist(),
                position=max(0, held_before - self._padding),
                context=context,
                top=self._candidates(logits[0]),
                token=token,
                text=self._text(token),
                cache_length=self.cache.length,
                cache_bytes=self.cache.nbytes,
                costs=step_costs(config, batch, context, new, dtype=dtype, traffic=self.cache.traffic),
                seconds=seconds,
                logits=logits[0].cpu().clone(),
                attention=self._attention(context),
            )
        )

    def _observe(self, layer: int, weights: Callable[[], Tensor], slots: Tensor | None) -> None:
        if layer in self._heads:
            self._seen[layer] = (weights, slots)

    def _attention(self, context: int) -> dict[tuple[int, int], Tensor]:
        found: dict[tuple[int, int], Tensor] = {}
        for layer, (compute, slots) in self._seen.items():
            weights = compute()[0]
            if slots is not None:
                weights = _at_positions(weights, slots, context)
            weights = weights.cpu()
            found |= {(layer, head): weights[head] for head in self._heads[layer]}
        self._seen.clear()
        return found

    def _candidates(self, logits: Tensor) -> list[Candidate]:
        probabilities = logits.softmax(-1)
        best = logits.topk(min(self.options.top, len(logits))).indices.tolist()
        return [Candidate(t, self._text(t), float(logits[t]), float(probabilities[t])) for t in best]

    def _text(self, token: int) -> str:
        tokenizer = self.model.tokenizer
        return tokenizer.token_text(token) if tokenizer else str(token)


def _at_positions(weights: Tensor, slots: Tensor, context: int) -> Tensor:
    """(h, n, T) weights of kept keys, each put where its key stands in the text -> (h, n, context)."""
    stands = slots.expand(1, -1) if slots.dim() == 1 else slots[0]
    stands = stands.repeat_interleave(weights.shape[0] // stands.shape[0], dim=0)  # (h, T)
    empty = (stands < 0) | (stands >= context)  # entries that no position has come to yet
    index = stands.masked_fill(empty, 0)[:, None].expand_as(weights)
    out = weights.new_zeros(*weights.shape[:2], context)
    return out.scatter_add(2, index, weights.masked_fill(empty[:, None], 0.0))


def trace_options(trace: bool | TraceOptions) -> TraceOptions | None:
    """What `generate(trace=…)` asks for, or None."""
    if isinstance(trace, TraceOptions):
        return trace
    return TraceOptions() if trace else None


def _chosen_heads(model: Model, options: TraceOptions) -> dict[int, list[int]]:
    """Layer -> heads. Raises ConfigError for a head that the model does not have."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    if options.attention == "all":
        return {layer: list(range(heads)) for layer in range(layers)}
    chosen: dict[int, list[int]] = {}
    for layer, head in options.attention:
        if not (0 <= int(layer) < layers and 0 <= int(head) < heads):
            raise ConfigError(
                f"There is no head {head} in layer {layer} to trace; the model has layers 0 to {layers - 1} "
                f"with heads 0 to {heads - 1}."
            )
        chosen.setdefault(int(layer), []).append(int(head))
    return chosen
