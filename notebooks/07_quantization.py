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
# # 7 · Shrink all the things: quantization
#
# A decode step reads every weight once and does next to nothing with it. So the cheapest speed there is
# lies in making the weights smaller: 8 bits instead of 32, or 4, or 3. This lesson shrinks a trained
# model in ten ways and measures all three things that count each time: **size, speed and error**. You
# will see where the bytes turn into speed, where they do not, and what one large number can break.
#
# | part | question | minutes |
# |---|---|---|
# | 1 | What is lost by rounding? | 15 |
# | 2 | What does careful rounding save? | 7 |
# | 3 | What does one large number break? | 10 |
# | 4 | Fewer bytes: faster? | 8 |
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

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="07")
# Error is measured on text that the model knows: the embedded one, whatever MODEL is, in full precision.
teller = labcore.load("story", device=session.device, dtype="float32")
# Speed is measured on a published shape with random weights, which are as fast as trained ones.
SHAPE = "shape:smollm2-135m" if MODEL == "story" else MODEL
subject = session.model if MODEL == SHAPE else labcore.load(SHAPE, device=session.device)

# %% [markdown]
# ## Part 1 · A grid over the weights
#
# *15 minutes*
#
# **Know.** Quantizing lays a grid over numbers and keeps, for each of them, the number of the nearest line.
# With $b$ bits there are $2^b$ lines. What stretches the grid is its **scale**; whatever shares a scale
# shares the worst of its members: one large weight, and the lines lie far apart for all.
#
# What a computer keeps of one number, bit by bit, in the formats that inference uses:

# %%
lab.bit_explorer()

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.bit_rows_of(0.1))

# %% [markdown]
# Floats put their lines close to zero, integers put them evenly, and NF4 puts them where numbers of a
# normal distribution are.

# %%
lab.show(lab.levels_figure(), lab.level_finding(), lab.level_rows())

# %% [markdown]
# **Predict.** The error of rounding is told in decibels: SQNR, the power of the numbers over that of the
# error. 20 dB is an error of a tenth of the size, 40 dB of a hundredth.

# %%
bit_guess = lab.predict(
    "07.1",
    "How many dB does one more bit bring?",
    options={"3 dB": 3.0, "6 dB": 6.0, "10 dB": 10.0, "it depends on the numbers": None},
    default="3 dB",
)

# %% [markdown]
# **Run.** Numbers that fill their range evenly, on even grids of 2 to 8 bits. An error is anywhere between
# half a step below and half a step above, which makes $\Delta^2/12$ on average:

# %% tags=["keep_output", "nbval-check-output"]
bits = lab.bit_rows()
lab.text_table(bits)

# %%
first, last = (float(row["SNR (dB)"]) for row in (bits[0], bits[-1]))
lab.score("07.1", measured=(last - first) / (bits[-1]["bits"] - bits[0]["bits"]))

# %% [markdown]
# **See.** Now real weights. Grey is the histogram of a matrix, the lines are the grid of the row that
# holds its largest weight. Make the scales coarser, plant some outliers, ask for a zero point; the table
# shows all three granularities of the same format side by side.

# %%
lab.quantizer_microscope(session)

# %% [markdown]
# **Explain.** Weights are nearly normal, and the largest of $n$ normal numbers grows with $n$. So the more
# numbers share a scale, the farther apart the lines, at the same bits. On 16 million normal numbers:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.snr_rows())

# %% [markdown]
# Groups buy some of the dB that bits buy, and are paid in scales. What a weight really takes:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.effective_rows())

# %% [markdown]
# And why one large number is a disaster for its neighbours. Four numbers with one scale, then two scales:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.absmax_rows())

# %% [markdown]
# **Exercise 07.1** · ★☆☆ · importance ●●● · 3 min. What a weight takes with its share of scale and zero
# point.


# %%
@lab.attempt("07.1")
def effective_bits(bits, group, scale_bits, zero_bits):
    return lab.TODO


lab.check("07.1", effective_bits)

# %% [markdown]
# **Exercise 07.2** · ★★☆ · importance ●●● · 5 min. Round a vector `x` to signed codes of so many bits: the
# largest magnitude lies on the last code. Return the codes.


# %%
@lab.attempt("07.2")
def absmax(x, bits):
    return lab.TODO


lab.check("07.2", absmax)

# %% [markdown]
# **Exercise 07.3** · ★★☆ · importance ●●○ · 8 min. The same with a zero point, for numbers that lie to one
# side: codes from 0 to `2**bits - 1`. Return `(codes, scale, zero)`; `zero` is the code that stands for 0.


# %%
@lab.attempt("07.3")
def with_zero_point(x, bits):
    return lab.TODO


lab.check("07.3", with_zero_point)

# %% [markdown]
# **Hunt 07.A** · 6 min. What reads codes back into weights, with one bug. On many models nobody notices at
# first, because it raises nothing: the output is only wrong.

# %%
from torch import Tensor


@lab.hunt("07.A")
def apply_grid(q: Tensor, scale: Tensor, zero: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """scale * (q - zero) + offset. q: (rows, columns) fp32; the others: (rows or 1, groups)."""
    groups = scale.shape[1]
    grouped = q.unflatten(1, (groups, -1))  # (rows, groups, columns that share a scale)
    if zero is not None:
        grouped = grouped - zero.float()[..., None]
    grouped = grouped * scale.float().T[None]
    if offset is not None:
        grouped = grouped + offset.float()[..., None]
    return grouped.flatten(1)


# %% [markdown]
# *Proved:* what rounding does to numbers, to the decibel. *Not proved:* what that does to text. A model may
# shrug at an error of 10 %, or break at 1 %.

# %% [markdown]
# ## Part 2 · Rounding with care
#
# *7 minutes*
#
# **Know.** Rounding to nearest looks at weights one by one. Better methods look at what the weights will
# **meet**: a few dozen texts go through the model once, and each layer sees which of its inputs are large
# and which move together. GPTQ lets later columns make up for the error of earlier ones; AWQ gives
# columns that meet large inputs finer steps. The codes take just as many bits.
#
# **Predict.** This model, groups of 64, 3 bits instead of 32.

# %%
rtn_guess = lab.predict(
    "07.2",
    "By how many percent does rounding to nearest at 3 bits raise the perplexity?",
    unit="%",
    low=0.01,
    high=100000,
    default=5,
)

# %% [markdown]
# **Run.** Each recipe on a fresh copy of the model, then held-out stories and questions. Everything is
# computed by definition here, without the fast paths' own rounding. (About half a minute.)

# %%
texts = lab.calibration_texts(session.pick(quick=16, full=48))
methods = lab.weigh_methods(
    teller,
    stories=session.pick(quick=16, full=100),
    questions=session.pick(quick=24, full=200),
    calibration=texts,
    seed=SEED,
)
lab.score("07.2", measured=100 * methods.of("rtn", 3).change.value)

# %% [markdown]
# **See.** Up is farther from the model that it was; the numbers are bits. KL is the most sensitive of the
# three measures: it compares the whole prediction, perplexity only the part that fell on the right token,
# and recall only whether the first place changed hands.

# %%
lab.show(lab.methods_figure(methods), methods.finding(), methods.rows())

# %% [markdown]
# The same methods layer by layer. Press through them: bars are the method's, black lines are rounding to
# nearest at as many bits.

# %%
lab.methods_explorer(methods)

# %% [markdown]
# Published results for a model two thousand times as large, beside ours. Compare the order rather than the
# sizes: another model, other texts, other groups.

# %%
lab.show(lab.published_figure(methods), lab.order_finding(methods, 3), lab.published_methods(methods))

# %% [markdown]
# Is the gap at 4 bits real, too? Perplexity on so few texts hardly tells; KL, which looks at the whole
# prediction, needs fewer:

# %%
lab.finding(lab.order_finding(methods, 4))

# %% [markdown]
# **Explain.** Not all layers are alike. Rounding one at a time, all others in full precision, shows which
# ones a careful engineer leaves in more bits:

# %%
scanned = lab.scan(teller, "int3:group=64", stories=session.pick(quick=4, full=16), seed=SEED)
lab.show(lab.sensitivity_figure(scanned, "int3"), lab.scan_finding(scanned, "int3"), lab.scan_rows(scanned))

# %% [markdown]
# That is why labcore's recipes keep the head in 8 bits unless they are told otherwise (`head=same`).
#
# **Exercise 07.6** · ★★★ · importance ●●○ · 10 min. One step of GPTQ. Column `j` of `weight` (rows,
# columns) has been rounded to `quantized_column`; `upper` is the upper Cholesky factor of the inverse
# Hessian. Return the whole matrix: column `j` rounded, the columns after it corrected.


# %%
@lab.attempt("07.6")
def push_on(weight, quantized_column, j, upper):
    return lab.TODO


lab.check("07.6", push_on)

# %% [markdown]
# *Proved on this model:* what a look at the inputs is worth at 3 bits. *Not proved:* that GPTQ or
# AWQ is the better of the two. That changes with the model, the bits and the calibration texts.

# %% [markdown]
# ## Part 3 · The outlier
#
# *10 minutes*
#
# **Know.** To multiply in 8 bits, activations have to be rounded too. From some billion parameters on,
# models grow a few channels whose activations are a hundred times as large as all others: outliers. Ours
# is too small to have any, so we **plant** some: a norm's weight times 100 in four channels, the matrices
# that read them divided by 100. In full precision that changes nothing:

# %%
planted = lab.plant(teller, channels=4, factor=100, seed=SEED)
lab.finding(planted.finding())

# %% [markdown]
# **Predict.** Naive W8A8 rounds each token's activations by its largest number.

# %%
naive_guess = lab.predict(
    "07.3",
    "What perplexity does the planted twin have under naive W8A8? (Full precision: about 1.6)",
    low=1,
    high=1e6,
    default=2,
)

# %%
from labcore.lab import planted as outliers

broken = lab.weigh_methods(
    planted.model,
    outliers.RECIPES,
    stories=session.pick(quick=8, full=64),
    questions=0,
    calibration=texts,
    seed=SEED,
)
lab.score("07.3", measured=broken.of("w8a8", 8).quality.perplexity.value)

# %%
lab.finding(lab.outlier_finding(broken), lab.outlier_rows(broken))

# %% [markdown]
# Beside what was published for a model of 175 billion parameters, which grew its outliers by itself (there
# with one scale for all tokens):

# %%
lab.finding(lab.published_finding(broken), lab.published_outliers(broken))

# %% [markdown]
# **See.** SmoothQuant divides each input channel by a factor and multiplies the weights by it, so that both
# sides share the trouble; `alpha` says how much of it the weights take. Too little and activations stay
# rough, too much and the weights get what they had. Over the whole twin, at the coarsest of its levels:

# %%
curve = lab.alpha_sweep(planted, stories=session.pick(quick=6, full=32), calibration=texts)
lab.show(lab.curve_figure(curve), curve.finding(), curve.rows())

# %% [markdown]
# And one layer at a time, with outliers as large as you like, over weights as they are. AWQ searches a
# power in the same way, for 4-bit weights. Without outliers (× 1) there is little to search for.

# %%
lab.outlier_explorer(lab.layer_inputs(teller, planted.channels, texts))

# %% [markdown]
# **Explain.** Three ways out, and each has its place. Move the difficulty (SmoothQuant), multiply the few
# channels apart (LLM.int8(), which leaves attention and the cache alone), or do not round activations at
# all (weight-only: `int8` in the table above). And note what the twin gives away about perplexity tests
# on small models: the same recipe is harmless on one model and ruinous on another that computes the very
# same function.
#
# **Exercise 07.4** · ★★☆ · importance ●●● · 5 min. SmoothQuant's factors, one for each input channel.
# `act_absmax` (columns,) is the largest magnitude of each input, `weight` is (outputs, columns).


# %%
@lab.attempt("07.4")
def smooth(act_absmax, weight, alpha):
    return lab.TODO


lab.check("07.4", smooth)

# %% [markdown]
# *Proved:* outliers break W8A8 and these methods undo it, on a model whose outliers we planted. *Not
# proved:* that a large model's own are as tidy: there they also differ from token to token.

# %% [markdown]
# ## Part 4 · Fewer bytes: faster?
#
# *8 minutes*
#
# **Know.** Decode waits for weights to arrive, so fewer bytes are fewer milliseconds, if the kernel that
# turns codes back into numbers keeps up. Prefill and large batches wait for arithmetic: narrower weights
# help there only if the **multiplication** itself gets cheaper, as in int8. And the cache is as large as
# before.
#
# **Predict.** The shape of SmolLM2-135M, one sequence, 4-bit weights against full precision.

# %%
speed_guess = lab.predict(
    "07.4",
    "How many times as fast is decode at batch 1 with 4-bit weights?",
    unit="×",
    low=0.01,
    high=100,
    default=2.0,
)
prefill_guess = lab.predict(
    "07.5",
    "And the prefill of a prompt?",
    unit="×",
    low=0.01,
    high=100,
    default=1.0,
)

# %% [markdown]
# **Run.** Full precision, int8 and int4, in turns, as the engine serves them. (Half a minute.)

# %%
ways = lab.weigh_weights(
    subject,
    batches=(1, 8, 32),
    prompt=session.pick(quick=256, full=512),
    repeats=session.pick(quick=3, full=7),
)
lab.score("07.4", measured=ways.gain(2, "decode, batch 1"))
lab.score("07.5", measured=ways.gain(2, "prefill"))

# %% [markdown]
# **See.** Size, speed and error. The last two columns tell errors apart: logits of the shape's random
# weights, which have nothing to spare and show the most that rounding can do, and text of the embedded
# model, trained.

# %%
lab.show(lab.three_ways_figure(ways), lab.three_finding(ways, methods), lab.three_rows(ways, methods))

# %% [markdown]
# **Explain.** Why does it come out so? One product alone, from one token to 512, by the path that the
# engine chose on this machine (`labcore doctor --kernels` shows all of them):

# %%
from labcore.quant.choice import side

products = lab.time_products(session.device)
width = side(session.device)
lab.show(
    lab.products_figure(products, width), lab.product_finding(products, width), lab.product_rows(products)
)

# %% [markdown]
# Formats that no kernel reads are turned back into full precision first, all of them, at every step: they
# save memory and cost time. A smaller file is no promise of speed. And a cheap trick hides in the fast
# ones: the CPU kernels multiply integers, so they round the activations too, in groups of up to 192, and
# in two halves where one number of a group dwarfs the rest. That is how the outliers of part 3 pass.
#
# How much hangs on the kernel is plain where memory is so fast that what is done to each code takes as long
# as reading it. So it is on a reference GPU, measured once and kept with the lab, here beside your machine.
# Each gain is over the same model in full precision on the same device:

# %%
beside = lab.weights_beside(subject, ways)
lab.show(lab.weight_gains_figure(beside), beside.finding(), beside.rows())

# %% [markdown]
# What bytes alone would promise on a GPU, Llama-2-7B on an A100 with 1,024 tokens a sequence. A quarter of
# the weights is never a quarter of the step, and with the batch the cache takes over:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.golden_steps())

# %% [markdown]
# The cache shrinks by a choice of its own (lesson 4), and both go together. Bytes of real tensors:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.cache_rows(teller, ("int8", "int4"), ("contiguous", "int8", "kivi2")))

# %% [markdown]
# **Exercise 07.5** · ★★☆ · importance ●●○ · 5 min. The ideal decode step in seconds with weights of so many
# effective `bits`; arithmetic runs at `peak_flops` whatever the bits, and caches stay as they are.


# %%
@lab.attempt("07.5")
def step_time(batch, context, kv_per_token, parameters, bits, peak_flops, bandwidth):
    return lab.TODO


lab.check("07.5", step_time)

# %% [markdown]
# **Hunt 07.B** · 6 min. Two 4-bit codes lie in each byte, four 2-bit ones, and this unpacks them, with
# one bug.

# %%
import torch


@lab.hunt("07.B")
def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    if bits == 8:
        return packed
    if bits == 3:
        low, high = packed.tensor_split((packed.shape[-1] * 2 // 3,), dim=-1)
        return unpack(low, 2) | unpack(high, 1) << 2
    mask = 2**bits - 1
    return torch.cat([(packed >> (bits * place)) & mask for place in reversed(range(8 // bits))], dim=-1)


# %% [markdown]
# What labcore refuses, before it has touched a single layer:

# %%
lab.expect_error(lambda: labcore.quantize(teller, "int4:group=100"))
lab.expect_error(lambda: labcore.quantize(teller, "gptq-int4", calibration=["Too short."]))

# %% [markdown]
# *Proved on this machine:* how much of the saved bytes became speed, where, and at what price in text.
# *Not proved:* the same for another machine. Which path is fastest is decided by the chip, which is why
# the engine measures it at the start.
#
# ## What you take along
#
# - A bit is 6 dB; a scale of its own is worth one or two, and is paid in bits.
# - 8 bits are nearly free. At 4 and below, what the weights meet decides how to round them.
# - Outliers break activations, not weights. Move them, split them, or leave activations alone.
# - Speed comes from kernels, not from files; and the cache does not shrink with the weights.
#
# Lesson 8 serves all this to many users at once.

# %%
lab.finish()
