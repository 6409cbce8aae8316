"""Lesson 8's dashboard: a slider for the rate, a load on the real server at each move, its curves so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore.errors import LabError
from labcore.lab.display import Region, figure_bundle, finding_bundle, html_bundle, note_bundle
from labcore.lab.figures.serving_live import counters, dashboard_html, live_figure
from labcore.lab.serving_http import LiveServer
from labcore.lab.serving_live import LiveRun, Sample, load_url
from labcore.lab.units import significant
from labcore.lab.widgets.common import place, slider
from labcore.serving.metrics import Slo


class Dashboard:
    """A server under load, as it happens. seconds: of each load; lengths: see `load_url`.

    runs: the newest load at each rate.
    """

    def __init__(
        self, server: LiveServer, rates: Sequence[float], *, slo: Slo, seconds: float = 4.0, **lengths: Any
    ) -> None:
        self.server, self.slo, self.seconds, self.lengths = server, slo, seconds, lengths
        self.runs: dict[float, LiveRun] = {}
        self.rate = slider("Rate (requests/s)", list(rates), rates[0], show=significant)
        self.rate.box.add_class("labcore-rate")
        self.rate.source.observe(lambda _: self.load(self.rate.value), names="value")
        self._board, self._picture, self._words = Region(), Region(), Region()

    def show(self) -> None:
        """Place the slider, and under it the first load."""
        place(self.rate.box, "the rate")
        self.load(self.rate.value)

    def load(self, rate: float) -> None:
        """Load the server now; what labcore refuses is shown as its sentence."""
        try:
            with self.server.at_work() as url:
                run = load_url(
                    url, rate, seconds=self.seconds, slo=self.slo, on_sample=lambda s: self._draw(s, rate),
                    vocab_size=self.server.model.config.vocab_size, **self.lengths,
                )  # fmt: skip
        except LabError as error:
            self._words.show(note_bundle(str(error), "bad"))
            return
        self.runs[rate] = run
        runs = list(self.runs.values())
        self._draw(run.samples, rate)
        self._picture.show(figure_bundle(live_figure(run, runs)))
        self._words.show(finding_bundle(run.finding(), [one.row() for one in runs]))

    def _draw(self, samples: Sequence[Sample], rate: float) -> None:
        if samples:
            words = " · ".join(f"{name}: {value}" for name, value in counters(samples, rate))
            self._board.show(html_bundle(dashboard_html(samples, rate, self.seconds), words))


def dashboard(server: LiveServer, rates: Sequence[float], *, slo: Slo, **settings: Any) -> Dashboard:
    """Show one and run its first load. Settings as in `Dashboard`."""
    made = Dashboard(server, rates, slo=slo, **settings)
    made.show()
    return made
