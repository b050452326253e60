"""Programs with their loops, branches and shard_maps emitted as decided; `pieces` holds the gradient of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxremat.backends.backend import Backend
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.base.errors import PlanMismatchError
from jaxremat.loops.body import Body, Iteration, Loop, scripted
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.find import find
from jaxremat.loops.pieces import differentiable
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, differentiate
from jaxremat.trace.primal import Primal

Parts = dict[int, Callable[[Sequence[Any]], list[Any]]]
"""The emitted bodies of one equation, by their number: each from its flat inputs to its flat outputs."""


def rewritten(
    primal: Primal, decisions: Sequence[LoopDecision], backend: Backend, storages: Sequence[str] = ()
) -> Callable[[Sequence[Any]], list[Any]]:
    """Runs a primal program with its loops emitted as decided, one decision per loop of `find(primal)`."""
    return Emitter(backend, storages).program(primal, find(primal), decisions)


class Emitter:
    """Emits loops as decided; what it needs of a body, or of a schedule of one, is made once.

    Args:
      backend: whose compiler it is for.
      storages: forms in which values of an iteration may wait for its backward.
    """

    def __init__(self, backend: Backend, storages: Sequence[str] = ()) -> None:
        self.backend = backend
        self.storages = tuple(storages)
        self._joints: dict[tuple[Body, tuple[LoopDecision, ...]], Joint] = {}
        self._iterations: dict[tuple[Any, ...], Iteration] = {}

    def program(
        self, primal: Primal, loops: Sequence[Loop], decisions: Sequence[LoopDecision]
    ) -> Callable[[Sequence[Any]], list[Any]]:
        """Runs a primal program from its flat inputs to its flat outputs, its loops as decided.

        Raises:
          PlanMismatchError: if there is not one decision per loop, or one is for another number of iterations.
        """
        if len(loops) != len(decisions):
            raise PlanMismatchError(
                f"{len(decisions)} loop decisions meet a program with {len(loops)} loops: plan again"
            )
        emitted: dict[Var, Parts] = {}
        for loop, decision in zip(loops, decisions):
            parts = emitted.setdefault(primal.jaxpr.eqns[loop.position].outvars[0], {})
            parts[loop.branch] = self.loop(loop, decision)

        transpositions = _Transpositions(primal.jaxpr, loops)

        def run(inputs: Sequence[Any]) -> list[Any]:
            sources: dict[Var, Any] = {}

            def rule(eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
                parts = emitted.get(eqn.outvars[0]) if eqn.outvars else None
                if parts is None:
                    return transpositions.rule(eqn, inputs, sources)
                inputs = [sources.get(v, x) if isinstance(v, Var) else x for v, x in zip(eqn.invars, inputs)]
                return _IN_PLACE_OF[eqn.primitive.name](eqn, parts, inputs)

            return jaxprs.evaluate(primal.jaxpr, inputs, rule)

        return run

    def loop(self, loop: Loop, decision: LoopDecision) -> Callable[[Sequence[Any]], list[Any]]:
        """The scan, from its flat inputs to its flat outputs, with a gradient of its own.

        Raises:
          PlanMismatchError: if the decision is for another number of iterations, or for another gradient.
        """
        if decision.length != loop.length:
            raise PlanMismatchError(
                f"a decision for {decision.length} iterations meets a loop of {loop.length}: plan again"
            )
        num_consts = len(loop.invariants.invars)
        planned = differentiable(loop, decision, lambda piece: self.iteration(loop.body, decision, piece))

        def run(inputs: Sequence[Any]) -> list[Any]:
            consts = jaxprs.evaluate(loop.invariants, inputs[:num_consts])
            outputs = planned(*consts, *inputs[num_consts:])
            return [lax.stop_gradient(x) if i in loop.body.constant_results else x for i, x in enumerate(outputs)]

        return run

    def joint(self, body: Body, inner: tuple[LoopDecision, ...] = ()) -> Joint:
        """Forward and backward of one iteration, its own loops emitted as decided."""
        if (body, inner) not in self._joints:
            run = self.program(body.primal, body.loops, inner) if body.loops else None
            with compat.in_body_of(*body.within):
                self._joints[body, inner] = differentiate(body.primal, run, self.storages, body.weights)
        return self._joints[body, inner]

    def iteration(self, body: Body, decision: LoopDecision, piece: Piece) -> Iteration:
        """An iteration of a plain piece."""
        key = body, decision.inner, decision.has_barriers, piece.forward, piece.backward
        joint = self.joint(body, decision.inner)
        joint.require_planned(decision.gradient)
        if key not in self._iterations:
            self._iterations[key] = scripted(body, joint, piece, decision.has_barriers, self.backend)
        return self._iterations[key]


class _Transpositions:
    """The transpositions of a program that its loops do without."""

    def __init__(self, jaxpr: Jaxpr, loops: Sequence[Loop]) -> None:
        self._before: set[Var] = set()
        self._after: set[Var] = set()
        for loop in loops:
            eqn = jaxpr.eqns[loop.position]
            self._before |= _with_axis(eqn.invars, loop.scanned_axes)
            self._after |= _with_axis(eqn.outvars, loop.result_axes)

    def rule(self, eqn: Eqn, inputs: list[Any], sources: dict[Var, Any]) -> list[Any] | None:
        """Notes what is transposed for a loop; hands on what a loop has written as it was to be transposed."""
        if eqn.primitive.name != "transpose":
            return None
        if eqn.outvars[0] in self._before:
            sources[eqn.outvars[0]] = inputs[0]
        return inputs if eqn.invars[0] in self._after else None


def _with_axis(atoms: Sequence[Any], axes: Sequence[int]) -> set[Var]:
    """Of the last atoms, one per axis, those whose axis is not the first."""
    return {v for v, axis in zip(atoms[len(atoms) - len(axes) :], axes) if axis}


def _scanned(eqn: Eqn, parts: Parts, inputs: list[Any]) -> list[Any]:
    return parts[0](inputs)


def _chosen(eqn: Eqn, parts: Parts, inputs: list[Any]) -> list[Any]:
    """A conditional of which some branches are emitted as decided."""

    def branch(number: int, closed: Jaxpr) -> Callable[..., Any]:
        return lambda *operands: parts[number](operands) if number in parts else jaxprs.evaluate(closed, operands)

    branches = [branch(number, closed) for number, closed in enumerate(eqn.params["branches"])]
    return lax.switch(inputs[0], branches, *inputs[1:])


def _sharded(eqn: Eqn, parts: Parts, inputs: list[Any]) -> list[Any]:
    """A shard_map whose body is emitted as decided."""
    params = eqn.params
    run = jax.shard_map(
        lambda *shards: tuple(parts[0](shards)),
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=params["out_specs"],
        axis_names=params["newly_manual_axes"],
        check_vma=params["check_vma"],
    )
    return list(run(*inputs))


_IN_PLACE_OF: dict[str, Callable[[Eqn, Parts, list[Any]], list[Any]]] = {
    "scan": _scanned,
    "cond": _chosen,
    "shard_map": _sharded,
}
