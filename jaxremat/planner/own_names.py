"""The author's checkpoints and the author's names: the choice is which of the names to save."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.planner.blocks import assemble_in_groups
from jaxremat.planner.candidates import CheckpointCandidates, CheckpointOutcome, PlansCheckpoints
from jaxremat.planner.contract import Traits, cheapest_within
from jaxremat.planner.decision import Form, OwnNames
from jaxremat.trace.origins import trace_regions
from jaxremat.trace.primal import Primal

_MOST_NAMES_IN_FULL = 7  # 2 ** 7 choices


class OwnNamesPlanner(PlansCheckpoints):
    """Outcomes that save some of the author's names in the author's checkpoints.

    Args:
      primal, device: the program, and what it runs on.
      names: the names in it.
    """

    traits = Traits(may_leave_alone=False)

    def __init__(self, primal: Primal, device: Device, names: tuple[str, ...]) -> None:
        assert primal.raw is not None  # that is where the names were found
        self.primal = primal
        self.origins = trace_regions(primal, primal.raw)
        self.candidates = CheckpointCandidates(primal, device, self.origins, OwnNames(None))
        self.names = names

    def fit(self, replayed_bytes: int) -> CheckpointOutcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""
        return cheapest_within(self.outcomes, min(replayed_bytes, self.fastest_bytes))

    def least(self) -> Sequence[CheckpointOutcome]:
        """The outcome with the smallest replayed peak."""
        return [self.fit(0)]

    @functools.cached_property
    def outcomes(self) -> list[CheckpointOutcome]:
        """Every outcome that is worth a look."""
        if len(self.names) <= _MOST_NAMES_IN_FULL:
            sizes = range(len(self.names) + 1)
            return [self._saving(chosen) for size in sizes for chosen in itertools.combinations(self.names, size)]
        return self._one_by_one()

    def _one_by_one(self) -> list[CheckpointOutcome]:
        """Names added in the order of seconds saved per byte held."""
        now, saved = self._saving(()), set[str]()
        while len(saved) < len(self.names):
            more = {name: self._saving((*saved, name)) for name in self.names if name not in saved}
            best = max(more, key=lambda name: _seconds_saved_per_byte(now, more[name]))
            now = more[best]
            saved.add(best)
        return self.candidates.all

    def _saving(self, chosen: Iterable[str]) -> CheckpointOutcome:
        names = tuple(name for name in self.names if name in set(chosen))

        def make() -> tuple[np.ndarray, Form]:
            graph = self.candidates.graph
            named = np.asarray([mark in names for mark in self.origins.marks]) & ~graph.backward
            kept = self.candidates.structure.is_forward_value & (self._always_kept | named[graph.producer])
            return assemble_in_groups(graph, kept, self.origins.group), OwnNames(names)

        return self.candidates.once(names, make)

    @functools.cached_property
    def _always_kept(self) -> np.ndarray:
        """[V] bool: what no checkpoint holds, and what enters or leaves one."""
        graph, group = self.candidates.graph, self.origins.group
        value, node = graph.reads.T
        home = group[graph.producer]
        kept = home < 0
        kept[value[home[value] != group[node]]] = True
        return kept


def _seconds_saved_per_byte(now: CheckpointOutcome, then: CheckpointOutcome) -> float:
    return (now.cost - then.cost) / max(then.replayed_bytes - now.replayed_bytes, 1)
