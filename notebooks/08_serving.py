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
# # 8 · Why a good old model server is not enough
#
# A classifier's server is simple: collect some inputs, run them as one batch, return the results. Do that
# with a model that answers in 3 tokens to one user and in 300 to the next, and most of the batch computes
# for people who left long ago, while others wait at the door. This lesson sends one and the same list of
# requests through four generations of servers, on one engine. Then it puts that engine behind a real
# address, and you find out at which rate it falls over.
#
# | part | question | minutes |
# |---|---|---|
# | 1 | Who may join a batch, and when? | 15 |
# | 2 | What else fits into a step? | 6 |
# | 3 | What happens when too many come? | 11 |
# | 4 | How many machines does a load need? | 7 |
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

session = lab.start(MODEL, device=DEVICE, scale=SCALE, mode=MODE, seed=SEED, lesson="08")
model = session.model
LENGTHS = {"prompt": 32, "output": 24}  # tokens in the mean; most are shorter, a few much longer

# %% [markdown]
# ## Part 1 · Four generations of servers
#
# *15 minutes*
#
# **Know.** *One by one*: the next request starts when the one before is over. *Static*: batches of eight;
# the next starts when the longest answer of the one before is over. *Dynamic*: the same, but a batch that
# is not full leaves after a time-out. *Continuous*: after every step, whoever is done leaves and whoever
# waits joins. One engine runs all four here: same model, same kernels, same cache. Only the rule at the
# door differs.
#
# Answers of 2, 6, 3 and 4 tokens as one batch. The scheduler is the engine's own, only nothing is computed:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.static_rows([2, 6, 3, 4]))

# %% [markdown]
# **Predict.** 32 requests come at random, about as many a second as this engine can serve, with exponential
# lengths. A well-known comparison with *naive static batching* reports 23 times the tokens a second.

# %%
policy_guess = lab.predict(
    "08.1",
    "How many times as many tokens a second as static batching does continuous batching give here?",
    unit="×",
    low=0.1,
    high=100,
    default=23,
)

# %% [markdown]
# **Run.** First what the engine can carry at all, then the same list four times, in real time.

# %%
carries = lab.capacity(model, seed=SEED, **LENGTHS)
trace = lab.arriving(model, 0.9 * carries, n=session.pick(quick=32, full=96), seed=SEED, **LENGTHS)
runs = lab.run_policies(model, requests=trace)
static, continuous = (runs[name].summary for name in ("static", "continuous"))
lab.score("08.1", measured=continuous.output_tokens_per_s / static.output_tokens_per_s)

# %% [markdown]
# **See.** A line for each request, in the order they came in. Grey waits at the door; striped red is the
# place of somebody who is over, computed on and on because the batch has not ended. All four share one time
# axis.

# %%
lab.policy_explorer(runs)

# %% [markdown]
# What that does to the queue, and to the people in it:

# %%
lab.show(lab.queue_figure(runs), lab.queue_finding(runs), lab.queue_rows(runs))

# %%
lab.show(lab.percentiles_figure(runs), lab.policies_finding(runs), lab.policy_rows(runs))

# %% [markdown]
# A place in the batch is one thing a request needs; blocks of the cache are the other (lesson 4). Step
# through the continuous run and watch blocks change hands:

# %%
lab.serving_blocks(runs["continuous"])

# %% [markdown]
# **Explain.** Is it the lengths? The control: all requests at once, so that no arrival plays a part, with
# exponential lengths and with equal ones of the same mean.

# %%
lengths = lab.compare_lengths(model, n=session.pick(quick=32, full=96), seed=SEED)
lab.show(lab.lengths_figure(lengths), lengths.finding(), lengths.rows())

# %% [markdown]
# With everybody there from the start, equal lengths leave nothing of the advantage. A static batch lasts as
# long as the longest of its $B$ answers, which for exponential lengths is $H_B = 1 + 1/2 + \dots + 1/B$
# times the mean: the share of use is $1/H_B$, and it falls with the batch. In theory, and on 4,000 batches
# drawn here:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.utilisation_rows([2, 6, 3, 4]))

# %% [markdown]
# Turned over, that is the most that scheduling alone can gain. Hold it against the published 23×:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.most_rows())

# %%
lab.finding(lab.scheduling_finding(lengths))

# %% [markdown]
# And on a machine that carries hundreds at once? The same two rules of this engine on a reference GPU,
# measured once and kept with the lab, beside yours:

# %%
beside = lab.served_beside(model, lengths)
lab.finding(beside.finding(), beside.rows())

# %% [markdown]
# **Exercise 08.1** · ★☆☆ · importance ●●○ · 4 min. Of the rows that a static batch computes, the share that
# is of use to somebody who still wants tokens.


# %%
@lab.attempt("08.1")
def utilisation(lengths):
    return lab.TODO


lab.check("08.1", utilisation)

# %% [markdown]
# Now at rising rates. Every user was promised a first token in time and a steady stream after it;
# **goodput** counts the requests a second that got both. Move the slider through the measured rates:

# %%
sweep = lab.sweep_rates(model, carries=carries, n=session.pick(quick=32, full=96), seed=SEED, **LENGTHS)
lab.rate_explorer(sweep)

# %%
lab.finding(sweep.finding())

# %% [markdown]
# Hold the right ends of the first two pictures against each other. A server past its knee works as hard as
# ever; it does so for people who have stopped waiting. That is why the rate to know is not the one it
# survives but the one at which it still keeps its word.
#
# **Exercise 08.5** · ★☆☆ · importance ●●● · 4 min. Goodput from `records`, a list of (TTFT, TPOT) pairs,
# under two promises, over a run of so many seconds.


# %%
@lab.attempt("08.5")
def goodput(records, ttft, tpot, seconds):
    return lab.TODO


lab.check("08.5", goodput)

# %% [markdown]
# *Proved on this machine:* one rule at the door made the difference, and what it gains in throughput is
# gone at equal lengths. *Not proved:* anybody's 23×; that compared two codebases.

# %% [markdown]
# ## Part 2 · What else fits into a step
#
# *6 minutes*
#
# **Know.** A step computes tokens that are known and not computed yet. For who decodes that is one token;
# for who just came, a whole prompt, or a **chunk** of it under a budget of tokens a step; for a prompt
# whose beginning somebody asked before (**prefix cache**), only the rest; for who was put back because the
# blocks ran out (**preempted**), everything once more. The scheduler needs no more than this one rule.
#
# **Predict.** Eight users get their tokens one step after the other. Somebody joins with a prompt of 768
# tokens, and it is computed whole.

# %%
stall_guess = lab.predict(
    "08.2",
    "For how many steps' time do the eight get no token?",
    unit="steps",
    low=0.1,
    high=1000,
    default=2,
)

# %% [markdown]
# **Run.** The same moment three times: the prompt whole, then in chunks under two budgets.

# %%
stall = lab.chunk_stall(model, (256, 64), prompt=768, repeats=session.pick(quick=3, full=7))
lab.score("08.2", measured=stall.stalls[0].worst_s / stall.stalls[0].before_s)

# %% [markdown]
# **See.** Each mark is a gap between two tokens of one of the eight.

# %%
lab.show(lab.stall_figure(stall), stall.finding(), stall.rows())

# %% [markdown]
# **Explain.** Chunks bound what others wait, and the new one pays: its prompt takes more steps, each of
# which also carries the others. 4,096 tokens beside 8 who decode under a budget of 512, as the engine's
# scheduler cuts them; and the stall of a model and GPU of full size, whole:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.chunk_rows(prompt=4096, budget=512, decodes=8))

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.stall_rows())

# %% [markdown]
# **Exercise 08.3** · ★☆☆ · importance ●●○ · 3 min. In how many steps is a prompt computed beside `decodes`
# others, of whom each takes a token of the budget first?


# %%
@lab.attempt("08.3")
def chunks(prompt, budget, decodes):
    return lab.TODO


lab.check("08.3", chunks)

# %% [markdown]
# **Hunt 08.A** · 7 min. The part of the scheduler that lets those who run go on, with one bug. Everybody is
# served as before, except for somebody with a long prompt.

# %%
from labcore.serving.scheduler import Scheduler, _start
from labcore.serving.sequence import Plan, Row


@lab.hunt("08.A")
def _continue_running(self: Scheduler, plan: Plan, budget: int) -> int:
    """Decode first, so that nobody's tokens wait for somebody's prompt; then prompts in part."""
    # Those who only keep their places take what budget is left: else they would keep others from ending.
    order = sorted(self.running, key=lambda one: (one.lingers, not one.decoding, one.turn))
    for sequence in order:
        if sequence not in self.running or sequence.full or budget < sequence.pending:
            continue
        if sequence.drafted:
            self._cut_guesses(sequence, budget)
        new = min(sequence.pending + len(sequence.drafted), budget)
        if self._make_room(sequence, new, plan):
            plan.rows.append(Row(sequence, _start(sequence), new))
            budget -= new
    return budget


# %% [markdown]
# Next, what need not be computed at all. Chats, agents and shared instructions begin alike; with a prefix
# cache the blocks of a known beginning are found and not computed:

# %%
prefix = lab.prefix_gain(model, shared=512, own=16, n=8, seed=SEED)
lab.show(lab.prefix_figure(prefix), prefix.finding(), prefix.rows())

# %% [markdown]
# **Hunt 08.B** · 6 min. How a request adopts a known beginning, with one bug. It works, until somebody asks
# for the very same prompt twice.

# %%
from labcore.serving.blocks import BlockManager
from labcore.serving.sequence import Sequence


@lab.hunt("08.B")
def adopt(self: BlockManager, sequence: Sequence) -> int:
    """Begin behind the longest known prefix; returns its tokens."""
    if self.tree is None:
        return 0
    found = self.tree.match(sequence.tokens)
    sequence.blocks = found
    sequence.computed = len(found) * self.pool.block_size
    return sequence.computed


# %% [markdown]
# And what happens when the blocks run out under requests that keep growing? Reserving for the longest
# possible answer would avoid it, at a price: 12 GiB of cache for OPT-13B then hold 7 requests, which is
# what the vLLM paper measured for such a server (7.00).

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.concurrent_rows())

# %% [markdown]
# The engine lets requests grow, and when nothing is free it **preempts** whoever came last: forgets its
# blocks and computes them again later, or copies them aside. Four requests, and five eighths of the blocks
# they need:

# %%
preempted = lab.preemption_story(model, seed=SEED)
chart = lab.gantt_figure(preempted.runs["recompute"], "Four requests that grow, on too few blocks")
lab.show(chart, preempted.finding(), preempted.rows())

# %%
lab.serving_blocks(preempted.runs["recompute"])

# %% [markdown]
# **Exercise 08.4** · ★★☆ · importance ●●○ · 6 min. Whom to preempt. `held` are the blocks of each running
# request, in order of their turn; return the indices of those who go, in the order in which they go, so
# that `needed` blocks are free.


# %%
@lab.attempt("08.4")
def victims(held, free, needed):
    return lab.TODO


lab.check("08.4", victims)

# %% [markdown]
# *Proved on this machine:* chunks bound the stall, a known beginning is free, and neither prefix hits nor
# preemption change a single token. *Not proved:* which budget is best; that depends on whose wait hurts
# more.

# %% [markdown]
# ## Part 3 · A real address
#
# *11 minutes*
#
# **Know.** A server puts the engine on a thread of its own and talks HTTP in front of it, here in OpenAI's
# dialect, as most servers do today. Users do not wait for each other, so they come at random. **Little's
# law** needs no assumption at all: requests in flight = arrivals a second × seconds that each stays.

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.little_rows())

# %%
server = lab.serve(model)

# %% [markdown]
# Whoever knows the address can ask, from a terminal or another notebook too (`labcore load-test ADDRESS`,
# or `curl`). This is all there is on the wire:

# %%
answer = lab.ask(server, "Once upon a time")

# %% [markdown]
# How much of the engine is left behind HTTP, with eight patient users?

# %%
patient = lab.patient_users(server, carries, n=session.pick(quick=48, full=128), seed=SEED, **LENGTHS)
lab.finding(patient.finding())

# %% [markdown]
# **Predict.** Real users are not patient. First half as many requests a second as those eight got, then one
# and a half times as many, for four seconds each.

# %%
crowd_guess = lab.predict(
    "08.3",
    "Three times the rate: how many times as long is the median wait for the first token?",
    unit="×",
    low=0.5,
    high=10000,
    default=3,
)

# %% [markdown]
# **Run.** Two loads, drawn while they run from what the server says of itself under `/metrics`.

# %%
served = patient.summary.requests_per_s
calm = lab.watch_load(server, 0.5 * served, slo=patient.slo, **LENGTHS)
crowd = lab.watch_load(server, 1.5 * served, slo=patient.slo, **LENGTHS)
lab.score("08.3", measured=crowd.summary.ttft.p50 / calm.summary.ttft.p50)

# %% [markdown]
# **See.** Every move of the slider is another load on the real server, four seconds long. Find the rate at
# which it breaks.

# %%
rates = [share * served for share in (0.65, 0.8, 0.9, 1.0, 1.2)]
board = lab.dashboard(server, rates, runs=[calm, crowd], slo=patient.slo, **LENGTHS)

# %% [markdown]
# **Explain.** Below the knee another request costs the others next to nothing; above it every request makes
# all later ones wait longer, without end. Where the queue stands still, rate × latency and the requests in
# flight agree; where it only grows they part, as those who came last had not answered yet when the load
# ended.
#
# `lab.load_url` takes any address that speaks the dialect, with the model and key it wants:
# `lab.load_url("http://127.0.0.1:8000", rate=2, model="…", api_key="…")`. vLLM and others publish their
# `/metrics` under the same names.
#
# **Exercise 08.2** · ★☆☆ · importance ●●● · 4 min. How many requests are in flight, at a rate, with TTFT
# and TPOT in seconds, for answers of so many tokens?


# %%
@lab.attempt("08.2")
def in_flight(rate, ttft, tpot, tokens):
    return lab.TODO


lab.check("08.2", in_flight)

# %% [markdown]
# *Proved on this machine:* where this server's knee lies, with this client beside it. *Not proved:* how it
# would fare with the client on another machine; here both share the processor.

# %% [markdown]
# ## Part 4 · More tokens a step, more machines
#
# *7 minutes*
#
# **Know.** Decode waits for weights. **Speculation** guesses some tokens cheaply and lets the model check
# them in one step; what it would not have said itself is thrown away, so the answer stays the same, token
# by token. If a check costs no more than a step, each right guess is a step saved. On a large model it
# hardly does:

# %% tags=["keep_output", "nbval-check-output"]
lab.text_table(lab.check_rows())

# %% [markdown]
# **Predict.** On this machine, this model, four guesses a time by a draft model a third of its size.

# %%
guess_guess = lab.predict(
    "08.4",
    "How many times as fast are the answers?",
    unit="×",
    low=0.01,
    high=10,
    default=2,
)

# %%
draft = labcore.load("story-draft", device=session.device) if MODEL == "story" else None
guesses = lab.speculation_gain(model, draft, output=session.pick(quick=96, full=192))
lab.score("08.4", measured=guesses.rows()[-1]["times as fast"])

# %%
lab.show(lab.guesses_figure(guesses), guesses.finding(), guesses.rows())

# %% [markdown]
# **Explain.** Fewer steps divided by how much longer each takes is what remains. On a GPU whose steps wait
# for 13 GB of weights the second number is nearly 1 (the table above); on a processor that is done with a
# small model's weights in a moment it is not.
#
# **More machines.** What your engine's steps cost fits into four numbers, read off the run of part 1. With
# them the same scheduler runs on a clock that only counts. Before you believe it, hold it against the
# measurement:

# %%
fitted = lab.fit(model, session.machine, runs["continuous"])
lab.finding(fitted.finding(), fitted.rows())
lab.table(fitted.cost_rows())

# %% [markdown]
# Now two such machines. Both may do everything, with prompts whole or in chunks; or one only **prefills**,
# sends the cache over, and the other only **decodes**. The load asks for as much prefill as decode.

# %%
fleets = lab.compare_fleets(fitted.cost, model.config, session.machine, n=session.pick(quick=120, full=400))
lab.show(lab.rate_figure(fleets), lab.fleets_finding(fleets), fleets.rows())

# %%
rate = fleets.rates[1]
lab.show(
    lab.percentiles_figure(fleets.runs[rate]), lab.even_finding(fleets, rate), lab.fleet_rows(fleets, rate)
)

# %% [markdown]
# Apart, nobody's tokens wait for anybody's prompt, only the second one for the cache to arrive: look at the
# gaps. The price is that neither machine can help the other out, and that shows in the first tokens. Which
# of the two wins is decided by what was promised.
#
# **How many GPUs?** 50 requests a second about a text, prompts of 1,000 tokens and answers of 60, to a
# model of 8 billion parameters; a first token within 1 s and further ones within 150 ms, kept for 90 %.
# Once as if GPUs reached the peaks of their data sheets, once as if they missed them by as much as your
# machine just missed its own roofs.

# %%
plans = lab.plan_gpus(fitted.missed, n=session.pick(quick=120, full=400))
lab.show(lab.plan_figure(plans), lab.plan_finding(plans), [plan.row() for plan in plans])

# %% [markdown]
# The prices are list prices from the catalogue; put in yours. At last all that was published, beside what
# came out here:

# %%
lab.table(lab.beside_ours(lengths, sweep, stall, fleets))

# %% [markdown]
# *Proved on this machine:* guesses change the speed and no token; and how near the simulator comes to the
# engine it was fitted to. *Not proved:* the plan. It stands on data sheets and one factor; measure one GPU
# before you buy ten.
#
# ## What you take along
#
# - Unlike lengths make a batch wasteful; letting requests join and leave after every step mends that.
# - A step takes whatever is known and not computed: tokens, chunks, the rest of a prompt, guesses.
# - Watch goodput, not throughput, and stay below the knee: beyond it, waiting has no end.
# - Split, guess and plan by measured step costs; every one of these gains turns into a loss somewhere.
#
# That was the last lesson. The engine is yours: read it, it is small enough.

# %%
lab.finish()
