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
# # 1 · Meet the machine and the engine
#
# A language model answers one token at a time, and this notebook has one that does it on your machine. In
# forty minutes you will read the three numbers of any stream, see which work stands behind them, predict
# them for models and GPUs that you do not own, and find out how far such predictions can be trusted.
#
# Nothing here is canned: each number comes from an engine, a cost model or a measurement that runs when you
# run the cell. *Run → Run All Cells* works at any time; the boxes with a lock ask you to guess first, and
# are worth it.
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
from labcore import lab

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="01")
model = session.model

# %% [markdown]
# Here it is, writing. It knows nothing but small stories, each followed by questions about itself. Run the
# cell again with another beginning, such as `"One rainy morning,"`.

# %%
opening = lab.watch(model, "Once upon a time", temperature=0.7, seed=SEED, numbers=False)

# %% [markdown]
# ## Part 1 · Three numbers of a stream
#
# *10 minutes*
#
# **Know.** A user of a chatbot waits twice. First for anything at all: the **time to first token, TTFT**.
# Then for each further token: the mean of those gaps is the **time per output token, TPOT**. An answer of
# $n$ tokens has $n-1$ gaps, so
#
# $$\text{latency} = \text{TTFT} + (n-1)\cdot\text{TPOT}$$
#
# and its throughput is $n$ / latency, in tokens per second.
#
# **Predict.** You just watched the text come. How fast was it?

# %%
lab.predict("01.1", "How many tokens per second is that, for one user?", unit="tok/s", low=0.1, default=50)

# %% [markdown]
# **Run.** The same stream with its counters. The bars are its steps, one per token: the first in red, the
# others in blue, as high as they took long. The clock is the engine's; drawing is not counted.

# %%
reading = lab.watch(model, "Once upon a time", temperature=0.7, seed=SEED + 1)
lab.score("01.1", measured=reading.metrics.tokens_per_s)

# %% [markdown]
# **See.** Every step on its own:

# %%
lab.show_stream(reading)

# %% [markdown]
# **Explain.** The two sides of the equation above agree to the last digit, because TPOT is a mean and not a
# typical gap: single gaps (inter-token latencies, ITL) scatter around it, and the table's longest gap is
# what a user notices. One slow first token barely shows in the throughput of a long answer, and is all
# there is to a short one.
#
# Move the control: each position streams anew, five times, and shows each step's median. One of the two
# numbers follows the prompt, the other hardly does. Part 2 asks why.

# %%
lab.prompt_explorer()

# %% [markdown]
# The arithmetic, on numbers that are the same everywhere:

# %% tags=["keep_output", "nbval-check-output"]
from labcore.perf import predict

print(f"TTFT 0.3 s, TPOT 50 ms, 200 tokens: {predict.latency(0.3, 0.050, 200):.2f} s")
print(f"the same, 20 tokens:                {predict.latency(0.3, 0.050, 20):.2f} s")
print(f"TPOT 100 ms: {predict.tokens_per_second(0.100):.0f} tok/s")

# %% [markdown]
# **Exercise 01.1** · ★☆☆ · importance ●●● · 3 min. Write `latency`, in seconds.
#
# Here and below: `lab.hint("01.1")` gives a hint, a second call a stronger one; `lab.solution("01.1")`
# shows ours.


# %%
@lab.attempt("01.1")
def latency(ttft_s, tpot_s, n):
    return lab.TODO


lab.check("01.1", latency)

# %% [markdown]
# **Exercise 01.2** · ★☆☆ · importance ●●○ · 3 min. A dashboard shows TTFT 0.8 s and TPOT 40 ms for answers
# of 100 tokens. How many tokens per second does one user get, from pressing Enter to the last token?

# %%
user_throughput = lab.attempt("01.2", lab.TODO)

lab.check("01.2", user_throughput)

# %% [markdown]
# **Hunt 01.A** · 5 min. This is the function that computed the metrics above, copied from
# `labcore/lab/live.py` with one bug in it. Dashboards have shipped with this bug. Run the cell, read what
# it does wrong, mend it.


# %%
@lab.hunt("01.A")
def stream_metrics(step_seconds):
    n = len(step_seconds)
    ttft = step_seconds[0]
    latency = sum(step_seconds)
    tpot = latency / n if n > 1 else None
    return StreamMetrics(n, ttft, tpot, latency, n / latency)


# %% [markdown]
# *Proved on this machine:* a stream is described by TTFT and TPOT, and its latency follows from them
# exactly. *Not proved:* that one TPOT describes every gap. On a server that other people use it does not
# (lesson 8).

# %% [markdown]
# ## Part 2 · Two kinds of steps, and a map
#
# *4 minutes*
#
# **Know.** The first step is another kind of work than all later ones. **Prefill** takes the whole prompt
# at once, as a matrix of shape `(1, p)`, and gives token 1. Each **decode** step takes one token, shape
# `(1, 1)`, and gives the next; what came before is not computed again, its keys and values wait in the **KV
# cache**. So $n$ tokens take $n$ passes through the network: one prefill and $n-1$ decode steps.
#
# The engine's own record of one short answer says so:

# %% tags=["keep_output", "nbval-check-output"]
import labcore

prompt = [5, 6, 7, 8, 9, 10, 11, 12]
answer = labcore.generate(model, prompt, max_new_tokens=5, ignore_eos=True, trace=True)
lab.text_table(lab.trace_rows(answer.trace))

# %% [markdown]
# **Predict.** Behind a prompt of some hundred tokens, the first step does the work of hundreds of decode
# steps.

# %%
prompt_lengths = lab.prompt_lengths(model)
question = f"The prefill of {prompt_lengths[-1]} tokens takes how many times the time of a decode step?"
ratio = lab.predict("01.2", question, options=["1×", "3×", "10×", "30×", "100×", "400×"], default="100×")

# %% [markdown]
# **Run.** Streams of 24 tokens behind longer and longer prompts, five of each (some seconds):

# %%
readings = lab.read_prompts(model, prompt_lengths)
lab.score("01.2", measured=lab.first_step_ratio(readings), unit="×")

# %% [markdown]
# **See.** Both against the length of the prompt:

# %%
lab.show_two_clocks(readings, ratio)

# %% [markdown]
# **Explain.** Both kinds of steps read every weight of the model once. Decode does it for a single token;
# prefill shares it among all tokens of the prompt, which is why a prompt token costs a fraction of an
# output token. That difference (same bytes, different arithmetic) decides nearly everything in this lab.
# Here is the whole of it, filled with the numbers of your stream:

# %%
lab.show_map(reading)

# %% [markdown]
# Each lesson takes hold of one term. With $W$ the bytes of the weights, $B$ the sequences in a batch, $t$
# the tokens each has so far, $kv$ the cache bytes per token, $BW$ the memory bandwidth:
#
# $$\text{TPOT} \ge \frac{W + B\cdot t\cdot kv}{BW} \qquad\quad \text{throughput} = \frac{B}{\text{TPOT}}$$
#
# $W$ and $kv$ follow from a model's published shape:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(
    lab.catalogue_rows(["smollm2-135m", "llama-3.2-1b", "llama-2-7b", "llama-3-8b", "llama-2-70b"])
)

# %% [markdown]
# *Proved on this machine:* TTFT follows the prompt, TPOT nearly does not. *Not proved:* that decode waits
# for memory. So far that is a formula; parts 3 and 4 hold it against measurements.

# %% [markdown]
# ## Part 3 · A batch shares the step
#
# *11 minutes*
#
# **Know.** If a decode step spends its time on reading weights, a second user's token can ride along for
# little more: the weights are read once for both. Only the cache is each user's own.
#
# **Predict.**

# %%
batches = session.pick(quick=[1, 2, 4, 8, 16], full=[1, 2, 4, 8, 16, 32, 64])
question = f"From batch 1 to batch {batches[-1]}: the total throughput of this machine grows how much?"
gain = lab.predict("01.3", question, options=["1×", "2×", "4×", "8×", "16×", "32×"], default="16×")

# %% [markdown]
# **Run.**

# %%
points = lab.sweep_batch(model, batches)
lab.score("01.3", measured=lab.batch_factor(points), unit="×")

# %% [markdown]
# **See.** All users together on the left, each of them on the right:

# %%
lab.show_batches(points, gain)

# %% [markdown]
# **Explain.** The dotted line is a batch that costs nothing. The distance to it is paid by every user, as
# TPOT (on the right); where the curve bends, the step has begun to wait for arithmetic. On a GPU the bend
# comes later, because a GPU has far more arithmetic for each byte of bandwidth. Llama-2-7B on an A10 at its
# data sheet's rates, 512 tokens of context each:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.a10_rows())

# %% [markdown]
# 32 users instead of one: 1.6 times the TPOT, twenty times the tokens. Throughput is what a machine's rent
# is divided by:

# %% tags=["keep_output", "nbval-check-output"]
for tokens_per_s in (43.6, 870):
    price = predict.cost_per_million(1.0, tokens_per_s)
    print(f"$1 an hour at {tokens_per_s:>5} tok/s: ${price:.2f} per million tokens")

# %% [markdown]
# **Exercise 01.3** · ★☆☆ · importance ●●● · 3 min. Write that price.


# %%
@lab.attempt("01.3")
def cost_per_million(usd_per_hour, tokens_per_s):
    return lab.TODO


lab.check("01.3", cost_per_million)

# %% [markdown]
# What ends the ride is memory: every sequence in the batch keeps its cache there, beside the weights.
#
# **Exercise 01.4** · ★★☆ · importance ●●● · 5 min. How many sequences of `context` tokens fit?


# %%
@lab.attempt("01.4")
def largest_batch(memory_bytes, weight_bytes, kv_bytes_per_token, context):
    return lab.TODO


lab.check("01.4", largest_batch)

# %% [markdown]
# *Proved on this machine:* a batch raises throughput by less than its size, and each user pays in TPOT.
# *Not proved:* that users arrive in time to share a step. They do not, and lesson 8 is about that.

# %% [markdown]
# ## Part 4 · The napkin
#
# *14 minutes*
#
# **Know.** A step cannot end before its bytes are read and its arithmetic is done. Bytes over bandwidth and
# FLOPs over FLOP/s are the two **roofs**, and on the back of a napkin they bound any deployment from below.
# What your machine's roofs are is measured now, once (large copies and matrix products, a good number of
# seconds):

# %%
lab.show_roofs(session.roofs)
machine = session.machine

# %% [markdown]
# **Predict.** A bound says "not faster than". How much slower is the real engine?

# %%
question = "The TPOT of this model is how many times what the napkin allows on this machine?"
floor = lab.predict("01.4", question, options=["0.5×", "1×", "1.5×", "2×", "4×", "10×"], default="1.5×")

# %% [markdown]
# **Run, see.**

# %%
lab.score("01.4", measured=lab.floor_ratio(model, machine, readings[1]), unit="×")
lab.show_floor(model, machine, readings[1], floor)

# %% [markdown]
# **Explain.** A napkin is a lower bound, and it is told how good it is by a measurement, never the other
# way round. For a model as small as this one a step also pays for starting its operations; the larger the
# model, the closer its decode comes to the bound. Is that so? The same engine on a large GPU, measured once
# and kept with the lab; each row says where and when:

# %%
beside = lab.stream_beside(model, machine, readings[1])
lab.finding(beside.speed_finding(), beside.rows())

# %% [markdown]
# The simulator puts any catalogued model on any catalogued GPU, or on this machine as measured. Prices are
# list prices that the catalogue assumes; yours goes in as `lab.napkin(session, usd_per_hour=…)`. Three
# things to find: the batch at which Llama-2-7B stops fitting on the A10; the context at which its cache
# takes longer to read than its weights; what int4 does to TPOT at batch 1, and at batch 512 on an H100.

# %%
lab.napkin(session)

# %% [markdown]
# **Exercise 01.5** · ★★★ · importance ●●● · 8 min. Write the bound: seconds of a decode step in float16
# that waits for memory alone, given a `ModelConfig`. `labcore.perf.costs` has `weight_bytes(config)` and
# `kv_bytes_per_token(config)`.


# %%
@lab.attempt("01.5")
def decode_floor(config, batch, context, bandwidth):
    return lab.TODO


lab.check("01.5", decode_floor)

# %% [markdown]
# Asking for more than there is ends in a sentence, not in a crash:

# %% tags=["keep_output", "nbval-check-output"]
from labcore import catalog

a10, llama = catalog.gpu("a10"), catalog.architecture("llama-2-7b")
for batch in (1, 32, 40):
    plan = predict.napkin(llama, a10, batch=batch, context=512)
    print(
        f"batch {batch:>2}: {'fits' if plan.fits else 'does not fit'}, {plan.free_bytes / 1e9:+.2f} GB left, "
        f"largest batch {plan.max_batch}"
    )

# %% [markdown]
# **One guess to keep.** SmolLM2-135M has 134.5 million parameters; this lab can run its shape with random
# weights, which tells its speed though not its stories. Lesson 6 measures it here, and scores what you lock
# now. The napkin above may be used.

# %%
question = "How many tokens per second will shape:smollm2-135m stream on this machine, for one user?"
lab.predict("01.5", question, unit="tok/s", low=0.01, default=20)

# %% [markdown]
# *Proved on this machine:* the napkin's bound, and the distance of this engine from it. *Not proved:*
# anything about a GPU that is not here. Its rows come from data sheets, and lesson 6 shows how much of a
# data sheet can be had.

# %%
lab.finish()
