"""The simulator's view, its controls, and the explorer they stand on."""

from __future__ import annotations

from typing import Any

import pytest

from labcore import catalog
from labcore.errors import ConfigError, DeviceError
from labcore.lab import display, theme
from labcore.lab.session import Session
from labcore.lab.widgets import common, napkin
from labcore.lab.widgets.common import Explorer, View, choice, slider, stepper
from labcore.perf.predict import Machine

HERE = Machine("a laptop", 16 * 10**9, 20e9, {"float32": 2e11}, measured=True)


def view(**changes: Any) -> View:
    settings = {"model": "llama-2-7b", "gpu": "a10", "precision": "float16", "batch": 1, "context": 512}
    return napkin.view(HERE, None, **(settings | changes))


def test_the_napkin_states_fit_speed_and_price() -> None:
    shown = view()
    assert "room for 1 sequence of 512 tokens. At best: TPOT 22.9 ms, 43.7 tok/s" in shown.finding
    assert shown.rows[0]["fits"] is True
    price = catalog.gpu("a10").usd_per_hour
    assert price is not None
    assert shown.rows[0]["$ per million tokens"] == pytest.approx(price / (3600 * 43.65) * 1e6, rel=1e-3)


def test_what_does_not_fit_says_what_would() -> None:
    assert "at most 39 of them would fit" in view(batch=64).finding
    assert "not even one would fit" in view(gpu="t4", precision="float32").finding


def test_this_machine_is_one_of_the_gpus() -> None:
    shown = view(model="smollm2-135m", gpu=napkin.THIS_MACHINE, precision="float32")
    assert "on a laptop" in shown.finding
    assert shown.rows[0]["$ per million tokens"] is None
    assert "$" not in shown.finding
    weights, cache = shown.rows[0]["weights (GB)"], shown.rows[0]["KV cache (GB)"]
    assert shown.rows[0]["TPOT (ms)"] == pytest.approx((weights + cache) / 20 * 1e3)
    paid = napkin.view(
        HERE, 0.5, model="smollm2-135m", gpu=napkin.THIS_MACHINE, precision="int8", batch=1, context=512
    )
    assert paid.rows[0]["$ per hour"] == 0.5


def test_fewer_bits_shorten_the_step_but_not_the_cache() -> None:
    half, quarter = view(context=4096).rows[0], view(context=4096, precision="int4").rows[0]
    assert quarter["KV cache (GB)"] == half["KV cache (GB)"]
    assert quarter["TPOT (ms)"] < half["TPOT (ms)"]
    assert quarter["TPOT (ms)"] > half["TPOT (ms)"] / 4


def test_fewer_bits_shorten_no_prompt() -> None:
    for machine in ("a10", "t4", "h100-sxm"):
        settings = {"gpu": machine, "context": 4096}
        half, narrow = (view(**settings, precision=one).rows[0] for one in ("float16", "int8"))
        assert narrow["TTFT (ms)"] == half["TTFT (ms)"]


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads at most 4,096 tokens"):
        view(context=8192)


@pytest.mark.parametrize("name", catalog.gpus())
def test_every_catalogued_gpu_and_precision_has_a_view(name: str) -> None:
    for precision in ("float16", "int8", "int4"):
        assert view(gpu=name, precision=precision).rows[0]["TPOT (ms)"] > 0


def test_a_data_sheet_without_a_float32_rate_says_so() -> None:
    with pytest.raises(DeviceError, match="No float32 rate is known"):
        view(gpu="b200-sxm", precision="float32")


class Page:
    """Stands for the notebook page: keeps what each region showed last."""

    def __init__(self) -> None:
        self.shown: dict[int, dict[str, Any]] = {}

    def show(self, region: object, bundle: dict[str, Any]) -> None:
        self.shown[id(region)] = bundle

    def text(self) -> str:
        return "\n".join(bundle["text/plain"] for bundle in self.shown.values())


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    made = Page()
    monkeypatch.setattr(display.Region, "show", lambda region, bundle: made.show(region, bundle))
    return made


def doubled(batch: int) -> View:
    if batch == 4:
        raise ConfigError("Four is refused.")
    return View(theme.figure(f"batch {batch}"), f"twice is {2 * batch}", [{"twice": 2 * batch}])


def test_moving_a_control_redraws_figure_finding_and_table(page: Page) -> None:
    explorer = Explorer(doubled, batch=slider("Batch (sequences)", [1, 2, 4], 1))
    explorer.show()
    assert "twice is 2" in page.text()
    explorer.controls["batch"].source.value = 2
    assert "[figure] batch 2" in page.text()
    assert "twice is 4" in page.text()
    assert "twice is 2" not in page.text()


def test_what_is_refused_is_shown_as_its_sentence(page: Page) -> None:
    explorer = Explorer(doubled, batch=slider("Batch (sequences)", [1, 2, 4], 1))
    explorer.show()
    explorer.controls["batch"].source.value = 4
    assert "Four is refused." in page.text()
    assert "twice is" not in page.text()
    assert "[figure]" not in page.text()


def test_the_whole_simulator_draws_and_follows_its_controls(
    session: Session, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "machine", property(lambda _: HERE))
    made: list[Explorer] = []
    monkeypatch.setattr(common.Explorer, "show", lambda self: (made.append(self), self.draw()))
    napkin.napkin(session)
    controls = made[0].controls
    assert set(controls) == {"model", "gpu", "precision", "batch", "context"}
    controls["batch"].source.value = 32
    assert "870 tok/s" in page.text()


def test_a_part_has_at_most_three_controls() -> None:
    with pytest.raises(ValueError, match="at most 3 controls"):
        Explorer(doubled, **{f"c{i}": choice("c", ["a"], "a") for i in range(4)})


def test_labels_are_whole_and_sliders_act_on_release() -> None:
    control = slider("Context (tokens each)", [1, 2], 1)
    assert control.source.description == "Context (tokens each)"
    assert control.source.style.description_width == "initial"
    assert control.source.continuous_update is False


def test_the_stepper_walks_and_stops_at_the_ends() -> None:
    control = stepper("Step", 3)
    previous, following = control.box.children[:2]
    previous.click()
    assert control.value == 0
    for _ in range(5):
        following.click()
    assert control.value == 2
    previous.click()
    assert control.value == 1
