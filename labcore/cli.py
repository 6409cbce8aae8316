"""The command line: `labcore doctor`, `generate`, `plan`, `serve`, `lessons`, `bench` and more.

Commands import what they need when they run, so that `labcore --help` answers at once. An error that the
user can mend (a LabError) is printed as its one sentence and ends with code 2; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from labcore.errors import LabError

try:
    import typer
    from rich.console import Console
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:  # installed without the extra: the script exists all the same
    sys.exit(
        f"labcore's command line needs the package {missing.name}, which the extra 'lab' brings: "
        "pip install 'labcore[lab]'."
    )

from labcore.bench.cli import app as bench_app
from labcore.compare_cli import compare
from labcore.forecast_cli import forecast
from labcore.kit_cli import app as kit_app
from labcore.lessons_cli import app as lessons_app
from labcore.load_test_cli import load_test
from labcore.plan_cli import plan
from labcore.profile_cli import profile
from labcore.report_cli import report
from labcore.roofs_cli import roofs
from labcore.serve_cli import serve
from labcore.simulate_cli import simulate
from labcore.site_cli import site
from labcore.soak_cli import soak
from labcore.wall_cli import app as wall_app

if TYPE_CHECKING:
    from labcore.generation import Output
    from labcore.quant.quantizing import Report

INTERRUPTED = 130  # what shells report for a program that ended by Ctrl-C
ERROR = 2


class LabGroup(TyperGroup):
    """Prints a LabError as one sentence, and ends quietly at Ctrl-C."""

    def main(self, *args: Any, **extra: Any) -> Any:
        _write_any_text()
        return super().main(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LabError as error:
            if ctx.params.get("debug"):
                raise
            _complain(str(error))
            raise typer.Exit(ERROR) from None
        except OSError as error:
            if error.errno != errno.ENOSPC or ctx.params.get("debug"):
                raise
            _give_up_output()
            where = error.filename or "the output"
            _complain(f"There is no space left for {where}; make room, or write to another disk.")
            raise typer.Exit(ERROR) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("\nStopped.")
            raise typer.Exit(INTERRUPTED) from None


def _complain(sentence: str) -> None:
    Console(stderr=True).print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)


def _write_any_text() -> None:
    """What the encoding of the output lacks is written as "?": it would end a command amid its answer."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _give_up_output() -> None:
    """What waits to be written goes nowhere; else the interpreter would complain of it at its end, too."""
    with suppress(OSError, AttributeError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(cls=LabGroup, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(lessons_app, name="lessons")
app.add_typer(bench_app, name="bench")
app.add_typer(wall_app, name="wall")
app.add_typer(kit_app, name="kit")
app.command()(plan)
app.command()(forecast)
app.command()(roofs)
app.command()(report)
app.command()(site)
app.command()(compare)
app.command()(profile)
app.command()(serve)
app.command("load-test")(load_test)
app.command()(soak)
app.command()(simulate)


def _version(asked: bool) -> None:
    if asked:
        from labcore import __version__

        print(f"labcore {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A learning lab on LLM inference: a real engine, its instruments, eight live lessons."""


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Device to look at: auto, cpu, cuda, cuda:N, mps.")] = "auto",
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Measure the ways to multiply by quantized weights, and stop.")
    ] = False,
) -> None:
    """Say what this machine has, what is missing, and what will be slow and why.

    Ends with code 1 when something that the lab needs is missing.
    """
    from labcore import doctor as doctors

    if kernels:
        Console().print(doctors.paths_report(device))
        return
    findings = doctors.examine(device)
    Console().print(doctors.report(findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[str, typer.Option(help="story, story-draft, a folder, a Hub id, shape:NAME.")] = "story",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above 0 samples.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages seen tokens.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same sample, with --speculate too.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given again.")] = None,
    cache: Annotated[
        str, typer.Option(help="A kind of KV cache, such as int4 or sinks:window=60.")
    ] = "contiguous",
    speculate: Annotated[
        str | None, typer.Option(help="Guess tokens: 'lookup' from the text, or a smaller model's name.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Quantize the weights first: int8, int4, gptq-int4:group=64, nf4…")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print TTFT, TPOT and throughput.")] = False,
) -> None:
    """Continue a prompt and stream the text as it is generated."""
    import labcore
    from labcore.generation import Output
    from labcore.generation.speculation import drafter

    loaded = labcore.load(model, device=device, dtype=dtype, seed=seed)
    if loaded.random_weights:
        typer.echo(f"{loaded.name} has random weights: its speed is real, its text means nothing.", err=True)
    if quantize:
        typer.echo(_shrunk(labcore.quantize(loaded, quantize)), err=True)
    output = Output(prompt_tokens=[])
    steps = labcore.stream(
        loaded,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        cache=cache,
        speculation=drafter(speculate, loaded),
    )
    for step in steps:
        print(step.text, end="", flush=True)
        output.tokens.append(step.token)
        output.step_seconds.append(step.seconds)
    print()
    if stats:
        typer.echo(_timing(output), err=True)


def _shrunk(report: Report) -> str:
    """What quantizing brought."""
    return (
        f"{report.recipe}: {report.bytes_before / 1e6:.1f} MB became {report.bytes_after / 1e6:.1f} MB, "
        f"{report.bits_per_weight:.2f} bits a weight."
    )


def _timing(output: Output) -> str:
    """TTFT, TPOT and throughput of one generation, in one line."""
    parts = [f"{len(output.step_seconds)} tokens", f"TTFT {output.ttft_s * 1e3:.1f} ms"]
    if output.tpot_s is not None:
        parts.append(f"TPOT {output.tpot_s * 1e3:.2f} ms")
    return " · ".join([*parts, f"{output.tokens_per_s:.1f} tok/s"])


if __name__ == "__main__":
    app()
