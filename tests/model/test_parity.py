"""labcore against transformers, on tiny random checkpoints that it wrote: same logits, same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import labcore
from labcore.errors import PromptError
from tests import checkpoints

Checkpoint = Callable[[str], tuple[Path, Any]]
CASES = list(checkpoints.CASES)
NEW = 20


def prompts(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, checkpoints.VOCAB, (n,), generator=generator).tolist() for n in (13, 5, 21, 1)]


def greedy(reference: Any, tokens: list[int], new: int = NEW) -> list[int]:
    """What transformers' own generate appends, end-of-text included."""
    out = reference.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(tokens) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_within_1e_4(checkpoint: Checkpoint, case: str) -> None:
    folder, reference = checkpoint(case)
    model = labcore.load(folder, dtype="float32", device="cpu")
    tokens = torch.randint(3, checkpoints.VOCAB, (3, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens).logits
    logits = labcore.logits(model, tokens)
    assert logits.shape == expected.shape
    assert logits.dtype == torch.float32
    assert expected.std() > 0.3  # else the tolerance would say nothing
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if "rope" in case] + ["llama", "qwen3"])
def test_both_spellings_of_the_rotary_settings_load_alike(
    checkpoint: Checkpoint, case: str, tmp_path: Path
) -> None:
    folder, _ = checkpoint(case)
    model = checkpoints.write(case, tmp_path)
    assert "rope_scaling" in checkpoints.respell(tmp_path)
    old, new = labcore.load(tmp_path, dtype="float32"), labcore.load(folder, dtype="float32")
    assert old.config == new.config
    tokens = torch.arange(3, 103)[None]
    with torch.no_grad():
        torch.testing.assert_close(labcore.logits(old, tokens), model(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cache", ["none", "growing", "contiguous"])
def test_greedy_tokens_agree_one_by_one(checkpoint: Checkpoint, case: str, cache: str) -> None:
    folder, reference = checkpoint(case)
    model = labcore.load(folder, dtype="float32", device="cpu")
    for prompt in prompts():
        out = labcore.generate(model, prompt, max_new_tokens=NEW, cache=cache)
        assert out.tokens == greedy(reference, prompt)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cache", ["none", "growing", "contiguous"])
def test_greedy_tokens_agree_in_a_padded_batch(checkpoint: Checkpoint, case: str, cache: str) -> None:
    folder, reference = checkpoint(case)
    model = labcore.load(folder, dtype="float32", device="cpu")
    outputs = labcore.generate(model, prompts(), max_new_tokens=NEW, cache=cache)
    assert [out.tokens for out in outputs] == [greedy(reference, prompt) for prompt in prompts()]


def test_end_of_text_ends_both_at_the_same_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, reference = checkpoint("llama")
    prompt = prompts()[0]
    stop = greedy(reference, prompt)[6]
    ending = checkpoints.write("llama", tmp_path, eos_token_id=[stop, 2])
    model = labcore.load(tmp_path, dtype="float32", device="cpu")
    assert stop in model.config.eos_token_ids
    expected = greedy(ending, prompt)
    assert len(expected) < NEW
    assert expected[-1] == stop
    out = labcore.generate(model, prompt, max_new_tokens=NEW)
    assert out.finish_reason == "eos"
    assert out.tokens == expected


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("mistral", {"sliding_window": 40}),
        ("qwen2", {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_model_with_a_sliding_window_agrees_up_to_its_window(
    case: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    reference = checkpoints.write(case, tmp_path, **settings)
    model = labcore.load(tmp_path, dtype="float32", device="cpu")
    tokens = torch.arange(3, 63)[None]
    with torch.no_grad():
        expected, beyond = reference(tokens[:, :40]).logits, reference(tokens).logits
    torch.testing.assert_close(labcore.logits(model, tokens[:, :40]), expected, atol=1e-4, rtol=0)
    # Beyond it the two would differ, so a prompt that long is refused.
    full = model.config.with_(max_position_embeddings=256)
    unbounded = labcore.Model("unbounded", full, model.transformer, None)
    assert (labcore.logits(unbounded, tokens) - beyond).abs().max() > 1e-2
    with pytest.raises(PromptError, match="60 tokens"):
        labcore.generate(model, tokens[0].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_stay_near_fp32(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    folder, reference = checkpoint("qwen3")
    model = labcore.load(folder, dtype=dtype, device="cpu")
    assert model.dtype == dtype
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected = reference(tokens).logits
    error = (labcore.logits(model, tokens) - expected).abs().mean() / expected.abs().mean()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("case", ["llama", "llama-rope-llama3"])
def test_rotary_angles_are_computed_in_fp32_after_any_conversion(case: str, tmp_path: Path) -> None:
    """bf16 has 8 bits: there position 15,962 is 15,936, and a rounded frequency is off by whole turns."""
    checkpoints.write(case, tmp_path)
    rope = labcore.load(tmp_path, device="cpu", dtype="float32").transformer.rope
    exact = rope.signed_freq.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(rope.to(dtype).signed_freq, exact)
    loaded = labcore.load(tmp_path, device="cpu", dtype="bfloat16").transformer.rope
    cos, _ = loaded(torch.tensor([[15_962]]), torch.bfloat16)
    half = exact.double()[exact.numel() // 2 :]
    torch.testing.assert_close(cos[0, 0, 0].double(), (15_962 * half).cos().repeat(2), atol=4e-3, rtol=0)
