"""`labcore simulate`: a workload on GPUs that are not here; how it would feel, and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.errors import ConfigError

if TYPE_CHECKING:
    from labcore.serving.metrics import Slo, Summary
    from labcore.serving.simulator import Capacity, Fleet, Settings, Simulation


def simulate(
    model: Annotated[str, typer.Argument(help="A catalogued shape, such as llama-3-8b.")],
    gpu: Annotated[str | None, typer.Option(help="A catalogued device; left out: this machine.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices in all.")] = 1,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Devices that share a replica.")] = 1,
    prefill: Annotated[
        int, typer.Option(min=0, help="Replicas, of all, that only prefill; the others then only decode.")
    ] = 0,
    rate: Annotated[float | None, typer.Option(help="Requests/s (default: all at once).")] = None,
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    prompt: Annotated[str, typer.Option(help="Lengths: fixed:128, exp:200, sharegpt, …")] = "sharegpt",
    output: Annotated[str, typer.Option(help="Lengths of answers, likewise.")] = "sharegpt",
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")] = 0,
    policy: Annotated[str, typer.Option(help="continuous, static, dynamic or one-by-one.")] = "continuous",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that a replica runs at once.")] = 256,
    token_budget: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 512,
    chunked: Annotated[bool, typer.Option(help="Prompts may be computed in parts.")] = True,
    dtype: Annotated[str, typer.Option(help="Of the weights: float16, float32, int8, int4, …")] = "float16",
    activation_dtype: Annotated[
        str | None,
        typer.Option(help="Round activations too (w8a8): int8 or float8. Left out: products in 16 bits."),
    ] = None,
    overhead_ms: Annotated[float, typer.Option(min=0, help="Of a step beside the roofs.")] = 0.0,
    ttft_ms: Annotated[float | None, typer.Option(help="Promised time to first token.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Promised time a token.")] = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Find how many devices keep the promise for 90 %.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Plain data instead of tables.")] = False,
) -> None:
    """Percentiles, throughput, goodput and price of a workload, by the real scheduler over a cost model."""
    from labcore import catalog
    from labcore.serving.metrics import Slo
    from labcore.serving.simulator import Numbers, Settings
    from labcore.serving.workload import make_workload

    config = catalog.architecture(model)
    machine: Any = catalog.gpu(gpu) if gpu else _this_machine()
    workload = make_workload(
        requests, rate=rate, prompt=prompt, output=output, shared_prefix=shared_prefix,
        vocab_size=config.vocab_size, seed=seed,
    )  # fmt: skip
    settings = Settings(
        policy, max_num_seqs=max_num_seqs, token_budget=token_budget, chunked=chunked,
        overhead_s=overhead_ms / 1e3, numbers=Numbers(dtype, activation_dtype=activation_dtype),
    )  # fmt: skip
    promised = [None if ms is None else ms / 1e3 for ms in (ttft_ms, tpot_ms)]
    slo = Slo(*promised) if any(seconds is not None for seconds in promised) else None
    fleet = _fleet(gpus, tensor_parallel, prefill)
    _run(config, machine, workload, fleet, settings, slo, capacity, as_json)


def _fleet(gpus: int, tensor_parallel: int, prefill: int) -> Fleet:
    from labcore.serving.simulator import Fleet

    if gpus % tensor_parallel or gpus // tensor_parallel <= prefill:
        raise ConfigError(
            f"{gpus} devices, {tensor_parallel} a replica, make no fleet with {prefill} replicas for "
            "prefill: --gpus must be a multiple of --tensor-parallel and leave a replica that decodes."
        )
    replicas = gpus // tensor_parallel - prefill
    return Fleet(replicas=replicas, prefill=prefill, tensor_parallel=tensor_parallel)


def _run(
    config: Any,
    machine: Any,
    workload: Any,
    fleet: Fleet,
    settings: Settings,
    slo: Slo | None,
    plan: bool,
    as_json: bool,
) -> None:
    from labcore.serving import simulator

    console = Console()
    if plan and slo is None:
        raise ConfigError("--capacity needs a promise to keep: give --ttft-ms, --tpot-ms or both.")
    if plan and slo is not None:
        planned = simulator.capacity(config, machine, workload, slo, fleet=fleet, settings=settings)
        found = planned.simulation
    else:
        found = simulator.simulate(config, machine, workload, fleet=fleet, settings=settings, slo=slo)
    if as_json:
        extra = {"tried": planned.tried} if plan else {}
        console.print_json(data=found.to_dict() | extra)
        return
    if plan:
        console.print(_needed(planned), highlight=False)
    console.print(_table(found))


def _this_machine() -> Any:
    from labcore.perf import machine_from_roofs, roofs
    from labcore.perf.machine import resolve_device, total_memory

    device = resolve_device("auto")
    return machine_from_roofs(roofs(device), total_memory(device))


def _needed(planned: Capacity) -> str:
    tried = ", ".join(f"{replicas}: {share:.0%}" for replicas, share in sorted(planned.tried))
    price = "" if planned.usd_per_hour is None else f", ${planned.usd_per_hour:,.2f}/h"
    return f"{planned.gpus} devices are needed{price}. Replicas and what they kept: {tried}."


def _table(found: Simulation) -> Table:
    summary, fleet = found.summary, found.fleet
    split = f"{fleet.prefill} prefill + {fleet.replicas} decode"
    where = f"{fleet.gpus} x {found.machine}, {split if fleet.prefill else f'{fleet.replicas} replicas'}"
    table = Table(title=f"{summary.requests:,} requests, simulated on {where}")
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right" if name else "left")
    for name, spread in (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("E2E", summary.e2e)):
        if spread is not None:
            values = (spread.mean, spread.p50, spread.p90, spread.p99)
            table.add_row(name, *(f"{seconds * 1e3:,.1f} ms" for seconds in values))
    table.add_section()
    for name, value in _totals(found, summary).items():
        table.add_row(name, value)
    return table


def _totals(found: Simulation, summary: Summary) -> dict[str, str]:
    rows = {
        "throughput": f"{summary.output_tokens_per_s:,.0f} tok/s",
        "requests": f"{summary.requests_per_s:,.2f} /s",
        "in flight": f"{summary.concurrency_mean:,.1f}",
    }
    if summary.goodput is not None:
        rows["goodput"] = f"{summary.goodput:,.2f} /s ({summary.attainment:.0%})"
    price = found.usd_per_million
    rows["per million tokens"] = "–" if price is None else f"${price:,.2f}"
    return rows
