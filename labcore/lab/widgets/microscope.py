"""The quantizer microscope and the bit explorer: thin skins over their views."""

from __future__ import annotations

from functools import partial

from labcore.lab.bit_patterns import INTERESTING, LARGEST, bit_finding, bit_patterns, bit_rows_of
from labcore.lab.figures.microscope import bits_figure, error_figure, histogram_figure
from labcore.lab.microscope import (
    OUTLIERS,
    SCOPES,
    described,
    format_of,
    look_at,
    matrix_names,
    matrix_of,
    scope_rows,
)
from labcore.lab.session import Session
from labcore.lab.widgets.common import Explorer, View, choice, slider
from labcore.model import Model
from labcore.quant.formats import DTYPES, Granularity

PICTURES = {"weights and grid": 0, "error by weight": 1}
ZERO = {"none": False, "one for each scale": True}


def quantizer_microscope(session: Session) -> None:
    """Lay any grid over any matrix of the session's model, or over normal numbers, and see what it costs."""
    make_microscope(session).show()


def make_microscope(session: Session) -> Explorer:
    """The explorer, not placed yet."""
    names = matrix_names(session.model)
    return Explorer(
        partial(microscope_view, session.model, session.seed),
        tabs={
            "Grid": {
                "dtype": choice("Number format", DTYPES, "int4"),
                "scope": choice("Scales", {words: scope for scope, words in SCOPES.items()}, "channel"),
                "zero": choice("Zero point", ZERO, False),
            },
            "Weights": {
                "matrix": choice("Matrix", names, names[0]),
                "outliers": choice("Outliers planted", list(OUTLIERS), "none"),
                "picture": choice("Picture", PICTURES, 0),
            },
        },
    )


def microscope_view(
    model: Model,
    seed: int,
    *,
    dtype: str,
    scope: Granularity,
    zero: bool,
    matrix: str,
    outliers: str,
    picture: int,
) -> View:
    """Figure, finding and numbers of one setting.

    Raises ConfigError for a zero point without integers and for groups that do not divide the matrix.
    """
    fmt = format_of(dtype, scope, zero=zero)
    weight = matrix_of(model, matrix, factor=OUTLIERS[outliers], seed=seed)
    look = look_at(weight, fmt, described(model, matrix, weight, outliers))
    figure = error_figure(look) if picture else histogram_figure(look)
    return View(figure, look.finding(), scope_rows(look))


def bit_explorer(value: float = 0.1, largest: float = 1.0) -> None:
    """The bits of a number in eight formats; both it and the row it lies in can be changed."""
    make_bits(value, largest).show()


def make_bits(value: float = 0.1, largest: float = 1.0) -> Explorer:
    """The explorer, not placed yet; a value and a largest number that are not listed join the list."""
    values = sorted({*INTERESTING, value}, key=abs)
    return Explorer(
        bits_view,
        value=slider("Number", values, value, "{:.6g}".format),
        largest=slider(
            "Largest number of its row (int8, int4, nf4)", sorted({*LARGEST, largest}), largest, "{:g}".format
        ),
    )


def bits_view(*, value: float, largest: float) -> View:
    """Figure, finding and bits of one number. Raises LessonError for what is not finite."""
    patterns = bit_patterns(value, largest)
    return View(bits_figure(patterns), bit_finding(patterns, largest), bit_rows_of(value, largest))
