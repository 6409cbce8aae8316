"""Decode steps through torch.compile: the step's many small operations become a few generated kernels.

One program serves every position, bucket and capacity of a batch size. A model of up to CHUNK layers is
compiled as one function; a deeper one in equal chunks that share one compiled function, so that warming up
takes as long for thirty layers as for six.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from labcore.cache import ContiguousCache
from labcore.errors import LabError
from labcore.generation import static_step
from labcore.generation.static_step import SHORTEST, GeneratedProducts, StepInputs, clear_ahead, span_of
from labcore.model import Model
from labcore.model.transformer import Transformer

CHUNK = 6  # layers compiled together: about two seconds of compilation each
Run = Callable[[Tensor], Tensor]  # known tokens (B, t) -> logits (B, vocab) fp32
_numbers = itertools.count()


class Program:
    """The compiled step of one model and batch size; holds no weights and no cache."""

    def __init__(self, layers: int, batch: int) -> None:
        self.chunk = max(n for n in range(1, CHUNK + 1) if layers % n == 0)
        self.seconds: float | None = None  # what the first call took; None before it
        self.failed = False
        name = f"batch_{batch}_{next(_numbers)}"
        if self.chunk == layers:
            self._whole = _compiled(_whole, name)
        else:
            self._whole = self._in_chunks
            self._parts = [_compiled(part, name) for part in (static_step.opening, _through, _closing)]

    def __call__(
        self, transformer: Transformer, inputs: StepInputs, span: Tensor, stores: list[Tensor]
    ) -> Tensor:
        """Logits (B, vocab) fp32; arguments as in `static_step.whole`. Raises what the compiler raises."""
        start = time.perf_counter()
        logits = self._whole(transformer, inputs.tokens, inputs.position, inputs.padding, span, stores)
        if self.seconds is None:
            self.seconds = time.perf_counter() - start
        return logits

    def _in_chunks(
        self,
        transformer: Transformer,
        tokens: Tensor,
        position: Tensor,
        padding: Tensor,
        span: Tensor,
        stores: list[Tensor],
    ) -> Tensor:
        opening, through, closing = self._parts
        x, cos, sin, mask = opening(transformer, tokens, position, padding, span)
        blocks = list(transformer.layers)
        for at in range(0, len(blocks), self.chunk):
            some = slice(at, at + self.chunk)
            x = through(blocks[some], stores[some], x, cos, sin, position, mask)
        return closing(transformer, x)


def _whole(*args: Any) -> Tensor:
    with GeneratedProducts():
        return static_step.whole(*args)


def _through(*args: Any) -> Tensor:
    with GeneratedProducts():
        return static_step.through(*args)


def _closing(*args: Any) -> Tensor:
    with GeneratedProducts():
        return static_step.closing(*args)


def _compiled(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function compiled, apart from all its other copies.

    The compiler counts variants, and remembers which sizes ever varied, by a function's code and name: were
    they shared, the ninth model or batch size would quietly run uncompiled.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{name}")
    return torch.compile(FunctionType(code, function.__globals__, code.co_name))


# Of a model that is gone the programs go too; moved weights (another device or dtype) get new ones.
_programs: WeakKeyDictionary[Transformer, dict[tuple[Any, ...], Program]] = WeakKeyDictionary()


def program_for(model: Model, batch: int) -> Program:
    """The program kept for this model, as it is now, and batch size; not yet compiled the first time."""
    kept = _programs.setdefault(model.transformer, {})
    for key in [key for key in kept if key[1:] != (model.device, model.dtype)]:
        del kept[key]
    key = (batch, model.device, model.dtype)
    if key not in kept:
        kept[key] = Program(model.config.num_hidden_layers, batch)
    return kept[key]


def bucket_for(positions: int) -> int:
    """How many positions a step spans that must span so many; fine-grained, as none is compiled apart."""
    return -(-positions // SHORTEST) * SHORTEST


class CompiledSteps:
    """The decode steps of one generation. eager: what makes them where there is no compiler."""

    def __init__(self, model: Model, cache: ContiguousCache, eager: Run, quiet: bool = False) -> None:
        self.model, self.cache, self.eager, self.quiet = model, cache, eager, quiet
        self.program = program_for(model, cache.batch_size)
        self.inputs = StepInputs(cache.batch_size, cache.device)
        self._places = span_of(cache.capacity, cache.device)
        self._bucket, self._span = 0, self._places

    def __call__(self, known: Tensor) -> Tensor:
        """known: (B, t) tokens -> logits (B, vocab) fp32 of the position after them.

        Raises CacheFull, with nothing changed. More than one token to feed, or no compiler: done eagerly.
        """
        if self.program.failed or known.shape[1] != self.cache.length + 1:
            return self.eager(known)
        try:
            return self._step(known)
        except (LabError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if self.program.seconds is not None:
                raise  # it worked before: this is not a compiler that is missing
            self._give_up(error)
        return self.eager(known)

    @torch.inference_mode()
    def _step(self, known: Tensor) -> Tensor:
        first = self.program.seconds is None
        self.cache.begin(1)
        self._reach(self.cache.length + 1)
        self.inputs.fill(known[:, -1:], self.cache)
        logits = self.program(self.model.transformer, self.inputs, self._span, self.cache.store)
        self.cache.commit()
        if first and not self.quiet:
            self._tell()
        return logits

    def _reach(self, positions: int) -> None:
        """Let the span cover so many positions."""
        bucket = min(bucket_for(positions), self.cache.capacity)
        if bucket != self._bucket:
            clear_ahead(self.cache, bucket)
            with torch.inference_mode(False):
                self._bucket, self._span = bucket, self._places.narrow(0, 0, bucket)
            _let_vary(self._span, self.cache.store)

    def _tell(self) -> None:
        warnings.warn(
            f"The first decode step waited {self.program.seconds:.1f} s for torch.compile "
            f"({self.model.name}, batch {self.cache.batch_size}); the next ones will not, and "
            "labcore.warm_up(model) has the wait beforehand.",
            stacklevel=2,
        )

    def _give_up(self, error: Exception) -> None:
        self.program.failed = True
        said = str(error).strip() or type(error).__name__
        warnings.warn(
            f"Decode steps of {self.model.name} go on uncompiled, with the same results, because "
            f"torch.compile failed ({said.splitlines()[0].rstrip('.')}); install a C++ compiler such as g++ "
            "(and on a GPU Triton), or ask for step='eager'.",
            stacklevel=2,
        )


def _let_vary(span: Tensor, stores: Sequence[Tensor]) -> None:
    """Tell the compiler that buckets and capacities vary, before it takes them for constants."""
    torch._dynamo.maybe_mark_dynamic(span, 0)
    for store in stores:
        torch._dynamo.maybe_mark_dynamic(store, 3)
