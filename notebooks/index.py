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
# # How LLM inference works: a lab
#
# Eight lessons over a real inference engine, small enough to read. You predict, then you measure on this
# machine, then you are told how far off you were. Nothing in a lesson is typed in beforehand: every number
# comes from the engine, from its cost model, or from a measurement made while you watch.
#
# | lesson | minutes | after | you will |
# |---|---|---|---|
# | [1 · Meet the machine and the engine](01_introduction.ipynb) | 39 | – | read TTFT, TPOT and throughput off a live stream, and estimate any model on a napkin |
# | [2 · The two-step process behind a response](02_two_steps.ipynb) | 40 | 1 | step through a generation, and measure why prefill and decode are different work |
# | [3 · KV caching explained](03_kv_caching.ipynb) | 26 | 2 | see which work a cache saves, and prove that it changes nothing else |
# | [4 · KV caching, a deeper look](04_kv_cache_deeper.ipynb) | 29 | 3 | pack a GPU's memory; run windows, sinks, quantized and paged caches |
# | [5 · Dissecting model performance](05_dissecting_performance.ipynb) | 25 | 3 | make a step wait for four things and tell them apart; split a model in two |
# | [6 · Arithmetic intensity (and memory) is all you need](06_arithmetic_intensity.ipynb) | 38 | 5 | measure two roofs, place every operation under them, split what a prediction missed |
# | [7 · Shrink all the things: quantization](07_quantization.ipynb) | 40 | 6 | shrink weights ten ways, break a model with outliers and mend it |
# | [8 · Why a good old model server is not enough](08_serving.ipynb) | 39 | 4, 6 | load four generations of servers until they break, and plan GPUs |
#
# Minutes count reading, running and the exercises marked ●●●; the others, and the hunts, are for whoever is
# ahead, or for home.
#
# Run the next cell (Shift+Enter) for the map with your own progress.

# %%
from labcore import lab

lab.front_page()

# %% [markdown]
# ## How a lesson goes
#
# All parts have the same steps. **Know**: what you need, in a few sentences.
# **Predict**: one question; lock your answer before you go on. **Run**: a measurement on this machine.
# **See**: a figure, the sentence it proves, and the exact table. **Explain**: why, and one control to play
# with. **Exercise**: a few lines of your own, checked at once; `lab.hint("02.1")` helps, and
# `lab.solution("02.1")` shows ours. Stars say how hard it is, dots how much it matters. In a **hunt** you
# find one bug that was planted in a copy of the engine's own code.
#
# Cells can be run again at any time. A lesson never needs what you did in another one.
#
# ## What is yours
#
# - Your answers and measurements are kept in readable JSON files on this machine, in the folder named above.
#   **Nothing is sent anywhere**: the lab has no telemetry, and the only thing in it that uses a network
#   is a model that you ask for by its name on the Hugging Face Hub.
# - `labcore report --name "Your name"` in a terminal (*File › New › Terminal*) makes one page of it to hand
#   in: your machine, predictions against measurements, exercises.
# - `labcore lessons reset 02` begins a lesson anew, and `--notebook` restores its notebook as well. What was
#   there is put aside, and the command says where.
