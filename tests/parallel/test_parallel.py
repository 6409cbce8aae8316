"""Several processes with one model: the same logits, half the cache, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import labcore
from labcore.catalog import architecture
from labcore.config import ModelConfig
from labcore.errors import ConfigError, DeviceError, ParallelError
from labcore.model import Transformer, save_checkpoint
from labcore.parallel import Workers, all_reduce_times, logits_on_ranks, step_times
from labcore.parallel.measure import cache_bytes_on_ranks
from labcore.parallel.shard import shard_config
from labcore.perf.costs import reduced_bytes, ring_bytes
from tests.parallel import ranks

ROOT = Path(__file__).parents[2]
UNEVEN = ModelConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=20, vocab_size=31, max_position_embeddings=64, model_type="qwen3", qk_norm=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2, threads=1, timeout_s=120) as workers:
        yield workers


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(map(_alive, pids)):
            return True
        time.sleep(0.05)
    return False


def _saved(config: ModelConfig, folder: Path) -> str:
    torch.manual_seed(0)
    transformer = Transformer(config).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too, so that one added twice would show
    transformer.reset_rope()
    save_checkpoint(transformer, config, folder, dtype="float32")
    return str(folder)


@pytest.mark.parametrize("kind", ["story", "uneven", "biases"])
def test_the_same_logits_as_one_rank(kind: str, two: Workers, tmp_path: Path) -> None:
    configs = {
        "uneven": UNEVEN,
        "biases": UNEVEN.with_(
            model_type="llama", qk_norm=False, attention_bias=True, o_proj_bias=True, mlp_bias=True
        ),
    }
    source = kind if kind == "story" else _saved(configs[kind], tmp_path / kind)
    model = labcore.load(source)
    tokens = torch.randint(0, model.config.vocab_size, (2, 12))
    together = logits_on_ranks(two, source, tokens)
    torch.testing.assert_close(together, labcore.logits(model, tokens), atol=1e-4, rtol=1e-4)


def test_each_rank_keeps_its_kv_heads(two: Workers) -> None:
    model = labcore.load("story")
    whole = labcore.cache.create("contiguous", model.config, capacity=100).nbytes
    assert cache_bytes_on_ranks(two, "story", 100) == [whole // 2, whole // 2]


def test_sums_are_sums(two: Workers) -> None:
    assert two.run(ranks.total, [1.0, 2.5]) == [[3.0, 7.5], [3.0, 7.5]]


def test_what_talking_costs(two: Workers) -> None:
    rows = all_reduce_times(two, (1024, 1 << 20), repeats=5)
    assert [row.bytes for row in rows] == [1024, 1 << 20]
    assert all(row.seconds > 0 and row.bus_bandwidth == row.bytes / row.seconds for row in rows)
    model = labcore.load("story").config
    step = step_times(two, "story", batch=3, context=40, repeats=5)
    # two sums a layer and one gathering of the logits
    assert step.calls == 2 * model.num_hidden_layers + 1
    gathered = 4 * 3 * -(-model.vocab_size // 2)
    assert step.bytes == reduced_bytes(model, 3, "float32") + gathered
    assert 0 < step.communication_share < 1
    with pytest.raises(ParallelError, match="take 4 or more"):
        all_reduce_times(two, (0,))


def test_bytes_around_a_ring() -> None:
    assert ring_bytes(1000, 1) == 0
    assert ring_bytes(1000, 2) == 1000
    assert ring_bytes(1000, 8) == 1750
    with pytest.raises(ConfigError, match="0 ranks"):
        ring_bytes(1000, 0)


@pytest.mark.parametrize(("ranks_", "name"), [(3, "num_attention_heads"), (4, "num_key_value_heads")])
def test_splits_that_do_not_divide(ranks_: int, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .* can be split over 1, 2"):
        shard_config(labcore.load("story").config, ranks_)
    assert shard_config(architecture("llama-3.1-8b"), 8).num_key_value_heads == 1


@pytest.mark.parametrize(
    ("how", "told"),
    [("raise", "Rank 1 of 2 .* a made-up mistake"), ("exit", "exit code 3"), ("kill", "killed by signal 9")],
)
def test_a_crash_in_the_middle_of_an_all_reduce(how: str, told: str) -> None:
    with Workers(2, threads=1) as workers:
        pids = workers.pids
        start = time.monotonic()
        with pytest.raises(ParallelError, match=told):
            workers.run(ranks.fail_while_others_wait, how)
        assert time.monotonic() - start < 10
        assert _gone(pids, 1)
        with pytest.raises(ParallelError, match="have ended"):
            workers.run(ranks.total, [1.0])


def test_a_rank_that_hangs_is_ended() -> None:
    with Workers(2, threads=1) as workers:
        workers.timeout_s = 1.0
        pids = workers.pids
        with pytest.raises(ParallelError, match="did not finish sleep within 1 s"):
            workers.run(ranks.sleep, 60)
        assert _gone(pids, 1)


def test_workers_die_with_their_parent() -> None:
    script = (
        "import sys\nfrom labcore.parallel import Workers\nfrom tests.parallel import ranks\n"
        "with Workers(2, threads=1) as w:\n    print(*w.pids, flush=True)\n    w.run(ranks.sleep, 600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(_alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _gone(pids, 5)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: Workers(0), ParallelError, "at least 1"),
        (lambda: Workers(2, device="gpu"), DeviceError, "'gpu'"),
    ],
)
def test_workers_that_cannot_be(make: Callable[[], Workers], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="CUDA"):
        Workers(2, device="cuda")


def test_torchrun_prints_what_one_process_would() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += [
        "--standalone",
        "-m",
        "labcore.parallel",
        "--prompt",
        "Tom has a red",
        "--max-new-tokens",
        "12",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    expected = labcore.generate(labcore.load("story"), "Tom has a red", max_new_tokens=12).text
    assert expected in done.stdout, done.stderr


def test_without_torchrun_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "labcore.parallel"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 1
    assert "torchrun --nproc-per-node" in done.stderr


def test_workers_outlive_the_thread_that_started_them() -> None:
    made: list[Workers] = []
    starter = threading.Thread(target=lambda: made.append(Workers(2, threads=1).__enter__()))
    starter.start()
    starter.join()
    time.sleep(0.3)
    try:
        assert len(made[0].run(ranks.number)) == 2
    finally:
        made[0].close()


def test_an_interrupt_meant_for_the_parent_leaves_idle_workers_alone() -> None:
    with Workers(2, threads=1) as workers:
        for pid in workers.pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert len(workers.run(ranks.number)) == 2


def test_what_cannot_be_sent_is_told() -> None:
    with Workers(2, threads=1) as workers, pytest.raises(ParallelError, match="cannot be sent to 2 ranks"):
        workers.run(lambda rank: rank)
    workers.close()  # a second time
    Workers(2).close()  # never begun
