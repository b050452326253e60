"""A whole step as one flat program: what it reads and returns, by argument path, and which buffers it hands on."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxremat.base import compat
from jaxremat.base.compat import Jaxpr, Literal, Var
from jaxremat.chunk.choice import Chunked
from jaxremat.cost.sharding import device_share
from jaxremat.step.contractions import turned_contractions
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.order import result_by_result
from jaxremat.step.renewal import kind, renewed_inputs
from jaxremat.step.rewriting import inlined_throughout
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import fingerprint
from jaxremat.trace.joint import Joint
from jaxremat.trace.primal import Primal, with_explicit_captures


@dataclasses.dataclass(frozen=True)
class Aliased:
    """Results of a program that live in the buffers of donated inputs: which, and their bytes on one device."""

    outputs: frozenset[int]
    size_bytes: int


NOT_ALIASED = Aliased(frozenset(), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class StepProgram:
    """A traced step, flat.

    Attributes:
      raw: from captured values, then argument leaves, to result leaves, as it was traced.
      jaxpr: the same; call-like equations are inlined.
      captured: outer tracers that the step closes over, now explicit inputs.
      names: one per input: its argument and its path inside, such as `state/params/w`.
      donated: one per input: whether its buffer may be used for a result.
      shardings: one per input, over meshes; None for an input on a single device, or nobody knows where.
      out_tree: structure of the result.
      chunks: parts that run slice by slice, of which `jaxpr` knows, and `raw` does not.
      written: the step as it is written, where any do.
    """

    raw: Jaxpr
    jaxpr: Jaxpr
    captured: tuple[Any, ...]
    names: tuple[str, ...]
    donated: tuple[bool, ...]
    shardings: tuple[NamedSharding | None, ...]
    out_tree: Any
    chunks: tuple[Chunked, ...] = ()
    written: StepProgram | None = None

    @property
    def stands_alone(self) -> bool:
        """Whether it can be compiled by itself: it closes over no value of a trace around it, communicates along no
        axis that is bound there, and is no part of a shard_map."""
        in_shard_map = any(compat.is_manual(v.aval) for v in self.raw.invars)
        return not (self.captured or in_shard_map or compat.axes_of_others(self.raw))

    def is_as_written(self, decision: ProgramDecision) -> bool:
        """Whether the step runs as it is written: its program is left alone, and no part of it runs slice by slice."""
        return decision.is_plain and not self.chunks

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The step as written, from flat inputs to flat outputs."""
        return jaxprs.evaluate(self.raw, inputs)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the program and of what is donated."""
        return self.written.fingerprint if self.written else fingerprint(self.jaxpr, str(self.donated))

    @property
    def question(self) -> tuple[Any, ...]:
        """All that decides about a plan, the options aside."""
        where = self.shardings, jax.sharding.get_abstract_mesh(), self.stands_alone
        return "step", self.fingerprint, self.names, *where

    @functools.cached_property
    def input_bytes(self) -> tuple[int, ...]:
        """Bytes of each input on one device."""
        return self._on_one_device(jaxprs.size_bytes)

    @functools.cached_property
    def host_input_bytes(self) -> tuple[int, ...]:
        """Bytes of each input that lies in the host's memory, for one device."""
        return self._on_one_device(lambda v: jaxprs.array_bytes(v) if jaxprs.is_on_host(v) else 0)

    def _on_one_device(self, bytes_of: Callable[[Var], int]) -> tuple[int, ...]:
        pairs = zip(self.jaxpr.invars, self.shardings, strict=True)
        return tuple(int(np.ceil(bytes_of(v) * device_share(v, s))) for v, s in pairs)

    @functools.cached_property
    def reused(self) -> tuple[bool, ...]:
        """For each input, whether a result takes over its buffer."""
        taken = set(self._input_of_result.values())
        return tuple(i in taken for i in range(len(self.donated)))

    @functools.cached_property
    def aliased(self) -> Aliased:
        """The results that live in the buffers of donated inputs."""
        matched = self._input_of_result
        return Aliased(frozenset(matched), sum(self.input_bytes[i] for i in matched.values()))

    @functools.cached_property
    def _input_of_result(self) -> dict[int, int]:
        return _matched(self.jaxpr, self.donated)

    @functools.cached_property
    def renewed(self) -> tuple[bool, ...]:
        """For each input, whether a result is its new value, as far as can be seen."""
        return renewed_inputs(self.jaxpr)

    @functools.cached_property
    def reusable(self) -> tuple[bool, ...]:
        """For each input that is renewed and not donated, whether a result could take over its buffer if it were."""
        wanted = set(_matched(self.jaxpr, (True,) * len(self.donated), first=self.reused).values())
        is_idle = (i in wanted and not donated for i, donated in enumerate(self.donated))
        return tuple(map(operator.and_, is_idle, self.renewed))

    @functools.cached_property
    def held_bytes(self) -> int:
        """Bytes on one device of arguments and results, below which no plan can go: `jax.jit` drops arguments that
        nothing reads, and hands on those that are results; over a mesh, a result may be as finely sharded as it has
        devices."""
        jaxpr, inputs = self.jaxpr, set(self.jaxpr.invars)
        read = {v for eqn in jaxpr.eqns for v in jaxprs.vars_of(eqn.invars)} | set(jaxprs.vars_of(jaxpr.outvars))
        arguments = sum(size for v, size in zip(jaxpr.invars, self.input_bytes) if v in read)
        devices = max((sharding.mesh.size for sharding in self.shardings if sharding), default=1)
        results = sum(map(jaxprs.size_bytes, set(jaxprs.vars_of(jaxpr.outvars)) - inputs)) // devices
        return arguments + max(0, results - self.aliased.size_bytes)


def trace_step(
    fun: Callable[..., Any], args: Sequence[Any], names: Sequence[str], donated: Sequence[bool], shardings: Any
) -> StepProgram:
    """Traces a step of array leaves.

    Args:
      fun: from leaves to a tree of results.
      args: one array or ShapeDtypeStruct per leaf.
      names, donated, shardings: one per leaf; see `StepProgram`.
    """
    program = jaxprs.read(fun, *args)
    captured = tuple(c for c in compat.consts_of(program.jaxpr) if isinstance(c, jax.core.Tracer))
    raw = with_explicit_captures(program.jaxpr, captured)
    number = len(captured)
    flat = inlined_throughout(raw)
    return StepProgram(
        raw,
        result_by_result(turned_contractions(flat) if any(shardings) else flat),
        captured,
        names=(*(f"captured {i}" for i in range(number)), *names),
        donated=(*[False] * number, *donated),
        shardings=(*[None] * number, *shardings),
        out_tree=program.out_tree,
    )


def whole_program(jaxpr: Jaxpr, shardings: tuple[Any, ...] = ()) -> Joint:
    """A flat program in the form that costs are worked out on: nothing in it is differentiated any more."""
    return Joint(Primal(jaxpr, (), (), (), None, None, None, shardings), jaxpr)


def _matched(jaxpr: Jaxpr, donated: Sequence[bool], first: Sequence[bool] | None = None) -> dict[int, int]:
    """The donated input whose buffer each result takes: one of its shape and dtype in the same
    memory, as `jax.jit` gives them out."""
    order = sorted(range(len(donated)), key=lambda i: not first[i]) if first else range(len(donated))
    waiting: dict[tuple[Any, ...], list[int]] = {}
    for i in order:
        if donated[i]:
            waiting.setdefault(kind(jaxpr.invars[i]), []).append(i)
    taken = {}
    for k, atom in enumerate(jaxpr.outvars):
        if not isinstance(atom, Literal) and waiting.get(kind(atom)):
            taken[k] = waiting[kind(atom)].pop(0)
    return taken
