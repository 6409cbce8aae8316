# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Dissecting model performance
#
# A step takes 30 ms. Why not 3? There are only four things it can be waiting for: **arithmetic**,
# **memory**, **other processors**, or **the one who asks**. Each has its own cure, and the cure for one
# does nothing against the others. In this lesson you produce all four on this machine, learn to tell them
# apart from a profile, and solve the puzzle that lesson 3 left open.
#
# | part | question | minutes |
# |---|---|---|
# | 1 | What can a step wait for? | 11 |
# | 2 | Where does the time of our own steps go? | 5 |
# | 3 | What helps against asking too often? | 4 |
# | 4 | What does talking cost? | 5 |
#
# Minutes count reading, running and the exercises marked ●●●. The other exercises and the hunts are for
# whoever is ahead, or for home.

# %% tags=["parameters"]
MODEL: str = "story"  # "story", a folder, a Hub id "owner/name", or "shape:NAME" (random weights)
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:N or mps
SCALE: str = "auto"  # quick, full, or auto (quick on a CPU)
MODE: str = "learner"  # learner, or solution (exercises are filled in)
SEED: int = 0  # what sampling and random prompts start from

# %%
import labcore
from labcore import lab

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="05")
model, roofs = session.model, session.roofs

# %% [markdown]
# ## Part 1 · Four things to wait for
#
# *11 minutes*
#
# **Know.** An operation needs some FLOPs and moves some bytes. If a machine computes $F$ FLOP/s and moves
# $BW$ bytes/s, the operation takes at least $\max(\text{FLOPs}/F, \text{bytes}/BW)$, and which of the two
# it is depends on its FLOPs per byte. On top of that come the time to *launch* an operation, which does not
# depend on its size, and the time to *talk* to other processors.
#
# **Predict.** One vector times a matrix of 2048 × 2048, then 64 vectors at once: 64 times the arithmetic.

# %%
rows_guess = lab.predict(
    "05.1",
    "How many times as long do 64 rows take as 1?",
    unit="×",
    low=0.5,
    high=200,
    default=64,
)

# %% [markdown]
# **Run.** Three knobs: the rows of a matrix product, the numbers that one addition goes over, and the
# operations that the same additions are cut into.

# %%
sweeps = [lab.turn_rows(roofs), lab.turn_numbers(roofs), lab.turn_pieces(roofs)]
by_rows = {point.value: point.timing.median_s for point in sweeps[0].points}
lab.score("05.1", measured=by_rows[64] / by_rows[1])

# %% [markdown]
# **See.** Black is measured. The dashed lines are what each term alone would take, from this machine's
# roofs and the operation's own FLOPs and bytes. The measurement follows whichever line is highest: turn a
# knob, and it changes from one line to the next.

# %%
lab.knobs(sweeps)

# %% [markdown]
# **Explain.** With few rows the product waits for its matrix to arrive, and more rows are almost free; from
# some number of rows on it waits for arithmetic, and every row costs. An addition to a few numbers takes as
# long as one to a few thousand: that is the launch. Cut into pieces, the same additions become all launch.
#
# Now the other way round: given a step that nobody explained, say what it waits for. The profiler sorts the
# time into kinds of work and puts four estimates side by side; the largest names the regime.

# %%
profiles = lab.constructed(roofs, large=session.scale == "full")
lab.show(lab.kinds_figure(profiles), lab.recognised(profiles), lab.regime_rows(profiles))

# %% [markdown]
# What the two roofs say on paper, and the ridge between them for devices from the catalogue. Below its
# ridge an operation waits for memory, above it for arithmetic:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.roof_facts())

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.gpu_rows())

# %% [markdown]
# **Exercise 05.1** · ★☆☆ · importance ●●● · 3 min. The least time that an operation can take, in seconds.


# %%
@lab.attempt("05.1")
def least_time(flops, bytes_moved, peak_flops, bandwidth):
    return lab.TODO


lab.check("05.1", least_time)

# %% [markdown]
# **Exercise 05.2** · ★☆☆ · importance ●●● · 2 min. **MBU**, model bandwidth utilisation: which share of the
# memory's bandwidth did a step use that had to move so many bytes?


# %%
@lab.attempt("05.2")
def mbu(bytes_moved, seconds, bandwidth):
    return lab.TODO


lab.check("05.2", mbu)

# %% [markdown]
# **Exercise 05.4** · ★☆☆ · importance ●●○ · 3 min. Name the regime, `"compute"`, `"bandwidth"`,
# `"communication"` or `"overhead"`, from the four times.


# %%
@lab.attempt("05.4")
def regime(compute_s, bandwidth_s, communication_s, overhead_s):
    return lab.TODO


lab.check("05.4", regime)

# %% [markdown]
# All of this stands on measurements, and measurements go wrong in a few ways that look innocent. A GPU takes
# work and returns at once: a clock that does not wait for it measures the asking.
#
# **Hunt 05.A** · 5 min. labcore's own stopwatch, with one bug. On a CPU nobody would notice.

# %%
import time
from collections.abc import Callable, Mapping

import torch
from labcore.errors import LabError
from labcore.perf.machine import resolve_device
from labcore.perf.timing import MIN_REPEATS, Timing, summarize, synchronize


@lab.hunt("05.A")
def measure(
    fn: Callable[[], object],
    *,
    warmup: int = 2,
    repeats: int = 7,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `fn()` on a device: `warmup` unmeasured calls, then `repeats` (at least 5) measured ones."""
    if repeats < MIN_REPEATS or warmup < 0:
        raise LabError(
            f"measure got repeats={repeats}, warmup={warmup}; it needs at least {MIN_REPEATS} repeats to "
            "state a spread, and warmup >= 0."
        )
    found = resolve_device(device)
    for _ in range(warmup):
        fn()
    samples = []
    for _ in range(repeats):
        synchronize(found)
        start = clock()
        fn()
        samples.append(clock() - start)
    return summarize(samples)


# %% [markdown]
# *Proved on this machine:* one knob takes an operation from one regime to another, and the profile says
# which. *Not proved:* that a step of a model is so pure; it is hundreds of operations, each with its own.

# %% [markdown]
# ## Part 2 · Inside our own steps
#
# *5 minutes*
#
# **Know.** A Transformer step is a few large products per layer and many small operations around them.
# A profile shows each on a line of time. What is white belongs to nobody: Python, the dispatcher, waiting.
#
# **Predict.** One decode step of this model on the readable path, one PyTorch operator after another.

# %%
gap_guess = lab.predict(
    "05.2",
    "What share of the step is launch gaps, time in which no operation runs?",
    unit="%",
    low=0,
    high=100,
    default=10,
)

# %%
steps = lab.profile_steps(model, roofs, prompt=session.pick(quick=256, full=1024))
decode = next(one for one in steps if one.label.startswith("decode"))
lab.score("05.2", measured=100 * decode.shares["launch gaps"])

# %% [markdown]
# **See.** The steps by kind of work, then one at a time on the line of time.

# %%
lab.show(lab.kinds_figure(steps), lab.recognised(steps), lab.kind_rows(steps))

# %%
lab.timeline(steps)

# %% [markdown]
# **Explain.** The prefill is nearly all matrix products: it does work. The decode step asks for more than a
# hundred operations to multiply one vector with a few small matrices; much of it is asking. The engine's own
# decode step on a CPU (native layers) asks twice a layer, and what is left is reading weights.
#
# A profiler slows down what it watches, so the profile's times are not the step's: the untraced time
# stands beside each bar.
#
# **The puzzle.** Lesson 3 left a published table open: a 0.6B model on an A100, 26 tokens/s without a cache
# and 25 with one. The cache saved no time at all. With what you know now: what would you expect if a step
# were bound by launching its operations?

# %%
puzzle = lab.solve_puzzle(model, lengths=session.pick(quick=(8, 32, 128, 512), full=(8, 64, 256, 1000)))
lab.show(lab.puzzle_figure(puzzle), puzzle.finding(), puzzle.rows())

# %% [markdown]
# The *thin twin* has as many layers and launches as many operators, over next to nothing. Where the step of
# the real model comes near to its twin's, there is nothing for a cache to save. The faster the machine, the
# further that region reaches: an A100 does the arithmetic of a 0.6B step in well under a millisecond.
# Counted on the thin twin of such a model, with our operators:

# %%
published = labcore.catalog.architecture("qwen3-0.6b")
peaks = lab.puzzle_peaks(published, labcore.catalog.gpu("a100-80gb-sxm"))
lab.table(lab.published_rows(published, peaks))

# %% [markdown]
# Both rows took many times what the GPU's peaks allow, and both launch about as many operators. The last
# column is what each operator took, Python and launch included: tens of microseconds, which is what asking
# a GPU one operator at a time costs. **The published step was overhead-bound**, and a cache removes work,
# not launches. (That table's own code we have not run; the numbers fit, and no other of the four regimes
# comes near.)
#
# **Hunt 05.B** · 4 min. Another way to fool oneself: the first call pays for setting up. This is how labcore
# runs contestants in turns, with one bug.

# %%
from labcore.bench.interleave import Samples, T


@lab.hunt("05.B")
def interleave(
    contestants: Mapping[str, Callable[[], T]],
    *,
    repeats: int,
    warmup: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Samples[T]]:
    """Run A B C, B C A, C A B, …: whatever disturbs the machine disturbs all of them alike."""
    names = list(contestants)
    for name in names:
        for _ in range(0):
            progress(f"warming up {name}")
            contestants[name]()
    found: dict[str, list[T]] = {name: [] for name in names}
    for round_ in range(repeats):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            progress(f"run {round_ + 1} of {repeats}: {name}")
            found[name].append(contestants[name]())
    return {name: Samples(results) for name, results in found.items()}


# %% [markdown]
# *Proved on this machine:* at short lengths a cache saves little, because launches stay. *Not proved:* what
# exactly the authors of the table ran.

# %% [markdown]
# ## Part 3 · Asking less often
#
# *4 minutes*
#
# **Know.** Three cures. **Fusion**: one kernel does what several operators did, and intermediate results
# never see memory. **Compilation** writes such kernels from the Python code. A **CUDA graph** (on a GPU)
# records a whole step once and replays it with a single launch.
#
# **Predict.** SwiGLU, `silu(gate) * up`, as three operators makes 8 passes over its numbers; in one kernel
# 3: read, read, write.

# %%
fusion_guess = lab.predict(
    "05.3",
    "How many times as fast is one kernel as three operators?",
    unit="×",
    low=0.5,
    high=20,
    default=3,
)

# %% [markdown]
# **Run.** The same function three ways: operators, `torch.compile`, and the engine's own kernel (C on a CPU,
# Triton on a GPU).

# %%
rows, width = session.pick(quick=(512, 1536), full=(8192, 8192))
fusion = lab.compare_fusion(session.device, rows=rows, width=width)
lab.score("05.3", measured=fusion.speedup(fusion.runs[-1].way))
lab.finding(fusion.finding(), fusion.rows())

# %% [markdown]
# And the other end of the same road: one operation over many numbers, or a thousand over few.

# %%
lab.table(lab.many_or_one(session.device))

# %% [markdown]
# **See.** Now whole decode steps: operator by operator, compiled, on a GPU as a CUDA graph, and as the
# engine runs them on a CPU (native layers). `labcore.generate(model, prompt, step="compiled")` is the
# switch. Compiling takes its time once; that price is in the table.

# %%
ways = lab.compare_ways(model)
lab.finding(lab.way_finding(ways), lab.way_rows(ways))

# %% [markdown]
# **Explain.** No FLOP and no weight byte was saved in this table. All of the gain is launches that did not
# happen and intermediate results that did not travel. For a large model on a slow machine the gain would be
# small: there the weights are what takes the time.

# %% [markdown]
# On paper, for a chain of operators over a million numbers in fp16:

# %% tags=["keep_output", "nbval-check-output"]
chains = [(n, labcore.perf.costs.elementwise_costs(10**6, n, fused=False)) for n in (1, 3, 8)]
fused = labcore.perf.costs.elementwise_costs(10**6)
lab.text_table([{"operators": n, "bytes apart": one.bytes, "bytes fused": fused.bytes} for n, one in chains])

# %% [markdown]
# **Exercise 05.3** · ★★☆ · importance ●●○ · 4 min. Bytes that a chain of elementwise operators moves, each
# over all the numbers, apart or fused.


# %%
@lab.attempt("05.3")
def traffic(numbers, operators, bytes_per_number, fused):
    return lab.TODO


lab.check("05.3", traffic)

# %% [markdown]
# *Proved on this machine:* fewer passes and fewer launches, same results, less time. *Not proved:* that a
# compiler always finds them; it did here.

# %% [markdown]
# ## Part 4 · Talking
#
# *5 minutes*
#
# **Know.** A model too large or too slow for one device is split. **Tensor parallelism** gives every rank
# some of the heads and some of the feed-forward width. Each rank then holds a part of a *sum*, and twice a
# layer an **all-reduce** adds the parts up, on every rank. The cache is split along with its heads.

# %% tags=["keep_output", "nbval-check-output"]
shapes = {name: labcore.catalog.architecture(name) for name in ("llama-3.1-8b", "llama-3-70b")}
lab.text_table(lab.split_rows(shapes))

# %% [markdown]
# **Predict.** Two processes on this machine (on two GPUs where there are two, else on a CPU core each), the
# same model split over them, twice the hardware: one decode step.

# %%
ranks_guess = lab.predict(
    "05.4",
    "How many times as fast is a decode step on two ranks as on one?",
    unit="×",
    low=0.05,
    high=4,
    default=2,
)

# %% [markdown]
# **Run.** The workers start now, talk through `torch.distributed`, and end with this cell.

# %%
talk = lab.talk(roofs, prompt=session.pick(quick=128, full=512))
lab.score("05.4", measured=talk.speedup("decode"))

# %% [markdown]
# **See.** First the talking alone, then what it does to a step.

# %%
lab.show(lab.talk_figure(talk), talk.finding(), talk.rows())

# %%
lab.finding(talk.step_finding(), talk.step_rows())

# %% [markdown]
# The fourth regime, in the profiler's words:

# %%
lab.finding(lab.recognised([talk.profile]), lab.regime_rows([talk.profile]))

# %% [markdown]
# **Explain.** A decode step sends a few kilobytes per all-reduce: it pays for talking at all, over and
# over, once per half layer. A prefill sends megabytes: it pays for bytes, and has far more arithmetic to
# share. That is why ranks are put where talking is cheap (NVLink within a node), and why more ranks do not
# simply make decode faster.
#
# **Exercise 05.5** · ★★☆ · importance ●●○ · 4 min. In a *ring*, each of $R$ ranks passes pieces to its
# neighbour: first to add up, then to hand round the sum. How many bytes does a rank send in all?


# %%
@lab.attempt("05.5")
def ring_bytes(bytes_, ranks):
    return lab.TODO


lab.check("05.5", ring_bytes)

# %% [markdown]
# Per decoded token, in fp16, on 2, 4 and 8 ranks:

# %% tags=["keep_output", "nbval-check-output"]
llama = labcore.catalog.architecture("llama-3-70b")
step = labcore.perf.costs.reduced_bytes(llama, rows=1)
lab.text_table(
    [
        {"ranks": n, "added up (B)": step, "sent (B)": round(labcore.perf.costs.ring_bytes(step, n))}
        for n in (2, 4, 8)
    ]
)

# %% [markdown]
# *Proved on this machine:* the same logits from two ranks as from one (a test holds that to 1e-4), and what
# the talking costs here. *Not proved:* anything about NVLink or InfiniBand; run this lesson on a machine with
# several GPUs for that.
#
# ## What you take along
#
# - A step waits for arithmetic, memory, talking or asking. Find out which before you optimise.
# - Launch overhead hides behind large operations and is all there is of small ones. That solved the puzzle.
# - Fusion, compilation and graphs remove launches and traffic, not work.
# - Tensor parallelism divides bytes and work, and adds two all-reduces a layer.
#
# Lesson 6 draws the first two of these on one picture, and puts every operation of a model on it.

# %%
lab.finish()
