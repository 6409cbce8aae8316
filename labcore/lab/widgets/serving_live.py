"""Lesson 8's dashboard: a load on the real server, drawn while it runs; a slider for its rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore.errors import LabError
from labcore.lab.display import Region, figure_bundle, finding_bundle, html_bundle, note_bundle, title_of
from labcore.lab.figures.serving_live import counters, dashboard_html, live_figure
from labcore.lab.serving_http import LiveServer
from labcore.lab.serving_live import LiveRun, Sample, load_url
from labcore.lab.units import significant
from labcore.lab.widgets.common import place, slider
from labcore.serving.metrics import Slo

SECONDS = 4.0


def watch_load(
    server: LiveServer,
    rate: float,
    *,
    slo: Slo | None = None,
    seconds: float = SECONDS,
    board: Region | None = None,
    **lengths: Any,
) -> LiveRun:
    """Load a server with `rate` requests/s, and show how it stands while that runs.

    board: where to show it (default: here). A server that was stopped runs for as long as this does. lengths,
    errors: as `load_url`.
    """
    place_ = board or Region()

    def draw(samples: Sequence[Sample]) -> None:
        if samples:
            words = " · ".join(f"{name}: {value}" for name, value in counters(samples, rate))
            place_.show(html_bundle(dashboard_html(samples, rate, seconds), words))

    with server.at_work() as url:
        vocabulary = server.model.config.vocab_size
        run = load_url(url, rate, seconds=seconds, slo=slo, vocab_size=vocabulary, on_sample=draw, **lengths)
    draw(run.samples)
    return run


class Dashboard:
    """A server under load, as it happens, and every load so far; a move of the slider is another one.

    runs: the newest load at each rate. settings: of `watch_load`.
    """

    def __init__(
        self, server: LiveServer, rates: Sequence[float], *, runs: Sequence[LiveRun] = (), **settings: Any
    ) -> None:
        self.server, self.settings = server, settings
        self.runs = {run.rate: run for run in runs}
        choices = sorted({*rates, *self.runs})
        first = runs[-1].rate if runs else choices[0]
        self.rate = slider("Rate (requests/s)", choices, first, show=significant)
        self.rate.box.add_class("labcore-rate")
        self.rate.source.observe(lambda _: self.load(), names="value")
        self._board, self._picture, self._words = Region(), Region(), Region()

    def show(self) -> None:
        """Place the slider, and under it the newest load: one that has been, or else one now."""
        place(self.rate.box, "the rate")
        self._board.show(html_bundle("", ""))
        if self.runs:
            self.draw(self.runs[self.rate.value])
        else:
            self.load()

    def load(self) -> None:
        """Load the server at the slider's rate; what labcore refuses is shown as its sentence."""
        rate = self.rate.value
        try:
            run = self.runs[rate] = watch_load(self.server, rate, board=self._board, **self.settings)
        except LabError as error:
            self._words.show(note_bundle(str(error), "bad"))
            return
        self.draw(run)

    def draw(self, run: LiveRun) -> None:
        """One load, among all."""
        runs = sorted(self.runs.values(), key=lambda one: one.rate)
        figure = live_figure(run, runs)
        self._picture.show(figure_bundle(figure))
        self._words.show(finding_bundle(run.finding(), [one.row() for one in runs], title_of(figure)))


def dashboard(server: LiveServer, rates: Sequence[float], **settings: Any) -> Dashboard:
    """Show one. Settings as in `Dashboard`."""
    made = Dashboard(server, rates, **settings)
    made.show()
    return made
