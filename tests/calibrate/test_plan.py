"""What a budget is spent on, and that it is what is spent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibrate.small import LABELS, pipeline, settings

from cachesmith.calibrate import calibrate
from cachesmith.calibrate.cost.dry_run import describe_plan
from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.cost.plan import make_plan, make_rfc_plan
from cachesmith.runtime.models.units import block_lists


@pytest.mark.parametrize("budget", [40, 100, 180, 300, 1000, 3000])
@pytest.mark.parametrize("computations", [[8], [14], [7, 10, 14]])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_plan_keeps_to_its_budget(budget: float, computations: list[float], recomputed: bool) -> None:
    plan = make_plan(50, computations, budget, recomputed=recomputed)
    assert plan.runs <= budget
    assert plan.runs > 0.6 * budget or plan.iterations == 200
    assert plan.nudged <= plan.samples and plan.shapes >= 2


def test_more_budget_buys_more_of_everything() -> None:
    plans = [make_plan(50, [8], budget) for budget in (50, 100, 300)]
    for name in ("samples", "iterations"):
        values = [getattr(plan, name) for plan in plans]
        assert values == sorted(values) and values[0] < values[-1]


def test_trials_keep_to_the_budget() -> None:
    for budget in (40, 100, 300):
        assert make_rfc_plan(50, budget, 1000).runs <= budget


def test_the_ledger_counts_what_is_computed(tmp_path: Path) -> None:
    """Rows that went through the blocks, halves of guidance counted as halves, forwards and backwards."""
    pipe = pipeline()
    forwards, backwards = [0.0], [0.0]
    inside: Any = block_lists(pipe.transformer)[0][1].ff

    def entered(_: object, args: object, kwargs: object, output: Any) -> None:
        forwards[0] += len(output) / 2
        if output.requires_grad:
            output.register_hook(lambda grad: backwards.__setitem__(0, backwards[0] + len(grad) / 2))

    inside.register_forward_hook(entered, with_kwargs=True)
    result = calibrate(pipe, LABELS, settings(tmp_path, budget=50.0, speedups=(4.0,)))
    phases = result.ledger.phases
    assert phases["gradients"].backwards > 0
    assert sum(phase.forwards for phase in phases.values()) == pytest.approx(forwards[0])
    assert sum(phase.backwards for phase in phases.values()) == pytest.approx(backwards[0])
    spent = result.ledger.runs - phases["measuring"].runs(12)
    assert spent <= 50
    record = result.policy.document.calibration
    assert record is not None and any(line.startswith("cost/gradients: ") for line in record.fitted)


def test_a_ledger_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with Ledger(10, path, torch.device("cpu")).phase("references") as phase:
        phase.forwards += 20
    again = Ledger(10, path, torch.device("cpu"))
    assert again.runs == 2.0
    with again.phase("references") as phase:
        phase.forwards += 10
    assert again.runs == 3.0 and "| references | 30 |" in again.table()


def test_a_dry_run_tells_the_plan_without_the_model(tmp_path: Path) -> None:
    text = describe_plan(None, settings(tmp_path / "work", budget=100.0))
    assert "references" in text and "twice the budget" in text and "not known before it is loaded" in text
    assert not (tmp_path / "work").exists()
