"""`labcore.load`: where a model may come from, what it is placed on, and what is refused beforehand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import labcore
from labcore import catalog
from labcore.errors import CatalogError, CheckpointError, ConfigError, DeviceError, OutOfMemory
from labcore.model import device as placing
from labcore.model import hub, loading
from labcore.perf import pages
from tests import checkpoints

Checkpoint = Callable[[str], tuple[Path, Any]]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in this file may reach for the Hub."""

    def never(*args: object) -> None:
        raise AssertionError(f"the Hub was asked for {args[0]}")

    monkeypatch.setattr(hub, "fetch", never)


class TestSource:
    def test_folder_as_text_or_path(self, checkpoint: Checkpoint) -> None:
        folder, _ = checkpoint("llama")
        for source in (folder, str(folder)):
            model = labcore.load(source)
            assert model.name == folder.name
            assert model.tokenizer is None
            assert not model.random_weights

    def test_folder_relative_to_home_and_here(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder.parent))
        monkeypatch.chdir(folder.parent)
        for source in ("~/tiny", "tiny", "./tiny"):
            assert labcore.load(source).name == "tiny"

    def test_an_embedded_name_wins_over_a_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(catalog, "embedded", lambda name: asked.append(name) or folder)
        monkeypatch.chdir(folder.parent)
        (folder.parent / "story").mkdir()
        assert labcore.load().name == "story"
        assert labcore.load("story-draft").name == "story-draft"
        assert asked == ["story", "story-draft"]

    @pytest.mark.parametrize("near", ["stroy", "story_draft", "shapes:smollm2-135m"])
    def test_a_misspelt_name_is_answered_with_the_nearest(self, near: str) -> None:
        with pytest.raises(
            CheckpointError, match=r"no model or folder .+did you mean .*(story|smollm2-135m)"
        ):
            labcore.load(near)

    @pytest.mark.parametrize(
        "source", ["./nowhere/tiny", "/nowhere/tiny", "~/nowhere", "a/b/c", "", "what is this?"]
    )
    def test_what_cannot_be_a_hub_id_never_reaches_the_hub(self, source: str) -> None:
        with pytest.raises(CheckpointError, match="There is no model or folder"):
            labcore.load(source)

    def test_a_path_object_never_reaches_the_hub(self) -> None:
        with pytest.raises(CheckpointError, match="There is no model or folder 'owner/name'"):
            labcore.load(Path("owner/name"))

    def test_a_file_is_answered_with_its_folder(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="is a file; give the folder"):
            labcore.load(folder / "model.safetensors")


class TestModel:
    def test_is_ready_to_generate_and_not_to_train(self, checkpoint: Checkpoint) -> None:
        transformer = labcore.load(checkpoint("qwen3")[0]).transformer
        assert not transformer.training
        assert not any(parameter.requires_grad for parameter in transformer.parameters())
        assert not any(tensor.is_meta for tensor in [*transformer.parameters(), *transformer.buffers()])

    def test_counts(self, checkpoint: Checkpoint) -> None:
        folder, reference = checkpoint("llama-biases")
        model = labcore.load(folder, dtype="float16", device="cpu")
        assert model.num_parameters == sum(parameter.numel() for parameter in reference.parameters())
        assert model.weight_bytes == 2 * model.num_parameters
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.float16)

    @pytest.mark.parametrize("ids", [7, [7, 9]])
    def test_generation_config_has_the_last_word_on_ends(self, folder: Path, ids: Any) -> None:
        assert labcore.load(folder).config.eos_token_ids == (2,)
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
        assert labcore.load(folder).config.eos_token_ids == tuple([ids] if isinstance(ids, int) else ids)

    @pytest.mark.parametrize("text", ["{}", '{"eos_token_id": null}', '{"eos_token_id": []}'])
    def test_a_generation_config_without_ends_changes_nothing(self, folder: Path, text: str) -> None:
        (folder / "generation_config.json").write_text(text)
        assert labcore.load(folder).config.eos_token_ids == (2,)


class TestDtypeAndDevice:
    @pytest.mark.parametrize(
        ("asked", "got"),
        [
            ("auto", torch.float32),
            ("fp32", torch.float32),
            ("bf16", torch.bfloat16),
            ("fp16", torch.float16),
            ("bfloat16", torch.bfloat16),
            (torch.float16, torch.float16),
        ],
    )
    def test_dtype_on_a_cpu(self, checkpoint: Checkpoint, asked: Any, got: torch.dtype) -> None:
        assert labcore.load(checkpoint("llama")[0], device="cpu", dtype=asked).dtype == got

    @pytest.mark.parametrize("dtype", ["int8", "float", "", torch.int8, torch.float64, None])
    def test_wrong_dtype(self, checkpoint: Checkpoint, dtype: Any) -> None:
        with pytest.raises(DeviceError, match="There is no dtype .+ use auto, float32, bfloat16 or float16"):
            labcore.load(checkpoint("llama")[0], dtype=dtype)

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu", "cuda:99", "meta", ""])
    def test_wrong_device(self, checkpoint: Checkpoint, device: str) -> None:
        with pytest.raises(DeviceError, match="cpu"):
            labcore.load(checkpoint("llama")[0], device=device)

    @pytest.mark.parametrize(
        ("capability", "hip", "dtype"),
        [((7, 5), None, torch.float16), ((8, 0), None, torch.bfloat16), ((9, 0), None, torch.bfloat16)],
    )
    def test_dtype_natural_to_a_gpu(
        self, capability: tuple[int, int], hip: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip, raising=False)
        assert placing.resolve_dtype("auto", torch.device("cuda", 0)) == dtype

    @pytest.mark.gpu
    def test_on_a_gpu_the_same_logits(self, checkpoint: Checkpoint) -> None:
        folder, reference = checkpoint("llama-rope-llama3")
        model = labcore.load(folder, dtype="float32")
        assert model.device.type == "cuda"
        tokens = torch.arange(3, 60)[None]
        with torch.no_grad():
            expected = reference(tokens).logits
        torch.testing.assert_close(labcore.logits(model, tokens).cpu(), expected, atol=1e-3, rtol=0)


def fails_with(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


class TestMemory:
    @pytest.fixture
    def allocations(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Models that were given memory."""
        seen: list[Any] = []
        give = loading._materialise
        monkeypatch.setattr(loading, "_materialise", lambda *args: seen.append(args) or give(*args))
        return seen

    def test_refused_before_allocation_with_the_numbers(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, allocations: list[Any]
    ) -> None:
        monkeypatch.setattr(placing, "available_memory", lambda device: 300_000)
        folder, reference = checkpoint("llama")
        numbers = sum(parameter.numel() for parameter in reference.parameters())
        needed, free = f"{numbers * 4 / 1e9:.3g}", "0.0003"
        with pytest.raises(
            OutOfMemory, match=rf"need {needed} GB and cpu has {free} GB free; load it with dtype='bfloat16'"
        ):
            labcore.load(folder, device="cpu", dtype="float32")
        assert not allocations
        assert 2 * numbers < 300_000  # and the mend that the sentence names does mend it
        assert labcore.load(folder, device="cpu", dtype="bfloat16").num_parameters == numbers
        assert len(allocations) == 1

    def test_memory_that_goes_while_it_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(*args: Any, **kwargs: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(torch, "empty", exhausted)
        for shape in ([320, 64], [8]):  # in large pages, and not
            monkeypatch.setattr(pages, "_mapped", fails_with(OSError("Cannot allocate memory")))
            monkeypatch.setattr(pages, "_chunk", None)
            with pytest.raises(OutOfMemory, match=rf"cpu gave out while taking memory for weights \{shape}"):
                placing.allocate(torch.Size(shape), torch.device("cpu"), torch.float32)

    def test_a_shape_that_no_machine_here_holds(self) -> None:
        with pytest.raises(OutOfMemory, match=r"70\.6 billion weights of shape:\S+ in float32 need 282 GB"):
            labcore.load("shape:llama-3.1-70b", device="cpu", dtype="float32")

    def test_no_second_copy_of_the_model_while_loading(self, tmp_path: Path) -> None:
        """Peak of anonymous memory in a process of its own: the model, and far less than half of it again."""
        if not Path("/proc/self/status").exists():
            pytest.skip("needs /proc")
        size = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8192, "num_hidden_layers": 15}
        checkpoints.write("llama", tmp_path, shard_size="30MB", **size)
        script = Path(__file__).with_name("peak_memory.py")
        run = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        weights, peak = (int(word) for word in run.stdout.split())
        assert weights > 200e6
        assert weights < peak < weights * 1.25


class TestShapes:
    def test_random_weights_are_real_and_the_same_for_a_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = catalog.entry("smollm2-135m").config.with_(num_hidden_layers=2, vocab_size=512)
        entry = type("Entry", (), {"name": "small", "config": small, "runnable": True})
        monkeypatch.setattr(catalog, "entry", lambda name: entry)
        model, again, other = (labcore.load("shape:small", seed=seed) for seed in (0, 0, 1))
        assert model.name == "shape:small"
        assert model.random_weights
        assert model.tokenizer is None
        logits = [labcore.logits(one, list(range(40))) for one in (model, again, other)]
        assert torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[0], logits[2])
        assert logits[0].isfinite().all()
        assert logits[0].std() > 1e-3

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_activations_stay_finite_in_a_narrow_dtype(self, dtype: str) -> None:
        model = labcore.load("shape:smollm2-135m", dtype=dtype, device="cpu")
        assert model.weight_bytes == 2 * model.num_parameters
        assert labcore.logits(model, [1, 2, 3]).isfinite().all()

    def test_unknown_shape(self) -> None:
        with pytest.raises(CatalogError, match="nearest.+llama-3.1-8b"):
            labcore.load("shape:llama-3.1-8")

    def test_every_shape_that_cannot_run_says_why(self) -> None:
        refused = set(catalog.architectures()) - set(catalog.architectures(runnable_only=True))
        assert refused
        for name in refused:
            reason = re.escape(str(catalog.entry(name).reason))
            with pytest.raises(ConfigError, match=rf"cannot be run \({reason}\); labcore runs dense models"):
                labcore.load(f"shape:{name}")

    def test_every_shape_that_can_run_counts_as_the_model_does(self) -> None:
        """The skeleton has no memory, so even the largest can be built."""
        for name in catalog.architectures(runnable_only=True):
            entry = catalog.entry(name)
            numbers = sum(parameter.numel() for parameter in loading._skeleton(entry.config).parameters())
            assert abs(numbers / entry.parameters - 1) < 0.06, name
