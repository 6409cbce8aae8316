"""Lesson 1's parts: what each one measures, the sentence it finds, and the table beside its figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore import catalog
from labcore.config import ModelConfig
from labcore.generation.trace import Trace
from labcore.lab import live, session
from labcore.lab.display import finding, show, table
from labcore.lab.figures import intro, lab_map
from labcore.lab.live import BatchPoint, Reading
from labcore.lab.predictions import Prediction
from labcore.lab.results import DECODE_RATE
from labcore.lab.units import gigabytes, seconds, si, significant
from labcore.lab.widgets.common import Explorer, View, slider
from labcore.model import Model
from labcore.perf import memory
from labcore.perf.costs import kv_bytes_per_token, num_parameters, weight_bytes
from labcore.perf.predict import Machine, Napkin, ideal_terms, machine_from_gpu
from labcore.perf.predict import napkin as plan_on_napkin
from labcore.perf.roofline import Roofs

_PROMPT_LENGTHS = (8, 32, 128, 256, 448)


def show_stream(reading: Reading) -> None:
    """Every step of one answer, its metrics, and the identity that joins them."""
    show(intro.step_times(reading), stream_finding(reading), [reading.row()])


def stream_finding(reading: Reading) -> str:
    """TTFT + (n - 1) TPOT against the latency that was clocked."""
    m = reading.metrics
    if m.tpot_s is None:
        return f"One token in {seconds(m.ttft_s)}: with a single token there is a TTFT and no TPOT."
    return (
        f"TTFT {seconds(m.ttft_s)} + {m.tokens - 1} × TPOT {seconds(m.tpot_s)} = "
        f"{seconds(m.ttft_s + (m.tokens - 1) * m.tpot_s)}, and the clock said {seconds(m.latency_s)}: "
        f"{significant(m.tokens_per_s)} tokens a second. "
        f"The first token took {significant(m.ttft_s / m.tpot_s)}× as long as a later one."
    )


def prompt_lengths(model: Model) -> list[int]:
    """Prompt lengths that leave this model room to answer."""
    return [length for length in _PROMPT_LENGTHS if length + 33 <= model.config.max_position_embeddings]


def prompt_explorer() -> None:
    """One control, the prompt's length: moving it streams anew and redraws the steps."""
    model = session.current().model
    lengths = prompt_lengths(model)

    def view(prompt: int) -> View:
        reading = live.median_reading(model, prompt, 32)
        return View(intro.step_times(reading), stream_finding(reading), [reading.row()])

    Explorer(view, prompt=slider("Prompt (tokens)", lengths, lengths[0])).show()


def read_prompts(model: Model, lengths: Sequence[int], new_tokens: int = 24) -> list[Reading]:
    """The median stream of five behind a prompt of each length."""
    return [live.median_reading(model, length, new_tokens) for length in lengths]


def first_step_ratio(readings: Sequence[Reading]) -> float:
    """How many times a later step's time the first one takes, behind the longest of the prompts."""
    m = readings[-1].metrics
    return m.ttft_s / (m.tpot_s or float("nan"))


def show_two_clocks(readings: Sequence[Reading], guess: Prediction) -> None:
    """TTFT and TPOT against prompt length, with what was predicted for the longest."""
    show(
        intro.two_clocks(readings, guess.number),
        two_clocks_finding(readings),
        [reading.row() for reading in readings],
    )


def two_clocks_finding(readings: Sequence[Reading]) -> str:
    """What a longer prompt does to each of the two."""
    short, long = readings[0], readings[-1]
    s, m = short.metrics, long.metrics
    tpots = (s.tpot_s or float("nan"), m.tpot_s or float("nan"))
    per_token = m.ttft_s / long.prompt_tokens
    return (
        f"{short.prompt_tokens} → {long.prompt_tokens} tokens of prompt: "
        f"TTFT {significant(m.ttft_s / s.ttft_s)}× ({seconds(s.ttft_s)} → {seconds(m.ttft_s)}), "
        f"TPOT {significant(tpots[1] / tpots[0])}× ({seconds(tpots[0])} → {seconds(tpots[1])}). "
        f"In the long prefill a token cost {seconds(per_token)}, in decode {seconds(tpots[1])}: "
        f"{significant(tpots[1] / per_token)}× as much."
    )


def trace_rows(trace: Trace) -> list[dict[str, Any]]:
    """What went into each step of a traced answer, what came out, and what the cache held then."""
    return [
        {
            "step": step.index,
            "phase": step.phase,
            "input shape": str(tuple(step.input_shape)),
            "gives token": step.index + 1,
            "tokens in the cache after it": step.cache_length,
        }
        for step in trace.steps
    ]


def show_map(reading: Reading) -> None:
    """The whole lab in one drawing, filled with the numbers of a stream."""
    model = session.current().model
    numbers = lab_map.MapNumbers.of(model, reading)
    rows = [{"lesson": lesson, "changes": term, "by": how} for lesson, term, how in _TERMS]
    show(lab_map.lab_map(numbers), map_finding(numbers), rows)


def map_finding(n: lab_map.MapNumbers) -> str:
    """What a decode step reads."""
    reads = n.weight_bytes + n.kv_bytes * (n.prompt + n.tokens - 1)
    return (
        f"For its last token this run read {si(n.weight_bytes, 'B')} of weights and "
        f"{si(reads - n.weight_bytes, 'B')} of cache: {si(reads, 'B')} for one token."
    )


_TERMS = (
    ("2", "TTFT and TPOT", "two kinds of steps: the prompt at once, then token by token"),
    ("3", "work of a decode step", "keys and values are kept instead of computed again"),
    ("4", "kv, t: the bytes of the cache", "shared heads, windows, pages, fewer bits"),
    ("5", "seconds beyond the roofs", "finding what a step really waits for"),
    ("6", "F and BW: the roofs", "arithmetic intensity says which one holds"),
    ("7", "W: the bytes of the weights", "8, 4 or 3 bits instead of 16"),
    ("8", "B: how many share a step", "batching, paging, scheduling, speculation"),
)


def show_batches(points: Sequence[BatchPoint], guess: Prediction) -> None:
    """Throughput and TPOT against batch, with the gain that was predicted."""
    figure = intro.batch_gain([p.batch for p in points], [p.metrics for p in points], guess.number)
    show(figure, batches_finding(points), [point.row() for point in points])
    _record_rates([points[0], points[-1]])


def _record_rates(points: Sequence[BatchPoint]) -> None:
    """Keep tokens per second of all sequences together in decode steps, with what they were measured on."""
    now = session.current()
    on = {"model": now.model.name, "dtype": str(now.model.dtype).removeprefix("torch.")}
    for point in points:
        if tpot_s := point.metrics.tpot_s:
            name = f"{DECODE_RATE}, batch {point.batch}"
            now.results.record("measurements", name, **on, batch=point.batch, value=point.batch / tpot_s)
    now.results.save()


def batches_finding(points: Sequence[BatchPoint]) -> str:
    """What the largest batch gained and what each user paid for it."""
    one, most = points[0], points[-1]
    paid = (most.metrics.tpot_s or float("nan")) / (one.metrics.tpot_s or float("nan"))
    return (
        f"Batch {one.batch} → {most.batch}: {significant(batch_factor(points))}× the tokens per second "
        f"({significant(one.metrics.tokens_per_s)} → {significant(most.metrics.tokens_per_s)}), "
        f"while each user's TPOT grew {significant(paid)}×."
    )


def batch_factor(points: Sequence[BatchPoint]) -> float:
    """Throughput of the largest batch over that of the smallest."""
    return points[-1].metrics.tokens_per_s / points[0].metrics.tokens_per_s


def a10_rows() -> list[dict[str, Any]]:
    """Llama-2-7B, float16, 512 tokens each, on an A10 at its data sheet's rates: batch 1 and 32."""
    config, machine = catalog.architecture("llama-2-7b"), machine_from_gpu(catalog.gpu("a10"))
    rows = []
    for batch in (1, 32):
        terms = ideal_terms(config, machine, batch, 512)
        rows.append({
            "batch": batch,
            "weights (ms)": f"{terms.weights_s * 1e3:.1f}",
            "cache (ms)": f"{terms.cache_s * 1e3:.1f}",
            "arithmetic (ms)": f"{terms.compute_s * 1e3:.1f}",
            "TPOT (ms)": f"{terms.seconds * 1e3:.1f}",
            "tok/s": significant(batch / terms.seconds, 4),
        })  # fmt: skip
    return rows


def show_roofs(roofs: Roofs) -> None:
    """What was measured of this machine, and the number of operations that go with a byte."""
    rows = [
        {"roof": f"matrix products in {dtype}", "measured": si(rate, "FLOP/s")}
        for dtype, rate in roofs.matmul_flops.items()
    ]
    rows += [
        {"roof": "reading memory", "measured": si(roofs.read_bandwidth, "B/s")},
        {"roof": "copying memory (read + written)", "measured": si(roofs.copy_bandwidth, "B/s")},
        {"roof": "starting one small operation", "measured": seconds(roofs.launch_overhead_s)},
    ]
    finding(roofs_finding(roofs))
    table(rows)


def roofs_finding(roofs: Roofs) -> str:
    """Arithmetic per byte, and whether other programs were in the way."""
    dtype, rate = next(iter(roofs.matmul_flops.items()))
    shared = (
        f" Other programs kept {significant(roofs.busy_cores, 2)} cores busy meanwhile; close them and run "
        "labcore.perf.roofs(refresh=True) for cleaner numbers."
    )
    when = roofs.measured_at[:16].replace("T", " ")
    return (
        f"{roofs.device_name}, threads: {roofs.threads}, measured {when} UTC. While it reads one byte it "
        f"can do {significant(rate / roofs.read_bandwidth)} operations in {dtype}."
        f"{shared if roofs.disturbed else ''}"
    )


def own_napkin(model: Model, machine: Machine, context: int) -> Napkin:
    """A model on this machine's measured roofs, batch 1."""
    return plan_on_napkin(model.config, machine, 1, context, model.dtype)


def show_floor(model: Model, machine: Machine, reading: Reading, guess: Prediction) -> None:
    """The napkin's bound for a decode step of this stream, beside what was measured."""
    context = reading.prompt_tokens + len(reading.tokens) // 2
    plan, tpot = own_napkin(model, machine, context), reading.metrics.tpot_s or float("nan")
    figure = intro.floor_and_measured(model.name, plan.tpot_s, tpot, guess.number)
    rows = [{
        "model": model.name, "weights (MB)": plan.weight_bytes / 1e6, "cache (MB)": plan.kv_bytes / 1e6,
        "bandwidth, measured (GB/s)": machine.bandwidth / 1e9,
        "napkin (ms)": plan.tpot_s * 1e3, "measured TPOT (ms)": tpot * 1e3,
        "measured / napkin": tpot / plan.tpot_s,
    }]  # fmt: skip
    show(figure, floor_finding(plan, tpot), rows)


def floor_ratio(model: Model, machine: Machine, reading: Reading) -> float:
    """Measured TPOT over the napkin's bound, at the middle of the stream."""
    context = reading.prompt_tokens + len(reading.tokens) // 2
    return (reading.metrics.tpot_s or float("nan")) / own_napkin(model, machine, context).tpot_s


def floor_finding(plan: Napkin, tpot_s: float) -> str:
    """How far the measured step lies from its bound, and what that says."""
    ratio = tpot_s / plan.tpot_s
    bytes_read = plan.weight_bytes + plan.kv_bytes
    head = (
        f"{si(bytes_read, 'B')} a step at this machine's measured bandwidth take {seconds(plan.tpot_s)}; "
        f"the engine took {seconds(tpot_s)}, {significant(ratio)}× that."
    )
    if ratio < 1:
        return f"{head} Faster than memory allows: weights this small stay in the processor's own cache."
    if ratio < 1.5:
        return f"{head} Decode runs close to the roof: it is reading weights, and little else."
    return f"{head} The rest is not reading: above all it is starting many small operations (lesson 5)."


def _tokens_in(config: ModelConfig, room: int) -> int:
    """Tokens of one sequence whose cache takes so many bytes; windowed layers stop growing."""
    beside = Machine("", weight_bytes(config) + room, 1.0)
    return memory.largest_context(memory.plan(config, beside, lean=True))


def catalogue_rows(names: Sequence[str]) -> list[dict[str, str]]:
    """Weights and cache of published models in float16, as exact text."""
    rows = []
    for name in names:
        config = catalog.architecture(name)
        kv_bytes = kv_bytes_per_token(config)
        rows.append({
            "model": name,
            "parameters": f"{num_parameters(config):,}",
            "weights": gigabytes(weight_bytes(config)),
            "cache per token (bytes)": f"{kv_bytes:,}",
            "tokens of cache that weigh as much": f"{_tokens_in(config, weight_bytes(config)):,}",
        })  # fmt: skip
    return rows
