"""What trains the story models: rows, attention, first weights, schedule, a run that is continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.story.causal import CausalAttention
from data.story.dataset import ANSWER_WEIGHT, encode, make_rows
from data.story.lists import join, make_list
from data.story.optimise import draw_weights
from data.story.plans import DRAFT, MAIN, draft_plan, main_plan
from data.story.questions import make_document
from data.story.tokens import BOS, EOS, VOCAB_SIZE, train_tokenizer
from data.story.train import Batches, Plan, Stage, Worker
from data.story.world import replay
from labcore import cache
from labcore.config import ModelConfig
from labcore.model import Transformer

CPU = torch.device("cpu")
TINY = ModelConfig(
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    intermediate_size=64,
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=128,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_lists_are_answered_by_their_own_events_and_repeat_them() -> None:
    repeated = 0
    for seed in range(80):
        document = make_list(seed, 40 + seed)
        facts = replay(event for _, event in document.events)
        for recall in document.recalls:
            assert facts[recall.kind, recall.subject] == recall.answer
            assert document.text[recall.start : recall.end] == recall.answer
        for start, end in document.retold:
            assert document.text[start:end] in facts.values()
        repeated += len(document.retold)
    assert repeated > 150
    assert join(["a"]) == "a"
    assert join(["a", "b", "c"]) == "a, b and c"


def test_an_answers_token_weighs_tenfold(tokenizer) -> None:
    document = make_document("weights", 120)
    ids, weights = encode(document, tokenizer)
    assert tokenizer.decode(ids) == document.text
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS))
    heavy = [
        tokenizer.decode([token]).strip() for token, w in zip(ids, weights, strict=True) if w == ANSWER_WEIGHT
    ]
    assert heavy == [recall.answer for recall in document.recalls]


def test_rows_are_whole_documents_and_the_same_each_time(tokenizer) -> None:
    rows = make_rows(tokenizer, 64, 20, "test")
    assert (rows == make_rows(tokenizer, 64, 20, "test")).all()
    assert (rows != make_rows(tokenizer, 64, 20, "other")).any()
    for ids, weights in zip(*rows, strict=True):
        used = int((weights > 0).sum()) + 1
        assert ids[0] == tokenizer.token_to_id(BOS)
        assert ids[used - 1] == tokenizer.token_to_id(EOS)
        assert not ids[used:].any()


@pytest.mark.parametrize("length", [48, 128, 300])
def test_training_attention_is_causal_attention(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 32) for heads in (4, 2, 2))
    ours = CausalAttention(length, 2, CPU, torch.float32).attend(0, q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_trained_is_what_is_served() -> None:
    """The Transformer gives the same logits over the training attention as over the engine's caches."""
    model = Transformer(TINY)
    draw_weights(model, 0)
    tokens = torch.randint(0, VOCAB_SIZE, (3, 40))
    with torch.no_grad():
        trained = model(tokens, CausalAttention(40, TINY.queries_per_kv_head, CPU, torch.float32))
        for kind in ("none", "contiguous"):
            served = model(tokens, cache.create(kind, TINY, batch_size=3))
            torch.testing.assert_close(trained, served, atol=1e-4, rtol=1e-4)


class _Watch(CausalAttention):
    """Keeps the attention of the last position of each layer."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q[:, :, -1:] @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
        self.seen = [*getattr(self, "seen", []), scores.softmax(-1)[0, :, 0]]
        return super().attend(layer, q, k, v)


@pytest.mark.parametrize("config", [MAIN, DRAFT], ids=["main", "draft"])
def test_first_weights_look_back_and_find_what_followed(config: ModelConfig) -> None:
    """Heads 0: layer 0 sees the token before, layer 1 what followed an earlier occurrence of this token."""
    model = Transformer(config)
    draw_weights(model, 0)
    tokens = torch.randperm(1000)[None, :60] + 2
    tokens[0, -1] = tokens[0, 20]
    watch = _Watch(60, config.queries_per_kv_head, CPU, torch.float32)
    with torch.no_grad():
        model(tokens, watch)
    assert watch.seen[0][0].argmax() == 58
    assert watch.seen[0][0].max() > 0.7
    assert watch.seen[1][0].argmax() == 21
    assert watch.seen[1][0].max() > 0.5


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    plan = Plan(TINY, (Stage(100, {64: 1.0}), Stage(100, {128: 1.0})), decay=50, warmup=10, peak_lr=1.0)
    rates = [plan.lr(step) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[149] == 1.0
    assert rates[199] == pytest.approx(0.02)
    assert plan.stage_at(99).shares == {64: 1.0}
    assert plan.stage_at(100).shares == {128: 1.0}


def test_workers_share_a_batch_without_overlap(tmp_path: Path) -> None:
    rows = np.arange(2 * 2 * 8 * 64, dtype=np.uint16).reshape(2, 2, 8, 64)
    np.save(tmp_path / "rows-64.npy", rows)
    batches = Batches(tmp_path, 0)
    seen = [batches.rows(64, step, rank, 2, 2)[0][0, 0].item() for step in range(4) for rank in range(2)]
    assert len(set(seen)) == 8


def test_a_run_learns_and_goes_on_where_it_stopped(tmp_path: Path, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    np.save(tmp_path / "rows-64.npy", make_rows(tokenizer, 64, 64, "test")[None])
    plan = Plan(TINY, (Stage(12, {64: 1.0}, batch=1024),), decay=4, warmup=2)
    lines: list[dict] = []
    whole = Worker(plan, tmp_path, "whole", 0, 1, CPU)
    tokens, weights = (part.to(CPU) for part in whole.batches.rows(64, 0, 0, 16, 1))
    whole._one_step()
    loss = whole.losses[64]
    before = loss(tokens, weights)[0].item()
    whole.train(lines.append)
    assert loss(tokens, weights)[0].item() < before - 1
    again = Worker(plan, tmp_path, "whole", 0, 1, CPU)
    again.resume()
    assert again.step == plan.steps
    for name, master in whole.optimiser.masters.items():
        assert torch.equal(master, again.optimiser.masters[name])


def test_the_plans_reach_long_stories() -> None:
    for plan in (main_plan(), draft_plan(Path("main.pt"))):
        assert 512 in plan.stages[-1].shares
        assert min(plan.stages[0].shares) == 64
        assert plan.decay < plan.steps
