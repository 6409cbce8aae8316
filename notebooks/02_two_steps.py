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
# # 2 · The two-step process behind a response
#
# The first word of an answer comes late, then the words come evenly. Behind that rhythm are two kinds of
# work that want two different things from a machine. In forty minutes you will step through a generation
# as in a debugger, measure both kinds of work against what this machine can do, take away what separates
# them, and choose tokens from real logits by hand.
#
# | part | question | minutes |
# |---|---|---|
# | 1 | What goes into the network, and what comes out? | 13 |
# | 2 | Why is the first token late? | 17 |
# | 3 | What makes the two phases different? | 4 |
# | 4 | Who chooses the next token? | 6 |
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
import torch
from labcore import lab
from labcore.generation import SamplingParams, TraceOptions

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="02")
model = session.model
opening = "Once upon a time a girl called Mia Holm lived in a small village. She had a red"
prompt = lab.prompt_for(model, opening)

# %% [markdown]
# ## Part 1 · One pass, one token
#
# *13 minutes*
#
# **Know.** The network does one thing: a row of tokens goes in, and for the token that would come next, a
# score for every word of its vocabulary comes out (a *logit* each). Generation is that thing in a loop.
# **Prefill** feeds the whole prompt in one pass. Each **decode** step feeds one token, the newest, because
# the keys and values of all earlier ones wait in the **KV cache**.
#
# ```text
# prefill   Once upon a time a girl  ─▶  called     input (1, p)
# decode                     called  ─▶  Mia        input (1, 1)
# decode                        Mia  ─▶  Holm       input (1, 1)
# ```
#
# **Predict.** You ask for 16 new tokens.

# %%
passes = lab.predict(
    "02.1",
    "How many times does the whole network run to write 16 tokens behind a prompt?",
    options=["15", "16", "17", "32"],
    default="17",
)

# %% [markdown]
# **Run.** A generation that records everything: each step's input, logits, time, and the attention of every
# head.

# %%
out = labcore.generate(
    model, prompt, max_new_tokens=16, ignore_eos=True, trace=TraceOptions(attention="all")
)
print(out.text)
lab.score("02.1", measured=len(out.trace.steps), unit="passes")

# %% [markdown]
# **See.** Walk through it with *Next*, *Previous* or the slider. In the row of tokens, what is framed in
# blue was fed in this step, dotted tokens were not computed again, and the dashed green one is what the step
# chose. In the attention map grey means *not computed in this step*. At step 0 a whole triangle is
# computed; from step 1 on, one row.

# %%
lab.debugger(model, out.trace)

# %% [markdown]
# **Explain.** The answer to the prediction is in the first picture: the prefill already ends in the
# logits of a new token. So *n* tokens take *n* passes, one prefill and *n* − 1 decode steps, and the last
# token is never fed to anything. The table says what a pass costs: compare FLOP per byte of the prefill
# with that of a decode step. Both read every weight; only one of them has much to do with it.
#
# Then go through the heads. Some spend most of their weight on the first token, whatever the text. Others
# look straight back at a word that they help to copy: find the step that chooses a word of the prompt
# again, and a head that looks at it.
#
# The bookkeeping does not depend on what the model knows. For any prompt of 8 tokens and 3 new ones:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.step_rows(lab.traced(model, prompt=8, new=3)))

# %% [markdown]
# **Exercise 02.1** · ★★☆ · importance ●●● · 8 min. Write the loop. `prefill(model, tokens, cache)` and
# `decode_step(model, tokens, cache)` both return logits of shape `(1, vocab)`; `tokens` is `(1, t)`, *all*
# tokens known so far, and the step feeds those that the cache does not hold. Take the best token each time.
#
# Here and below: `lab.hint("02.1")` gives a hint, a second call a stronger one; `lab.solution("02.1")`
# shows ours.


# %%
from labcore.generation import decode_step, prefill  # noqa: F401


@lab.attempt("02.1")
def write(model, tokens, n, cache):
    """A list of n token ids that follow `tokens`, (1, p)."""
    return lab.TODO


lab.check("02.1", write)

# %% [markdown]
# *Proved:* a response of *n* tokens is *n* passes of the same network, the first one over the whole prompt.
# *Not proved:* that the first pass takes long. That is the next part.

# %% [markdown]
# ## Part 2 · Why the first token is late
#
# *17 minutes*
#
# **Know.** The prompt goes through the network at once, as a matrix; each later token alone, as a vector.
# Either way every weight is read once. A matrix product over 256 rows does 256 times the arithmetic of one
# over a single row, on the same weights.
#
# **Predict.** A prompt of 16 tokens takes this machine some time *T*.

# %%
growth = lab.predict(
    "02.2",
    "How long does a prompt of 256 tokens take, in multiples of what 16 tokens take?",
    options=["1×", "2×", "4×", "8×", "16×"],
    default="16×",
)

# %% [markdown]
# **Run.** Five repeats at each length after two to warm up. The first use on a machine measures its two
# roofs before that: the fastest matrix product and the fastest reading of memory that it manages.

# %%
lengths = session.pick(quick=[16, 32, 64, 128, 256], full=[16, 32, 64, 128, 256, 448])
reading = lab.sweep_prefill(model, prompt_lengths=lengths, roofs=session.roofs)
lab.score("02.2", measured=reading.at(256).seconds / reading.at(16).seconds, unit="×")

# %% [markdown]
# **See.** The grey band is what the two roofs allow: its lower edge if arithmetic and memory traffic
# overlap fully, its upper edge if not at all. The dashed line is where the points would lie if time were
# proportional to tokens.

# %%
lab.show(lab.sweep_figure(reading, predicted=growth.number), reading.finding(), reading.rows())

# %% [markdown]
# Now the other phase: as many tokens *written*, one decode step each, behind a prompt of 16.

# %%
lengths = session.pick(quick=[16, 32, 64, 128], full=[16, 32, 64, 128, 256, 448])
writing = lab.sweep_decode(model, output_lengths=lengths, roofs=session.roofs)
lab.show(lab.both_phases_figure(reading, writing), writing.finding(), writing.rows())

# %%
lab.show(
    lab.phase_shares(reading, writing),
    lab.phases_finding(reading, writing),
    lab.phases_rows(reading, writing),
)

# %% [markdown]
# **Explain.** The sentence above is the whole point: as many positions, the same weights, about as many
# FLOPs, and two very different times. Prefill reads a weight once and uses it for every position of the
# prompt; decode reads it again for every token. What lies above the band is neither arithmetic nor
# traffic; lesson 5 finds out what it is.
#
# Move the controls. Each picture is computed, from the cost model and a machine's two roofs: a pass over
# few tokens waits for bytes, one over many for arithmetic. Follow the crossing from this lesson's model
# to Llama-2-7B, from this machine to an H100, from float16 to int8.

# %%
lab.crossing_explorer(session)

# %% [markdown]
# Counted for a model that you have heard of, in float16: reading a prompt of 512 tokens, and writing the
# next.

# %% tags=["keep_output", "nbval-check-output"]
llama = labcore.catalog.architecture("llama-2-7b")
lab.text_table(lab.cost_rows(llama, prompt=512))

# %% [markdown]
# **Exercise 02.2** · ★★☆ · importance ●●● · 6 min. Write `prefill_flops(config, n)`: the FLOPs of all
# linear layers for a prompt of `n` tokens. Leave the attention scores out; the head computes logits for
# the last position alone. Field names are Hugging Face's: `hidden_size`, `num_attention_heads`,
# `num_key_value_heads`, `head_dim`, `intermediate_size`, `num_hidden_layers`, `vocab_size`.


# %%
@lab.attempt("02.2")
def prefill_flops(config, n):
    return lab.TODO


lab.check("02.2", prefill_flops)

# %% [markdown]
# **Exercise 02.3** · ★★☆ · importance ●●● · 5 min. Suppose weights were all the bytes that a pass reads.
# From how many positions on does their arithmetic take longer than reading them? The explorer prints this
# number too, as "were weights the only bytes".


# %%
@lab.attempt("02.3")
def crossing(peak_flops, bandwidth, bytes_per_weight):
    """peak_flops in FLOP/s, bandwidth in bytes/s, bytes_per_weight such as 2 for float16."""
    return lab.TODO


lab.check("02.3", crossing)

# %% [markdown]
# By their data sheets, in float16:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.crossing_rows(["a10", "l4", "a100-80gb-sxm", "h100-sxm", "h200-sxm"]))

# %% [markdown]
# *Proved on this machine:* a longer prompt makes better use of the arithmetic units, and writing a text
# costs far more time than reading it. *Not proved:* that a GPU turns exactly where its data sheet says.
# Lesson 6 measures both roofs and puts every operation under them.

# %% [markdown]
# ## Part 3 · The cache is what splits them
#
# *4 minutes*
#
# **Know.** Nothing in the network knows of phases. Each step computes the positions that the cache does not
# hold. With a cache that is the prompt once and one position ever after. With none it is everything, every
# time: pass *i* (from 0) is fed *p* + *i* positions, which makes
#
# $$n p + \frac{n(n-1)}{2} \quad\text{positions without a cache,}\qquad p + n - 1 \quad\text{with one.}$$
#
# **Predict.** A prompt of 16 tokens, 48 new ones.

# %%
slower = lab.predict(
    "02.3",
    "How many times as long does writing the 48 tokens take with the cache switched off?",
    unit="×",
    low=0.1,
    high=10_000,
    default=10,
)

# %% [markdown]
# **Run.** Both ways in turns, five times, the same tokens.

# %%
runs = lab.compare_caches(model, prompt_length=16, new_tokens=48)
lab.score("02.3", measured=runs.ratio)

# %% [markdown]
# **See.** Left is what each step was fed, right is how long it took.

# %%
lab.show(lab.caches_figure(runs), runs.finding(), runs.rows())

# %% [markdown]
# And the last step under the magnifying glass. One text of 256 tokens, one next token, three ways to get
# it:

# %%
ways = lab.same_work(model, length=256, roofs=session.roofs)
lab.show(lab.same_work_figure(ways), lab.same_work_finding(ways), [way.row() for way in ways])

# %% [markdown]
# **Explain.** Without a cache a decode step *is* a prefill: same input shape, same FLOPs, and the same
# time as far as the error bars tell. The two phases are not two algorithms; they are what is left of one
# loop once it remembers. Note that the time ratio is smaller than the ratio of the work: recomputing at
# least keeps the arithmetic units busy, and a step has costs that no cache removes. What the cache itself
# costs is the subject of lessons 3 and 4.
#
# In fairness: on a CPU this engine runs a step of one token per sequence through C kernels of its own, and
# a longer one through PyTorch. Set `model.transformer.fast = False`, run the part again, and both take the
# same road: decode becomes slower, and the finding stays.
#
# The formulas, against what the engine's traces counted. The last row has its formula only: without a cache
# it would take minutes.

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.count_positions(model, [(8, 3), (10, 50), (512, 512)]))

# %% [markdown]
# **Exercise 02.4** · ★☆☆ · importance ●●○ · 4 min. Count them yourself.


# %%
@lab.attempt("02.4")
def positions(p, n, cached):
    return lab.TODO


lab.check("02.4", positions)

# %% [markdown]
# **Hunt 02.A** · 6 min. A cache has to say *where* in the text the next token stands. This is
# `KVCache.begin` with one bug in it: no error, no strange shapes, and text that looks almost right. The
# check compares its logits with one pass over everything. Run the cell, read the positions, mend it.

# %%
from torch import Tensor


@lab.hunt("02.A")
def begin(self, n: int) -> Tensor:
    """Positions (B or 1, n) of the next n tokens. Raises CacheFull, with nothing changed."""
    if self.capacity is not None and self._length + n > self.capacity:
        raise CacheFull(
            f"The {self.kind} cache holds {self._length} of {self.capacity} positions and cannot take "
            f"{n} more; create it with a capacity of at least {self._length + n}."
        )
    self._announce(n)
    start = self._length + 1 if self._length else 0
    slots = torch.arange(start, start + n, device=self.device)[None]
    return slots if self.padding is None else (slots - self.padding[:, None]).clamp_min(0)


# %% [markdown]
# *Proved on this machine:* switch the cache off, and prefill and decode become the same work. *Not proved:*
# that both ways give the same logits in 16-bit numbers. Lesson 3 proves it in 32-bit, and shows what makes
# caching legal at all.

# %% [markdown]
# ## Part 4 · Which token next
#
# *6 minutes*
#
# **Know.** The network ends in logits. Choosing is ours, and costs next to nothing. **Greedy** takes the
# best. **Sampling** draws: divide the logits by a *temperature*, turn them into probabilities, then cut
# the tail: *top-k* keeps the k best, *top-p* the smallest set of best tokens that holds p. A *repetition
# penalty* weakens tokens that the text already has. On three logits, 2, 1 and 0, the engine's own
# functions give:

# %% tags=["keep_output", "nbval-check-output"]
settings = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=2.0, top_p=0.9),
]
lab.text_table(lab.golden_rows(settings))

# %% [markdown]
# Are they drawn that often? Four thousand draws:

# %%
lab.table(lab.drawn_rows(SamplingParams(temperature=1.0, seed=SEED)))

# %% [markdown]
# **Predict.** Now real logits, of the step of Part 1 at which this model was least certain.

# %%
step = lab.least_certain(out.trace)
kept = lab.predict(
    "02.4",
    f"Of the {model.config.vocab_size:,} tokens, how many hold 90 % of the probability at that step?",
    unit="tokens",
    low=1,
    high=model.config.vocab_size,
    default=50,
)

# %% [markdown]
# **Run.**

# %%
left = lab.survivors(out.trace.steps[step], temperature=1.0, top_p=0.9)
lab.score("02.4", measured=left)

# %% [markdown]
# **See.** The grey bars are the model's own probabilities, crossed out where the settings cut a token;
# the blue ones are what is drawn from. Raise the temperature and watch the number of tokens that top-p
# keeps grow with it.

# %%
lab.sampling_explorer(model, out.trace, step=step)

# %% [markdown]
# Greedy is best at each step, and need not be best over a text. **Beam search** keeps several beginnings
# alive and returns the likeliest whole; each of its steps decodes a small batch. The same prompt, five
# ways; the log-probability is what the model itself gives to each text:

# %%
texts = lab.compare_decoding(
    model,
    prompt,
    {
        "greedy": {},
        "beam search": {"num_beams": 4},
        "temperature 0.7": {"temperature": 0.7, "seed": SEED},
        "temperature 1, top-p 0.9": {"temperature": 1.0, "top_p": 0.9, "seed": SEED},
        "temperature 2": {"temperature": 2.0, "seed": SEED},
    },
)
lab.finding(lab.decoding_finding(texts))
lab.table(texts)

# %% [markdown]
# **Explain.** Temperature changes how much is cut, because top-p adds up probabilities *at that
# temperature*: in the kept table above, top-p 0.9 keeps two of three tokens at temperature 1 and all
# three at temperature 2. Beam search spends more compute per token to find text that the model finds
# likelier, which is what a translator wants, and not what a storyteller wants: likely text is dull text.
#
# **Exercise 02.5** · ★★☆ · importance ●●○ · 6 min. Which tokens does top-p keep at this temperature? Return
# their ids, likeliest first.


# %%
@lab.attempt("02.5")
def nucleus(logits, temperature, p):
    """logits: a tensor of shape (vocab,). Returns a list of ids."""
    return lab.TODO


lab.check("02.5", nucleus)

# %% [markdown]
# **Hunt 02.B** · 6 min. The engine's `process_logits` with one bug: users say that text is oddly tame at
# high temperature, and oddly wild at low. Run the cell, read which cut fails, mend it. (llama.cpp's
# default chain works in this order on purpose. Here the settings promise the order of vLLM and
# transformers, so it is a bug.)

# %%
from labcore.generation import SamplingParams
from torch import Tensor


@lab.hunt("02.B")
def process_logits(logits: Tensor, params: SamplingParams, history: Tensor | None = None) -> Tensor:
    """Logits as the draw sees them: (B, vocab) fp32 -> (B, vocab), -inf where a token is cut."""
    if params.repetition_penalty != 1.0 and history is not None:
        logits = _penalise(logits, params.repetition_penalty, history)
    if params.greedy:
        return logits
    if 0 < params.top_k < logits.shape[-1]:
        logits = _keep_top_k(logits, params.top_k)
    if params.top_p < 1.0:
        logits = _keep_top_p(logits, params.top_p)
    if params.min_p > 0.0:
        best = logits.max(-1, keepdim=True).values
        logits = logits.masked_fill(logits < best + math.log(params.min_p), -math.inf)
    return logits / params.temperature


# %% [markdown]
# *Proved:* the settings of a sampler are a few lines over one row of logits, their order matters, and
# none of them touches the two phases. *Not proved:* which settings make good text. That is a matter of
# taste, of task and of evaluation.
#
# ## What you take along
#
# - A response of *n* tokens is *n* passes: one over the prompt, *n* − 1 over single tokens.
# - Prefill uses each weight many times per read, decode once. That is why reading is cheap and writing is
#   not, and why almost every technique of the coming lessons is about decode.
# - The cache is what makes the phases differ. Lesson 3 opens it.

# %%
lab.finish()
