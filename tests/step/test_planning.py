import dataclasses
import itertools

import pytest
import step_programs

import jaxremat
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.schedules import APART
from jaxremat.step.planned_step import PlannedStep
from jaxremat.step.planning import fastest_of_alike


@dataclasses.dataclass(frozen=True)
class Predicted:
    peak_bytes: int
    cost: float


def test_of_what_cannot_be_told_apart_the_fastest_counts():
    alike = [Predicted(100_000, 4.0), Predicted(int(100_000 * APART), 1.5), Predicted(100_200, 2.0)]
    others = [Predicted(100_001 + int(100_000 * (APART - 1)), 1.0), Predicted(200_000, 0.5)]
    assert fastest_of_alike([*others, *alike]) == [alike[1], *others]


def test_refusal_names_the_smallest_of_all_that_was_compiled(monkeypatch):
    """What was compiled in search of a plan counts, too, where what is compiled in search of the least is larger."""
    written, first = 2**30, 2**28
    peaks = itertools.chain([written], itertools.count(first, 2**20))

    def compiled(*_):
        peak_bytes = next(peaks)
        return MemoryReport("cpu", 0, 0, peak_bytes, 0, peak_bytes, 0.0)

    monkeypatch.setattr(PlannedStep, "_compiled", compiled)
    step, args = step_programs.deep(8, 4096)
    predicted = jaxremat.jit(step, budget=1.0, donate_argnums=0).predicted_bytes(*args)
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.jit(step, budget=int(0.6 * predicted), donate_argnums=0).plan(*args)
    assert refused.value.min_peak_bytes == first
    assert "allow=('chunk',)" in str(refused.value)
    assert next(peaks) > first + 2**20
