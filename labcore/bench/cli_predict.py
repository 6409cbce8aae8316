"""`labcore bench predict` and `labcore bench parallel`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labcore.bench.options import Device, Dtype, Out, keep
from labcore.shares import doubt_of, share_text
from labcore.working import working


def predict(
    model: Annotated[
        str, typer.Option(help="A model, or shape:NAME with random weights.")
    ] = "shape:smollm2-135m",
    context: Annotated[list[int] | None, typer.Option(min=2, help="Tokens held; again for more.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences; again for more.")] = None,
    prompt: Annotated[list[int] | None, typer.Option(min=2, help="Prompt length; again for more.")] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each step, roofs in between.")] = 9,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Each step as costs and measured roofs foretell it, beside the step as it is; misses named."""
    import labcore
    from labcore.bench import record
    from labcore.bench.predict import bench_predict

    console = Console()
    loaded = labcore.load(model, device=device, dtype=dtype)
    with working(console, "loading") as say:
        result = bench_predict(
            loaded,
            contexts=context or (64, 512, 2048),
            batches=batch or (1, 8),
            prompts=prompt or (512,),
            repeats=repeats,
            progress=say,
        )
    data = record.record("predict", result.to_dict(), loaded.device)
    console.print(_predict_table(data))
    missed = [f"{row.phase} {row.batch} × {row.context}" for row in result.rows if abs(row.error) > 0.25]
    console.print(
        f"{len(result.rows) - len(missed)} of {len(result.rows)} within 25 %"
        + (f"; missed: {', '.join(missed)}." if missed else "."),
        highlight=False,
    )
    keep(console, out, data)


def parallel(
    model: Annotated[
        str, typer.Option(help="What every rank loads: a model or shape:NAME.")
    ] = "shape:qwen2.5-0.5b",
    ranks: Annotated[list[int] | None, typer.Option(min=1, help="Processes; again for more.")] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens held by a decode step.")] = 64,
    prompt: Annotated[int, typer.Option(min=2, help="Length of the prompt.")] = 128,
    repeats: Annotated[int, typer.Option(min=5, help="Runs of each step.")] = 9,
    device: Annotated[str, typer.Option(help="cpu, or cuda with a GPU for each rank.")] = "cpu",
    out: Out = None,
) -> None:
    """All-reduce time by size, and step time by number of ranks with the share spent talking."""
    from labcore.bench import record
    from labcore.parallel import Workers, all_reduce_times, step_times
    from labcore.perf.machine import resolve_device

    console, steps, reduces = Console(), [], []
    for count in ranks or [1, 2]:
        with working(console, f"{count} ranks"), Workers(count, device=device, threads=1) as workers:
            for held, new in ((context, 1), (prompt, prompt)):
                steps.append(step_times(workers, model, context=held, new_tokens=new, repeats=repeats))
            if count > 1:
                reduces = all_reduce_times(workers, repeats=repeats)
    result = {
        "model": model,
        "steps": [step.to_dict() for step in steps],
        "all_reduces": [vars(one) | {"bus_bandwidth": one.bus_bandwidth} for one in reduces],
    }
    data = record.record("parallel", result, resolve_device(device))
    for table in (_reduce_table(result), _step_table(result)):
        console.print(table)
    keep(console, out, data)


def _columns(title: str, *names: str) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="left" if name == names[0] else "right")
    return table


def _predict_table(data: dict[str, Any]) -> Table:
    result = data["result"]
    table = _columns(
        f"{result['model']}, {result['dtype']}, on {data['machine']['name']}",
        "step", "measured ms", "± IQR", "expected ms", "bracket", "off by", "MBU", "MFU",
    )  # fmt: skip
    table.caption = doubt_of(row[name] for row in result["rows"] for name in ("mbu", "mfu")).strip() or None
    for row in result["rows"]:
        table.add_row(
            f"{row['phase']}, {row['batch']} × {row['context']}",
            f"{row['measured_s'] * 1e3:.1f}",
            f"{row['spread_s'] * 1e3:.1f}",
            f"{row['expected_s'] * 1e3:.1f}",
            f"{row['low_s'] * 1e3:.1f} – {row['high_s'] * 1e3:.1f}",
            f"{row['error']:+.0%}",
            share_text(row["mbu"]),
            share_text(row["mfu"]),
        )
    return table


def _reduce_table(result: dict[str, Any]) -> Table:
    table = _columns("All-reduce", "bytes", "ranks", "µs", "± IQR", "bus GB/s")
    for one in result["all_reduces"]:
        times = (f"{one[name] * 1e6:,.0f}" for name in ("seconds", "spread_s"))
        table.add_row(f"{one['bytes']:,}", str(one["ranks"]), *times, f"{one['bus_bandwidth'] / 1e9:.3f}")
    return table


def _step_table(result: dict[str, Any]) -> Table:
    table = _columns(f"Steps of {result['model']}", "step", "ranks", "ms", "± IQR", "talking ms", "share")
    for step in result["steps"]:
        table.add_row(
            "decode" if step["new_tokens"] == 1 else f"prefill of {step['new_tokens']}",
            str(step["ranks"]),
            f"{step['step_s'] * 1e3:.1f}",
            f"{step['spread_s'] * 1e3:.1f}",
            f"{step['communication_s'] * 1e3:.1f}",
            f"{step['communication_share']:.0%}",
        )
    return table
