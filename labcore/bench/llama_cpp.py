"""llama.cpp as a peer: the very same weights in a GGUF file that is written for the run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from labcore.errors import LabError
from labcore.model import Model
from labcore.model.gguf_writing import write_gguf

KINDS = ("f32", "q8_0", "q4_0")


class LlamaCpp:
    """A model in llama.cpp, greedy, on token ids, with as many threads as PyTorch uses."""

    def __init__(self, path: Path, context: int) -> None:
        threads = torch.get_num_threads()
        self._llama: Any = library().Llama(
            str(path), n_ctx=context, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
            use_mmap=False, verbose=False,
        )  # fmt: skip
        self.file_bytes = path.stat().st_size

    def prefill(self, prompt: list[int]) -> float:
        """Seconds to read a prompt and choose the next token."""
        self._llama.reset()
        start = time.perf_counter()
        self._llama.eval(prompt)
        self._next()
        return time.perf_counter() - start

    def decode(self, prompt: list[int], new_tokens: int) -> float:
        """Seconds per token behind a prompt that was read before the clock started."""
        self._llama.reset()
        self._llama.eval(prompt)
        token = self._next()
        start = time.perf_counter()
        for _ in range(new_tokens):
            self._llama.eval([token])
            token = self._next()
        return (time.perf_counter() - start) / new_tokens

    def _next(self) -> int:
        return int(self._llama.sample(temp=0.0))

    def close(self) -> None:
        """Give its memory back."""
        self._llama.close()


def library() -> Any:
    """The binding. Raises LabError where it is not installed."""
    try:
        import llama_cpp
    except ModuleNotFoundError:
        raise LabError(
            "llama.cpp's binding is not installed; pip install llama-cpp-python, or leave llama.cpp out of "
            "--against."
        ) from None
    return llama_cpp


@contextmanager
def opened(model: Model, context: int, kinds: tuple[str, ...] = KINDS) -> Iterator[dict[str, LlamaCpp]]:
    """The model in each kind of file, by kind; files and memory are gone afterwards."""
    library()
    with tempfile.TemporaryDirectory(prefix="labcore-gguf-") as folder:
        found: dict[str, LlamaCpp] = {}
        try:
            for kind in kinds:
                found[kind] = LlamaCpp(write_gguf(model, Path(folder) / f"{kind}.gguf", kind), context)
            yield found
        finally:
            for one in found.values():
                one.close()
