"""The C kernels against the readable layer, and what happens where they cannot be built."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.kernels import native
from labcore.kernels.native import build
from labcore.model import Transformer
from labcore.model.native_block import NativeDecoder
from tests.caches import EXACT

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())


@pytest.fixture
def fresh_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered of earlier builds."""
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path))
    monkeypatch.delenv("LABCORE_NATIVE", raising=False)
    build.library.cache_clear()
    build._load.cache_clear()
    yield tmp_path / "native"
    build.library.cache_clear()
    build._load.cache_clear()


configs = st.builds(
    ModelConfig,
    hidden_size=st.integers(1, 40),
    num_hidden_layers=st.just(2),
    num_attention_heads=st.sampled_from([2, 4, 6]),
    num_key_value_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([2, 6, 16]),
    intermediate_size=st.integers(1, 70),
    vocab_size=st.just(20),
    attention_bias=st.booleans(),
    o_proj_bias=st.booleans(),
    mlp_bias=st.booleans(),
    qk_norm=st.booleans(),
)


def random_model(config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.5)
    return model


def decode(model: Transformer, fast: bool, tokens: list[int], kind: str = "contiguous") -> torch.Tensor:
    model.fast = fast
    cache = caches.create(kind, model.config, capacity=32, dtype=model.norm.weight.dtype)
    out = [model(torch.tensor([tokens[:4]]), cache)]
    if kind == "none":
        return model(torch.tensor([tokens[-1:]]), cache)
    out += [model(torch.tensor([[token]]), cache) for token in tokens[4:]]
    return torch.cat(out, dim=1)


@needs_compiler
@settings(max_examples=40)
@given(config=configs)
def test_equals_the_readable_layer(config: ModelConfig) -> None:
    model = random_model(config)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    fast, plain = decode(model, True, tokens), decode(model, False, tokens)
    assert isinstance(model._native, NativeDecoder)
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("kind", EXACT.values())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_cache_and_any_number_of_threads(kind: str, threads: int) -> None:
    config = ModelConfig(
        hidden_size=33, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        intermediate_size=71, vocab_size=20,
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        model = random_model(config)
        tokens = [3, 1, 4, 1, 5, 9]
        torch.testing.assert_close(
            decode(model, True, tokens, kind), decode(model, False, tokens, kind), atol=1e-4, rtol=1e-4
        )
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("kind", EXACT.values())
@pytest.mark.parametrize("batch", [2, 3, 8, 9, 16, 17, 30])
@pytest.mark.parametrize("padded", [False, True])
def test_batches(kind: str, batch: int, padded: bool) -> None:
    config = ModelConfig(
        hidden_size=33, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        intermediate_size=71, vocab_size=20, attention_bias=True, mlp_bias=True, qk_norm=True,
    )  # fmt: skip
    model = random_model(config)
    padding = torch.arange(batch) % 3 if padded else None
    tokens = torch.randint(0, 20, (batch, 6))

    def last(fast: bool) -> torch.Tensor:
        model.fast = fast
        cache = caches.create(kind, config, batch_size=batch, padding=padding)
        model(tokens[:, :5], cache)
        return model(tokens[:, 5:] if kind != "none" else tokens[:, :1], cache)

    torch.testing.assert_close(last(True), last(False), atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("batch", [1, 3])
def test_from_few_keys_to_many(batch: int) -> None:
    """From few keys, in one part, to many, split among threads: no seam."""
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=20, max_position_embeddings=300,
    )  # fmt: skip
    model = random_model(config)
    tokens = torch.randint(0, 20, (batch, 260))
    cache = caches.create("contiguous", config, batch_size=batch)
    model(tokens[:, :252], cache)
    steps = [model(tokens[:, at : at + 1], cache) for at in range(252, 260)]
    whole = model(tokens, caches.create("none", config, batch_size=batch))
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, 252:], atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("fast", [True, False])
def test_the_readable_path_uses_no_native_call(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    config = ModelConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, vocab_size=20,
    )  # fmt: skip
    calls: list[str] = []
    kernels = ((native.LayersKernel, "__call__"), (native.LayerKernel, "before_attention"),
               (native.KVMemory, "attend"), (native.HeadKernel, "__call__"))  # fmt: skip
    for kind, name in kernels:
        original = getattr(kind, name)
        said = f"{kind.__name__}.{name}"
        monkeypatch.setattr(kind, name, lambda *a, f=original, n=said, **k: calls.append(n) or f(*a, **k))
    decode(random_model(config), fast, [1, 2, 3, 4, 5])
    assert set(calls) == ({"LayersKernel.__call__", "HeadKernel.__call__"} if fast else set())


@needs_compiler
def test_new_weights_are_noticed() -> None:
    config = ModelConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, vocab_size=20,
    )  # fmt: skip
    model = random_model(config)
    tokens = [1, 2, 3, 4, 5]
    decode(model, True, tokens)
    attention = model.layers[1].attention
    attention.o_proj.weight = torch.nn.Parameter(
        torch.randn_like(attention.o_proj.weight), requires_grad=False
    )
    torch.testing.assert_close(
        decode(model, True, tokens), decode(model, False, tokens), atol=1e-4, rtol=1e-4
    )
    model.layers[0].mlp.down_proj.weight.mul_(2)
    torch.testing.assert_close(
        decode(model, True, tokens), decode(model, False, tokens), atol=1e-4, rtol=1e-4
    )
    model.double()
    torch.testing.assert_close(decode(model, True, tokens), decode(model, False, tokens))
    assert model._native is False


@needs_compiler
def test_is_built_once_and_reused(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.available()
    (built,) = fresh_build.iterdir()
    build._load.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled a second time"))
    assert build._load()._name == str(built)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda patch: patch.setattr(build.shutil, "which", lambda _: None), "no C compiler .* install one"),
        (lambda patch: patch.setenv("LABCORE_NATIVE", "0"), "LABCORE_NATIVE=0 is set"),
        (lambda patch: patch.setattr(build, "FLAGS", ("-fno-such-flag",)), "failed"),
    ],
)
def test_says_once_why_it_is_off(
    fresh_build: Path, monkeypatch: pytest.MonkeyPatch, prepare: object, reason: str
) -> None:
    prepare(monkeypatch)
    with pytest.warns(UserWarning, match=rf"native CPU kernels are off: .*{reason}"):
        assert not native.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()
    assert native.status().startswith("native CPU kernels off")
    assert not fresh_build.exists() or list(fresh_build.iterdir()) == []


@needs_compiler
def test_a_damaged_library_is_removed(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(compiler: str, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not a library")

    with monkeypatch.context() as patch:
        patch.setattr(build, "_compile", damaged)
        with pytest.warns(UserWarning, match="does not load"):
            assert not native.available()
    build.library.cache_clear()
    assert native.available()


@needs_compiler
def test_shares_pytorchs_thread_pool() -> None:
    """One OpenMP runtime in the process: a second pool would fight the first for the cores."""
    assert isinstance(build.library(), ctypes.CDLL)
    runtimes = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if Path(line.split()[-1]).name.startswith(("libgomp", "libiomp5", "libomp"))
    }
    before = {path for path in runtimes if "torch" in path or "mkl" in path}
    assert runtimes == before
