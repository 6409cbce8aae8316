"""Lesson 7's microscope and bit patterns: golden values, figures, every setting of the controls."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import torch

from labcore.errors import ConfigError, LabError, LessonError
from labcore.lab import bit_patterns as bits
from labcore.lab import microscope, microscope_rows
from labcore.lab.figures import microscope as figures
from labcore.lab.session import Session
from labcore.lab.widgets import microscope as widgets
from labcore.quant import quantize
from labcore.quant.formats import DTYPES, INTEGERS, NF4, Format, fake

MATRIX = "layers.1.mlp.down_proj"  # 32 x 64 in the tiny model: groups of 64 divide it
SETTINGS = {
    "dtype": "int4", "scope": "channel", "zero": False, "matrix": MATRIX, "outliers": "none", "picture": 0,
}  # fmt: skip


def normal(rows: int = 64, columns: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def view(session: Session, **changes: object) -> widgets.View:
    return widgets.microscope_view(session.model, 0, **(SETTINGS | changes))  # type: ignore[arg-type]


def test_snr_of_normal_numbers() -> None:
    eight, four = microscope_rows.snr_rows()
    for row, expected in ((eight, (38.3, 41.2, 43.8)), (four, (13.1, 16.1, 18.6))):
        found = [float(value) for name, value in row.items() if name != "bits"]
        assert found == pytest.approx(expected, abs=0.15)


def test_snr_in_parts_is_snr_at_once() -> None:
    weight = normal()
    for fmt in (Format("int4", "tensor"), Format("int8"), Format("int3", "group", 64, symmetric=False)):
        error = (weight - fake(weight, fmt)).square().sum()
        whole = 10 * math.log10(float(weight.square().sum() / error))
        assert microscope_rows.snr_of(weight, fmt, rows_at_once=7) == pytest.approx(whole, abs=1e-3)
        assert microscope.look_at(weight, fmt).sqnr_db == pytest.approx(whole, abs=1e-3)


def test_a_bit_is_six_decibels() -> None:
    rows = microscope_rows.bit_rows()
    assert [row["bits"] for row in rows] == [2, 3, 4, 5, 6, 7, 8]
    for row in rows[1:]:
        assert float(row["more than the row before"]) == pytest.approx(6.02, abs=0.02)
    for row in rows[:5]:
        assert float(row["MSE (millionths)"]) == pytest.approx(float(row["Δ²/12 (millionths)"]), rel=0.01)
    assert float(rows[2]["Δ²/12 (millionths)"]) == pytest.approx(1e6 * (2 / 16) ** 2 / 12, abs=0.1)


def test_an_outlier_takes_the_codes() -> None:
    rows = microscope_rows.absmax_rows()
    assert [row["one scale: code"] for row in rows] == ["0", "0", "1", "127"]
    assert [row["one scale: reads back"] for row in rows] == ["0", "0", "0.4724", "60"]
    apart = [float(row["a scale for 2: reads back"]) for row in rows[:2]]
    assert apart == pytest.approx([0.1, -0.2], abs=0.001)
    assert rows[1]["a scale for 2: code"] == "-127"
    with pytest.raises(ConfigError, match="do not divide the 4 columns"):
        microscope_rows.absmax_rows(group=3)


def test_effective_bits() -> None:
    rows = {row["format"]: row for row in microscope_rows.effective_rows()}
    assert rows["int4:group=128"]["effective bits"] == "4.125"
    assert rows["int4:group=32,symmetric=false"]["effective bits"] == "4.750"
    assert rows["int8:granularity=channel"]["effective bits"] == "8.004"
    assert rows["int4:group=128"]["MB"] == f"{4096 * 4096 * 4.125 / 8e6:.2f}"
    (small,) = microscope_rows.effective_rows((16, 64), ["nf4:group=64"])
    assert small["scales"] == 16


def test_a_look_measures_the_round_trip() -> None:
    weight = normal()
    for dtype in DTYPES:
        fmt = microscope.format_of(dtype, "group")
        look = microscope.look_at(weight, fmt)
        back = fake(weight, fmt)
        assert look.mse == pytest.approx(float((weight - back).square().mean()))
        assert look.relative_error == pytest.approx(float((weight - back).norm() / weight.norm()), rel=1e-4)
        assert look.held.effective_bits == fmt.effective_bits((64, 256))
        assert int(look.code_counts.sum()) == weight.numel()
        assert look.codes_for_most <= look.codes_used <= 2**fmt.bits
        assert (look.expected_mse is None) == (dtype not in INTEGERS)
    even = microscope.look_at(weight, Format("int8"))
    assert even.mse == pytest.approx(even.expected_mse, rel=0.03)


def test_codes_are_counted() -> None:
    weight = torch.tensor([[7.0, 1, 1, 1], [0, 0, -7, 1]])
    look = microscope.look_at(weight, Format("int4", "tensor"))
    assert look.codes_used == 4  # -7, 0, 1, 7
    assert look.mse == pytest.approx(0, abs=1e-6)
    assert look.codes_for_most == 4
    mostly = torch.ones(10, 100)
    mostly[0, 0] = 7
    assert microscope.look_at(mostly, Format("int4", "tensor")).codes_for_most == 1
    assert microscope.look_at(torch.zeros(2, 8), Format("int8")).sqnr_db == math.inf


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scope", ["tensor", "channel", "group"])
def test_lanes_hold_what_the_matrix_became(scope: microscope.Granularity, zero: bool) -> None:
    weight = normal()
    for dtype in DTYPES if not zero else INTEGERS:
        look = microscope.look_at(weight, microscope.format_of(dtype, scope, zero=zero))
        lanes = look.lanes()
        assert len(lanes) == (1 if scope == "tensor" else 3)
        assert lanes[0].weights.abs().max() == weight.abs().max()
        for lane in lanes:
            distance = (lane.back[:, None] - lane.levels).abs().amin(1)
            assert distance.max() <= 1e-5 * lane.levels.abs().max()
            torch.testing.assert_close(lane.error_at(lane.weights), lane.back - lane.weights)
        if scope != "tensor":
            assert lanes[2].scale <= lanes[1].scale
            assert lanes[2].scale == look.held.scale.min()


def test_finer_scales_help_and_outliers_hurt() -> None:
    weight = normal(256, 256)
    look = microscope.look_at(weight, Format("int4"))
    by_scope = [row["SQNR (dB)"] for row in microscope.scope_rows(look)]
    assert by_scope == sorted(by_scope)
    spoilt = microscope.planted(weight, 50.0)
    changed = spoilt != weight
    assert int(changed.sum()) == round(256 * 256 / 1000)
    torch.testing.assert_close(spoilt[changed], 50 * weight[changed])
    before, after = (microscope.look_at(w, Format("int8", "tensor")) for w in (weight, spoilt))
    assert after.codes_for_most < before.codes_for_most / 10
    assert after.sqnr_db < before.sqnr_db - 20
    torch.testing.assert_close(microscope.planted(weight, 50.0), spoilt)
    assert not torch.equal(microscope.planted(weight, 50.0, seed=1), spoilt)


def test_matrices_of_a_model(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    names = microscope.matrix_names(session.model)
    assert MATRIX in names
    assert names[-1] == microscope.NORMAL
    weight = session.model.transformer.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(microscope.matrix_of(session.model, MATRIX), weight.detach())
    assert microscope.matrix_of(session.model, microscope.NORMAL).std() == pytest.approx(1, abs=0.01)
    with pytest.raises(LessonError, match=r"no matrix 'layers\.9'"):
        microscope.matrix_of(session.model, "layers.9")
    monkeypatch.setattr(microscope, "LOOKED_AT", 640)
    part = microscope.matrix_of(session.model, MATRIX)
    assert part.shape == (10, 64)
    assert "first 10 of 32 rows" in view(session).finding


def test_a_quantized_models_matrix_is_what_it_multiplies_by(session: Session) -> None:
    weight = microscope.matrix_of(session.model, MATRIX).clone()
    quantize(session.model, "int8")
    found = microscope.matrix_of(session.model, MATRIX)
    torch.testing.assert_close(found, fake(weight, Format("int8")))


def test_every_setting_draws_or_is_refused_in_a_sentence(session: Session) -> None:
    explorer = widgets.make_microscope(session)
    options = {
        name: [value for _, value in control.source.options] if name in ("scope", "zero", "picture")
        else list(control.source.options)
        for name, control in explorer.controls.items()
    }  # fmt: skip
    assert options["dtype"] == list(DTYPES)
    options["matrix"] = [MATRIX, "layers.0.attention.qkv_proj"]
    drawn, refused = 0, []
    for values in itertools.product(*options.values()):
        setting = dict(zip(options, values, strict=True))
        if setting["outliers"] != "none" and setting["matrix"] != MATRIX:
            continue
        try:
            seen = view(session, **setting)
        except LabError as error:
            refused.append(str(error))
            continue
        drawn += 1
        assert setting["matrix"] in seen.finding
        assert "dB" in seen.finding
        assert seen.figure.layout.height > 400
        assert len(seen.rows) == 3
    assert drawn > 150
    assert len(refused) > 50
    assert all("has no zero point" in text or "do not divide the 32 columns" in text for text in refused)


def test_findings_hold_computed_numbers(session: Session) -> None:
    look = microscope.look_at(microscope.matrix_of(session.model, MATRIX), Format("int4"), MATRIX)
    seen = view(session)
    assert f"SQNR {look.sqnr_db:.1f} dB" in seen.finding
    assert "4.250 effective bits" in seen.finding  # 16 bits of scale over 64 columns
    assert "1.09 kB where fp32 takes 8.19 kB, 7.53× less" in seen.finding
    assert f"{look.codes_used} of 16 codes" in seen.finding
    assert seen.rows[1]["SQNR (dB)"] == round(look.sqnr_db, 2)
    narrow = view(session, matrix="layers.0.attention.qkv_proj")
    assert narrow.rows[2]["SQNR (dB)"] is None  # groups of 64 do not divide 32 columns
    assert narrow.rows[0]["SQNR (dB)"] is not None
    assert "0.1 % of the numbers × 50" in view(session, outliers="0.1 % of the numbers × 50").finding


def test_a_refused_setting_shows_its_sentence(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    explorer = widgets.make_microscope(session)
    explorer.controls["matrix"].source.value = MATRIX
    explorer.controls["zero"].source.value = True
    capsys.readouterr()
    explorer.controls["dtype"].source.value = "nf4"
    assert "nf4 has no zero point" in capsys.readouterr().out


def test_the_histogram_counts_every_weight_and_draws_every_level() -> None:
    look = microscope.look_at(normal(), Format("int4"), "numbers")
    made = figures.histogram_figure(look)
    bars, lines, *lanes = made.data
    assert sum(count or 0 for count in bars.y) == 64 * 256
    assert made.layout.yaxis.type == "log"
    levels = look.lanes()[0].levels.tolist()
    assert [x for x in lines.x if x is not None][::2] == pytest.approx(levels, rel=1e-4, abs=1e-6)
    assert [len(lane.x) for lane in lanes] == [15, 15, 15]
    assert [lane.y[0].split("<br>")[0] for lane in lanes] == [
        "largest weight",
        "middle scale",
        "smallest scale",
    ]
    assert "numbers as int4" in made.layout.title.text


def test_the_error_is_a_sawtooth_of_half_a_step() -> None:
    look = microscope.look_at(normal(), Format("int3", "tensor"), "numbers")
    made = figures.error_figure(look)
    tooth, dots = made.data
    half = float(look.held.scale) / 2
    assert max(tooth.y) == pytest.approx(half, rel=0.01)
    assert min(tooth.y) == pytest.approx(-half, rel=0.01)
    assert sum(later - before > half for before, later in itertools.pairwise(tooth.y)) == 6
    assert all(abs(y) <= half * 1.0001 for y in dots.y)
    assert len(dots.x) <= figures.DOTS
    assert len(made.layout.shapes) == 2
    assert not figures.error_figure(microscope.look_at(normal(), Format("nf4", "group", 64))).layout.shapes


def test_bits_are_those_of_ieee() -> None:
    for value in (*bits.INTERESTING, 0.0, -1e-8):
        whole, half = bits.bit_patterns(value)[:2]
        assert whole.bits.replace(" ", "") == f"{struct.unpack('>I', struct.pack('>f', value))[0]:032b}"
        if abs(value) < 65504:
            assert half.bits.replace(" ", "") == f"{struct.unpack('>H', struct.pack('>e', value))[0]:016b}"
    by_name = {one.format: one for one in bits.bit_patterns(1.0)}
    assert by_name["bf16"].bits == "0 01111111 0000000"
    assert by_name["fp8_e4m3"].bits == "0 0111 000"
    assert by_name["fp8_e5m2"].bits == "0 01111 00"
    assert [by_name[name].bits for name in bits.CODED] == ["11111111", "1111", "1111"]
    assert by_name["fp32"].off_by == "exact"


def test_what_becomes_of_a_number() -> None:
    def verdicts(value: float, largest: float = 1.0) -> dict[str, str]:
        return {one.format: one.verdict for one in bits.bit_patterns(value, largest)}

    assert verdicts(1e5)["fp16"] == bits.OVERFLOWS
    assert verdicts(1e5)["bf16"] == bits.HOLDS
    assert verdicts(449.0)["fp8_e4m3"] == bits.HOLDS
    assert verdicts(500.0)["fp8_e4m3"] == bits.OVERFLOWS
    assert verdicts(1e-8)["fp16"] == bits.FLUSHES
    assert verdicts(0.0) == dict.fromkeys(verdicts(0.0), bits.HOLDS)
    assert verdicts(-2.7)["int8"] == bits.OVERFLOWS
    assert verdicts(-2.7, largest=2.7)["int8"] == bits.HOLDS
    assert verdicts(0.1)["int4"] == bits.OFF
    assert verdicts(0.02)["nf4"] == bits.FLUSHES
    int8 = bits.bit_patterns(0.1, largest=4.0)[5]
    assert int8.stands_for == pytest.approx(float(fake(torch.tensor([[4.0, 0.1]]), Format("int8"))[0, 1]))
    with pytest.raises(LessonError, match="finite"):
        bits.bit_patterns(math.nan)
    with pytest.raises(LessonError, match="above 0"):
        bits.bit_patterns(1.0, largest=0.0)


def test_every_number_and_row_is_drawn() -> None:
    explorer = widgets.make_bits()
    assert set(explorer.controls) == {"value", "largest"}
    for value, largest in itertools.product(bits.INTERESTING, bits.LARGEST):
        seen = widgets.bits_view(value=value, largest=largest)
        assert [trace.name for trace in seen.figure.data] == ["sign", "exponent", "mantissa", "code"]
        assert [len(trace.x) for trace in seen.figure.data] == [5, 8 + 5 + 8 + 4 + 5, 23 + 10 + 7 + 3 + 2, 16]
        assert len({trace.marker.symbol for trace in seen.figure.data}) == 4
        assert len(seen.rows) == 8
    found = widgets.bits_view(value=1e5, largest=1.0).finding
    assert "within 1 %: fp32, bf16;" in found
    assert "fp16 (inf)" in found
    small = widgets.bits_view(value=1e-8, largest=1.0).finding
    assert "flushed to zero: fp16, fp8_e4m3, fp8_e5m2, int8, int4, nf4" in small
    drawn = widgets.bits_view(value=0.1, largest=1.0)
    row = drawn.figure.data[2]
    shown = "".join(bit for y, bit in zip(row.y, row.text, strict=True) if "<b>bf16</b>" in y)
    assert f"0 01111011 {shown}" == drawn.rows[2]["bits"] == "0 01111011 1001101"
    assert 12.5 in [value for _, value in widgets.make_bits(12.5).controls["value"].source.options]


def test_all_values_of_the_formats() -> None:
    rows = {row["format"]: row for row in bits.level_rows()}
    assert [rows["fp8_e4m3"][name] for name in ("codes", "finite", "different values")] == [256, 254, 253]
    assert [rows["fp8_e5m2"][name] for name in ("codes", "finite", "different values")] == [256, 248, 247]
    assert rows["int8"]["different values"] == 255
    assert bits.values_of(Format("int4")).tolist() == list(range(-7, 8))
    assert bits.values_of(Format("int2", symmetric=False)).tolist() == [0, 1, 2, 3]
    assert bits.levels_of("nf4").tolist() == pytest.approx(list(NF4))
    assert bits.values_of(Format("fp8_e4m3")).max() == 448
    near = {name: float((bits.levels_of(name).abs() < 0.1).float().mean()) for name in bits.LEVEL_FORMATS}
    assert near["int8"] < near["nf4"] < near["fp8_e4m3"] < near["fp8_e5m2"]
    assert f"nf4 {near['nf4']:.0%}" in bits.level_finding()


def test_the_figure_of_all_values() -> None:
    made = figures.levels_figure()
    assert [len(trace.x) for trace in made.data[::2]] == [255, 253, 247, 15, 16]
    for even, logarithmic in zip(made.data[::2], made.data[1::2], strict=True):
        assert max(even.x) == 1
        assert logarithmic.x == tuple(x for x in even.x if x > 0)
        assert even.marker.color == logarithmic.marker.color
    assert made.layout.xaxis2.type == "log"
