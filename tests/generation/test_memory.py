"""A failed allocation is a sentence, leaves nothing behind, and the engine serves on."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch

import labcore
from labcore.errors import OutOfMemory
from labcore.model import Model

PROMPT = "once upon a time"


@pytest.mark.parametrize("call", ["generate", "stream", "beams", "logits"])
def test_the_engine_serves_after_a_failed_step(model: Model, call: str) -> None:
    before = labcore.generate(model, PROMPT, max_new_tokens=5).tokens
    made: list[weakref.ref[torch.Tensor]] = []

    def fail(module: object, args: tuple[torch.Tensor, ...]) -> None:
        made.append(weakref.ref(args[0]))
        if len(made) == 3:
            torch.empty(1 << 46)  # the allocator's own refusal

    calls = {
        "generate": lambda: labcore.generate(model, PROMPT, max_new_tokens=5),
        "stream": lambda: list(labcore.stream(model, PROMPT, max_new_tokens=5)),
        "beams": lambda: labcore.generate(model, PROMPT, max_new_tokens=5, num_beams=2),
        "logits": lambda: labcore.logits(model, [1, 2, 3]),
    }
    hook = model.transformer.layers[-1].register_forward_pre_hook(fail)
    fast, model.transformer.fast = model.transformer.fast, False
    if call == "logits":
        made += [weakref.ref(torch.zeros(1))] * 2
    try:
        with pytest.raises(OutOfMemory, match=r"Memory ran out on cpu .* GB are free again: ask for fewer"):
            calls[call]()
    finally:
        hook.remove()
        model.transformer.fast = fast
    gc.collect()
    assert all(one() is None for one in made), "nothing of the failed step is kept"
    assert labcore.generate(model, PROMPT, max_new_tokens=5).tokens == before


def test_other_errors_stay_what_they_are(model: Model) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("something else")

    hook = model.transformer.layers[0].register_forward_pre_hook(fail)
    fast, model.transformer.fast = model.transformer.fast, False
    try:
        with pytest.raises(RuntimeError, match="something else"):
            labcore.generate(model, PROMPT)
    finally:
        hook.remove()
        model.transformer.fast = fast


@pytest.mark.slow
def test_in_a_process_that_may_hold_little() -> None:
    """The operating system refuses for real: the address space is limited to a little more than it is."""
    code = """
import resource, torch, labcore
from labcore.errors import OutOfMemory
torch.set_num_threads(1)
model = labcore.load("story", device="cpu", dtype="float32")
first = labcore.generate(model, "Once upon a time", max_new_tokens=8).tokens
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20), resource.RLIM_INFINITY))
try:
    labcore.generate(model, [[1] * 900] * 64, max_new_tokens=2)
except OutOfMemory as refused:
    print("refused:", refused)
assert labcore.generate(model, "Once upon a time", max_new_tokens=8).tokens == first
print("served")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused: Memory ran out on cpu" in done.stdout
    assert done.stdout.splitlines()[-1] == "served"
