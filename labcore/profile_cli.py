"""`labcore profile`: one step of a model, its time by kind of work, what it waits for, a Chrome trace."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from labcore.model import Model
    from labcore.perf.profile import Profile


class Phase(StrEnum):
    """Which step."""

    decode = "decode"
    prefill = "prefill"


def profile(
    model: Annotated[str, typer.Option(help="story, a folder, a Hub id, or shape:NAME.")] = "story",
    phase: Annotated[Phase, typer.Option(help="decode or prefill.")] = Phase.decode,
    context: Annotated[int, typer.Option(min=2, help="Tokens held (decode) or of the prompt.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    readable: Annotated[bool, typer.Option(help="Without the native layers.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace (JSON) here.")] = None,
) -> None:
    """Profile one step: kinds of work, launch gaps, the regime with its evidence."""
    import labcore
    from labcore.perf.costs import step_costs
    from labcore.perf.profile import profile as profiled

    loaded = labcore.load(model, device=device)
    loaded.transformer.fast = not readable
    new = context if phase is Phase.prefill else 1
    found = profiled(
        _step(loaded, context - new, new),
        device=loaded.device,
        label=f"{phase} of {loaded.name}, {context} tokens",
        costs=step_costs(loaded.config, 1, context, new, dtype=loaded.dtype),
        dtype=loaded.dtype,
        trace_path=trace,
    )
    console = Console()
    for table in (_kinds(found), _top(found)):
        console.print(table)
    console.print(f"Waits for {found.regime.name}. {found.regime.sentence}", highlight=False)
    if trace:
        console.print(f"Trace written to {trace}; open it in chrome://tracing or Perfetto.", highlight=False)


def _step(model: Model, held: int, new: int) -> Callable[[], None]:
    """A step that can be run again and again: what it added is cut off first."""
    import torch

    from labcore.cache import create

    cache = create("contiguous", model.config, capacity=held + new, device=model.device, dtype=model.dtype)
    tokens = torch.zeros(1, held + new, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def run() -> None:
        cache.truncate(min(held, cache.length))
        model.transformer(tokens[:, cache.length :], cache, logits_to_keep=1)

    if held:
        with torch.inference_mode():
            model.transformer(tokens[:, :held], cache, logits_to_keep=1)
    return run


def _kinds(found: Profile) -> Table:
    table = Table(title=f"{found.label}: {found.wall_s * 1e3:.3g} ms, {found.traced_s * 1e3:.3g} ms traced")
    for name in ("kind", "traced ms", "share"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, seconds in found.by_kind.items():
        if seconds:
            table.add_row(kind, f"{seconds * 1e3:.3f}", f"{found.shares[kind]:.0%}")
    return table


def _top(found: Profile, rows: int = 10) -> Table:
    table = Table(title="Longest operations")
    for name in ("operation", "kind", "calls", "µs"):
        table.add_column(name, justify="left" if name in ("operation", "kind") else "right")
    for one in found.top[:rows]:
        table.add_row(one.name, one.kind, str(one.calls), f"{one.seconds * 1e6:,.1f}")
    return table
