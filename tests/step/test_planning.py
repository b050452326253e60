import dataclasses

from jaxremat.planner.schedules import APART
from jaxremat.step.planning import fastest_of_alike


@dataclasses.dataclass(frozen=True)
class Predicted:
    peak_bytes: int
    cost: float


def test_of_what_cannot_be_told_apart_the_fastest_counts():
    alike = [Predicted(100_000, 4.0), Predicted(int(100_000 * APART), 1.5), Predicted(100_200, 2.0)]
    others = [Predicted(100_001 + int(100_000 * (APART - 1)), 1.0), Predicted(200_000, 0.5)]
    assert fastest_of_alike([*others, *alike]) == [alike[1], *others]
