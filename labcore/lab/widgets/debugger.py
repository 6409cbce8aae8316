"""The step-through debugger: a recorded generation, one forward pass at a time.

Everything shown is read from the trace. The functions are pure; the widget only places them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from labcore.errors import LessonError
from labcore.generation import Trace, TraceStep
from labcore.lab.display import Bundle, Region, html_bundle
from labcore.lab.figures.attention import strongest
from labcore.lab.figures.two_steps import safe, step_figure
from labcore.lab.units import seconds, si, significant
from labcore.lab.widgets.common import Explorer, View, choice, stepper
from labcore.model import Model

Head = tuple[int, int]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_CARD = "background:#FCFCFA;color:#2B2B2B;padding:8px 10px;line-height:2.0;border:1px solid #E4E4E0"
_CHIP = "display:inline-block;padding:0 3px;margin:0 1px;border-radius:3px;line-height:1.5;"
# Each kind differs in border as well as in colour.
_CHIPS = {
    "held": _CHIP + "color:#6B6B6B;border:1px dotted #B5B5B0",
    "fed": _CHIP + "background:#D6E8F5;border:2px solid #0072B2;font-weight:600",
    "new": _CHIP + "background:#CDEBE0;border:2px dashed #009E73;font-weight:700",
}
_LEGEND = {
    "held": "in the cache, not computed again",
    "fed": "fed to the network in this step",
    "new": "chosen by this step",
}


class Debugger(Explorer):
    """Steps of a trace behind Previous, Next and a slider; a second control chooses the attention head."""

    def __init__(self, model: Model, trace: Trace | None, step: int = 0, head: Head | None = None) -> None:
        heads = recorded_heads(trace)
        assert trace is not None  # or recorded_heads would have raised
        if head is not None and head not in heads:
            raise LessonError(
                f"Head {head} was not recorded; the trace has {', '.join(map(str, heads[:8]))}."
            )
        if not 0 <= step < len(trace.steps):
            raise LessonError(f"There is no step {step}; the trace has steps 0 to {len(trace.steps) - 1}.")
        self.model, self.trace = model, trace
        self._strip = Region()
        named = {f"layer {layer} · head {number}": (layer, number) for layer, number in heads}
        super().__init__(
            lambda step, head: step_view(model, trace, step, head),
            step=stepper("Step", len(trace.steps), step),
            head=choice("Attention of", named, head or heads[0]),
        )

    def draw(self) -> None:
        """Show the tokens of the step above its figure."""
        self._strip.show(token_strip(self.model, self.trace, self.controls["step"].value))
        super().draw()


def debugger(model: Model, trace: Trace | None, *, step: int = 0, head: Head | None = None) -> None:
    """Walk through a trace recorded with `TraceOptions(attention=...)`.

    Raises LessonError when no attention was recorded, or for a step or head that is not in the trace.
    """
    Debugger(model, trace, step, head).show()


def recorded_heads(trace: Trace | None) -> list[Head]:
    """The (layer, head) pairs that every step of a trace recorded. Raises LessonError when there are none."""
    if trace is None or not trace.steps or not trace.steps[0].attention:
        raise LessonError(
            'This run recorded no attention; generate with trace=TraceOptions(attention="all").'
        )
    return sorted(trace.steps[0].attention)


def sequence(trace: Trace, index: int) -> list[int]:
    """All tokens that the model had seen once step `index` was computed (the one it chose excluded)."""
    return trace.prompt_tokens + [step.token for step in trace.steps[:index]]


def visible(model: Model, tokens: Sequence[int]) -> list[str]:
    """Each token's text with its spaces made visible; the id where there is no tokenizer."""
    if model.tokenizer is None:
        return [str(token) for token in tokens]
    return [_CONTROL.sub(_named, model.tokenizer.token_text(token)) for token in tokens]


def _named(control: re.Match[str]) -> str:
    """A control character as its byte: pictures and pages must not contain it as it is."""
    return f"<0x{ord(control[0]):02X}>"


def token_strip(model: Model, trace: Trace, index: int) -> Bundle:
    """Every token up to this step: those the cache holds, those fed now, and the one chosen."""
    step = trace.steps[index]
    texts = visible(model, [*sequence(trace, index), step.token])
    fed = step.input_shape[1]
    kinds = ["held"] * (step.context - fed) + ["fed"] * fed + ["new"]
    chips = "".join(_chip(kind, text) for kind, text in zip(kinds, texts, strict=True))
    legend = " ".join(_chip(kind, meaning) for kind, meaning in _LEGEND.items() if kind in kinds)
    body = f'{chips}<div style="font-size:0.82em">{legend}</div>'
    html = f'<div class="labcore-tokens" style="{_CARD}">{body}</div>'
    plain = (
        f"{''.join(texts[: step.context - fed])} [{''.join(texts[step.context - fed : -1])}] -> {texts[-1]}"
    )
    return html_bundle(html, plain.strip())


def _chip(kind: str, text: str) -> str:
    return f'<span class="labcore-{kind}" style="{_CHIPS[kind]}">{escape(text)}</span>'


def step_view(model: Model, trace: Trace, index: int, head: Head) -> View:
    """Figure, finding and exact numbers of one step under one head."""
    tokens = [safe(text) for text in visible(model, sequence(trace, index))]
    return View(
        step_figure(trace, index, head, tokens), finding(model, trace, index, head), rows(trace, index)
    )


def finding(model: Model, trace: Trace, index: int, head: Head) -> str:
    """One sentence or three: what went in, what it cost, where the head looked."""
    step = trace.steps[index]
    tokens = visible(model, sequence(trace, index))
    looked, position, weight = strongest(step.attention[head], tokens)
    fed = "token" if step.input_shape[1] == 1 else "tokens"
    return (
        f"Step {index} of {len(trace.steps) - 1}, {step.phase}: {step.input_shape[1]} {fed} in, "
        f"logits of one token out; "
        f"{si(step.flops, 'FLOP')} and {si(step.bytes_moved, 'B')} in {seconds(step.seconds)}. "
        f"The last position of layer {head[0]}, head {head[1]} looks most at ‘{looked}’ "
        f"(position {position}, weight {weight:.2f}). Chosen: ‘{step.text}’."
    )


def rows(trace: Trace, index: int) -> list[dict[str, Any]]:
    """The step's numbers beside those of the prefill and of a middling decode step."""
    step, decodes = trace.steps[index], trace.decodes
    columns = [("this step", _numbers(step)), ("prefill", _numbers(trace.prefill))]
    if decodes:
        columns.append((f"median of {len(decodes)} decode steps", _medians(decodes)))
    return [{"": name} | {title: numbers[name] for title, numbers in columns} for name in columns[0][1]]


def _numbers(step: TraceStep) -> dict[str, str]:
    return {
        "input shape": str(tuple(step.input_shape)),
        "first position": str(step.position),
        "cache length after": f"{step.cache_length} positions",
        "cache memory": si(step.cache_bytes, "B"),
        **_costs(step.flops, step.bytes_moved, step.seconds),
    }


def _medians(steps: Sequence[TraceStep]) -> dict[str, str]:
    shapes = {tuple(step.input_shape) for step in steps}
    return {
        "input shape": str(next(iter(shapes))) if len(shapes) == 1 else "grows by one",
        "first position": "each its own"
        if len({step.position for step in steps}) > 1
        else str(steps[0].position),
        "cache length after": "one more each" if steps[0].cache_length else "0 positions",
        "cache memory": si(median(step.cache_bytes for step in steps), "B"),
        **_costs(
            median(step.flops for step in steps),
            median(step.bytes_moved for step in steps),
            median(step.seconds for step in steps),
        ),
    }


def _costs(flops: float, nbytes: float, time_s: float) -> dict[str, str]:
    return {
        "work": si(flops, "FLOP"),
        "bytes moved": si(nbytes, "B"),
        "FLOP per byte": significant(flops / nbytes),
        "time": seconds(time_s),
        "achieved": f"{si(flops / time_s, 'FLOP/s')}, {si(nbytes / time_s, 'B/s')}",
    }
