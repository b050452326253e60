"""What ties copies to the host's memory, and back, to the computation around them; and what is kept narrow likewise.

XLA cancels a copy to the host with the copy back, and a rounding with the widening after it; with a barrier between
them it puts off the first until right before the second, and the readers of what came back until the end of the
program. Three ties hold it to the schedule:

- what was copied to the host passes through one barrier with the next value that is copied, or what its last reader has
  made, so it is there by then;
- what is fetched enters through one barrier with a cotangent, before the copy back and again before it is read;
- gradients pass through one barrier with the cotangents of the next stretch: they have been made by then, in the layout
  of results, and what was fetched for them is free.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence, Set

from jaxremat.base.compat import Eqn, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primitives import CUTTING
from jaxremat.trace.round_trips import UNDONE, RoundTrip


@dataclasses.dataclass(frozen=True, eq=False)
class Transfers:
    """The values of a scheduled program that wait in the host's memory, or narrow, outside of loops.

    Attributes:
      joint: the program.
      saved: what the forward leaves to the backward.
    """

    joint: Joint
    saved: Set[Var]

    @functools.cached_property
    def taken(self) -> tuple[RoundTrip, ...]:
        """The round trips that XLA would undo, in the order of the program."""
        return tuple(trip for trip in self.joint.round_trips if trip.form in UNDONE and trip.stored in self.saved)

    @functools.cached_property
    def ends(self) -> frozenset[Var]:
        """What is stored, and what is restored."""
        return self.waiting | {trip.restored for trip in self.taken}

    @functools.cached_property
    def same(self) -> dict[Var, Var]:
        """For each variable of a round trip, the one that holds the same value once it is made."""
        back = {trip.restored: trip.source for trip in self.taken if not trip.only_estimates}
        return self.joint.restored_of | back

    def left_waiting(self, eqns: Sequence[Eqn], stretches_until: Callable[[Var], int]) -> tuple[Var, ...]:
        """What a stretch makes that is to be there before the next one begins: copies, gradients, and what it makes
        last; and of what waits longer what is cut out of larger values, or made of one that is copied: those would wait
        in its place.

        Args:
          eqns: the stretch.
          stretches_until: how many stretches on a variable is read last.
        """
        if not self.taken:
            return ()
        awaited = self.waiting | self.gradients
        last = {v for v in eqns[-1].outvars if stretches_until(v) > 0}
        cut = {v for eqn in eqns if self._would_wait_as_its_source(eqn) for v in eqn.outvars if stretches_until(v) > 1}
        return tuple(v for eqn in eqns for v in eqn.outvars if v in awaited or v in last or v in cut)

    def _would_wait_as_its_source(self, eqn: Eqn) -> bool:
        return eqn.primitive.name in CUTTING or not self._sources.isdisjoint(jaxprs.vars_of(eqn.invars))

    @functools.cached_property
    def waiting(self) -> frozenset[Var]:
        """What waits in the place of values."""
        return frozenset(v for trip in self.taken for v in trip.waiting)

    @functools.cached_property
    def _sources(self) -> frozenset[Var]:
        return frozenset(trip.source for trip in self.taken)

    def passed(self, eqns: Sequence[Eqn], waiting: Sequence[Var]) -> tuple[Var, ...]:
        """What passes through the barrier of a stretch: what waits for it, and what it copies that was made before."""
        made = {v for eqn in eqns for v in eqn.outvars}
        sources = [trip.source for trip in self.taken if trip.stored in made and trip.source not in made]
        return tuple(dict.fromkeys((*waiting, *sources)))

    @functools.cached_property
    def gradients(self) -> frozenset[Var]:
        """What the backward makes for the caller."""
        return frozenset(jaxprs.vars_of(self.joint.gradients)) - frozenset(self.joint.jaxpr.invars)
