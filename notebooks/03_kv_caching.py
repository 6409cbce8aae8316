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
# # 3 · KV caching explained
#
# Lesson 2 ended with a claim: a cache is what makes decode different from prefill. Here you open it.
# You will watch what is computed again without one, prove that leaving it out changes no logit, find
# the one property of the network that makes this legal, and measure what the cache costs in return.
#
# | part | question | minutes |
# |---|---|---|
# | 1 | What is computed again and again? | 10 |
# | 2 | Why is it allowed to keep the old results? | 3 |
# | 3 | What does the cache save? | 5 |
# | 4 | What does it cost? | 8 |
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

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="03")
model = session.model
prompt = lab.prompt_for(model, "Once upon a time a girl called Mia Holm had a red")

# %% [markdown]
# ## Part 1 · Computed again and again
#
# *10 minutes*
#
# **Know.** Attention compares the **query** of a position with the **keys** of all positions up to it, and
# mixes their **values**. Query, key and value of a position come from that position's own vector. To choose
# the next token, only the last position's row is needed; but its keys and values come from all the
# others. A loop without memory therefore sends the whole text through the network for each new token.
#
# **Predict.** The model writes 12 tokens behind this prompt, with no cache.

# %%
tokens = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
wasted = lab.predict(
    "03.1",
    f"The prompt is {len(tokens)} tokens. How many positions are computed a second time or more?",
    unit="positions",
    low=0,
    high=10_000,
    default=100,
)

# %% [markdown]
# **Run.** The same generation twice, cache on and off, every step recorded.

# %%
traces = lab.traced_both(model, prompt, new=12)
lab.score("03.1", measured=lab.computed_again(traces["off"]))

# %% [markdown]
# **See.** One step as a grid: a row for each query, a column for each key that it may look at. Orange rows
# with a cross were computed in an earlier step already, and are computed once more. Walk through with
# *Next*, then switch the cache on.

# %%
lab.recomputation_grid(traces)

# %% [markdown]
# **Explain.** Without a cache every step draws the whole triangle again to get one new row. With one,
# each row is drawn once in the whole generation. What has to be kept for that is little: not the
# triangle, not the queries, only the keys and values that later rows will look at. The last column of
# the table says how many bytes that is so far. After the last step:

# %%
lab.table(lab.counter_rows(traces, index=11))

# %% [markdown]
# **Exercise 03.1** · ★★☆ · importance ●●● · 5 min. For any prompt of `p` tokens and `n` new ones: how many
# positions are computed a second time or more, when there is no cache?
#
# `lab.hint("03.1")` gives a hint, a second call a stronger one; `lab.solution("03.1")` shows ours.


# %%
@lab.attempt("03.1")
def again(p, n):
    return lab.TODO


lab.check("03.1", again)

# %% [markdown]
# Counted from the engine's traces on other prompts:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.count_positions(model, [(8, 3), (10, 50)]))

# %% [markdown]
# *Proved:* without a cache nearly all of the work is work that was done before. *Not proved:* that the old
# results are still right when the text has grown. That is the next part.

# %% [markdown]
# ## Part 2 · Why it is allowed
#
# *3 minutes*
#
# **Know.** A cached key is a fact about a position, computed when the text ended there. It may be used
# later only if the rest of the text, which did not exist yet, would not have changed it. In this
# network a position sees itself and what came before, never what comes after: the **causal mask**. So
# its vector, in every layer, is final the moment it is computed.
#
# **Predict.** Two experiments on the same 48 tokens. In each, logits are computed step by step behind a
# cache, and again in one pass over everything. First with the causal mask, then with the mask removed,
# so that every token sees the whole text, as in a model like BERT.

# %%
legal = lab.predict(
    "03.2",
    "In which of the two do cached and uncached logits agree to 1e-4?",
    options=["in both", "only with the mask", "only without the mask", "in neither"],
    default="in both",
)

# %% [markdown]
# **Run.** Both caches are real ones. The second is the engine's growing cache with one method replaced, the
# one that attends: `attention(q, keys, values)` without a mask. It is in `labcore/lab/recompute.py`, seven
# lines.

# %%
known = lab.random_tokens(model, 48)[0].tolist()
proof = lab.equality_rows(model, known)
agreeing = {True: "only with the mask", False: "in both"}[not proof[1]["the same within 1e-4"]]
lab.score("03.2", measured=agreeing if proof[0]["the same within 1e-4"] else "in neither")

# %% [markdown]
# **See.**

# %%
lab.table(proof)

# %% [markdown]
# **Explain.** Under the mask the two ways differ by rounding alone: the same sums, taken in another order.
# Without it they are two different functions, because each new token would have changed every vector before
# it. Caching is no approximation and no trick of numerics. It is a property of causal attention, and a
# model that looks both ways cannot have it.
#
# In fp32, that is. In 16 bits the two orders of adding round differently, and now and then a close race
# between two tokens ends the other way. Whoever compares texts in 16 bits to test a cache tests luck.
#
# **Hunt 03.A** · 7 min. There is one more thing to get right: a key is turned by its position's angle
# (rotary embedding) *before* it is cached, so it must be turned by the right one. This is the layer's
# `forward` with one bug in it. Prompts of one token work. Run the cell, read, mend.

# %%
from labcore.model.transformer import AttendingCache
from torch import Tensor


@lab.hunt("03.A")
def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
    """(B, n, hidden) -> (B, n, hidden)."""
    batch, n, _ = x.shape
    qkv = self.qkv_proj(x).view(batch, n, -1, self.head_dim).transpose(1, 2)  # (B, h + 2 h_kv, n, d)
    qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
    q, k = self._norm(qk).split((self.heads, self.kv_heads), dim=1)
    q = kernels.apply_rope(q, cos, sin)
    k = kernels.apply_rope(k, cos.roll(1, 2), sin.roll(1, 2))
    mixed = cache.attend(self.layer, q, k, v)  # (B, h, n, d)
    return self.o_proj(mixed.transpose(1, 2).reshape(batch, n, -1))


# %% [markdown]
# *Proved on this machine:* with causal attention, and in fp32, the cache changes no logit by more than
# rounding. *Not proved:* that a cache which forgets or rounds would be as harmless. Lesson 4 measures
# those.

# %% [markdown]
# ## Part 3 · What it saves
#
# *5 minutes*
#
# **Know.** Without a cache the next token of a text of *t* tokens takes a pass over all of them. With
# one it takes a pass over one position, which reads every weight, and the keys and values of the
# others.
#
# **Predict.**

# %%
lengths = session.pick(quick=[16, 64, 256, 512, 1000], full=[16, 32, 64, 128, 256, 512, 768, 1000])
growth_guess = lab.predict(
    "03.3",
    f"Without a cache, how many times as long does token {lengths[-1]} take as token {lengths[0]}?",
    options=["1×", "4×", "16×", "64×", "256×"],
    default="64×",
)

# %% [markdown]
# **Run.** The next token at each length, both ways in turns, five times after two to warm up.

# %%
growth = lab.sweep_growth(model, lengths, roofs=session.roofs)
lab.score("03.3", measured=growth.ratio("off"), unit="×")

# %% [markdown]
# **See.** The dashed line is the bandwidth model: every weight and every cached byte once, at the speed
# this machine reads from memory. The cached step may lie above it, by what lesson 5 calls overhead, or a
# little below, where part of a small model stays in the processor's own caches. The shape is what to compare.

# %%
lab.show(lab.growth_figure(growth, predicted=growth_guess.number), growth.finding(), growth.rows())

# %% [markdown]
# **Explain.** Off, the time grows with the text, and a little faster once attention's own work, which grows
# with its square, begins to count. On, it is nearly flat: the weights are most of what a step reads, and
# the cached bytes come on top of them token by token. Compare the last two columns: the FLOPs saved are
# more than the time saved, because a pass over many positions makes better use of the arithmetic units.
#
# The same on paper, for Llama-2-7B. "q·k" are the attention scores alone; the product with the values costs
# as much again.

# %% tags=["keep_output", "nbval-check-output"]
llama = labcore.catalog.architecture("llama-2-7b")
lab.text_table(lab.paper_rows(llama, [100, 1000, 4096]))

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.paper_facts(llama))

# %% [markdown]
# **Exercise 03.2** · ★★☆ · importance ●●○ · 5 min. With a cache attention is a small part of a step,
# until the text is long. At which length does it take as many FLOPs as all the matrices together?


# %%
@lab.attempt("03.2")
def half(parameters, layers, width):
    """width: query heads × head_dim."""
    return lab.TODO


lab.check("03.2", half)

# %% [markdown]
# **An open puzzle.** A published table of a 0.6B model on an A100 says: 26 tokens per second without a
# cache, 25 with one. By everything above the cache should win. Here is what that GPU's two peaks allow
# for a model of that size at 500 tokens:

# %% tags=["keep_output", "nbval-check-output"]
a100 = labcore.catalog.gpu("a100-80gb-sxm")
small = labcore.catalog.architecture("qwen3-0.6b")
lab.text_table(lab.puzzle_rows(small, a100.flops["float16"], a100.bandwidth, context=500))

# %% [markdown]
# Without a cache the peaks allow over six hundred tokens per second, with one over sixteen hundred: twenty
# and sixty times what was measured. So neither arithmetic nor traffic was what that machine waited for, and
# that is why saving either changed nothing. What was it? Note your suspicion;
# lesson 5 solves the puzzle by measuring.

# %%
suspicion = lab.predict(
    "03.4",
    "What did that A100 wait for, most of the time?",
    options=["arithmetic", "memory traffic", "something that is the same with and without a cache"],
    default="memory traffic",
)

# %% [markdown]
# *Proved on this machine:* without a cache the time per token grows with the text; with one it hardly does.
# *Not proved:* that every engine gets this gain. The puzzle shows one that did not.

# %% [markdown]
# ## Part 4 · What it costs
#
# *8 minutes*
#
# **Know.** The cache is paid for in memory: per token, in each layer, a key and a value for every KV head.
#
# $$\text{bytes per token} = 2 \cdot \text{layers} \cdot \text{KV heads} \cdot \text{head size}
# \cdot \text{bytes per number}$$

# %% tags=["keep_output", "nbval-check-output"]
names = ["gpt2", "llama-2-7b", "llama-3-8b", "opt-175b"]
shapes = {name: labcore.catalog.architecture(name) for name in names}
lab.text_table(
    [
        {
            "model": name,
            "kind": config.attention_kind,
            "bytes per token, fp16": labcore.perf.costs.kv_bytes_per_token(config, "float16"),
        }
        for name, config in shapes.items()
    ]
)

# %% [markdown]
# **Exercise 03.3** · ★☆☆ · importance ●●● · 4 min. Write the formula. Field names are Hugging Face's.


# %%
@lab.attempt("03.3")
def cache_bytes(config, tokens, bytes_per_number):
    return lab.TODO


lab.check("03.3", cache_bytes)

# %% [markdown]
# A cache that grows has to live somewhere. The textbook way is `torch.cat([keys, new_key])`: simple,
# exactly as large as needed, and each step copies everything that was there. The other way reserves
# room for the whole text at once and writes in place.
#
# **Predict.** A text grows token by token to 1,000 tokens in the concatenating cache.

# %%
copying = lab.predict(
    "03.5",
    "How many times its own final size does it copy on the way?",
    options=["1×", "10×", "100×", "500×", "1000×"],
    default="10×",
)

# %% [markdown]
# **Run.**

# %%
copies = lab.compare_copies(
    model, session.pick(quick=[50, 250, 500, 1000], full=[50, 125, 250, 500, 750, 1000]), roofs=session.roofs
)
lab.score("03.5", measured=copies.copied["growing"][-1] / copies.held[-1], unit="×")

# %% [markdown]
# **See.**

# %%
lab.show(lab.copies_figure(copies), copies.finding(), copies.rows())

# %% [markdown]
# **Explain.** To hold *t* positions, concatenation copies about *t*²/2 of them. For this small model
# that is a modest part of the time; at Llama-2-7B's half a MiB per token, 1,000 tokens would mean
# copying a quarter of a terabyte. Reserving costs no copies, but takes the memory before anyone knows
# how long the text will be. Most of what lesson 4 shows is an answer to that: what if we reserve little
# by little?
#
# **Exercise 03.4** · ★★☆ · importance ●●○ · 5 min. A prompt of `p` tokens is read at once, then tokens are
# written until there are `n` new ones, at `kv` bytes each. How many bytes does concatenation copy?


# %%
@lab.attempt("03.4")
def copied(p, n, kv):
    return lab.TODO


lab.check("03.4", copied)

# %% [markdown]
# **Hunt 03.B** · 5 min. A server keeps one cache and resets it between users. A user complains that the
# answers seem to know somebody else's question. `reset()` is `truncate(0)`, and this is `truncate`,
# with one bug.


# %%
@lab.hunt("03.B")
def truncate(self, n: int) -> None:
    """Forget everything from position n on.

    Raises ValueError when fewer than n positions were seen, NotSupported where what the position before
    needs is gone.
    """
    if not 0 <= n <= self._length:
        raise ValueError(f"Cannot truncate to {n} positions; the cache holds {self._length}.")
    self._length -= n


# %% [markdown]
# *Proved:* concatenation copies the square of what it holds, and reserving copies nothing. *Not
# proved:* that there is memory to reserve. For many users at once there is not; that is lesson 4.
#
# ## What you take along
#
# - Without a cache, nearly every position that is computed was computed before.
# - A causal mask makes every position's key and value final. That is why they may be kept.
# - With a cache a step reads the weights, and the keys and values of the text: nearly flat time,
# growing memory.
# - Memory, not time, becomes the problem. Lesson 4 is about that.

# %%
lab.finish()
