"""Steps of which parts may run slice by slice: the cheapest plan that fits, of a few choices of parts.

A step has been differentiated, so nothing in it is looked for by a pattern: a large value is cut along an axis, with
all that is computed of it slice by slice (`chunk.rewriting.sliced`), or the whole step along its batch. Which choice is
tried first is decided by prediction; one that does not fit when it is compiled gives way to the next.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import jax

from jaxremat.base.budget import LEAST, Budget
from jaxremat.base.compat import Jaxpr
from jaxremat.base.errors import BudgetError
from jaxremat.chunk.choice import Chunked
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.sliced import WHOLE, SliceFinder
from jaxremat.chunk.rewriting.sliced_part import KIND
from jaxremat.planning.chunks import rather_whole
from jaxremat.step.plan import StepPlan
from jaxremat.step.planning import StepPlanner, StepPlanning
from jaxremat.step.program import StepProgram
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace import walk

Shape = tuple[int, ...]
Choice = tuple[Chunked, ...]

_PARTS = (4, 16, 64)
"""Into how many slices a large value, or a batch, is cut at least: each time what is left of it is halved twice;
benchmarks/constants.py."""

_MOST_SHAPES = 2
"""Large values that are cut in one choice; benchmarks/constants.py."""


def sliced(written: StepProgram, chunks: Choice) -> StepProgram:
    """The step with the chosen parts in slices: the same inputs and results, values up to the order of sums."""
    jaxpr = functools.reduce(_cut, chunks, written.jaxpr)
    return dataclasses.replace(written, jaxpr=jaxpr, chunks=chunks, written=written) if chunks else written


def plan_in_slices(
    written: StepPlanning, planner_for: Callable[[StepProgram], StepPlanner], budget: Budget
) -> StepPlan:
    """The cheapest plan within a budget, in the fewest slices of which one fits; where none does as it stands, the
    smallest slices are planned like any other program.

    Args:
      written: the planning of the step as it is written.
      planner_for: what proposes for a step.
      budget: as in `jaxremat.jit`.

    Raises:
      BudgetError: if nothing that was found fits, the one with the smallest peak.
    """
    if budget != LEAST and written.is_settled(budget):
        return written.plan(budget)
    choices = _choices(written.program.jaxpr)
    if budget == LEAST:
        tried = [written, *_in_slices(written, planner_for, choices[-1])]
        return min((planning.plan(LEAST) for planning in tried), key=lambda plan: plan.budget_bytes)
    refused: dict[StepPlanning, BudgetError] = {}
    for each in choices:
        cut = _in_slices(written, planner_for, each)
        fitting = [planning for planning in cut if planning.fits_in_order(budget)]
        tried = fitting if fitting or each is not choices[-1] else cut
        left = [planning for planning in (written, *tried) if planning not in refused]
        for planning in sorted(left, key=lambda planning: planning.promise(budget)):
            try:
                made = planning.plan(budget)
            except BudgetError as error:
                refused[planning] = error
                continue
            is_whole = planning is written or written in refused or written.promise(budget)[0]
            return made if is_whole else rather_whole(functools.partial(written.plan, budget), made)
    raise min(refused.values(), key=lambda error: error.min_peak_bytes)


def _in_slices(
    written: StepPlanning, planner_for: Callable[[StepProgram], StepPlanner], choices: Iterable[Choice]
) -> list[StepPlanning]:
    cut = [sliced(written.program, chunks) for chunks in choices]
    return [written.of(program, planner_for(program)) for program in cut]


def _choices(jaxpr: Jaxpr) -> list[list[Choice]]:
    """The batch in slices; the largest value; all large ones: into ever more slices."""
    entries = dict(sorted(_shapes(jaxpr), key=lambda pair: -pair[1]))

    def that_can(whole: bool) -> Iterator[Shape]:
        finders = ((shape, SliceFinder(size // 2, whole=whole, shape=shape)) for shape, size in entries.items())
        return (shape for shape, finder in finders if program.find(jaxpr, finder))

    batch = tuple(itertools.islice(that_can(whole=True), 1))
    shapes = tuple(itertools.islice(that_can(whole=False), _MOST_SHAPES))
    chosen = [(kind, each) for kind, each in ((WHOLE, batch), (KIND, shapes[:1]), (KIND, shapes)) if each]
    cut = lambda kind, each, parts: tuple(Chunked(kind, shape, max(1, entries[shape] // parts)) for shape in each)
    return [[cut(kind, each, parts) for kind, each in dict.fromkeys(chosen)] for parts in _PARTS]


def _shapes(jaxpr: Jaxpr) -> Iterator[tuple[Shape, int]]:
    """Shapes that a program makes, and their entries."""
    for eqn in jaxpr.eqns:
        yield from ((shape.shape, shape.size) for shape in map(jaxprs.shape_of, eqn.outvars) if shape.ndim)
        for body in walk.bodies(eqn):
            yield from _shapes(body)


def _cut(jaxpr: Jaxpr, chunk: Chunked) -> Jaxpr:
    """The program with one choice of parts in slices, one part after another."""
    finder = SliceFinder(chunk.entries, whole=chunk.kind == WHOLE, shape=chunk.shape)
    while program.find(jaxpr, finder):
        run = functools.partial(program.run, jaxpr, finder=finder)
        cut = jax.make_jaxpr(lambda *xs, run=run: run(xs))(*map(jaxprs.argument_like, jaxpr.invars))
        jaxpr = jaxprs.inline_calls(cut)
    return jaxpr
