"""Instruments: what a step costs, what this machine can do, what follows from both, and how it was timed."""
