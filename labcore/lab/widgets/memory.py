"""Memory Tetris and the block map, to be moved by hand."""

from __future__ import annotations

from typing import Any

from labcore import catalog
from labcore.lab.blocks import Moment
from labcore.lab.figures.memory import block_figure, tetris_figure
from labcore.lab.memory_plans import KEEPING, plan_finding, plan_of, plan_rows
from labcore.lab.widgets.common import Explorer, View, choice, slider, stepper

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def memory_tetris(model: str = "llama-2-7b", gpu: str = "a10") -> None:
    """Show it: any catalogued model on any catalogued device."""
    make_tetris(model, gpu).show()


def make_tetris(model: str = "llama-2-7b", gpu: str = "a10") -> Explorer:
    """The explorer, not placed yet."""
    return Explorer(
        tetris_view,
        tabs={
            "Requests": {
                "batch": slider("Requests at once", BATCHES, 4),
                "context": slider("Tokens of each", CONTEXTS, 4096, show=lambda value: f"{value:,}"),
                "keeping": choice("The cache is kept", list(KEEPING), next(iter(KEEPING))),
            },
            "Model and device": {
                "model": choice("Model", catalog.architectures(), model),
                "gpu": choice("Device", catalog.gpus(), gpu),
            },
            "Precision": {
                "dtype": choice("Weights", ["float16", "int8", "int4"], "float16"),
                "cache_bits": choice(
                    "Cache (bits a number)", {"16": 16.0, "8": 8.0, "4.5": 4.5, "2.5": 2.5}, 16.0
                ),
            },
        },
    )


def tetris_view(*, model: str, gpu: str, **settings: Any) -> View:
    """Figure, finding and parts of one setting."""
    found = plan_of(catalog.architecture(model), catalog.gpu(gpu), **settings)
    return View(tetris_figure(found), plan_finding(found), plan_rows(found))


def block_map(moments: list[Moment]) -> None:
    """Walk through the events of a pool."""
    make_map(moments).show()


def make_map(moments: list[Moment]) -> Explorer:
    """The explorer, not placed yet."""
    return Explorer(lambda event: map_view(moments[event]), event=stepper("Event", len(moments)))


def map_view(moment: Moment) -> View:
    """Figure, finding and tables of one moment."""
    return View(block_figure(moment), moment.finding(), moment.rows())
