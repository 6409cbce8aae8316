"""Compiled and recorded decode steps: the eager step's answers, and clear words where they cannot be had."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import labcore
from labcore import cache as caches
from labcore.cache import ContiguousCache
from labcore.config import ModelConfig
from labcore.errors import ConfigError, DeviceError, NotSupported
from labcore.generation import TraceOptions, compiled, cuda_graph, decode_step, prefill, static_step, steps
from labcore.generation.loop import Generation
from labcore.generation.prompts import encode_batch
from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping
from labcore.model import Model
from labcore.model.transformer import Transformer
from tests.generation.pretended import Pretended

PROMPT = "once upon a time"
BATCH = ["a", "what is it?", PROMPT]


def grown(layers: int = 2, **changes: Any) -> Model:
    """A random model with room for several buckets."""
    settings: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 400,
    }  # fmt: skip
    config = ModelConfig(**(settings | changes))
    torch.manual_seed(1)
    transformer = Transformer(config).requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return Model(name="grown", config=config, transformer=transformer, tokenizer=None)


@pytest.fixture(scope="module")
def long() -> Model:
    return grown()


@pytest.fixture
def fresh_programs() -> Iterator[None]:
    """What a test leaves behind in a program, such as its failure, is forgotten."""
    yield
    compiled._programs.clear()


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def follow(model: Model, cache: ContiguousCache, known: Tensor, run: Callable[[Tensor], Tensor]) -> None:
    """One step by `run`, held against the eager step on a copy of the cache."""
    twin = cache.fork()
    torch.testing.assert_close(run(known), decode_step(model, known, twin), atol=1e-4, rtol=1e-4)
    assert cache.length == twin.length


def contiguous(model: Model, capacity: int, padding: list[int] | None = None) -> ContiguousCache:
    cache = caches.create(
        "contiguous", model.config, batch_size=len(padding or [0]), capacity=capacity,
        padding=None if padding is None else torch.tensor(padding),
    )  # fmt: skip
    assert isinstance(cache, ContiguousCache)
    for store in cache.store:
        store.fill_(torch.nan)  # as memory that was something else before may well be
    return cache


# The step itself, as it would be traced: no compiler needed


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "attention_bias": True}])
@pytest.mark.parametrize("products", [False, True])
def test_static_step_is_the_eager_step(changes: dict[str, Any], products: bool) -> None:
    model = grown(**changes)
    cache = contiguous(model, 130, [0, 5, 62])
    known = torch.randint(0, 40, (3, 70))
    prefill(model, known[:, :63], cache)
    inputs = static_step.StepInputs(3, torch.device("cpu"))

    def run(tokens: Tensor) -> Tensor:
        bucket = compiled.bucket_for(cache.length + 1)
        static_step.clear_ahead(cache, bucket)
        inputs.fill(tokens[:, -1:], cache)
        cache.begin(1)
        step = compiled._whole if products else static_step.whole
        span = static_step.span_of(bucket, cache.device)
        arguments = (inputs.tokens, inputs.position, inputs.padding, span, cache.store)
        logits = step(model.transformer, *arguments)
        cache.commit()
        return logits

    for t in range(64, 71):
        follow(model, cache, known[:, :t], run)


def test_buckets_cover_what_they_must() -> None:
    for positions in (1, 63, 64, 65, 128, 129, 1000):
        for bucket_for in (compiled.bucket_for, cuda_graph.bucket_for):
            assert bucket_for(positions) >= positions
        assert steps.room_for("compiled", positions) > compiled.bucket_for(positions)
    assert [cuda_graph.bucket_for(n) for n in (1, 64, 65, 129, 1000)] == [64, 64, 128, 256, 1024]


# Compiled


def test_compiled_answers_are_the_eager_answers(long: Model) -> None:
    prompt = list(range(30))
    settings: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 110}
    eager = labcore.generate(long, prompt, **settings)
    with pytest.warns(UserWarning, match=r"waited \d+\.\d s for torch.compile \(grown, batch 1\)"):
        out = labcore.generate(long, prompt, step="compiled", trace=True, **settings)
    assert out.tokens == eager.tokens
    assert out.trace is not None
    assert [step.token for step in out.trace.steps] == eager.tokens
    with warnings.catch_warnings():  # another length, capacity and way of asking wait for nothing
        warnings.simplefilter("error")
        streamed = labcore.stream(long, prompt, step="compiled", ignore_eos=True, max_new_tokens=200)
        tokens = [step.token for step in streamed]
    assert tokens[:110] == eager.tokens
    assert variants(long, 1) == 1


def variants(model: Model, batch: int) -> int:
    """How many programs the compiler made of a step."""
    function = compiled.program_for(model, batch)._whole
    inner = function._torchdynamo_orig_callable
    return len(torch._dynamo.eval_frame._debug_get_cache_entry_list(inner.__code__))


def test_compiled_batches_with_padding(model: Model, quiet: None) -> None:
    settings: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 20}
    eager = labcore.generate(model, BATCH, **settings)
    found = labcore.generate(model, BATCH, step="compiled", **settings)
    assert [out.tokens for out in found] == [out.tokens for out in eager]


def test_compiled_steps_follow_a_cache_that_was_cut_and_continued(long: Model, quiet: None) -> None:
    cache = contiguous(long, 200)
    known = torch.randint(0, 40, (1, 140))
    run = compiled.CompiledSteps(long, cache, lambda tokens: decode_step(long, tokens, cache))
    prefill(long, known[:, :62], cache)
    for t in (63, 64, 65):
        follow(long, cache, known[:, :t], run)
    cache.truncate(20)
    follow(long, cache, known[:, :21], run)
    follow(long, cache, known[:, :130], run)  # many at once: eagerly
    follow(long, cache, known[:, :131], run)


def test_changed_and_moved_weights_are_seen(model: Model, quiet: None) -> None:
    mine = grown(num_attention_heads=2, num_key_value_heads=1)
    settings: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 8}

    def compare() -> None:
        eager = labcore.generate(mine, [1, 2, 3], **settings).tokens
        assert labcore.generate(mine, [1, 2, 3], step="compiled", **settings).tokens == eager

    compare()
    program = compiled.program_for(mine, 1)
    torch.nn.init.normal_(mine.transformer.layers[0].attention.o_proj.weight)
    compare()
    mine.transformer.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.randn(32, 48), False)
    compare()
    assert compiled.program_for(mine, 1) is program
    mine.transformer.double()
    assert compiled.program_for(mine, 1) is not program


def test_deep_models_share_one_compiled_chunk(quiet: None) -> None:
    deep = grown(layers=8, num_attention_heads=2, num_key_value_heads=2)
    program = compiled.program_for(deep, 1)
    assert program.chunk == 4
    eager = labcore.generate(deep, [1, 2], ignore_eos=True, max_new_tokens=6)
    out = labcore.generate(deep, [1, 2], ignore_eos=True, max_new_tokens=6, step="compiled")
    assert out.tokens == eager.tokens
    chunk = program._parts[1]._torchdynamo_orig_callable
    assert len(torch._dynamo.eval_frame._debug_get_cache_entry_list(chunk.__code__)) == 1


def test_warm_up_leaves_nothing_to_wait_for(long: Model) -> None:
    ready = labcore.warm_up(long, context=130)
    assert (ready.step, ready.batch, ready.buckets) == ("compiled", 1, (64, 192))
    assert ready.seconds > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labcore.generate(long, [1, 2, 3], step="compiled", max_new_tokens=3, ignore_eos=True)
    assert labcore.warm_up(long, "eager").buckets == ()


def test_programs_go_with_their_model() -> None:
    mine = grown(layers=1)
    compiled.program_for(mine, 1)
    gone = weakref.ref(mine.transformer)
    del mine
    gc.collect()
    assert gone() is None


# No compiler


def test_no_compiler_is_said_once_and_decoding_goes_on(
    model: Model, monkeypatch: pytest.MonkeyPatch, fresh_programs: None
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("No working C++ compiler found.\nSet SOMETHING=1 for more.")

        return call

    compiled._programs.clear()
    monkeypatch.setattr(torch, "compile", broken)
    eager = labcore.generate(model, PROMPT, ignore_eos=True)
    with pytest.warns(UserWarning, match=r"\(No working C\+\+ compiler found\); install a C\+\+ compiler"):
        out = labcore.generate(model, PROMPT, ignore_eos=True, step="compiled")
    assert out.tokens == eager.tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labcore.generate(model, PROMPT, ignore_eos=True, step="compiled")
    assert labcore.warm_up(model).step == "eager"


def test_a_missing_compiler_is_such_a_failure(fresh_programs: None) -> None:
    mine = grown(layers=1, hidden_size=24)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}),
        pytest.warns(UserWarning, match="go on uncompiled, with the same results"),
    ):
        out = labcore.generate(mine, [1, 2], max_new_tokens=4, ignore_eos=True, step="compiled")
    assert out.tokens == labcore.generate(mine, [1, 2], max_new_tokens=4, ignore_eos=True).tokens


# Refusals


@pytest.mark.parametrize("ask", [labcore.generate, labcore.stream])
def test_what_cannot_be_is_refused(model: Model, ask: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no step 'fast'; choose one of eager, compiled, graph"):
        ask(model, PROMPT, step="fast")
    with pytest.raises(DeviceError, match="is on cpu; step='compiled' speeds up decoding there"):
        ask(model, PROMPT, step="graph")
    with pytest.raises(NotSupported, match="contiguous cache and this one is paged"):
        ask(model, PROMPT, step="compiled", cache="paged")


def test_what_generate_cannot_combine_is_refused(model: Model) -> None:
    with pytest.raises(NotSupported, match="Beam search"):
        labcore.generate(model, PROMPT, step="compiled", num_beams=2)
    with pytest.raises(NotSupported, match="attention needs step='eager'"):
        labcore.generate(model, PROMPT, step="compiled", trace=TraceOptions(attention=[(0, 0)]))
    with pytest.raises(ConfigError, match="batch 0 and context 256"):
        labcore.warm_up(model, batch=0)
    with pytest.raises(DeviceError, match="step='graph' records CUDA graphs"):
        labcore.warm_up(model, "graph")


# Graphs


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs without a GPU: a replay fills its own output again. Lists the recordings made."""
    capture = Pretended()
    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(steps, "_has_graphs", lambda device: True)
    cuda_graph._recorded.clear()
    return capture.made


def test_graph_answers_are_the_eager_answers(long: Model, pretended: list[int]) -> None:
    settings: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 110}
    for prompt in ([[5] * 30], [[1, 2, 3], [7] * 30]):
        eager = labcore.generate(long, prompt, **settings)
        pretended.clear()
        for _ in range(2):  # the second time nothing is left to record
            out = labcore.generate(long, prompt, step="graph", **settings)
            assert [one.tokens for one in out] == [one.tokens for one in eager]
            assert len(pretended) == 3  # buckets of 64, 128 and 256


def test_interleaved_graph_generations_do_not_meet(long: Model, pretended: list[int]) -> None:
    prompts = [[1, 2, 3], [9, 8, 7, 6]]
    eager = [labcore.generate(long, one, max_new_tokens=12, ignore_eos=True).tokens for one in prompts]
    streams = [labcore.stream(long, one, step="graph", max_new_tokens=12, ignore_eos=True) for one in prompts]
    taken = [[a.token, b.token] for a, b in zip(*streams, strict=True)]
    assert [list(tokens) for tokens in zip(*taken, strict=True)] == eager


def test_graphs_over_moved_weights_are_not_replayed(pretended: list[int]) -> None:
    mine = grown()
    labcore.generate(mine, [1, 2], step="graph", max_new_tokens=4, ignore_eos=True)
    mine.transformer.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.randn(32, 48), False)
    eager = labcore.generate(mine, [1, 2], max_new_tokens=4, ignore_eos=True)
    out = labcore.generate(mine, [1, 2], step="graph", max_new_tokens=4, ignore_eos=True)
    assert out.tokens == eager.tokens
    assert len(pretended) == 2


def test_graph_warm_up_records_every_bucket(long: Model, pretended: list[int]) -> None:
    assert labcore.warm_up(long, "graph", context=200).buckets == (64, 128, 256)
    assert len(pretended) == 3
    labcore.generate(long, [1, 2], step="graph", max_new_tokens=190, ignore_eos=True)
    assert len(pretended) == 3


def test_a_generation_leaves_its_graphs_to_the_next(long: Model, pretended: list[int]) -> None:
    prompts = encode_batch(long, [1, 2, 3])
    arguments = (prompts, SamplingParams(), Stopping(4, ignore_eos=True), "contiguous")
    first = Generation(long, *arguments, step="graph")
    second = Generation(long, *arguments, step="graph")
    assert first.cache.store is not second.cache.store
    memory = first.cache.store
    del first
    assert Generation(long, *arguments, step="graph").cache.store is memory


@pytest.mark.gpu
@pytest.mark.parametrize("step", ["compiled", "graph"])
@pytest.mark.parametrize("prompt", [[[5] * 30], [[1, 2, 3], [7] * 20]])
def test_on_a_gpu(step: str, prompt: list[list[int]], quiet: None) -> None:
    mine = grown()
    mine.transformer.cuda()
    settings: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 110}
    eager = labcore.generate(mine, prompt, **settings)
    for _ in range(2):
        out = labcore.generate(mine, prompt, step=step, **settings)
        assert [one.tokens for one in out] == [one.tokens for one in eager]


@pytest.mark.gpu
def test_graphs_do_not_meet_on_a_gpu() -> None:
    mine = grown()
    mine.transformer.cuda()
    prompts = [[1, 2, 3], [9, 8, 7, 6]]
    eager = [labcore.generate(mine, one, max_new_tokens=70, ignore_eos=True).tokens for one in prompts]
    streams = [labcore.stream(mine, one, step="graph", max_new_tokens=70, ignore_eos=True) for one in prompts]
    taken = [[a.token, b.token] for a, b in zip(*streams, strict=True)]
    assert [list(tokens) for tokens in zip(*taken, strict=True)] == eager
