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
# # 6 · Arithmetic intensity (and memory) is all you need
#
# Two numbers of a machine and one number of an operation say how fast it can be: FLOP per second, bytes per
# second, and FLOP **per byte**. In this lesson you measure the two on this machine, compute the third for
# every operation of a model, lay prediction and measurement on one picture, and find out what is left over
# and why. At the end stands the question that all serving is about: how many users at once?
#
# | part | question | minutes |
# |---|---|---|
# | 1 | What can this machine do? | 5 |
# | 2 | Where does each operation lie? | 15 |
# | 3 | How good is the prediction, and what does it miss? | 11 |
# | 4 | How many at once? | 7 |
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

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="06")
# What is measured: a published shape with random weights, which are as fast as trained ones.
SHAPE = "shape:smollm2-135m" if MODEL == "story" else MODEL
subject = session.model if MODEL == SHAPE else labcore.load(SHAPE, device=session.device)
llama = labcore.catalog.architecture("llama-2-7b")
a100 = labcore.catalog.gpu("a100-80gb-sxm")

# %% [markdown]
# ## Part 1 · Two roofs
#
# *5 minutes*
#
# **Know.** A data sheet states peaks that no program reaches. The roofs that count are those one can reach:
# the best matrix product over a scan of shapes, the best way of reading memory. Each of them depends: on the
# number format, on the rows of the product, on how much memory is read.
#
# **Predict.** Reading main memory from one end to the other, on this machine.

# %%
bandwidth_guess = lab.predict(
    "06.1", "How many GB does this device read in a second?", unit="GB/s", low=0.1, high=20000, default=50
)

# %% [markdown]
# **Run.** The measurement takes some ten seconds. It is the fastest of several runs each, because
# disturbance only ever makes a run slower.

# %%
roofs, sheet = lab.measure_roofs()
lab.score("06.1", measured=roofs.read_bandwidth / 1e9)
lab.finding(lab.measured_roof_finding(roofs, sheet), lab.measured_roof_rows(roofs, sheet))

# %% [markdown]
# **See.** The steps in the first picture are caches. In the second one few rows leave the arithmetic units
# idle: that is where decode lives.

# %%
lab.show(
    lab.bandwidth_figure(roofs, sheet),
    "What is read again and again out of a cache comes sooner; weights do not fit one.",
    lab.size_rows(roofs),
)

# %%
lab.show(
    lab.rows_figure(roofs, sheet),
    "The thin lines are the roofs: the best over larger shapes.",
    lab.row_rows(roofs),
)

# %% [markdown]
# **Explain.** Where the roofs meet is the machine's **ridge**: the FLOP per byte at which arithmetic takes as
# long as memory. Below it an operation waits for bytes, and making the arithmetic faster changes nothing.
# From data sheets:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.gpu_rows())

# %% [markdown]
# *Proved on this machine:* its two roofs, today. *Not proved:* that they stay. Other programs share the
# memory; measure again before you compare.

# %% [markdown]
# ## Part 2 · Every operation on one picture
#
# *15 minutes*
#
# **Know.** A linear layer over $n$ rows reads its matrix once and uses it $n$ times: its FLOP per byte grow
# with the rows. Attention in decode reads every sequence's own cache: its FLOP per byte do not grow with the
# batch at all; they are the number of query heads that share a KV head.

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.intensity_rows())

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.critical_rows())

# %% [markdown]
# **Predict.** On this machine, in the model's own format.

# %%
own = str(subject.dtype).removeprefix("torch.")
tip_guess = lab.predict(
    "06.2",
    "From how many tokens a step do linear layers wait for arithmetic here?",
    unit="tokens",
    low=0.1,
    high=10000,
    default=100,
)

# %%
from labcore.perf import balance

lab.score("06.2", measured=balance.critical_batch(session.machine, own, own))

# %% [markdown]
# **Run.** Some decode steps and prompts of the shape are predicted from roofs and costs, then measured, with
# the roofs measured again between the steps. (Some twenty seconds.)

# %%
found = lab.predict_steps(
    subject,
    contexts=session.pick(quick=(64, 512, 2048), full=(64, 512, 2048, 8192)),
    batches=(1, 8),
    prompts=session.pick(quick=(128, 512), full=(128, 512, 2048)),
    repeats=session.pick(quick=7, full=11),
)

# %% [markdown]
# **See.** Squares are the operations of a prefill, circles those of a decode step, as large as their share of
# the step. Hollow diamonds are whole steps as predicted, stars the same steps as measured. Move the batch:
# the linear layers of decode walk to the right, attention stays where it is.

# %%
lab.roofline_explorer(
    session, subject.config, subject.name, lab.measured_points(found.rows, subject.config, own)
)

# %% [markdown]
# **Explain.** One picture holds most of what inference performance is about. Prefill lies right of the ridge
# and buys speed with arithmetic. Decode lies left of it and buys speed with fewer bytes: narrower weights,
# fewer KV heads, a shorter cache. Batching moves the linear layers to the right until they cross the ridge,
# and leaves attention behind. Longer contexts then make attention the larger part, and the whole step is
# bound by memory at any batch:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.wall_rows())

# %% [markdown]
# **Exercise 06.1** · ★★☆ · importance ●●● · 5 min. FLOP per byte of a linear layer.


# %%
@lab.attempt("06.1")
def intensity(rows, inputs, outputs, bytes_per_number):
    return lab.TODO


lab.check("06.1", intensity)

# %% [markdown]
# **Exercise 06.2** · ★★☆ · importance ●●● · 5 min. The batch that tips it.


# %%
@lab.attempt("06.2")
def critical_batch(peak_flops, bandwidth, bytes_per_weight):
    return lab.TODO


lab.check("06.2", critical_batch)

# %% [markdown]
# **Hunt 06.B** · 5 min. Costs of a linear layer, with one bug. At batch 1 hardly anyone would see it.

# %%
from labcore.perf.costs import OpCost
from labcore.perf.dtypes import bytes_per_element


@lab.hunt("06.B")
def linear_costs(inputs: int, outputs: int, rows: int, dtype: object = "float16") -> OpCost:
    """One linear layer over `rows` vectors: reads weights and inputs, writes outputs, all in one dtype."""
    size = bytes_per_element(dtype)
    return OpCost(
        name="linear",
        flops=2 * rows * inputs * outputs,
        weight_bytes=round(inputs * outputs * size),
        activation_bytes=round(rows * inputs * size),
    )


# %% [markdown]
# *Proved:* where each operation lies, by counting. *Not proved:* that kernels reach the roofs above them.
# That is the next part.

# %% [markdown]
# ## Part 3 · What the prediction misses
#
# *11 minutes*
#
# **Know.** A published estimator, the weights' bytes over the bandwidth and no more, promises 1.4 to 1.9
# times the tokens per second that servers reach. Between such a napkin and the clock lie three things:
# operations that the napkin leaves out, overhead, and kernels that stay below the roofs.
#
# **Predict.** The steps above, against the napkin at this machine's measured roofs.

# %%
parts = lab.split_residuals(found, subject.config)
single = next(one for one in parts if one.label.startswith("decode, 1"))
napkin_guess = lab.predict(
    "06.3",
    "How many times too fast is the napkin for one user's decode step here?",
    unit="×",
    low=0.3,
    high=20,
    default=1.0,
)

# %%
lab.score("06.3", measured=single.over)

# %% [markdown]
# **See.** First predicted and measured, misses included; then the split.

# %%
lab.finding(lab.prediction_finding(found), lab.prediction_rows(found))

# %%
lab.show(lab.residual_figure(parts), lab.residual_finding(parts), [one.row() for one in parts])

# %% [markdown]
# **Explain.** The overhead is measured on a thin twin: the same code and as many layers over next to nothing.
# What the real operations add to the napkin are activations, and arithmetic at few rows, which runs far below
# the roof of large products. What is left is the engine's own: a kernel that does not keep the memory busy.
# Negative numbers are real, too: a step may find things in a cache that the model of it reads from memory.
#
# The less a step reads, the more all that weighs. That holds for a GPU as well, and there more: its memory is
# fast, so that the rest has less time to hide in. One user's steps of two larger models, measured by this
# engine on a reference GPU and kept with the lab, beside yours:

# %%
beside = lab.step_beside(subject, found)
lab.show(lab.shares_figure(beside), beside.share_finding(), beside.rows())

# %% [markdown]
# **And lesson 1's guess.** There you were asked to keep one: how fast will this very shape serve one user?

# %%
if subject.name == "shape:smollm2-135m":
    out = labcore.generate(subject, [1] * 16, max_new_tokens=48, ignore_eos=True)
    first = next(row for row in found.rows if row.phase == "decode" and row.batch == 1)
    lab.score_guess(expected=1 / first.expected_s, measured=1 / out.tpot_s)

# %% [markdown]
# **Exercise 06.3** · ★★★ · importance ●●● · 7 min. One decode step on a napkin: every sequence's cache is
# read, then weights or arithmetic, whichever takes longer.


# %%
@lab.attempt("06.3")
def step_time(batch, context, kv_per_token, weight_bytes, parameters, peak_flops, bandwidth):
    return lab.TODO


lab.check("06.3", step_time)

# %% [markdown]
# Llama-2-7B on an A100, 1,024 tokens each, the last row at the wall; and Llama-2-13B over eight TPU v5e:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.step_rows_on_paper(llama, a100))

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.pod_rows())

# %% [markdown]
# *Proved on this machine:* how far costs and roofs foretell a step, and what the rest is made of. *Not
# proved:* the same for an engine whose kernels we have not measured.

# %% [markdown]
# ## Part 4 · How many at once
#
# *7 minutes*
#
# **Know.** Every further sequence of a batch shares the reading of the weights. So throughput grows with the
# batch, and latency grows less, until arithmetic or the caches take over, or memory is full: the **memory
# wall**.
#
# **Predict.** Llama-2-7B in fp16 on an A100 with 80 GB, 1,024 tokens each.

# %%
batch_guess = lab.predict(
    "06.4",
    "How many times the throughput of one sequence does the largest batch that fits reach?",
    unit="×",
    low=1,
    high=1000,
    default=50,
)

# %%
from labcore.perf import forecast

alone, *_, last = (row for row in forecast.pareto(llama, a100, context=1024, dtype="float16") if row.fits)
lab.score("06.4", measured=last.tokens_per_s / alone.tokens_per_s)

# %% [markdown]
# **See.** Each point is a batch. Red crosses lie beyond the wall: what it would do, were there memory. The
# second picture shows what the step is made of. Try a model with fewer KV heads, or this machine.

# %%
lab.tradeoff(session)

# %% [markdown]
# **Explain.** Up and to the left is better, and along the curve one is traded for the other: that is the
# choice a server makes when it picks its batch. Under a promise of 20 ms a token, the best batch is the
# largest that keeps it:

# %% tags=["keep_output", "nbval-check-output"]
promises = []
for ms in (10, 20, 40):
    best = forecast.best_batch(llama, a100, tpot_s=ms / 1e3, context=1024, dtype="float16")
    promises.append(
        {
            "promised (ms a token)": ms,
            "best batch": best.load.batch,
            "tok/s": round(best.tokens_per_s),
            "$ per million tokens": round(best.usd_per_million, 2),
        }
    )
lab.text_table(promises)

# %% [markdown]
# And asking for the impossible:

# %%
lab.expect_error(lambda: forecast.best_batch(llama, a100, tpot_s=0.001, context=1024))

# %% [markdown]
# **Exercise 06.4** · ★☆☆ · importance ●●● · 3 min. The wall.


# %%
@lab.attempt("06.4")
def largest_batch(memory, weight_bytes, kv_per_token, context):
    return lab.TODO


lab.check("06.4", largest_batch)

# %% [markdown]
# **Exercise 06.5** · ★☆☆ · importance ●●○ · 3 min. The price of a million output tokens.


# %%
@lab.attempt("06.5")
def usd_per_million(usd_per_hour, batch, step_seconds):
    return lab.TODO


lab.check("06.5", usd_per_million)

# %% [markdown]
# **Hunt 06.A** · 5 min. What a layer's cache keeps of a token, with one bug. For Llama-2-7B it is right.

# %%
from labcore.config import ModelConfig


@lab.hunt("06.A")
def kv_numbers_per_layer(config: ModelConfig) -> int:
    """Numbers one layer's cache keeps of a token: a key and a value per KV head; with MLA, its latent."""
    if config.latent is not None:
        return config.latent.kv_lora_rank + config.latent.qk_rope_head_dim
    return 2 * config.num_attention_heads * config.head_dim


# %% [markdown]
# *Proved on paper, from data sheets:* where the wall stands and what it costs. *Not proved:* that requests
# come in equal lengths and at once, as these batches do. Lesson 8 lets them come as they like.
#
# ## What you take along
#
# - FLOP per byte against the ridge says what an operation waits for.
# - Batching moves linear layers across the ridge; attention in decode never moves.
# - The memory wall, not arithmetic, usually ends the gain.
# - A prediction is worth as much as the list of what it leaves out. Split the residual.
#
# Lesson 7 makes the bytes fewer.

# %%
lab.finish()
