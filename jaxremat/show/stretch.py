"""A scheduled program as the display sees it: which forward values wait for the backward, and which run again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from jaxremat.base.compat import Var
from jaxremat.emit.scheduled import backward_start
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.show.paths import Origin, origin_of
from jaxremat.solvers.mincut.assemble import assemble
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import Joint


@dataclasses.dataclass(frozen=True)
class Value:
    """One forward value that the backward reads, or that waits so that others can be computed again.

    Attributes:
      path: module path, such as `GPT/block_3/query`.
      operation: what makes it, such as `Dense dot_general`.
      name: the name that the program's author gave with `checkpoint_name`, or empty.
      source: the author's line, such as `model.py:21`, or empty.
      shape: dtype and shape, such as `float32[8,512]`.
      size_bytes: bytes of one copy, on the planned device.
      copies: how many there are: the iterations of its loop, otherwise 1.
      saved: whether it is kept from the forward to the backward.
    """

    path: str
    operation: str
    name: str
    source: str
    shape: str
    size_bytes: int
    copies: int
    saved: bool

    @property
    def action(self) -> str:
        return "save" if self.saved else "recompute"

    @property
    def title(self) -> str:
        """Path and operation, or the author's own name."""
        what = f'"{self.name}" {self.operation}' if self.name else self.operation
        return f"{self.path}  {what}" if self.path else what


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """A joint program with its schedule: the whole program, or one iteration of a loop.

    Attributes:
      joint, graph: the program; value ids follow the equations' outputs.
      schedule: [T] node ids.
      repeats: how often it runs.
      prefix: module path in front of its own paths.
      hidden: primitives whose results are not talked about.
    """

    joint: Joint
    graph: Graph
    schedule: np.ndarray
    repeats: int = 1
    prefix: str = ""
    hidden: tuple[str, ...] = ()

    @functools.cached_property
    def timeline(self) -> Timeline:
        return replay(self.graph, self.schedule)

    @functools.cached_property
    def start(self) -> int:
        """The step at which the backward begins."""
        return backward_start(self.graph.backward, self.timeline.schedule.astype(np.int64))

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """[V] bool: forward values that are produced before the backward and read in it."""
        value, first, last = self.timeline.spans.T
        kept = np.zeros(self.graph.num_values, bool)
        kept[value[(first < self.start) & (self.start <= last)]] = True
        return kept & ~self.graph.backward[self.graph.producer]

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """[K] ids of the values to talk about: bytes that the backward wants, or that are kept for it."""
        wanted = (Structure(self.graph).needed | self.kept) & (self.graph.value_bytes > 0)
        hidden = np.asarray([eqn.primitive.name in self.hidden for eqn in self.joint.eqns], bool)
        return np.flatnonzero(wanted & ~hidden[self.graph.producer])

    @functools.cached_property
    def values(self) -> dict[int, Value]:
        """A record for each value of `shown`."""
        variables = [var for eqn in self.joint.eqns for var in eqn.outvars]
        return {int(v): self._record(int(v), variables[v]) for v in self.shown}

    def seconds_of(self, values: Iterable[int]) -> float:
        """Seconds that `values` add per run by being recomputed, or would add if they were."""
        chosen = np.asarray(list(values), np.int64)
        others, all_kept = self.kept.copy(), self.kept.copy()
        others[chosen], all_kept[chosen] = False, True
        return max(0.0, self._cost(others) - self._cost(all_kept))

    def _cost(self, kept: np.ndarray) -> float:
        key = kept.tobytes()
        if key not in self._costs:
            self._costs[key] = float(self.graph.costs[assemble(self.graph, kept)].sum())
        return self._costs[key]

    @functools.cached_property
    def _costs(self) -> dict[bytes, float]:
        return {}

    @functools.cached_property
    def _names(self) -> dict[Var, str]:
        """The author's names: of what `checkpoint_name` received and of what it returned."""
        named: dict[Var, str] = {}
        for eqn in self.joint.eqns:
            if eqn.primitive.name == "name":
                named.update(
                    (atom, str(eqn.params["name"])) for atom in (*eqn.invars, *eqn.outvars) if isinstance(atom, Var)
                )
        return named

    @functools.cached_property
    def _made_by_name(self) -> dict[Var, int]:
        """For what `checkpoint_name` returned, the equation that made what it received."""
        maker = {var: i for i, eqn in enumerate(self.joint.eqns) for var in eqn.outvars}
        named = (eqn for eqn in self.joint.eqns if eqn.primitive.name == "name")
        return {eqn.outvars[0]: maker[eqn.invars[0]] for eqn in named if eqn.invars[0] in maker}

    def _record(self, value: int, var: Var) -> Value:
        node = self._made_by_name.get(var, int(self.graph.producer[value]))
        origin: Origin = origin_of(self.joint.eqns[node])
        path = "/".join(part for part in (self.prefix, origin.path) if part)
        return Value(
            path=path,
            operation=origin.operation,
            name=self._names.get(var, ""),
            source=origin.source,
            shape=_shape(var),
            size_bytes=int(self.graph.value_bytes[value]),
            copies=self.repeats,
            saved=bool(self.kept[value]),
        )


def _shape(var: Var) -> str:
    shape = getattr(var.aval, "shape", None)
    if shape is None:
        return str(var.aval)
    return f"{getattr(var.aval, 'dtype', '')}[{','.join(map(str, shape))}]"
