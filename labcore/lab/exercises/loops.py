"""The generation loop as a learner writes it (exercise 02.1), and how it is judged."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from labcore.cache import KVCache, create
from labcore.config import ModelConfig
from labcore.generation import decode_step, generate, prefill
from labcore.lab.exercises.checking import TODO, Verdict, unfinished
from labcore.model import Model, Transformer


def tiny_model(seed: int = 0) -> Model:
    """Two layers with random weights, large enough that attention and position matter. Takes token ids."""
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    transformer = Transformer(config).requires_grad_(False).eval()
    stream = torch.Generator().manual_seed(seed)
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.4, generator=stream)
    return Model("tiny", config, transformer, tokenizer=None, random_weights=True)


def write(model: Model, tokens: Tensor, n: int, cache: KVCache) -> list[int]:
    """n greedy tokens behind tokens (1, p), with an empty cache to fill."""
    logits = prefill(model, tokens, cache)
    answer = [int(logits.argmax(-1))]  # the first token comes from the prefill
    while len(answer) < n:
        tokens = torch.cat([tokens, torch.tensor([answer[-1:]], device=tokens.device)], dim=1)
        logits = decode_step(model, tokens, cache)
        answer.append(int(logits.argmax(-1)))
    return answer


def judge_loop(answer: Any) -> Verdict:
    """Run a learner's loop on four prompts and count what went through the network."""
    if answer is TODO:
        return unfinished()
    cases = [(random.Random(seed).randint(1, 9), n) for seed, n in enumerate((1, 2, 5, 12))]
    passed = 0
    for seed, (prompt, new) in enumerate(cases):
        message = _judge_loop(answer, seed, prompt, new)
        if message is None:
            return unfinished()
        if message:
            return Verdict(passed, len(cases), f"{passed} of {len(cases)} prompts: {message}")
        passed += 1
    return Verdict(
        passed,
        len(cases),
        f"{passed} of {passed} prompts: n tokens from n forward passes, p + n - 1 positions.",
    )


def _judge_loop(answer: Any, seed: int, prompt: int, new: int) -> str | None:
    """What is wrong with a learner's loop on one prompt: "" for nothing, None when it is unfinished."""
    model = tiny_model(seed)
    tokens = torch.randint(64, (1, prompt), generator=torch.Generator().manual_seed(seed))
    cache = create("contiguous", model.config, capacity=prompt + new + 1)
    fed: list[int] = []
    hook = model.transformer.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    try:
        given = answer(model, tokens, new, cache)
    except Exception as error:
        return (
            f"your loop raised {type(error).__name__}: {error} (decode_step takes all known tokens, (1, t))."
        )
    finally:
        hook.remove()
    if given is TODO:
        return None
    wanted = generate(model, tokens[0].tolist(), max_new_tokens=new + 1, ignore_eos=True).tokens
    return _loop_fault(given, wanted, fed, prompt, new)


def _loop_fault(given: Any, wanted: list[int], fed: list[int], prompt: int, new: int) -> str:
    """The mistake that an answer looks like; `wanted` holds one token more than was asked for."""
    wanted, shifted = wanted[:new], wanted[1:]
    asked = f"for a prompt of {prompt} and n={new}"
    if not isinstance(given, (list, tuple)) or not all(isinstance(token, int) for token in given):
        return (
            f"return a list of whole numbers (int(logits.argmax(-1))); you returned {type(given).__name__}."
        )
    if len(given) != new:
        return f"{asked} you return {len(given)} tokens; the prefill gives the first, n - 1 steps the rest."
    if list(given) == wanted and len(fed) == new and sum(fed) == prompt + new - 1:
        return ""
    if list(given) == wanted and len(fed) > new:
        return f"{asked} the tokens are right, but it took {len(fed)} forward passes; n tokens need n."
    if list(given) == wanted:
        return f"{asked} the tokens are right, but {sum(fed)} positions were fed; the cache leaves p + n - 1."
    if list(given) == shifted:
        return "your first token is the second one: you threw away the one that the prefill's logits give."
    return f"{asked} your tokens are {list(given)[:5]}, and greedy decoding gives {wanted[:5]}."
