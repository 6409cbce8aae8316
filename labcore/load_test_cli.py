"""`labcore load-test`: what a server does under a load that one seed makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from labcore.bench.options import keep, ready
from labcore.errors import LabError
from labcore.working import working

if TYPE_CHECKING:
    from labcore.serving.load import Client, LoadRun, Sweep
    from labcore.serving.metrics import RequestRecord, Slo
    from labcore.serving.workload import Workload

REQUESTS = 64
LINES = 10  # of progress, where it goes to a file
NOTHING_ANSWERED = 1  # the code it ends with where no request at all ended well

Url = Annotated[str, typer.Argument(help="Such as http://127.0.0.1:8000: any OpenAI-compatible server.")]
Rate = Annotated[float | None, typer.Option(help="Requests/s, Poisson (open loop); left out: all at once.")]
Users = Annotated[int | None, typer.Option(min=1, help="Closed loop: so many, each waiting for its answer.")]
Rates = Annotated[str | None, typer.Option(help="Rates to try until one is too much: 1,2,4,8.")]
Refine = Annotated[int, typer.Option(min=0, help="Rates to try around the knee of a sweep.")]
Requests = Annotated[
    int | None, typer.Option(min=1, help=f"How many (default: {REQUESTS}, or the whole trace).")
]
Prompt = Annotated[
    str, typer.Option(help="Tokens of prompts: fixed:128, uniform:64-256, exp:99:1-512, sharegpt, alpaca.")
]
Output = Annotated[str, typer.Option(help="Tokens of answers, in the same way.")]
Prefix = Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")]
Vocab = Annotated[int, typer.Option(min=1, help="Prompts hold token ids below this.")]
Trace = Annotated[Path | None, typer.Option(help="Read times and lengths from this file of JSON lines.")]
SaveTrace = Annotated[Path | None, typer.Option(help="Write the workload as such a file.", callback=ready)]
Seed = Annotated[
    int, typer.Option(help="One seed, one workload: used again, a server may have its prompts cached.")
]
SloTtft = Annotated[float | None, typer.Option(min=0, help="Promised time to first token, seconds.")]
SloTpot = Annotated[float | None, typer.Option(min=0, help="Promised time per token, seconds.")]
Model = Annotated[str | None, typer.Option(help="Default: the first that the server names.")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for one whole answer.")]
Connections = Annotated[int, typer.Option(min=1, help="Requests at once, at most.")]
Warmup = Annotated[int, typer.Option(min=0, help="Requests before, not counted.")]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Hold answers to their planned length.")
]
Retry = Annotated[bool, typer.Option("--retry", help="Try a 429 again after its Retry-After.")]
Out = Annotated[Path | None, typer.Option(help="Write results and all records as JSON here.", callback=ready)]
Html = Annotated[Path | None, typer.Option(help="Write plots as one page here.", callback=ready)]


def load_test(
    url: Url,
    rate: Rate = None,
    users: Users = None,
    sweep: Rates = None,
    refine: Refine = 0,
    requests: Requests = None,
    prompt: Prompt = "exp:128:1-512",
    output: Output = "exp:128:1-512",
    shared_prefix: Prefix = 0,
    vocab: Vocab = 1000,
    trace: Trace = None,
    save_trace: SaveTrace = None,
    seed: Seed = 0,
    slo_ttft: SloTtft = None,
    slo_tpot: SloTpot = None,
    model: Model = None,
    api_key: ApiKey = None,
    timeout: Timeout = 300.0,
    connections: Connections = 1024,
    warmup: Warmup = 2,
    ignore_eos: IgnoreEos = True,
    retry: Retry = False,
    out: Out = None,
    html: Html = None,
) -> None:
    """Load a server: TTFT, TPOT, ITL, E2E, throughput and goodput; with --sweep, the knee.

    Ends with code 1 where no request at all ended well.
    """
    rates = _rates(sweep, rate, users)
    client_of, slo = _client_class(), _slo(slo_ttft, slo_tpot)
    client = client_of(url, model, api_key, timeout, connections, retry, ignore_eos)
    plan = Plan(trace, requests, prompt, output, shared_prefix, vocab, seed)
    if save_trace:
        _save_trace(save_trace, plan.workload(rate))
    test = LoadTest(Console(), client, plan, warmup, slo)
    data, found = test.swept(rates, refine) if rates else test.once(rate, users)
    keep(test.console, out, _record({"settings": {**plan.settings(), "rate": rate, "users": users}, **data}))
    if html:
        _write_page(html, f"Load test of {client.model} at {client.url}", found, test.runs[-1].records)
        test.console.print(f"Plots written to {html}")
    if not any(record.ok for run in test.runs for record in run.records):
        raise typer.Exit(NOTHING_ANSWERED)


@dataclass(frozen=True)
class Plan:
    """Where the load comes from: a trace, or random draws. vocab_size: token ids that prompts hold."""

    trace: Path | None
    requests: int | None
    prompt: str
    output: str
    shared_prefix: int
    vocab_size: int
    seed: int

    def workload(self, rate: float | None, turn: int = 0) -> Workload:
        """The same times and lengths at every rate; each turn has prompts of its own, found in no cache."""
        from labcore.serving.workload import make_workload, read_trace, retimed

        if self.trace:
            traced = read_trace(
                self.trace,
                limit=self.requests,
                shared_prefix=self.shared_prefix,
                vocab_size=self.vocab_size,
                seed=self.seed + turn,
            )
            return traced if rate is None else retimed(traced, rate)
        return make_workload(
            self.requests or REQUESTS,
            rate=rate,
            prompt=self.prompt,
            output=self.output,
            shared_prefix=self.shared_prefix,
            vocab_size=self.vocab_size,
            seed=self.seed,
            prompt_seed=self.seed + turn,
        )

    def settings(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "trace": str(self.trace) if self.trace else None}


@dataclass
class LoadTest:
    """Runs against one server, in their order, each shown as it ends."""

    console: Console
    client: Client
    plan: Plan
    warmup: int
    slo: Slo | None
    runs: list[LoadRun] = field(default_factory=list)

    def once(self, rate: float | None, users: int | None) -> tuple[dict[str, Any], None]:
        """One load; its results as plain data."""
        from labcore.serving.load import report
        from labcore.serving.metrics import summarize

        workload = self.plan.workload(rate)
        run = self._run(workload, users, "loading")
        summary = summarize(run.records, self.slo)
        self.console.print(report.shown(run, workload, summary, self.slo))
        return report.run_data(run, summary, self.slo), None

    def swept(self, rates: list[float], refine: int) -> tuple[dict[str, Any], Sweep]:
        """Rising rates up to the knee; results as plain data, and the sweep."""
        from labcore.serving.load import report, sweep

        def at(rate: float) -> Sequence[RequestRecord]:
            return self._run(self.plan.workload(rate, len(self.runs)), None, f"{rate:g}/s").records

        found = sweep(at, rates, self.slo, refine=refine)
        self.console.print(report.sweep_table(found, f"{self.client.model} at {self.client.url}"))
        return report.sweep_data(found, self.runs), found

    def _run(self, workload: Workload, users: int | None, label: str) -> LoadRun:
        from labcore.serving.load import run_load

        before = () if self.runs else self.plan.workload(None, turn=-1)[: self.warmup]
        with working(self.console, label) as say:
            every = 1 if self.console.is_terminal else -(-len(workload) // LINES)
            tell = _progress(len(workload), label, say, every)
            run = run_load(self.client, workload, users=users, warmup=before, on_record=tell)
        self.runs.append(run)
        return run


def _progress(
    total: int, label: str, show: Callable[[str], None], every: int = 1
) -> Callable[[RequestRecord], None]:
    """What is told of each request that ends, of each so many of them."""
    ended = {True: 0, False: 0}

    def tell(record: RequestRecord) -> None:
        ended[record.ok] += 1
        if sum(ended.values()) % every:
            return
        failed = f", {ended[False]} failed" if ended[False] else ""
        show(f"{label}: {sum(ended.values())} of {total}{failed}")

    return tell


def _client_class() -> type[Client]:
    try:
        from labcore.serving.load import Client
    except ModuleNotFoundError as missing:
        raise LabError(
            f"A load test needs the package {missing.name}, which the extra 'serve' brings: "
            "pip install 'labcore[serve]'."
        ) from None
    return Client


def _slo(ttft_s: float | None, tpot_s: float | None) -> Slo | None:
    from labcore.serving.metrics import Slo

    return None if ttft_s is None and tpot_s is None else Slo(ttft_s, tpot_s)


def _rates(sweep: str | None, rate: float | None, users: int | None) -> list[float]:
    if sum(given is not None for given in (sweep, rate, users)) > 1:
        raise LabError("--rate, --users and --sweep are three kinds of load; give one of them.")
    if sweep is None:
        return []
    try:
        rates = sorted({float(part) for part in sweep.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise LabError(f'--sweep "{sweep}" holds no rates; write requests/s above 0, such as 1,2,4,8.')
    return rates


def _save_trace(path: Path, workload: Workload) -> None:
    from labcore.serving.workload import write_trace

    write_trace(path, workload)


def _record(result: dict[str, Any]) -> dict[str, Any]:
    """The command line itself is not kept: it may hold a key."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"benchmark": "load-test", "measured_at": now, **result}


def _write_page(path: Path, title: str, found: Sweep | None, records: Sequence[RequestRecord]) -> None:
    from labcore.serving.load.plots import write_html

    write_html(path, title, found, records)
