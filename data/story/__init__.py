"""The embedded story model: the simulator its text comes from, its training and its evaluation.

`python -m data.story.make` rebuilds everything in this folder; MODEL_CARD.md says what came out.
"""
