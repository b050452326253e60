"""HiGHS, through scipy, on a Checkmate model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy

from jaxremat.solvers.checkmate_model import COST_SCALE, CheckmateModel

_SOLVED, _INFEASIBLE = 0, 2  # scipy's codes


@dataclasses.dataclass(frozen=True, eq=False)
class HighsResult:
    """What HiGHS found.

    Attributes:
      x: [X] the best point, or None.
      bound: no point has a smaller objective; None where nothing is known.
      solved: the point is optimal.
      infeasible: there is no point.
    """

    x: np.ndarray | None
    bound: float | None
    solved: bool
    infeasible: bool


def minimize(
    model: CheckmateModel,
    *,
    integral: bool,
    seconds: float,
    most_objective: float = np.inf,
    excluded: Sequence[np.ndarray] = (),
) -> HighsResult:
    """Minimizes a model's objective, over integral runs or over the relaxation.

    Args:
      model: the model.
      integral: whether runs are Boolean.
      seconds: time limit; what was found by then is returned.
      most_objective: an upper bound on the objective that is known to be reachable.
      excluded: [N (N + 1) / 2] Boolean runs that are not wanted.
    """
    matrix, row_upper = model.matrix, model.row_upper
    extra = [_exclusion(runs, matrix.shape[1]) for runs in excluded]
    if np.isfinite(most_objective):
        extra.append((model.objective[None], most_objective + 1e-7 * COST_SCALE))
    if extra:
        matrix = scipy.sparse.vstack([matrix, *(scipy.sparse.csr_array(row) for row, _ in extra)]).tocsr()
        row_upper = np.append(row_upper, [bound for _, bound in extra])
    integrality = np.zeros(matrix.shape[1])
    integrality[: model.columns.num_runs] = integral
    result = scipy.optimize.milp(
        model.objective,
        integrality=integrality,
        bounds=scipy.optimize.Bounds(model.lower, model.upper),
        constraints=scipy.optimize.LinearConstraint(matrix, -np.inf, row_upper),
        options={"time_limit": max(seconds, 0.1), "mip_rel_gap": 0.0},
    )
    bound = result.get("mip_dual_bound") if integral else result.fun
    known = bound is not None and np.isfinite(bound)
    return HighsResult(
        result.x, float(bound) if known else None, result.status == _SOLVED, result.status == _INFEASIBLE
    )


def _exclusion(runs: np.ndarray, num_variables: int) -> tuple[np.ndarray, float]:
    """A row that only these runs violate."""
    row = np.zeros((1, num_variables))
    row[0, : runs.size] = np.where(runs, 1.0, -1.0)
    return row, float(runs.sum()) - 1
