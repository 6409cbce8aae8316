"""The parts of the simulator: what a step costs, an engine on a virtual clock, several of them, planning.

`labcore.serving.simulator` is where to import them from.
"""
