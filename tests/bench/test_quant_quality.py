"""`labcore bench quant-quality`: its rows, what it claims of them, and what it keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labcore.bench.cli import app
from labcore.bench.cli_quant import quality_table
from labcore.bench.quant_quality import PLANTED, RECIPES, Claim, Measured, bench_quant_quality, claims
from labcore.errors import ConfigError
from labcore.quality import Estimate, WeightQuality
from labcore.quality.intervals import mean, perplexity
from labcore.quant import Recipe

COUNTS = [40, 60, 50, 70]


def made_up(recipe: str | None, gaps: list[float]) -> Measured:
    """gaps: nats a token that each text costs more than in full precision."""
    losses = [(1 + 0.3 * place + gap) * n for place, (gap, n) in enumerate(zip(gaps, COUNTS, strict=True))]
    found = WeightQuality(
        recipe or "full precision", "definition", 0, perplexity(losses, COUNTS), mean(losses, COUNTS), None,
        tuple(losses), tuple(COUNTS), (),
    )  # fmt: skip
    return Measured(Recipe.parse(recipe) if recipe else None, 4.0, found, found)


def test_recipes_are_distinct_and_parse() -> None:
    for recipes in (RECIPES, PLANTED):
        assert len({Recipe.parse(text) for text in recipes}) == len(recipes)


def test_claims_are_met_where_the_data_say_so() -> None:
    found = [
        made_up(None, [0.0] * 4),
        made_up("int8", [0.001, 0.002, 0.001, 0.0]),
        made_up("int4", [0.03, 0.02, 0.03, 0.04]),
        made_up("gptq-int4", [0.01, 0.01, 0.0, 0.01]),
        made_up("awq-int4", [0.0, 0.02, 0.02, 0.05]),
        made_up("int3", [0.3] * 4),
        made_up("awq-int3", [0.1] * 4),
        made_up("int2", [2.0] * 4),
        made_up("gptq-int2", [3.0] * 4),
        made_up("w8a8", [9.0] * 4),
    ]
    told = claims(found)
    assert [(claim.what.split()[2], claim.what.split()[-1], claim.met) for claim in told] == [
        ("int8:granularity=channel", "precision's", True),
        ("int4:group=64", "gptq-int4:group=64", True),
        ("int4:group=64", "awq-int4:group=64", True),
        ("int3:group=64", "awq-int3:group=64", True),
    ]
    assert [claim.outside_noise for claim in told] == [True, True, False, True]
    assert told[3].measured.value == pytest.approx(math.exp(0.2) - 1)
    gap = sum(gap * n for gap, n in zip([0.02, 0.01, 0.03, 0.03], COUNTS, strict=True))
    assert told[1].measured.value == pytest.approx(math.exp(gap / sum(COUNTS)) - 1)


def test_claims_are_missed_where_the_data_say_so() -> None:
    found = [
        made_up(None, [0.0] * 4),
        made_up("int8", [0.02] * 4),
        made_up("int4:group=32", [0.01] * 4),
        made_up("gptq-int4:group=32", [0.03] * 4),
        made_up("awq-int4:group=32", [0.06, -0.01, -0.01, 0.06]),
        made_up("gptq-int4:group=64", [0.0] * 4),  # another format: held against nothing
    ]
    told = claims(found)
    assert [claim.met for claim in told] == [False, False, False]
    assert [claim.outside_noise for claim in told] == [True, True, False]
    (better,) = claims([found[0], made_up("int8", [-0.02] * 4)])  # suspiciously so
    assert (better.met, better.outside_noise) == (False, True)
    assert claims(found[:1]) == []


@pytest.mark.parametrize(
    ("value", "low", "high", "met", "clear"),
    [
        (0.001, -0.002, 0.004, True, True),
        (0.001, -0.002, 0.006, True, False),
        (-0.001, -0.006, 0.002, True, False),
        (0.006, 0.004, 0.008, False, False),
        (0.007, 0.006, 0.008, False, True),
        (-0.007, -0.008, -0.006, False, True),
    ],
)
def test_a_claim_of_two_bounds(value: float, low: float, high: float, met: bool, clear: bool) -> None:
    claim = Claim("", Estimate(value, low, high, 1), floor=-0.005, ceiling=0.005)
    assert (claim.met, claim.outside_noise) == (met, clear)
    assert claim.to_dict()["outside_noise"] is clear


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["quant-quality", "--recipe", "int4", "--recipe", "gptq-int4", "--recipe", "int2", "--no-planted",
             "--stories", "2", "--questions", "4", "--device", "cpu", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    result = data["result"]
    assert (data["benchmark"], result["stories"], result["questions"]) == ("quant-quality", 2, 4)
    full, int4, gptq, int2 = result["rows"]
    assert [row["method"] for row in result["rows"]] == ["none", "rtn", "gptq", "rtn"]
    assert [row["bits"] for row in result["rows"]] == [32, 4, 4, 2]
    assert full["perplexity_change"] | {"count": 0} == {"value": 0, "low": 0, "high": 0, "count": 0}
    assert full["divergence"]["value"] == pytest.approx(0, abs=1e-6)
    assert full["weight_bytes"] > 4 * int4["weight_bytes"] > 4 * int2["weight_bytes"]
    assert 4 < int4["bits_per_weight"] < 5
    assert int2["divergence"]["low"] > int4["divergence"]["high"]
    assert int2["recall_change"]["value"] == int2["recall"]["value"] - full["recall"]["value"] < 0
    for row in result["rows"]:
        ratio = row["perplexity"]["value"] / full["perplexity"]["value"]
        assert row["perplexity_change"]["value"] == pytest.approx(ratio - 1)
        assert (row["computed"], row["served"]["computed"]) == ("definition", "fast")
        assert row["served"]["perplexity_change"]["value"] == pytest.approx(ratio - 1, rel=0.1, abs=5e-3)
    (claim,) = result["claims"]
    ratio = int4["perplexity"]["value"] / gptq["perplexity"]["value"]
    assert claim["measured"]["value"] == pytest.approx(ratio - 1)
    assert claim["met"] == (ratio >= 1)
    assert result["planted"] == []
    assert "outliers planted" not in done.output


def test_planted_outliers_break_what_they_should() -> None:
    found = bench_quant_quality(["int8"], ["w8a8", "llm_int8"], stories=2, questions=0, device="cpu")
    full, naive, split = found["planted"]
    assert full["perplexity"]["value"] == pytest.approx(found["rows"][0]["perplexity"]["value"], rel=1e-4)
    assert naive["perplexity_change"]["low"] > 1
    assert abs(split["perplexity_change"]["value"]) < 0.02
    assert (naive["recall"], naive["recall_change"]) == (None, None)
    assert len(found["claims"]) == 1
    shown = quality_table(found, "planted")
    assert "outliers planted" in str(shown.title)
    assert "within" not in str(shown.caption)
    assert "within 0.5% of full precision" in str(quality_table(found, "rows").caption)


def test_a_recipe_that_does_not_exist_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("labcore.bench.quant_quality.measure", never)
    with pytest.raises(ConfigError, match="no recipe 'int5'"):
        bench_quant_quality(["int8", "int5"], [])
    with pytest.raises(ConfigError, match="no recipe 'w9a9'"):
        bench_quant_quality(["int8"], ["w9a9"])
