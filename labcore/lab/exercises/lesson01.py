"""Lesson 1: latency, throughput, price, fit, and the floor under a decode step."""

from __future__ import annotations

from random import Random
from typing import Any

from labcore import catalog
from labcore.config import ModelConfig
from labcore.lab.exercises.checking import Verdict, on_cases, value_is
from labcore.lab.exercises.registry import exercise
from labcore.perf.costs import kv_bytes_per_token, weight_bytes


def latency(ttft_s: float, tpot_s: float, n: int) -> float:
    """Seconds until the n-th token is there. The first comes from prefill, so n - 1 steps follow."""
    return ttft_s + (n - 1) * tpot_s


@exercise(
    "01.1",
    title="latency(ttft_s, tpot_s, n)",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "Write down the moments at which tokens 1, 2 and 3 appear, one under the other.",
        "Token 1 appears after TTFT. How many steps lie between token 1 and token n?",
    ),
    solution=latency,
)
def check_latency(answer: Any) -> Verdict:
    draw = Random()
    cases = [(0.3, 0.05, 200), (0.1, 0.02, 1)]
    cases += [(draw.uniform(0.05, 3), draw.uniform(0.005, 0.2), draw.randint(2, 2000)) for _ in range(4)]
    return on_cases(
        answer, cases, latency, names=("ttft_s", "tpot_s", "n"), tolerance=1e-6,
        praise="right for all 6: 0.3 s, 50 ms and 200 tokens make 10.25 s, and one token takes TTFT alone.",
        mistakes={
            "you count n decode steps; the first token comes from prefill, so n - 1 follow.":
                lambda ttft, tpot, n: ttft + n * tpot,
            "you leave out TTFT: the user waits for the prefill too.": lambda ttft, tpot, n: (n - 1) * tpot,
            "you pay TPOT for every token and no TTFT.": lambda ttft, tpot, n: n * tpot,
            "you pay TTFT once per token; it is paid once per answer.":
                lambda ttft, tpot, n: n * ttft + (n - 1) * tpot,
        },
    )  # fmt: skip


_SEEN = 100 / (0.8 + 99 * 0.04)


@exercise(
    "01.2",
    title="tokens per second that one user sees",
    difficulty=1,
    importance=2,
    minutes=3,
    hints=(
        "1 / TPOT is the speed once the text flows. The user's clock started earlier.",
        "Divide the 100 tokens by the latency of exercise 01.1.",
    ),
    solution=_SEEN,
    why="100 tokens / (0.8 s + 99 · 0.04 s) = 100 / 4.76 s: 21.0 tokens per second, not 1 / TPOT = 25.",
)
def check_user_throughput(answer: Any) -> Verdict:
    return value_is(
        answer, _SEEN, tolerance=0.002,
        praise="right: 21.0 tok/s. The flow runs at 25, and the wait for the first token eats the rest.",
        mistakes={
            "25 tok/s is 1 / TPOT: the flow once it runs, without the 0.8 s before it.": 25.0,
            "you count 100 decode steps; the first token came from prefill.": 100 / 4.8,
            "that is 100 tokens in the 3.96 s of decode; the user also waited 0.8 s.": 100 / 3.96,
            "that is the latency in seconds; the question is tokens per second.": 4.76,
        },
    )  # fmt: skip


def cost_per_million(usd_per_hour: float, tokens_per_s: float) -> float:
    """Dollars per million output tokens of a machine that is kept busy."""
    return usd_per_hour / (3600 * tokens_per_s) * 1e6


@exercise(
    "01.3",
    title="cost_per_million(usd_per_hour, tokens_per_s)",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "How many tokens does the machine give in the hour that you pay for?",
        "An hour has 3600 s: dollars per hour over tokens per hour is dollars per token.",
    ),
    solution=cost_per_million,
)
def check_cost(answer: Any) -> Verdict:
    draw = Random()
    cases = [(1.0, 43.6)] + [(draw.uniform(0.2, 12), draw.uniform(5, 20_000)) for _ in range(4)]
    return on_cases(
        answer, cases, cost_per_million, names=("usd_per_hour", "tokens_per_s"),
        praise="right for all 5: $1 an hour at 43.6 tok/s is $6.37 per million tokens.",
        mistakes={
            "you forget that an hour has 3600 seconds.": lambda usd, rate: usd / rate * 1e6,
            "that is dollars per token; the question is per million.": lambda usd, rate: usd / (3600 * rate),
            "you divide by 60: that is dollars per minute.": lambda usd, rate: usd / (60 * rate) * 1e6,
            "that is upside down: a faster machine must make a token cheaper.":
                lambda usd, rate: usd * rate / 3600 * 1e6,
        },
    )  # fmt: skip


def largest_batch(memory_bytes: int, weight_bytes: int, kv_bytes_per_token: int, context: int) -> int:
    """Sequences of `context` tokens whose caches fit beside the weights; 0 when not even one does."""
    return max(0, memory_bytes - weight_bytes) // (context * kv_bytes_per_token)


@exercise(
    "01.4",
    title="largest_batch(memory_bytes, weight_bytes, kv_bytes_per_token, context)",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "What is left of the memory once the weights are in it? Each sequence takes a strip of that.",
        "A strip is context × bytes per token. Only whole strips count, and there are never fewer than 0.",
    ),
    solution=largest_batch,
)
def check_largest_batch(answer: Any) -> Verdict:
    cases = [(24 * 10**9, 13_476_831_232, 524_288, 4096), (10 * 10**9, 13_476_831_232, 524_288, 512)]
    draw = Random()
    for _ in range(4):
        weights, kv = draw.randint(10**9, 70 * 10**9), draw.choice((122_880, 131_072, 327_680, 819_200))
        cases.append((weights + draw.randint(10**9, 80 * 10**9), weights, kv, draw.choice((512, 2048, 8192))))
    return on_cases(
        answer, cases, largest_batch, names=("memory_bytes", "weight_bytes", "kv_bytes_per_token", "context"),
        praise="right for all 6: four sequences of 4096 fit beside Llama-2-7B on an A10, none in 10 GB.",
        mistakes={
            "you give the cache the whole memory; the weights are in it too.":
                lambda memory, weights, kv, context: memory // (context * kv),
            "below 0: where the weights alone do not fit, no sequence does, so the answer is 0.":
                lambda memory, weights, kv, context: (memory - weights) // (context * kv),
            "you round up: the last sequence would not fit whole.":
                lambda memory, weights, kv, context: max(0, -((weights - memory) // (context * kv))),
            "you count tokens; a sequence needs `context` of them.":
                lambda memory, weights, kv, context: max(0, memory - weights) // kv,
            "part of a sequence is no use to anyone: round down to whole ones.":
                lambda memory, weights, kv, context: max(0, memory - weights) / (context * kv),
        },
    )  # fmt: skip


def decode_floor(config: ModelConfig, batch: int, context: int, bandwidth: float) -> float:
    """Seconds of a decode step that waits for memory alone: weights once, every sequence's cache once."""
    cache = batch * context * kv_bytes_per_token(config, "float16")
    return (weight_bytes(config, "float16") + cache) / bandwidth


@exercise(
    "01.5",
    title="decode_floor(config, batch, context, bandwidth)",
    difficulty=3,
    importance=3,
    minutes=8,
    hints=(
        "A step cannot end before its bytes have been read. Which bytes are read once for the whole batch, "
        "and which once per sequence?",
        "seconds = (weight bytes + batch × context × cache bytes per token) / bandwidth; "
        "labcore.perf.costs has weight_bytes(config) and kv_bytes_per_token(config).",
    ),
    solution=decode_floor,
)
def check_decode_floor(answer: Any) -> Verdict:
    draw = Random()
    names = ("llama-2-7b", "llama-3-8b", "qwen3-0.6b", "smollm2-135m")
    configs = [catalog.architecture(name) for name in names]
    cases = [
        (config, draw.randint(2, 64), draw.choice((512, 2048)), draw.choice((300e9, 600e9, 2039e9)))
        for config in configs
    ]
    cases.append((configs[0], 1, 512, 600e9))
    return on_cases(
        answer, cases, decode_floor, names=("config", "batch", "context", "bandwidth"), what="models",
        praise="right for all 5: Llama-2-7B on an A10 (600 GB/s), batch 1, 512 tokens: 22.9 ms.",
        mistakes={
            "you leave out the cache; at a large batch it outweighs the weights.":
                lambda c, b, t, bw: decode_floor(c, 0, t, bw),
            "you read one sequence's cache; each of the batch has its own.":
                lambda c, b, t, bw: decode_floor(c, 1, t, bw),
            "you read the weights once per sequence; a step reads them once for the whole batch.":
                lambda c, b, t, bw: b * decode_floor(c, 1, t, bw),
            "you leave out the weights.": lambda c, b, t, bw: b * t * kv_bytes_per_token(c) / bw,
            "you count the cache of a single token per sequence; a step reads all `context` of them.":
                lambda c, b, t, bw: decode_floor(c, b, 1, bw),
            "you count one byte per number; float16 takes two.":
                lambda c, b, t, bw: decode_floor(c, b, t, bw) / 2,
        },
    )  # fmt: skip
