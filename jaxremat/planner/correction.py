"""The loop that turns a prediction into a promise: propose, measure, shift the model's budget, propose again."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

CLOSE_ENOUGH = 0.02  # of the budget: left unused for the sake of one measurement less; benchmarks/constants.py
_SAFETY = 0.002  # of the budget: as fine as aims are told apart
STEP_DOWN, _STEP_UP = 0.97, 1.02  # of the last aim, at least: a search that stays where it is must move on
DOUBT = 0.1  # about the worst of predictions, once one of them is known: prediction.md


class Costed(Protocol):
    """What is proposed."""

    @property
    def cost(self) -> float: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Trial[C: Costed, M]:
    """A candidate with what was measured of it."""

    candidate: C
    measurement: M
    peak_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Correction[C: Costed, M]:
    """How a correction loop ended.

    Attributes:
      best: the cheapest trial within the budget, or None.
      smallest: the trial with the smallest measured peak.
      trials: how many candidates were measured.
    """

    best: Trial[C, M] | None
    smallest: Trial[C, M]
    trials: int

    def with_more(
        self, candidates: Iterable[C], measure: Callable[[C], tuple[int, M]], budget_bytes: int
    ) -> Correction[C, M]:
        """The same after some more candidates, of which the cheapest that fits, or the smallest, counts."""
        more = [
            Trial(candidate, measurement, peak)
            for candidate in candidates
            for peak, measurement in [measure(candidate)]
        ]
        return _concluded([*filter(None, (self.best, self.smallest)), *more], budget_bytes, self.trials + len(more))


def correct[C: Costed, M](
    propose: Callable[[int], C],
    measure: Callable[[C], tuple[int, M]],
    budget_bytes: int,
    *,
    most_trials: int,
    first_aim: int,
    expected: Callable[[C], int],
) -> Correction[C, M]:
    """Finds the cheapest candidate whose measured peak is within the budget.

    What is expected is taken to be off by a constant, learnt anew from each trial: where that is next to nothing, and
    leaves no room above an aim that fitted, it is over. Once one candidate fits and another does not, the next is
    sought between them. What does not fit is the answer to every aim from its own expected peak on; where it was
    expected to miss its aim, it is the smallest there is, and the answer to every lower one.

    Args:
      propose: from an aim, in bytes, to the cheapest candidate that is expected to stay below it.
      measure: from a candidate to (measured peak in bytes, measurement).
      budget_bytes: what the measured peak must not exceed.
      most_trials: how many candidates are measured at most.
      first_aim: the first aim, in bytes.
      expected: the peak that a candidate was expected to have, in bytes.
    """
    trials: list[Trial[C, M]] = []
    fits, fails = None, None
    aim = first_aim
    for _ in range(2 * most_trials):
        candidate = propose(aim)
        tried = next((trial for trial in trials if trial.candidate is candidate), None)
        if tried is None:
            peak_bytes, measurement = measure(candidate)
            tried = Trial(candidate, measurement, peak_bytes)
            trials.append(tried)
        slack = budget_bytes - tried.peak_bytes
        learnt = expected(candidate) + slack - int(_SAFETY * budget_bytes)
        if slack >= 0:
            fits = max(fits or 0, aim)
            is_right = abs(tried.peak_bytes - expected(candidate)) <= CLOSE_ENOUGH * budget_bytes
            nothing_more = is_right and fails is None and (1 + CLOSE_ENOUGH) * learnt <= fits
            if slack <= CLOSE_ENOUGH * budget_bytes or nothing_more:
                break
        elif expected(candidate) > aim:
            break
        else:
            fails = min(fails or aim, aim, expected(candidate))
        if len(trials) == most_trials or (fits and fails and fails - fits <= _SAFETY * budget_bytes):
            break
        aim = _next_aim(learnt, fits, fails)
    return _concluded(trials, budget_bytes, len(trials))


def smallest[C: Costed, M](
    candidates: Iterable[C],
    measure: Callable[[C], tuple[int, M]],
    *,
    known: Sequence[Trial[C, M]],
    sure: int,
    most_trials: int,
    expected: Callable[[C], int],
    wanted_bytes: int | None = None,
) -> Trial[C, M]:
    """The smallest of some candidates, as measured.

    What is expected is taken to be off by the smallest factor seen, give or take a tenth: it is over where, by that, no
    other gets below what is wanted.

    Args:
      candidates: those that are measured in any case, then others in the order of what is expected.
      measure: from a candidate to (measured peak in bytes, measurement).
      known: what was measured before.
      sure: how many are measured in any case.
      most_trials: how many are measured at most.
      expected: the peak that a candidate is expected to have, in bytes.
      wanted_bytes: with this peak, one is small enough; by default none is.
    """
    trials = list(known)
    for number, candidate in enumerate(itertools.islice(candidates, most_trials)):
        least = min((trial.peak_bytes for trial in trials), default=math.inf)
        wanted = least if wanted_bytes is None else wanted_bytes
        factor = min((trial.peak_bytes / expected(trial.candidate) for trial in trials[len(known) :]), default=1.0)
        is_hopeless = number >= sure and (1 - DOUBT) * factor * expected(candidate) >= wanted
        if is_hopeless or (wanted_bytes is not None and least <= wanted_bytes):
            break
        peak_bytes, measurement = measure(candidate)
        trials.append(Trial(candidate, measurement, peak_bytes))
    return min(trials, key=lambda trial: trial.peak_bytes)


def _concluded[C: Costed, M](trials: Sequence[Trial[C, M]], budget_bytes: int, number: int) -> Correction[C, M]:
    within = [trial for trial in trials if trial.peak_bytes <= budget_bytes]
    best = min(within, key=lambda trial: (trial.candidate.cost, trial.peak_bytes)) if within else None
    return Correction(best, min(trials, key=lambda trial: trial.peak_bytes), number)


def _next_aim(learnt: int, fits: int | None, fails: int | None) -> int:
    """The next aim: what was learnt, but above every aim that fitted and below every one that did not."""
    if fits is not None and fails is not None:
        return learnt if fits < learnt < fails else (fits + fails) // 2
    if fails is not None:
        return max(1, min(learnt, int(STEP_DOWN * fails)))
    return max(learnt, int(_STEP_UP * fits)) if fits else learnt
