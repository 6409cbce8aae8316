"""Lesson 6's explorers: the roofline of any model on any machine, and what batching buys before the wall."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from labcore import catalog
from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.lab.figures.roofline import roofline_figure, terms_figure, tradeoff_figure
from labcore.lab.roofline import Measured, roofline_of
from labcore.lab.session import Session
from labcore.lab.units import seconds, significant
from labcore.lab.widgets.common import Explorer, View, choice, slider
from labcore.lab.widgets.napkin import THIS_MACHINE, machine_names
from labcore.perf.dtypes import format_for
from labcore.perf.forecast import Forecast, pareto
from labcore.perf.peaks import Machine, machine_from_gpu
from labcore.perf.predict import ideal_terms

PRECISIONS = ("float32", "float16", "int8", "int4")
BATCHES = tuple(2**i for i in range(10))
CONTEXTS = tuple(2**i for i in range(5, 15))


def roofline_explorer(
    session: Session, config: ModelConfig, name: str, measured: Sequence[Measured] = ()
) -> None:
    """Show it for a model on this machine, its measured steps on it; everything can be moved."""
    make_roofline(session, config, name, measured).show()


def make_roofline(
    session: Session, config: ModelConfig, name: str, measured: Sequence[Measured] = ()
) -> Explorer:
    """The explorer, not placed yet."""
    own = f"{name} (measured here)"
    shapes = {own: config} | {one: catalog.architecture(one) for one in catalog.architectures()}
    dtype = str(session.model.dtype).removeprefix("torch.")
    spec = catalog.gpu_reported_as(session.roofs.device_name)
    return Explorer(
        partial(roofline_view, session.machine, spec, shapes, own, dtype, tuple(measured)),
        tabs={
            "Load": {
                "batch": slider("Batch (sequences)", BATCHES, 1, "{:,}".format),
                "context": slider("Context (tokens each)", CONTEXTS, 512, "{:,}".format),
            },
            "Model and machine": {
                "model": choice("Model", list(shapes), own),
                "machine": choice("Machine", machine_names(session), THIS_MACHINE),
                "precision": choice("Weights stored as", sorted({*PRECISIONS, dtype}), dtype),
            },
        },
    )


def roofline_view(
    here: Machine,
    spec: GPU | None,
    shapes: dict[str, ModelConfig],
    own: str,
    dtype: str,
    measured: tuple[Measured, ...],
    *,
    batch: int,
    context: int,
    model: str,
    machine: str,
    precision: str,
) -> View:
    """Figure, finding and numbers of one setting. Raises DeviceError where a rate is not known."""
    local = machine == THIS_MACHINE
    found = here if local else machine_from_gpu(catalog.gpu(machine))
    seen = measured if local and model == own and precision == dtype else ()
    result = roofline_of(shapes[model], found, batch=batch, context=context, dtype=precision, measured=seen)
    beside = spec if local else None
    format_ = None if beside is None else format_for(result.dtype, beside.flops)
    return View(roofline_figure(result, beside, format_), f"{model}. {result.finding()}", result.rows())


def tradeoff(session: Session, model: str = "llama-2-7b", gpu: str = "a100-80gb-sxm") -> None:
    """Show what batching does to latency, throughput and price, up to the memory wall and past it."""
    make_tradeoff(session, model, gpu).show()


def make_tradeoff(session: Session, model: str = "llama-2-7b", gpu: str = "a100-80gb-sxm") -> Explorer:
    """The explorer, not placed yet."""
    return Explorer(
        partial(tradeoff_view, session.machine),
        tabs={
            "What runs where": {
                "model": choice("Model", catalog.architectures(), model),
                "machine": choice("Machine", machine_names(session), gpu),
                "precision": choice("Weights stored as", PRECISIONS, "float16"),
            },
            "Its load": {
                "context": slider("Context (tokens each)", CONTEXTS, 1024, "{:,}".format),
                "picture": choice("Picture", {"latency and throughput": 0, "where the step goes": 1}, 0),
            },
        },
    )


def tradeoff_view(
    here: Machine, *, model: str, machine: str, precision: str, context: int, picture: int
) -> View:
    """Figure, finding and numbers of one setting. Raises DeviceError where a rate is not known."""
    config = catalog.architecture(model)
    found = here if machine == THIS_MACHINE else machine_from_gpu(catalog.gpu(machine))
    rows = list(pareto(config, found, context=context, dtype=precision))
    title = f"{model} in {precision} on {found.name}, {context:,} tokens"
    if picture:
        batches = [row.load.batch for row in rows]
        terms = [ideal_terms(config, found, batch, context, precision) for batch in batches]
        figure = terms_figure(batches, terms, rows[0].max_batch, title)
    else:
        figure = tradeoff_figure(rows, title)
    return View(figure, tradeoff_finding(rows, title), tradeoff_rows(rows))


def tradeoff_finding(rows: Sequence[Forecast], title: str) -> str:
    """What the last batch that fits is worth against one sequence."""
    one, fitting = rows[0], [row for row in rows if row.fits]
    if not fitting:
        return f"{title}: not one sequence fits; the points are what it would do, were there memory."
    last = fitting[-1]
    return (
        f"{title}: one sequence {seconds(one.tpot_s)} a token; the wall stands at {last.load.batch:,} "
        "sequences, "
        f"{significant(last.tokens_per_s / one.tokens_per_s)}× the throughput for "
        f"{significant(last.tpot_s / one.tpot_s)}× the latency."
    )


def tradeoff_rows(rows: Sequence[Forecast]) -> list[dict[str, object]]:
    """The exact numbers."""
    return [
        {
            "batch": row.load.batch,
            "fits": row.fits,
            "TPOT (ms)": row.tpot_s * 1e3,
            "at most (ms)": row.decode.high_s * 1e3,
            "throughput (tok/s)": row.tokens_per_s,
            "$ per million tokens": row.usd_per_million,
            "waits for": row.decode.bound,
        }
        for row in rows
    ]
