"""A stream on the page while it runs: its text as it comes, its counters, and one bar per step."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import labcore
from labcore.lab import live, theme
from labcore.lab.display import Bundle, Region, html_bundle
from labcore.lab.live import Reading
from labcore.lab.units import seconds, significant
from labcore.model import Model

_REDRAW_S = 0.04  # a reader sees no more than 25 pictures a second


def watch(
    model: Model, prompt: str | list[int], *, max_new_tokens: int = 160, numbers: bool = True, **settings: Any
) -> Reading:
    """Stream an answer onto the page, with its counters if `numbers`; returns the reading.

    A model without a tokenizer is prompted with random ids instead of the text, and shows ids. Settings as in
    `labcore.stream`, whose errors it raises.
    """
    prompt = live.readable(model, prompt)
    reading, region = live.start_reading(model, prompt), Region()
    shown = prompt if isinstance(prompt, str) else f"[{len(prompt)} token ids]"
    drawn = 0.0
    for step in labcore.stream(model, prompt, max_new_tokens=max_new_tokens, **settings):
        reading.take(step)
        if time.perf_counter() - drawn > _REDRAW_S:
            region.show(page(reading, shown, numbers, running=True))
            drawn = time.perf_counter()
    region.show(page(reading, shown, numbers, running=False))
    return reading


def page(reading: Reading, prompt: str, numbers: bool, running: bool) -> Bundle:
    """The stream as it stands: prompt in grey, the answer, and below it counters and bars."""
    text = reading.text or " ".join(map(str, reading.tokens))  # a model without a tokenizer gives ids
    answer = f'<span style="opacity:.62">{escape(prompt)}</span>{escape(text)}{"▌" if running else ""}'
    style = "white-space:pre-wrap;max-width:46em;line-height:1.55;font-size:1.05em;min-height:7em"
    html = f'<div class="labcore-stream" style="{style}">{answer}</div>'
    plain = f"{prompt}{text}"
    if numbers:
        html += f'<div class="labcore-counters">{_counters(reading)}{bars(reading.step_seconds)}</div>'
        plain += "\n\n" + " · ".join(f"{name}: {value}" for name, value in counters(reading))
    return html_bundle(html, plain)


def counters(reading: Reading) -> list[tuple[str, str]]:
    """Name and value of each counter, for the tokens so far."""
    m = reading.metrics
    return [
        ("tokens", str(m.tokens)),
        ("TTFT", seconds(m.ttft_s)),
        ("TPOT", "–" if m.tpot_s is None else seconds(m.tpot_s)),
        ("latency", seconds(m.latency_s)),
        ("throughput", f"{significant(m.tokens_per_s)} tok/s"),
    ]


def _counters(reading: Reading) -> str:
    box = "display:inline-block;margin:6px 22px 4px 0;font-variant-numeric:tabular-nums"
    small, large = "font-size:.82em;opacity:.75;display:block", "font-size:1.25em"
    return "".join(
        f'<span style="{box}"><span style="{small}">{name}</span><b style="{large}">{value}</b></span>'
        for name, value in counters(reading)
    )


def bars(step_seconds: list[float], width: int = 640, height: int = 56) -> str:
    """One bar per step as SVG: the first (prefill) in vermillion, decode steps in blue, height is time."""
    top = max(step_seconds)
    pitch = min(8.0, width / len(step_seconds))
    drawn = "".join(
        f'<rect x="{i * pitch:.2f}" y="{height - height * s / top:.2f}" width="{max(pitch - 1, 0.6):.2f}" '
        f'height="{height * s / top:.2f}" fill="{theme.BLUE if i else theme.VERMILLION}"/>'
        for i, s in enumerate(step_seconds)
    )
    label = f"Seconds of each of {len(step_seconds)} steps; the highest bar is {seconds(top)}"
    size = f'width="{width}" height="{height}" style="display:block"'
    return f'<svg role="img" aria-label="{label}" {size}>{drawn}</svg>'
