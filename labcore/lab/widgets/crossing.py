"""The crossing explorer: where a pass over n tokens turns from bandwidth-bound to compute-bound."""

from __future__ import annotations

from functools import partial

from labcore import catalog
from labcore.config import ModelConfig
from labcore.lab.figures.crossing import cross, crossing_figure, crossing_finding
from labcore.lab.session import Session
from labcore.lab.widgets.common import Explorer, View, choice
from labcore.lab.widgets.napkin import THIS_MACHINE, machine_names
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.predict import Machine, machine_from_gpu

PRECISIONS = ("float32", "float16", "int8")


def crossing_explorer(session: Session) -> None:
    """Show it for this session's model on this machine; shape, machine and precision can be moved."""
    make(session).show()


def make(session: Session) -> Explorer:
    """The explorer, not placed yet."""
    own = f"{session.model.name} (this lesson's)"
    shapes = {own: session.model.config}
    shapes |= {name: catalog.architecture(name) for name in catalog.architectures()}
    dtype = str(session.model.dtype).removeprefix("torch.")
    return Explorer(
        partial(crossing_view, session.machine, shapes),
        shape=choice("Model shape", list(shapes), own),
        machine=choice("Machine", machine_names(session), THIS_MACHINE),
        precision=choice("Weights stored as", sorted({*PRECISIONS, dtype}), dtype),
    )


def crossing_view(
    here: Machine, shapes: dict[str, ModelConfig], *, shape: str, machine: str, precision: str
) -> View:
    """Figure, finding and numbers for one setting. Raises DeviceError where a rate is not known."""
    found = here if machine == THIS_MACHINE else machine_from_gpu(catalog.gpu(machine))
    peak = found.flops(found.product_dtype(precision))
    result = cross(shapes[shape], peak, found.bandwidth, precision, bytes_per_element(precision))
    title = f"{shape} in {precision} on {found.name}"
    return View(crossing_figure(result, title), crossing_finding(result, title), result.rows())
