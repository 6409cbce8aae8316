"""`labcore bench`: the engine measured beside its peers and beside what the machine allows.

Whole runs, interleaved, medians with their spread, and the physical ceiling next to every number. Timing
lives here and not in the tests, because a busy machine would make it flake.
"""
