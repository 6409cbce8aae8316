"""What an engine can take at all: how large its pool is, and which requests could never be served by it."""

from __future__ import annotations

from labcore.cache.block_pool import BlockPool
from labcore.errors import CacheFull, PromptError
from labcore.generation.prompts import window_note
from labcore.model import Model
from labcore.perf.costs import kv_bytes_per_token
from labcore.perf.machine import available_memory
from labcore.serving.requests import Request

POOL_SHARE = 0.25  # of the free memory, where nobody says how many blocks
MOST_TOKENS = 65_536  # of a pool that nobody asked for, in memory that the whole computer shares


def usual_blocks(model: Model, block_size: int) -> int:
    """A quarter of the free memory, at least one whole context, off a GPU at most 65,536 positions."""
    each = block_size * kv_bytes_per_token(model.config, model.dtype)
    room = int(available_memory(model.device) * POOL_SHARE) // each
    if model.device.type != "cuda":
        room = min(room, MOST_TOKENS // block_size)
    return max(-(-model.config.max_position_embeddings // block_size), room)


def ensure_possible(request: Request, model: Model, max_model_len: int, pool: BlockPool) -> None:
    """Raises PromptError for an empty or overlong prompt or an unknown token, CacheFull for a request that
    the whole pool could not hold."""
    length, vocab = len(request.prompt), model.config.vocab_size
    if not length:
        raise PromptError("The prompt is empty; give at least one token.")
    if length >= max_model_len:
        raise PromptError(
            f"The prompt is {length} tokens and this engine holds {max_model_len} in all"
            f"{window_note(model.config, max_model_len)}; shorten it to at most {max_model_len - 1}, so that "
            "one can be generated."
        )
    if wrong := [token for token in request.prompt if not 0 <= token < vocab]:
        raise PromptError(f"The prompt holds token {wrong[0]}; {model.name!r} knows tokens 0 to {vocab - 1}.")
    whole = min(length + request.stopping.max_new_tokens, max_model_len)
    needed = pool.blocks_for(whole)
    if needed > pool.num_blocks:
        raise CacheFull(
            f"{length} tokens and {whole - length} new ones need {needed} blocks and the pool has "
            f"{pool.num_blocks}; ask for fewer, or make the pool larger."
        )
