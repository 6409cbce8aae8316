"""The napkin simulator: does it fit, how fast at best, at what price. This machine is one of the GPUs."""

from __future__ import annotations

from functools import partial

from labcore import catalog
from labcore.errors import ConfigError
from labcore.lab.figures import intro
from labcore.lab.session import Session
from labcore.lab.units import gigabytes, seconds, significant
from labcore.lab.widgets.common import Explorer, View, choice, slider
from labcore.perf.predict import Machine, Napkin, machine_from_gpu
from labcore.perf.predict import napkin as plan_on_napkin

THIS_MACHINE = "this machine"
PRECISIONS = ("float32", "float16", "int8", "int4")
BATCHES = tuple(2**i for i in range(10))
CONTEXTS = tuple(2**i for i in range(7, 18))


def napkin(session: Session, *, usd_per_hour: float | None = None) -> None:
    """Show the simulator: three controls for what runs where, two for its load.

    usd_per_hour: what this machine costs, for its dollars per million tokens; catalogued GPUs bring their own
    list price. The first use on a machine measures its roofs.
    """
    machines = machine_names(session)
    what = {
        "model": choice("Model", catalog.architectures(), "llama-2-7b"),
        "gpu": choice("GPU", machines, "a10"),
        "precision": choice("Weights stored as", PRECISIONS, "float16"),
    }
    load = {
        "batch": slider("Batch (sequences)", BATCHES, 1, "{:,}".format),
        "context": slider("Context (tokens each)", CONTEXTS, 512, "{:,}".format),
    }
    here = session.machine
    Explorer(partial(view, here, usd_per_hour), tabs={"What runs where": what, "Its load": load}).show()


def machine_names(session: Session) -> dict[str, str]:
    """Shown text -> key of every machine on offer, the learner's own first."""
    own = {f"{THIS_MACHINE} ({session.machine.name}, measured)": THIS_MACHINE}
    return own | {catalog.gpu(name).title: name for name in catalog.gpus()}


def view(
    here: Machine,
    usd_per_hour: float | None,
    *,
    model: str,
    gpu: str,
    precision: str,
    batch: int,
    context: int,
) -> View:
    """The napkin of one setting: figure, sentence, exact numbers. Raises ConfigError beyond the context."""
    entry = catalog.entry(model)
    if context > entry.config.max_position_embeddings:
        limit = entry.config.max_position_embeddings
        raise ConfigError(
            f"{entry.title} reads at most {limit:,} tokens; choose a context of up to that many."
        )
    own = gpu == THIS_MACHINE
    machine = here if own else machine_from_gpu(catalog.gpu(gpu))
    plan = plan_on_napkin(
        entry.config, machine, batch, context, precision, usd_per_hour=usd_per_hour if own else None
    )
    title = f"{entry.title}, {precision}, on {machine.name}"
    return View(intro.napkin(plan, title), sentence(plan, title), [row(plan)])


def sentence(plan: Napkin, title: str) -> str:
    """The finding, with the reason of the time and, where it does not fit, what would."""
    load = f"{plan.batch:,} sequence{'s' if plan.batch > 1 else ''} of {plan.context:,} tokens"
    if not plan.fits:
        room = f"at most {plan.max_batch:,} of them would fit" if plan.max_batch else "not even one would fit"
        return f"{title}: no room for {load}, {gigabytes(-plan.free_bytes)} are missing; {room}."
    price = f", ${significant(plan.usd_per_million)} per million tokens" if plan.usd_per_million else ""
    waits_for = "arithmetic" if plan.bound == "compute" else "memory"
    return (
        f"{title}: room for {load}. At best: TPOT {seconds(plan.tpot_s)}, "
        f"{significant(plan.tokens_per_s)} tok/s together{price}. A step waits for {waits_for}."
    )


def row(plan: Napkin) -> dict[str, object]:
    """The exact numbers. A price is what the catalogue assumes, or what the learner gave."""
    return {
        "weights (GB)": plan.weight_bytes / 1e9,
        "KV cache (GB)": plan.kv_bytes / 1e9,
        "memory (GB)": plan.memory_bytes / 1e9,
        "fits": plan.fits,
        "largest batch": plan.max_batch,
        "TTFT (ms)": plan.ttft_s * 1e3,
        "TPOT (ms)": plan.tpot_s * 1e3,
        "throughput (tok/s)": plan.tokens_per_s,
        "$ per hour": plan.usd_per_hour,
        "$ per million tokens": plan.usd_per_million,
    }
