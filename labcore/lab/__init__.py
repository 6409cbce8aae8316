"""What a notebook imports: one session, then predictions, figures, widgets, exercises and hunts.

    from labcore import lab

    session = lab.start(model="story", lesson="01")
    guess = lab.predict("01.1", "How many tokens per second?", unit="tok/s", default=100)
    lab.show(figure, "One sentence with the finding and its numbers.", rows)
    lab.score("01.1", measured=812, unit="tok/s")
    lab.check("01.1", my_function)
    lab.finish()

Names are resolved on first use, so that the command line can import one module of this room without
paying for plotly and ipywidgets. To offer a new name to notebooks, add its line to `_HOMES`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    # the session and its results
    "start": "session",
    "finish": "session",
    "current": "session",
    "Session": "session",
    # what a part of a lesson is made of
    "predict": "predictions",
    "score": "predictions",
    "recall_prediction": "predictions",
    "Prediction": "predictions",
    "TODO": "exercises",
    "attempt": "exercises",
    "check": "exercises",
    "hint": "exercises",
    "solution": "exercises",
    "solved": "exercises",
    "hunt": "hunts",
    # what is shown
    "show": "display",
    "finding": "display",
    "expect_error": "display",
    "table": "display",
    "text_table": "display",
    # lesson 1: a stream and what follows from it
    "watch": "widgets.live",
    "read": "live",
    "prompt": "live",
    "median_reading": "live",
    "sweep_batch": "live",
    "show_stream": "introduction",
    "prompt_explorer": "introduction",
    "prompt_lengths": "introduction",
    "read_prompts": "introduction",
    "first_step_ratio": "introduction",
    "show_two_clocks": "introduction",
    "show_map": "introduction",
    "trace_rows": "introduction",
    "show_batches": "introduction",
    "batch_factor": "introduction",
    "a10_rows": "introduction",
    "catalogue_rows": "introduction",
    "show_roofs": "introduction",
    "show_floor": "introduction",
    "floor_ratio": "introduction",
    "napkin": "widgets.napkin",
    # lesson 2: the two phases, measured and stepped through
    "sweep_prefill": "sweeps",
    "sweep_decode": "sweeps",
    "phases_finding": "sweeps",
    "count_positions": "phases",
    "positions_through": "phases",
    "step_rows": "phases",
    "cost_rows": "phases",
    "traced": "phases",
    "compare_caches": "phases",
    "same_work": "phases",
    "same_work_finding": "phases",
    "compare_decoding": "decoding",
    "decoding_finding": "decoding",
    "golden_rows": "decoding",
    "drawn_rows": "decoding",
    "prompt_for": "phases",
    "least_certain": "figures.sampling",
    "survivors": "figures.sampling",
    "sweep_figure": "figures.sweeps",
    "both_phases_figure": "figures.sweeps",
    "phase_shares": "figures.sweeps",
    "same_work_figure": "figures.sweeps",
    "caches_figure": "figures.sweeps",
    "crossing_rows": "figures.crossing",
    # lesson 4: where the memory goes
    "memory_tetris": "widgets.memory",
    "block_map": "widgets.memory",
    "keeping_rows": "memory_plans",
    "kv_rows": "memory_plans",
    "plan_of": "memory_plans",
    "paper_plan_rows": "memory_plans",
    "compare_heads": "heads",
    "flat_rows": "heads",
    "heads_figure": "figures.memory",
    "question_at": "forgetting",
    "retrieving_head": "forgetting",
    "look_back": "forgetting",
    "looks_figure": "figures.memory",
    "weigh": "forgetting",
    "quality_rows": "forgetting",
    "quality_finding": "forgetting",
    "claim_rows": "forgetting",
    "pareto_figure": "figures.memory",
    "distance_figure": "figures.memory",
    "pool_day": "blocks",
    "block_table_rows": "blocks",
    # lesson 3: what is computed again
    "traced_both": "recompute",
    "computed_again": "recompute",
    "random_tokens": "sweeps",
    "sweep_growth": "recompute",
    "compare_copies": "recompute",
    "largest_difference": "recompute",
    "equality_rows": "recompute",
    "paper_rows": "recompute",
    "paper_facts": "recompute",
    "puzzle_rows": "recompute",
    "counter_rows": "figures.recompute",
    "growth_figure": "figures.recompute",
    "copies_figure": "figures.recompute",
    "recomputation_grid": "widgets.recompute",
    # lesson 5: what a step waits for
    "turn_rows": "regimes",
    "turn_numbers": "regimes",
    "turn_pieces": "regimes",
    "constructed": "regimes",
    "regime_rows": "regimes",
    "recognised": "regimes",
    "kind_rows": "regimes",
    "knobs": "widgets.regimes",
    "timeline": "widgets.regimes",
    "kinds_figure": "figures.regimes",
    "puzzle_figure": "figures.regimes",
    "talk_figure": "figures.regimes",
    "profile_steps": "steps",
    "compare_ways": "steps",
    "way_rows": "steps",
    "way_finding": "steps",
    "solve_puzzle": "puzzle",
    "published_rows": "puzzle",
    "puzzle_peaks": "puzzle",
    "compare_fusion": "fusion",
    "many_or_one": "fusion",
    "talk": "ranks",
    "split_rows": "ranks",
    # lesson 6: the two roofs
    "gpu_rows": "roofline_rows",
    "roof_facts": "roofline_rows",
    "intensity_rows": "roofline_rows",
    "critical_rows": "roofline_rows",
    "step_rows_on_paper": "roofline_rows",
    "wall_rows": "roofline_rows",
    "pod_rows": "roofline_rows",
    "roofline_explorer": "widgets.roofline",
    "tradeoff": "widgets.roofline",
    "bandwidth_figure": "figures.roofline",
    "rows_figure": "figures.roofline",
    "residual_figure": "figures.roofline",
    "measured_points": "roofline",
    "measure_roofs": "measured_roofs",
    "measured_roof_rows": "measured_roofs",
    "measured_roof_finding": "measured_roofs",
    "size_rows": "measured_roofs",
    "row_rows": "measured_roofs",
    "predict_steps": "residuals",
    "prediction_rows": "residuals",
    "prediction_finding": "residuals",
    "split_residuals": "residuals",
    "residual_finding": "residuals",
    "score_guess": "residuals",
    "debugger": "widgets.debugger",
    "crossing_explorer": "widgets.crossing",
    "sampling_explorer": "widgets.sampling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"labcore.lab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'labcore.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
