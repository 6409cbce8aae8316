"""Facts about serving on paper: utilisation, Little's law, chunks, the stall, what was published.

Where scheduling alone says it, the engine's own scheduler is asked, over nothing: no model, no time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from labcore import catalog
from labcore.generation.stopping import Stopping
from labcore.lab.serving_lengths import harmonic
from labcore.perf import predict
from labcore.perf.costs import kv_bytes_per_token, num_parameters
from labcore.perf.peaks import as_machine
from labcore.serving import Continuous, Request, Static, StepEvent
from labcore.serving.policies import Policy
from labcore.serving.simulator import FittedCosts, SimulatedEngine
from labcore.serving.workload import unit_exponential

BATCHES = (1, 2, 4, 8, 16, 32, 64)
DRAWS = 4000  # batches of the Monte Carlo check


def scheduled(
    shapes: Sequence[tuple[int, int]],
    policy: Policy,
    *,
    late: Mapping[int, int] | None = None,
    token_budget: int = 512,
) -> list[StepEvent]:
    """The steps in which the engine serves requests of (prompt, answer) tokens; nothing is computed.

    late: index of a request -> the step before which it comes; the others are there from the start. The pool
    is as large as all need.
    """
    longest = max(2, *map(sum, shapes))
    engine = SimulatedEngine(
        FittedCosts(base_s=1.0), policy, num_blocks=len(shapes) * longest, block_size=1,
        max_model_len=longest, max_num_seqs=len(shapes), token_budget=token_budget, prefix_caching=False,
    )  # fmt: skip
    coming: dict[int, list[Request]] = {}
    for index, (prompt, answer) in enumerate(shapes):
        stopping = Stopping(answer, ignore_eos=True)
        coming.setdefault((late or {}).get(index, 0), []).append(
            Request(f"r{index}", (0,) * prompt, stopping=stopping)
        )
    while coming or engine.has_work:
        for request in coming.pop(len(engine.events), ()):
            engine.add(request)
        engine.step()
    return list(engine.events)


# Utilisation


def static_rows(lengths: Sequence[int] = (2, 6, 3, 4)) -> list[dict[str, Any]]:
    """A batch of answers of these lengths, step by step: rows computed, rows of use."""
    shapes = [(1, length) for length in lengths]
    rows = []
    for policy in (Static(len(lengths)), Continuous()):
        steps = scheduled(shapes, policy)
        computed, useful = sum(len(step.rows) for step in steps), sum(step.drawn for step in steps)
        rows.append(
            {
                "policy": policy.name,
                "steps": len(steps),
                "rows, step by step": " ".join(str(len(step.rows)) for step in steps),
                "of use": " ".join(str(step.drawn) for step in steps),
                "utilisation (%)": f"{100 * useful / computed:.1f}",
            }
        )
    return rows


def utilisation_rows(
    lengths: Sequence[int] = (2, 6, 3, 4), batches: Sequence[int] = BATCHES, seed: int = 0
) -> list[dict[str, Any]]:
    """Share of a static batch's rows that are of use: the example, then exponential lengths by batch size.

    1/H_B in theory, beside 4,000 drawn batches: the mean length over the longest.
    """
    static = static_rows(lengths)[0]
    listed = ", ".join(map(str, lengths))
    rows: list[dict[str, Any]] = [
        {"batch": len(lengths), "lengths": listed, "in theory (%)": static["utilisation (%)"]}
    ]
    for batch in batches:
        rows.append(
            {
                "batch": batch,
                "lengths": "exponential",
                "in theory (%)": f"{100 / harmonic(batch):.1f}",
                "drawn (%)": f"{100 * drawn_utilisation(batch, seed=seed):.1f}",
                "constant lengths (%)": "100.0",
            }
        )
    return rows


def drawn_utilisation(batch: int, draws: int = DRAWS, seed: int = 0) -> float:
    """Of `draws` static batches with exponential lengths, the share of rows that are of use."""
    source = random.Random(seed)
    lengths = [[unit_exponential(source) for _ in range(batch)] for _ in range(draws)]
    return sum(map(sum, lengths)) / (batch * sum(map(max, lengths)))


# Little's law, and what a pool holds


def little_rows() -> list[dict[str, Any]]:
    """Requests in flight = arrivals a second × seconds that each stays."""
    rows = []
    for rate, ttft, tpot, tokens in ((4, 0.2, 0.030, 201), (4, 0.2, 0.060, 201), (8, 0.2, 0.030, 201)):
        stay = predict.latency(ttft, tpot, tokens)
        rows.append(
            {
                "requests/s": rate,
                "TTFT (s)": ttft,
                "TPOT (ms)": round(tpot * 1e3),
                "tokens": tokens,
                "stays (s)": round(stay, 2),
                "in flight": f"{rate * stay:.1f}",
            }
        )
    return rows


def concurrent_rows() -> list[dict[str, Any]]:
    """12 GiB of cache for OPT-13B: requests at once with 2,048 tokens reserved each (Kwon et al. 2023)."""
    slots = (12 << 30) // kv_bytes_per_token(catalog.architecture("opt-13b"))
    kept = (("2,048 tokens reserved", 2048), ("499 tokens as they come, ShareGPT's mean", 499))
    return [
        {"of each request": what, "slots": slots, "requests at once": slots // tokens}
        for what, tokens in kept
    ]


# Chunks and the stall


def chunk_rows(prompt: int = 4096, budget: int = 512, decodes: int = 8) -> list[dict[str, Any]]:
    """A prompt that joins requests that decode, as the engine's scheduler cuts it."""
    others = [(1, prompt)] * decodes
    long = f"r{decodes}"
    rows: list[dict[str, Any]] = []
    steps = scheduled([*others, (prompt, 1)], Continuous(), late={decodes: 1}, token_budget=budget)
    for step, mine in ((one, row) for one in steps for row in one.rows if row.id == long):
        rows.append(
            {
                "step": len(rows) + 1,
                "decode (tokens)": step.tokens - mine.new,
                "prompt (tokens)": mine.new,
                "of it computed": mine.start + mine.new,
                "gives its first token": mine.drawn > 0,
            }
        )
    return rows


def stall_rows(prompt: int = 4096, context: int = 1024) -> list[dict[str, Any]]:
    """Llama-2-7B on an A100: what others wait while a prompt goes whole, in steps of decode."""
    config, gpu = catalog.architecture("llama-2-7b"), catalog.gpu("a100-80gb-sxm")
    products = 2 * num_parameters(config) * prompt / as_machine(gpu).flops("float16")
    whole = predict.ideal_prefill(config, gpu, prompt)
    step = predict.ideal_step(config, gpu, 1, context)
    return [
        {"what": f"a decode step at {context:,} tokens", "ms": f"{step * 1e3:.2f}", "steps": "1"},
        {
            "what": f"{prompt:,} tokens, 2 FLOP a parameter each",
            "ms": f"{products * 1e3:.0f}",
            "steps": f"{products / step:.0f}",
        },
        {
            "what": "the same with attention's own",
            "ms": f"{whole * 1e3:.0f}",
            "steps": f"{whole / step:.0f}",
        },
    ]


# Published


def served_rows() -> list[dict[str, Any]]:
    """Gains that papers report, each against its own baseline, hardware and load: published, not measured."""
    return [
        {"system": system, "published": gain, "against": against, "source": source}
        for system, gain, against, source in PUBLISHED
    ]


PUBLISHED = (
    (
        "Orca (iteration-level scheduling)",
        "36.9×",
        "FasterTransformer, throughput at equal latency, GPT-3 175B",
        "Yu et al. 2022, OSDI",
    ),
    (
        "vLLM (paged cache)",
        "2–4×",
        "FasterTransformer and Orca, throughput at equal latency",
        "Kwon et al. 2023, SOSP",
    ),
    ("vLLM", "up to 22×", "FasterTransformer behind a Triton-like batcher", "Kwon et al. 2023, SOSP"),
    (
        "continuous batching with vLLM",
        "23×",
        "naive static batching, OPT-13B; scheduling alone up to 3.6×",
        "Anyscale 2023",
    ),
    (
        "Sarathi-Serve (chunked prefill)",
        "2.6×",
        "vLLM, load carried under an SLO, Mistral-7B on one A100",
        "Agrawal et al. 2024, OSDI",
    ),
    (
        "DistServe (prefill and decode apart)",
        "7.4×",
        "vLLM, requests within the SLO",
        "Zhong et al. 2024, OSDI",
    ),
)
