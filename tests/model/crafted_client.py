"""Run in a process of its own, as memory is a process's: load every crafted source, print what came of it.

Arguments: a good folder, then one source a line on stdin. Prints a JSON object: each source's error with its
sentence, how many bytes the process's memory rose beyond what the good folder took, and (for people) seconds.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import labcore

PATIENCE_S = 20  # for one source: far beyond what any takes, so that only a file that hangs is told


def outcome(source: str) -> list[str]:
    """The error's class and sentence; a hang is a TimeoutError."""
    signal.alarm(PATIENCE_S)
    try:
        labcore.load(Path(source), device="cpu", dtype="float32")
    except BaseException as error:
        return [type(error).__name__, str(error)]
    finally:
        signal.alarm(0)
    return ["loaded", ""]


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not refused after {PATIENCE_S} s")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _too_long)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the tokenizers' own code tells of its panics there
    labcore.load(Path(sys.argv[1]), device="cpu")
    before = _peak()
    outcomes, rise, seconds = {}, {}, {}
    for source in sys.stdin.read().splitlines():
        start = time.perf_counter()
        outcomes[source] = outcome(source)
        rise[source], seconds[source] = _peak() - before, time.perf_counter() - start
    print(json.dumps({"outcomes": outcomes, "rise": rise, "seconds": seconds}))
