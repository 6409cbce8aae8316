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
# # 4 · KV caching, a deeper look
#
# Lesson 3 ended with a bill: every token of every user costs memory for as long as the user stays. This
# lesson is about that bill. You will pack a GPU's memory until nothing more fits, share heads, forget
# tokens, round numbers and cut the cache into blocks, each time on a cache that really runs, and each
# time with the same two questions: how many bytes does it save, and what does it break?
#
# | part | question | minutes |
# |---|---|---|
# | 1 | Where does the memory go? | 11 |
# | 2 | What do shared heads save? | 3 |
# | 3 | What may be forgotten, what may be rounded? | 10 |
# | 4 | Why blocks? | 5 |
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
from labcore.perf import memory

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="04")
model = session.model
# Parts 3 and 4 ask questions about stories; a model without a tokenizer leaves them to the embedded one.
teller = model if model.name == "story" else labcore.load("story", device=session.device, dtype="float32")
llama = labcore.catalog.architecture("llama-2-7b")
a10 = labcore.catalog.gpu("a10")

# %% [markdown]
# ## Part 1 · Memory Tetris
#
# *11 minutes*
#
# **Know.** A GPU's memory holds the weights once, and a strip of cache for every request. How long a strip
# gets, nobody knows when the request comes in.
#
# **Predict.** Llama-2-7B in fp16 on an A10 with 24 GB.

# %%
fitting = lab.predict(
    "04.1",
    "How many requests of 4,096 tokens fit beside the weights?",
    unit="requests",
    low=0,
    high=1000,
    default=16,
)

# %% [markdown]
# **Run.** The planner counts weights and cache from the model's shape.

# %%
paper = memory.plan(llama, a10, batch=1, context=4096, lean=True)
lab.score("04.1", measured=memory.largest_batch(paper))

# %% [markdown]
# **See.** Stack requests until they hit the dotted line. Then change how the cache is kept: reserve the
# whole context for each request, as servers did; cut it into blocks; let requests share their first
# half. Crossed orange is memory that is taken and holds nothing.

# %%
lab.memory_tetris("llama-2-7b", "a10")

# %% [markdown]
# **Explain.** The bytes of a token depend on the model's shape alone, and shapes differ by a factor of
# fifty. In windowed layers a strip stops growing at the window; with latent attention (MLA) a token is
# one short vector for all heads.

# %% tags=["keep_output", "nbval-check-output"]
names = [
    "llama-2-7b", "llama-2-13b", "llama-2-70b", "mistral-7b-v0.1", "mistral-7b", "llama-3-8b", "opt-30b",
    "opt-175b", "falcon-40b", "gemma-3-27b", "deepseek-v3",
]  # fmt: skip
lab.text_table(lab.kv_rows({name: labcore.catalog.architecture(name) for name in names}, context=32_768))

# %% [markdown]
# The numbers that papers quote, out of the same functions:

# %% tags=["keep_output", "nbval-check-output"]
grouped, opt = (labcore.catalog.architecture(name) for name in ("llama-2-70b", "opt-13b"))
lab.text_table(lab.paper_plan_rows(llama, grouped, opt, a10))

# %% [markdown]
# And what each way of keeping the cache makes of the same card, for requests of 1,000 tokens:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.keeping_rows(llama, a10, context=1000))

# %% [markdown]
# A plan that does not fit is refused before anything is allocated, with the plans next to it that would:

# %%
lab.expect_error(lambda: memory.refuse_if_too_big(memory.plan(llama, a10, batch=8, context=4096, lean=True)))

# %% [markdown]
# And if an allocation fails all the same, the engine says so, frees what it took, and serves the next
# request: `labcore/generation/memory.py`, one context manager.
#
# **Exercise 04.1** · ★★☆ · importance ●●● · 6 min. Count the sequences that fit when the cache is kept
# in blocks of `block_size` positions. Everything is in bytes and tokens.


# %%
@lab.attempt("04.1")
def sequences(memory, weights, per_token, context, block_size):
    return lab.TODO


lab.check("04.1", sequences)

# %% [markdown]
# *Proved:* at most a handful of long requests fit beside a 7B model on a 24 GB card. *Not proved:* that
# the rest of the memory is well used. Reserved strips are mostly empty; Part 4 comes back to them.

# %% [markdown]
# ## Part 2 · Fewer heads
#
# *3 minutes*
#
# **Know.** Every query head needs keys and values to look at, but not its own. With **multi-head
# attention** (MHA) each has its own; with **grouped-query attention** (GQA) a few share one KV head;
# with **multi-query attention** (MQA) all share a single one. The cache shrinks by that factor, and so
# do the bytes that a decode step reads of it.
#
# **Predict.** Three models of one shape with random weights, 16, 4 and 1 KV heads, each with 4,096
# tokens of 2 sequences in its cache. GQA's cache is a quarter of MHA's.

# %%
sharing = lab.predict(
    "04.2",
    "How many times as fast is a decode step with 4 KV heads as with 16?",
    unit="×",
    low=0.1,
    high=16,
    default=4,
)

# %% [markdown]
# **Run.** Decode steps of the three in turns.

# %%
context = session.pick(quick=4096, full=16_000)
experiment = lab.compare_heads(context=context, batch=2, roofs=session.roofs)
lab.score("04.2", measured=experiment.ratio("GQA"))

# %% [markdown]
# **See.**

# %%
lab.show(lab.heads_figure(experiment), experiment.finding(), experiment.rows())

# %% [markdown]
# **Explain.** The step reads weights and cache. Sharing heads shrinks the second term only, so the gain
# is large where the cache is most of the bytes, and nothing where the weights are. The engine never
# copies a shared head for its queries: it regroups the queries instead. Where an implementation repeats
# the keys (`repeat_interleave`), GQA saves memory and no time at all.
#
# *Proved on this machine:* fewer KV heads, fewer bytes, faster steps, at long contexts. *Not proved:*
# that quality survives; that is decided in training, and these weights are random.

# %% [markdown]
# ## Part 3 · Forget, or round
#
# *10 minutes*
#
# **Know.** A trained model's cache can still be made smaller, in two ways. *Forget* tokens: a **sliding
# window** keeps the newest; **attention sinks** keep the first four as well; **heavy hitters** keep the
# newest half of a budget and, per head, those that were attended to most. Or *round* numbers: 8, 4 or 2
# bits with a scale for each small group. Or move them: an **offloaded** cache lies in host memory.
#
# First look at what forgetting is. A story, a question about something that was said far back, and the
# head that, when nothing is forgotten, fetches the answer.

# %%
item = lab.question_at(140, 250, seed=SEED)
head = lab.retrieving_head(teller, item)
print(item["prompt"][-120:], "→", item["answer"])
policies = ["contiguous", "sliding_window:window=64", "sinks:budget=64", "heavy_hitters:budget=128"]
looks = lab.look_back(teller, policies, item=item, head=head)
lab.show(
    lab.looks_figure(looks),
    f"Layer {head[0]}, head {head[1]}, at the last token. Grey: forgotten before anyone asked.",
    looks.rows(),
)

# %% [markdown]
# **Predict.** Now a few dozen such questions, whose facts lie 1 to 500 tokens back.

# %%
window_guess = lab.predict(
    "04.3",
    "A window of 128 tokens: of how many questions does the model still know the answer?",
    unit="%",
    low=0,
    high=100,
    default=90,
)

# %% [markdown]
# **Run.** Each cache reads the same stories and questions. The story comes as a prompt, the question
# token by token, as from someone who asks later; perplexity is taken token by token too.

# %%
caches = [
    "contiguous", "int8", "int4", "kivi2", "int2", "offloaded",
    "sliding_window:window=128", "sinks:budget=128", "heavy_hitters:budget=128", "heavy_hitters:budget=0.2",
]  # fmt: skip
found = lab.weigh(
    teller,
    caches,
    stories=session.pick(quick=8, full=60),
    questions=session.pick(quick=48, full=400),
    seed=SEED,
)
lab.score("04.3", measured=found[6].recall.value * 100)

# %% [markdown]
# **See.** Bytes against recall: up and to the left is better.

# %%
lab.show(lab.pareto_figure(found), lab.quality_finding(found), lab.quality_rows(found))

# %%
forgetful = [
    one for one in found if "budget" in one.cache or "window" in one.cache or one.cache == "contiguous"
]
lab.show(lab.distance_figure(forgetful), lab.distance_finding(forgetful), lab.distance_rows(forgetful))

# %% [markdown]
# **Explain.** Rounding and forgetting fail in different ways. Rounding loses a little everywhere, and
# at 8 and 4 bits too little to be seen in answers. Forgetting loses everything beyond an edge: inside
# the window recall is whole, outside it the answer is a guess, however good the perplexity looks. That
# is the lesson of this picture: **perplexity is an average over tokens, and most tokens do not need the
# distant past.** A cache can look harmless by perplexity and have lost the one fact that was asked for.
#
# Three published claims, beside what this small model did:

# %%
lab.table(lab.claim_rows(found))

# %% [markdown]
# The claims are not refuted by this: they were made for larger models, other texts, and mostly for
# perplexity or for tasks whose evidence is near. They do not hold for this model and these questions,
# and no claim about a cache should be taken over without asking: measured on what?
#
# What a window buys is constant work: past it, a step's time no longer grows.

# %%
lab.table(
    lab.flat_rows(window=256, contexts=session.pick(quick=[512, 2048, 4096], full=[512, 2048, 4096, 8192]))
)

# %% [markdown]
# And what sinks were invented for: text that goes on past the length a model was trained to (512 tokens
# here). The last words of 800, with everything kept and with 4 sinks and the newest 252:

# %%
opening = "Once upon a time a girl called Mia Holm had a red kite."
for kind in ("contiguous", "sinks:budget=256"):
    settings = {"max_new_tokens": 800, "ignore_eos": True, "temperature": 0.8, "seed": SEED}
    print(f"{kind}: …{labcore.generate(teller, opening, cache=kind, **settings).text[-160:]!r}")

# %% [markdown]
# **Exercise 04.2** · ★☆☆ · importance ●●○ · 4 min. Which positions does a query see through a sliding
# window?


# %%
@lab.attempt("04.2")
def visible(query, window):
    """A list of positions, in order."""
    return lab.TODO


lab.check("04.2", visible)

# %% [markdown]
# A rounded number brings its share of a scale and a lowest value along. Here a number takes:

# %% tags=["keep_output", "nbval-check-output"]
kinds = ("int8", "int4", "kivi2")
rounded = {kind: labcore.cache.create(kind, teller.config, capacity=64) for kind in kinds}
lab.text_table([{"cache": kind, "bits a number": cache.bits_per_element} for kind, cache in rounded.items()])

# %% [markdown]
# **Exercise 04.3** · ★☆☆ · importance ●●● · 3 min. How many bits does a number of `bits` bits really
# take, when every `group` of them brings a scale and a lowest value of 16 bits each?


# %%
@lab.attempt("04.3")
def effective_bits(bits, group):
    return lab.TODO


lab.check("04.3", effective_bits)

# %% [markdown]
# **Exercise 04.4** · ★★☆ · importance ●●○ · 5 min. Heavy hitters at work: `sums` holds the attention
# that each position has received so far, oldest first. The newest `recent` are safe. Which index has to
# go?


# %%
@lab.attempt("04.4")
def victim(sums, recent):
    return lab.TODO


lab.check("04.4", victim)

# %% [markdown]
# **Hunt 04.B** · 5 min. The mask of the rolling window, with one bug. Texts read well, and memory is as
# small as promised; only the logits are not those of a window.

# %%
from torch import Tensor


@lab.hunt("04.B")
def window_mask(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Which keys each query sees, its own included. queries: (n,), keys: (T,) positions -> (n, T) bool."""
    distance = queries[:, None] - keys
    return (distance >= 0) & (distance <= window)


# %% [markdown]
# *Proved, for this model:* int8 and int4 caches answer as the full one does; forgetting policies lose
# what they forget. *Not proved:* where larger models break. Run the part on one with `MODEL`.

# %% [markdown]
# ## Part 4 · Blocks
#
# *5 minutes*
#
# **Know.** Reserving the longest possible strip for each request wastes most of it. A **paged** cache takes
# memory in blocks of a few positions, one at a time, and keeps a **block table** per sequence: block 7,
# then 2, then 9. Only the last block can be partly empty. And since a table may name a block that another
# table names too, sequences that begin alike can share: a **fork** copies nothing until one of the two
# writes (**copy-on-write**), and a **prefix tree** remembers which tokens lie in which blocks.
#
# **Predict.** Blocks of 16 positions, sequences of any length.

# %%
waste_guess = lab.predict(
    "04.4",
    "How many positions does a sequence waste on average?",
    unit="positions",
    low=0,
    high=16,
    default=8,
)

# %%
lab.score("04.4", measured=memory.expected_waste(16))

# %% [markdown]
# **Run.** A day in the life of a small pool: 16 blocks of 4 positions, real caches of this model, real
# prefills. Ann and Ben begin with the same 8 tokens (a system prompt); Ann asks for a second answer;
# then it gets full.

# %%
day = lab.pool_day(teller)

# %% [markdown]
# **See.** Step through the events. A number is a block, below it how many of its positions are filled.

# %%
lab.block_map(day)

# %% [markdown]
# **Explain.** At the fork the number of blocks did not change; at the first write one block was copied, the
# one that was being written, and no other. Ben's prompt took its first blocks from the tree: those tokens
# were not computed again. When the pool ran out, blocks that only the tree still held were evicted, least
# recently used first; and when even that was not enough, the one who wanted to go on was told, and
# nobody else noticed. The whole day as a table:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.block_table_rows(labcore.load("story", device="cpu", dtype="float32")))

# %% [markdown]
# And the same answer twice, the second time with the prompt found in the tree: fewer positions are fed, the
# tokens are the same.

# %%
store = labcore.cache.PrefixStore(teller.config, num_blocks=64, device=teller.device, dtype=teller.dtype)
for attempt in ("first", "second"):
    out = labcore.generate(teller, item["prompt"], max_new_tokens=3, cache=store, trace=True)
    fed = out.trace.prefill.input_shape[1]
    print(f"{attempt}: {fed} of {len(out.prompt_tokens)} prompt tokens computed →{out.text!r}")
print(f"hit rate so far: {store.tree.stats.hit_rate:.0%}")

# %% [markdown]
# **Hunt 04.A** · 6 min. A server preempts a request when the pool is full: it cuts the sequence back
# and takes its blocks. After a night of that, the pool is full and nobody is served. This is the
# function that gives blocks back, with one bug.


# %%
@lab.hunt("04.A")
def trim(self) -> None:
    """Free what lies behind the positions that count."""
    pool = self.store.pool
    for row, table in enumerate(self.rows):
        keep = pool.blocks_for(self._real(row))
        del table[keep:]
    self._room, self._begun = 0, False


# %% [markdown]
# *Proved:* blocks waste at most a block per sequence, forks and prefixes share without copying, and a
# full pool harms nobody who runs. *Not proved:* that reading through a table costs no time. On this
# machine `labcore bench cache` measures it; on a GPU it needs a kernel of its own.
#
# ## What you take along
#
# - Cache bytes are layers × KV heads × head size × 2 × bytes per number, for every token of every user.
# - Fewer KV heads save bytes and time. 8 and 4 bits save bytes and, here, no answers.
# - Forgetting saves bytes without limit and loses exactly what it forgets, which perplexity may not show.
# - Blocks turn reserved emptiness into room for more requests, and make sharing free. Lesson 8 serves
# with them.

# %%
lab.finish()
