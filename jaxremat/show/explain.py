"""Why a value is saved or not, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError
from jaxremat.graph.replay import replay
from jaxremat.planner.problem import Problem
from jaxremat.show.report import Planned, main_stretch, stretches_of
from jaxremat.show.stretch import Stretch, Value
from jaxremat.show.text import format_seconds

_MOST_VALUES = 12
_PROBES = 5

Refit = Callable[[int], tuple[Problem, np.ndarray]]
"""From a number of replayed bytes to the problem and schedule that the planner finds for it."""


def explain(plan: Planned, pattern: str | None, refit: Refit) -> str:
    """Why the values whose path, name or operation contains `pattern` are saved or not.

    Args:
      plan: the plan.
      pattern: a part of a module path (`block_3/attention`), of an author's name, or of a source line; None for all.
      refit: plans again, to find the budget at which the largest of them changes.

    Returns:
      A headline, then a sentence or two per value, the largest first.

    Raises:
      ArgumentError: if nothing matches; the message lists paths that exist.
    """
    stretches = stretches_of(plan)
    found = [
        (stretch, index, value)
        for stretch in stretches
        for index, value in stretch.values.items()
        if pattern is None or pattern in f"{value.title}  {value.source}"
    ]
    if not found:
        paths = sorted({value.path for stretch in stretches for value in stretch.values.values()})
        raise ArgumentError(f"no value matches {pattern!r}; among the paths are {', '.join(paths[:12]) or 'none'}")
    found.sort(key=lambda item: -item[2].size_bytes * item[2].copies)
    lines = [_headline(pattern, [value for _, _, value in found])]
    lines += [_sentence(stretch, index, value, plan) for stretch, index, value in found[:_MOST_VALUES]]
    if len(found) > _MOST_VALUES:
        lines.append(f"and {len(found) - _MOST_VALUES} smaller values")
    if not plan.problem.loops:
        _, index, value = found[0]
        lines.append(_turning_point(plan, index, value, refit))
    return "\n".join(lines)


def _headline(pattern: str | None, values: Sequence[Value]) -> str:
    saved = [value for value in values if value.saved]
    again = [value for value in values if not value.saved]
    what = "all values" if pattern is None else pattern
    return f"{what}: save {_amount(saved)}; recompute {_amount(again)}"


def _amount(values: Sequence[Value]) -> str:
    number = sum(value.copies for value in values)
    size = format_bytes(sum(value.copies * value.size_bytes for value in values))
    return f"{number} {'value' if number == 1 else 'values'} of {size}" if number else "none"


def _sentence(stretch: Stretch, index: int, value: Value, plan: Planned) -> str:
    seconds = stretch.seconds_of([index]) * stretch.repeats
    share = seconds / plan.baseline_timeline.cost
    size = format_bytes(value.size_bytes * value.copies)
    price = seconds / (value.size_bytes * value.copies / 2**30)
    cost = f"{format_seconds(seconds)} ({share:.2%}), {format_seconds(price)} per GiB"
    where = f" at {value.source}" if value.source else ""
    if value.saved:
        return f"save       {value.title} {value.shape}{where}: holds {size}; recomputing it instead would cost {cost}"
    return f"recompute  {value.title} {value.shape}{where}: saving it would hold {size}; recomputing it costs {cost}"


def _turning_point(plan: Planned, index: int, value: Value, refit: Refit) -> str:
    """The budget nearest to the plan's at which a value changes its mind, by bisection over plans."""
    graph, here = plan.problem.graph, main_stretch(plan)
    now, offset = here.timeline.peak_bytes, plan.peak_bytes - here.timeline.peak_bytes
    near, far = now, graph.resident_bytes if value.saved else replay(graph, plan.problem.in_order).peak_bytes

    def saved_at(replayed_bytes: int) -> bool:
        problem, schedule = refit(replayed_bytes)
        return bool(Stretch(problem.joint, problem.graph, schedule).kept[index])

    if saved_at(far) == value.saved:
        return f"{value.title}: {value.action} at every budget that can be met"
    for _ in range(_PROBES):
        middle = (near + far) // 2
        if saved_at(middle) == value.saved:
            near = middle
        else:
            far = middle
    other = "recompute" if value.saved else "save"
    return (
        f"{value.title}: {other} instead from a budget of about {format_bytes(max(far + offset, 0))}"
        f" (this plan is predicted at {format_bytes(plan.peak_bytes)})"
    )
