"""What a machine will do with a load: TTFT, TPOT, throughput, price, the largest and the best batch.

forecast(config, machine, batch=8, context=1024)      -> Forecast, times as brackets
pareto(config, machine, context=1024)                 -> one Forecast a batch, up to the memory wall
best_batch(config, machine, context, tpot_s=0.05)     -> the largest throughput within a latency
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.costs import CacheTraffic, step_costs
from labcore.perf.memory import largest_batch, plan
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.predict import StepTime, cost_per_million, step_time


@dataclass(frozen=True)
class Load:
    """What is to be served.

    context: tokens a sequence holds at the step stated; prompt: tokens processed at once before (default:
    as many). overhead_s: a decode step's own, measured; a prefill's is taken as the same. weight_bits,
    cache_bits: of a stored number, scales included, where they are narrower than dtype. activation_dtype:
    what activations are rounded to (w8a8: int8 beside int8 weights); None: weights alone are narrow, and are
    multiplied in 16 bits.
    """

    batch: int = 1
    context: int = 1024
    prompt: int | None = None
    dtype: str = "float16"
    weight_bits: float | None = None
    cache_bits: float | None = None
    activation_dtype: str | None = None
    overhead_s: float = 0.0
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Times are brackets (`StepTime`); rates follow from what is to be expected within them.

    fits: with what activations and logits take. max_batch: sequences of this context that do.
    """

    machine: str
    load: Load
    prefill: StepTime
    decode: StepTime
    fits: bool
    max_batch: int
    usd_per_hour: float | None

    @property
    def ttft_s(self) -> float:
        """Expected seconds until the batch's prompts, processed together, give their first tokens."""
        return self.prefill.expected_s

    @property
    def tpot_s(self) -> float:
        """Expected seconds per output token of each sequence."""
        return self.decode.expected_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second over the batch, while it decodes."""
        return self.load.batch / self.tpot_s

    @property
    def usd_per_million(self) -> float | None:
        """US dollars per million output tokens, or None without a price."""
        return None if self.usd_per_hour is None else cost_per_million(self.usd_per_hour, self.tokens_per_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        rates = ("ttft_s", "tpot_s", "tokens_per_s", "usd_per_million")
        return asdict(self) | {name: getattr(self, name) for name in rates}


def forecast(config: ModelConfig, machine: Machine | GPU, **wanted: Any) -> Forecast:
    """What to expect of a load (fields of Load). Raises ConfigError for sizes that mean nothing, DeviceError
    for a dtype that the machine states no rate for."""
    found, load = as_machine(machine), Load(**wanted)
    prompt = load.context if load.prompt is None else load.prompt
    traffic = CacheTraffic(bits=load.cache_bits)
    common: dict[str, Any] = {"dtype": load.dtype, "weight_bits": load.weight_bits, "traffic": traffic}
    prefill = step_costs(config, load.batch, prompt, prompt, **common)
    decode = step_costs(config, load.batch, load.context, **common)
    memory = plan(
        config, found, batch=load.batch, context=load.context, dtype=load.dtype,
        weight_bits=load.weight_bits, cache_bits=load.cache_bits,
    )  # fmt: skip
    timed: dict[str, Any] = {"activations": load.activation_dtype, "overhead_s": load.overhead_s}
    return Forecast(
        machine=found.name,
        load=load,
        prefill=step_time(prefill, found, **timed),
        decode=step_time(decode, found, **timed),
        fits=memory.fits,
        max_batch=largest_batch(memory),
        usd_per_hour=found.usd_per_hour if load.usd_per_hour is None else load.usd_per_hour,
    )


def pareto(
    config: ModelConfig, machine: Machine | GPU, *, beyond: int = 1, **wanted: Any
) -> Iterator[Forecast]:
    """Forecasts of batches 1, 2, 4, … up to the memory wall, the wall itself, and `beyond` doublings past it.

    Those past it do not fit: what they would do, were there memory.
    """
    first = forecast(config, machine, **(wanted | {"batch": 1}))
    wall, batch = first.max_batch, 1
    batches = []
    while batch < max(1, wall) * 2**beyond:
        batches.append(batch)
        batch *= 2
    for size in sorted({*batches, batch, max(1, wall)}):
        yield forecast(config, machine, **(wanted | {"batch": size}))


def best_batch(config: ModelConfig, machine: Machine | GPU, *, tpot_s: float, **wanted: Any) -> Forecast:
    """The largest batch that fits and gives every sequence a token within tpot_s: the most throughput there.

    Raises ConfigError where not even one sequence is that fast, or none fits, with what one would take.
    """
    one = forecast(config, machine, **(wanted | {"batch": 1}))
    if one.max_batch < 1:
        raise ConfigError(
            f"Not one sequence fits on {one.machine}; take a larger machine or narrower weights."
        )
    if one.tpot_s > tpot_s:
        raise ConfigError(
            f"One sequence alone takes {one.tpot_s * 1e3:.3g} ms a token on {one.machine}, more than the "
            f"{tpot_s * 1e3:.3g} ms asked for; allow more, or take narrower weights or a faster machine."
        )
    low, high = 1, one.max_batch  # a step only gets longer with more sequences
    while low < high:
        middle = (low + high + 1) // 2
        within = forecast(config, machine, **(wanted | {"batch": middle})).tpot_s <= tpot_s
        low, high = (middle, high) if within else (low, middle - 1)
    return forecast(config, machine, **(wanted | {"batch": low}))
