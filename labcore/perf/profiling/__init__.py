"""What a profile is made of: events as recorded, their kinds, whose time it was, and what limits the step.

events       one traced call of a function, as plain intervals
kinds        which kind of work an event's name stands for
attribution  every instant of the step given to one kind
regime       compute, bandwidth, communication or overhead, with the evidence

The way in is `labcore.perf.profile.profile`.
"""
