"""From a decision to a function: the flat program, emitted as decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import ArgumentError, EmissionError
from jaxremat.emit.names import Labels, emit_repoliced
from jaxremat.emit.scheduled import Script, emit_scheduled, write_script
from jaxremat.emit.segments import Pieces, emit_in_one, emit_pieces
from jaxremat.loops.decision import LoopDecision
from jaxremat.loops.emit import rewritten
from jaxremat.planner.decision import Decision
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal, differentiate

FORMS = ("schedule", "names", "segments")


def emit(primal: Primal, decision: Decision) -> Callable[..., list]:
    """A function from the primal's flat inputs to its flat outputs, whose gradient does what was decided.

    Raises:
      ArgumentError: for an unknown form.
    """
    if decision.emit == "plain":
        return lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs)
    if decision.emit == "schedule":
        return _emit_schedule(primal, decision)
    if decision.extra.get("own"):
        assert primal.raw is not None  # the names are the author's own only where there is a raw program
        return emit_repoliced(primal.raw, decision.names)
    if decision.emit in ("names", "segments"):
        form = emit_in_one if decision.extra["outer"] else emit_pieces
        return form(primal, Pieces.from_json(decision.extra["pieces"]), _labels(decision))
    raise ArgumentError(f"emit={decision.emit!r} is unknown; the forms are {', '.join(FORMS)}")


def emit_named(primal: Primal, decision: Decision) -> Callable[..., list]:
    """The flat primal function for a `jax.checkpoint` of the user's, in pieces, with the decided names."""
    return emit_pieces(primal, Pieces.from_json(decision.extra["pieces"]), _labels(decision))


def _labels(decision: Decision) -> Labels:
    return {(equation, result): label for equation, result, label in decision.extra["labels"]}


def scheduled_program(primal: Primal, decision: Decision) -> tuple[Joint, Script]:
    """The joint program with its loops as decided, and the script of its schedule."""
    loops = tuple(map(LoopDecision.from_json, decision.loops))
    joint = differentiate(primal, rewritten(primal, loops) if loops else None)
    unfenced = resolve_target(decision.target).backend.unfenced(joint.eqns)
    return joint, write_script(joint, decision.schedule, decision.fences, decision.start, decision.fenced, unfenced)


def _emit_schedule(primal: Primal, decision: Decision) -> Callable[..., list]:
    def choose(wrt: Sequence[int]) -> tuple[Joint, Script]:
        unplanned = set(wrt) - set(primal.wrt)
        if unplanned:
            raise EmissionError(
                f"the plan was made with argnums={decision.argnums}, but {len(unplanned)} arrays of other arguments are"
                " differentiated too. Plan again with argnums=... naming every argument that you differentiate."
            )
        return scheduled_program(primal, decision)

    return emit_scheduled(primal, choose)
