"""Plans of a program of which some parts may run in chunks: the cheapest that fits, of a few choices of parts.

The choices are none, the part with the largest value, everything that becomes a loop over tokens, and everything. Which
of them is tried first is decided by prediction; a choice that does not fit when it is compiled gives way to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from jaxremat.attention.pattern import KIND as ATTENTION
from jaxremat.backends.devices import Device
from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import LEAST, Budget, budget_bytes
from jaxremat.base.errors import BudgetError
from jaxremat.chunk.choice import Chunked
from jaxremat.planner.contract import TOLD_APART
from jaxremat.planning.chunkable import Regions, find_regions
from jaxremat.planning.plan import Plan
from jaxremat.planning.planning import Planning

_MATTERS = 0.02
"""Parts whose large value is a smaller share of the budget stay whole: eight live copies of it are 16 %;
benchmarks/constants.py."""

_TILES = 64
"""Entries in a tile per byte of the budget: sixteen tiles of float32 would fill it, and a backward holds about four;
benchmarks/constants.py."""

_FINER = 8
"""Where nothing fits, tiles are made so many times smaller, once; benchmarks/constants.py."""

_MOST_LEAST = 2
"""Of how many choices of parts the smallest plans are compiled: what is predicted of loops over tiles is rough."""


class Timed(Protocol):
    """A plan that says how much more time it takes than the program as it is written."""

    @property
    def overhead(self) -> float: ...


def plan_with_chunks(written: Planning, budget: Budget) -> Plan:
    """The cheapest plan within a budget, parts of the program in chunks where that pays.

    Args:
      written: the planning of the program as it is written.
      budget: as in `jaxremat.plan`.

    Raises:
      BudgetError: if nothing that was found fits, the one with the smallest peak.
    """
    if budget == LEAST:
        return _least(written)
    limit = budget_bytes(budget, written.baseline.peak_bytes, usable_bytes(written.request.device))
    if written.fits_as_written(limit) or written.is_below_held(limit):
        return written.plan(limit)
    coarse, fine = limit // _TILES, max(1, limit // _TILES // _FINER)
    regions = _that_matter(written, limit, fine)
    refused = []
    for whole, entries in (((written,), coarse), ((), fine)):
        tried = [*whole, *_in_chunks(written, regions, entries)]
        for planning in sorted(tried, key=lambda planning: planning.promise(limit)):
            try:
                made = planning.plan(limit)
            except BudgetError as error:
                refused.append(error)
                continue
            is_whole = planning is written or written.promise(limit)[0]
            return made if is_whole else rather_whole(functools.partial(written.plan, limit), made)
    raise min(refused, key=lambda error: error.min_peak_bytes)


def _least(written: Planning) -> Plan:
    """The plan with the smallest peak, without chunks and of the choice that is predicted to have it."""
    entries = written.request.device.backend.scores_per_tile // _FINER
    regions = _that_matter(written, _predicted_least(written), entries)
    in_chunks = sorted(_in_chunks(written, regions, entries), key=_predicted_least)
    tried = [written, *in_chunks][:_MOST_LEAST]
    return min((planning.plan(LEAST) for planning in tried), key=lambda made: made.budget_bytes)


def rather_whole[P: Timed](whole: Callable[[], P], cut: P) -> P:
    """The plan of a program as it is written, where there is one and it takes no more time than one in parts, by more
    than can be told apart.

    Args:
      whole: makes the plan of the program as it is written, or raises BudgetError.
      cut: the plan of the same program in parts.
    """
    try:
        made = whole()
    except BudgetError:
        return cut
    return made if 1 + made.overhead <= TOLD_APART * (1 + cut.overhead) else cut


def _predicted_least(planning: Planning) -> int:
    return min(outcome.peak_bytes for outcome in planning.planner.least())


def _that_matter(written: Planning, limit: int, entries: int) -> list[Regions]:
    found = find_regions(written.request.primal, entries)
    return [region for region in found if region.large_bytes >= _MATTERS * limit]


def _in_chunks(written: Planning, regions: Sequence[Regions], entries: int) -> list[Planning]:
    """The program with its largest part in chunks of about so many entries, with all loops over tokens, with all."""
    chunks = tuple(_chunked(region, entries, written.request.device) for region in regions)
    over_tokens = tuple(chunk for chunk in chunks if chunk.kind != ATTENTION)
    return [written.in_chunks(choice) for choice in dict.fromkeys((chunks[:1], over_tokens, chunks)) if choice]


def _chunked(region: Regions, entries: int, device: Device) -> Chunked:
    """A tile of attention is not larger than suits the device; for loops over tokens there is no such size."""
    most = device.backend.scores_per_tile if region.kind == ATTENTION else entries
    return region.chunked(max(1, min(entries, most)))
