"""What a plan decided: data that converts to JSON and back, and the function that each form of emission makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import jax

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.errors import EmissionError, PlanMismatchError
from jaxremat.base.policy import NamePolicy
from jaxremat.chunk.choice import Chunked
from jaxremat.chunk.rewriting.epilogue import with_epilogues_inside
from jaxremat.emit.names import Labels, emit_repoliced
from jaxremat.emit.orders import orders_for
from jaxremat.emit.scheduled import emit_scheduled
from jaxremat.emit.script import Script, write_script
from jaxremat.emit.segments import Pieces, emit_in_one, emit_pieces
from jaxremat.graph.scheduled import ScheduledProgram, in_order
from jaxremat.loops.decision import LoopDecision
from jaxremat.loops.emit import rewritten
from jaxremat.loops.find import with_masks_before_loops
from jaxremat.planner.problem import Problem, outside_loops
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, differentiate
from jaxremat.trace.primal import Primal

FORMS = ("schedule", "names", "segments")
"""The forms of emission that can be asked for."""

FlatFunction = Callable[..., list[Any]]
"""From a primal program's flat inputs to its flat outputs."""


class Form(Protocol):
    """How a program is emitted. Frozen, of plain data.

    `emit` is "plain" or one of `FORMS`, `storages` names the forms in which values may wait for the backward; `policy`
    and `named` raise EmissionError where the form has no names, `script` where it has no schedule. Both forward and
    backward of the program are traced for a schedule, unless they are at hand as `joint`.
    """

    @property
    def emit(self) -> str: ...
    @property
    def storages(self) -> tuple[str, ...]: ...
    @property
    def policy(self) -> Callable[..., Any]: ...
    def emitted(self, primal: Primal, device: Device, joint: Joint | None = None) -> FlatFunction: ...
    def named(self, primal: Primal, device: Device) -> FlatFunction: ...
    def script(self, primal: Primal, device: Device, joint: Joint | None = None) -> tuple[Joint, Script]: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class AsWritten:
    """The program is left alone."""

    emit: ClassVar[str] = "plain"
    storages: ClassVar[tuple[str, ...]] = ()

    @property
    def policy(self) -> Callable[..., Any]:
        return jax.checkpoint_policies.everything_saveable

    def emitted(self, primal: Primal, device: Device, joint: Joint | None = None) -> FlatFunction:
        return primal.as_written

    named = emitted

    def script(self, primal: Primal, device: Device, joint: Joint | None = None) -> tuple[Joint, Script]:
        """The joint program in its own order."""
        joint = joint or differentiate(primal)
        return joint, write_script(joint, in_order(joint))

    def to_json(self) -> dict[str, Any]:
        return {"emit": self.emit}

    @staticmethod
    def from_json(data: dict[str, Any]) -> AsWritten:
        return AsWritten()


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A custom_vjp that runs a scheduled program.

    Attributes:
      program: the schedule of the joint program.
      loops: one decision per differentiable loop; empty where every loop is left alone.
      storages: forms in which values may wait for the backward: the schedule counts their round trips.
      has_epilogues_inside: whether loops compute of their results what can be computed entry by entry.
      has_masks_before_loops: whether loops are given their masks.
      gradient: the fingerprint of the joint program, which knows derivative rules; empty in files of before it.
    """

    emit: ClassVar[str] = "schedule"

    program: ScheduledProgram
    loops: tuple[LoopDecision, ...] = ()
    storages: tuple[str, ...] = ()
    has_epilogues_inside: bool = False
    has_masks_before_loops: bool = False
    gradient: str = ""

    @property
    def policy(self) -> Callable[..., Any]:
        raise _without_policy(self.emit)

    def emitted(self, primal: Primal, device: Device, joint: Joint | None = None) -> FlatFunction:
        def choose(wrt: Sequence[int]) -> tuple[Joint, Script]:
            unplanned = set(wrt) - set(primal.wrt)
            if unplanned:
                raise EmissionError(
                    f"{len(unplanned)} arrays of other arguments than the planned ones are differentiated too. Plan"
                    " again with argnums=... naming every argument that you differentiate."
                )
            return self.script(primal, device, joint)

        return emit_scheduled(primal, choose)

    def named(self, primal: Primal, device: Device) -> FlatFunction:
        raise _without_policy(self.emit)

    def program_of(self, primal: Primal) -> Primal:
        """The program whose gradient is scheduled."""
        primal = with_epilogues_inside(primal) if self.has_epilogues_inside else primal
        return with_masks_before_loops(primal) if self.has_masks_before_loops else primal

    def script(self, primal: Primal, device: Device, joint: Joint | None = None) -> tuple[Joint, Script]:
        """The joint program with its loops as decided, and the script of its schedule."""
        joint, backend = joint or self._posed(primal, device), device.backend
        unfenced, late_writes = backend.unfenced(joint.eqns), backend.late_writes(joint)
        orders, masks = orders_for(joint, backend), backend.masks(joint)
        return joint, write_script(joint, self.program, unfenced, late_writes, orders, masks)

    def _posed(self, primal: Primal, device: Device) -> Joint:
        primal = self.program_of(primal)
        run = rewritten(primal, self.loops, device.backend, self.storages) if self.loops else None
        joint = differentiate(primal, run, outside_loops(primal, device, self.storages))
        joint.require_planned(self.gradient)
        return joint

    def to_json(self) -> dict[str, Any]:
        return {
            "emit": self.emit,
            "program": self.program.to_json(),
            "loops": [decision.to_json() for decision in self.loops],
            "storages": list(self.storages),
            "has_epilogues_inside": self.has_epilogues_inside,
            "has_masks_before_loops": self.has_masks_before_loops,
            "gradient": self.gradient,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Schedule:
        return Schedule(
            program=ScheduledProgram.from_json(data["program"]),
            loops=tuple(map(LoopDecision.from_json, data["loops"])),
            storages=tuple(data["storages"]),
            has_epilogues_inside=bool(data.get("has_epilogues_inside")),
            has_masks_before_loops=bool(data.get("has_masks_before_loops")),
            gradient=str(data.get("gradient", "")),
        )


def is_as_written(form: Form) -> bool:
    """Whether a form leaves the program as it is written; `emitted` then runs that."""
    return form.emit == AsWritten.emit


def told_form(emit: str, chunks: Sequence[Chunked]) -> str:
    """What people are told of how a plan runs: its form, or "chunks" where parts in chunks are all that is done."""
    return "chunks" if chunks and emit == AsWritten.emit else emit


def form_of(problem: Problem, program: ScheduledProgram) -> AsWritten | Schedule:
    """How a schedule of a problem is emitted."""
    if problem.is_as_written(program):
        return AsWritten()
    primal = problem.primal
    return Schedule(
        program,
        problem.loops,
        problem.storages,
        has_epilogues_inside=primal.epilogues_after is not None,
        has_masks_before_loops=primal.masks_before_loops,
        gradient=problem.joint.fingerprint,
    )


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Pieces of the program in checkpoints, with names on the values that they save.

    Attributes:
      emit: "names" or "segments".
      pieces: where the program is cut.
      labels: triples (equation, result, name) of what is saved.
      outer: all pieces in one checkpoint more, for a compiler that recomputes just in time.
    """

    storages: ClassVar[tuple[str, ...]] = ()

    emit: str
    pieces: Pieces
    labels: tuple[tuple[int, int, str], ...]
    outer: bool

    @property
    def policy(self) -> Callable[..., Any]:
        if self.emit != "names":
            raise _without_policy(self.emit)
        return NamePolicy((name for _, _, name in self.labels), put_by_plan=True)

    def emitted(self, primal: Primal, device: Device, joint: Joint | None = None) -> FlatFunction:
        return (emit_in_one if self.outer else emit_pieces)(primal, self.pieces, self._names)

    def named(self, primal: Primal, device: Device) -> FlatFunction:
        if self.emit != "names":
            raise _without_policy(self.emit)
        return emit_pieces(primal, self.pieces, self._names)

    def script(self, primal: Primal, device: Device, joint: Joint | None = None) -> tuple[Joint, Script]:
        raise _without_schedule(self.emit)

    @property
    def _names(self) -> Labels:
        return {(equation, result): name for equation, result, name in self.labels}

    def to_json(self) -> dict[str, Any]:
        labels = [list(label) for label in self.labels]
        return {"emit": self.emit, "pieces": self.pieces.to_json(), "labels": labels, "outer": self.outer}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Checkpoints:
        labels = tuple((int(equation), int(result), str(name)) for equation, result, name in data["labels"])
        return Checkpoints(str(data["emit"]), Pieces.from_json(data["pieces"]), labels, bool(data["outer"]))


@dataclasses.dataclass(frozen=True)
class OwnNames:
    """The author's checkpoints and the author's names: each checkpoint saves some of them.

    Attributes:
      names: what is saved; None for all that there is, as if there were no checkpoints.
    """

    emit: ClassVar[str] = "names"
    storages: ClassVar[tuple[str, ...]] = ()

    names: tuple[str, ...] | None

    @property
    def policy(self) -> Callable[..., Any]:
        return jax.checkpoint_policies.everything_saveable if self.names is None else NamePolicy(self.names)

    def emitted(self, primal: Primal, device: Device, joint: Joint | None = None) -> FlatFunction:
        if self.names is None:
            return lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs)
        assert primal.raw is not None  # that is where the names were found
        return emit_repoliced(primal.raw, self.names)

    def named(self, primal: Primal, device: Device) -> FlatFunction:
        return primal.as_written

    def script(self, primal: Primal, device: Device, joint: Joint | None = None) -> tuple[Joint, Script]:
        raise _without_schedule(self.emit)

    def to_json(self) -> dict[str, Any]:
        return {"emit": self.emit, "own": None if self.names is None else list(self.names)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> OwnNames:
        return OwnNames(None if data["own"] is None else tuple(data["own"]))


def _without_policy(emit: str) -> EmissionError:
    return EmissionError(f"this plan is in the form {emit!r}, which has no policy; plan with emit='names' for one")


def _without_schedule(emit: str) -> EmissionError:
    return EmissionError(
        f"this plan is in the form {emit!r}, whose order is JAX's own; plan with emit='schedule' for one"
    )


def form_from_json(data: dict[str, Any]) -> Form:
    """The form that its `to_json` wrote.

    Raises:
      PlanMismatchError: for a form that this version does not know.
    """
    kinds: dict[str, Any] = {"plain": AsWritten, "schedule": Schedule, "names": Checkpoints, "segments": Checkpoints}
    if data["emit"] not in kinds:
        raise PlanMismatchError(f"the form of emission {data['emit']!r} is unknown; plan again and save the result")
    return OwnNames.from_json(data) if "own" in data else kinds[data["emit"]].from_json(data)


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """Everything that is needed to emit a plan again.

    Attributes:
      fingerprint: of the flat primal program that was planned.
      signature: shape and dtype of every argument leaf, as text.
      argnums: which arguments are differentiated.
      has_aux: whether the function returns (result, auxiliary data).
      target: name of the device that it is for.
      form: what is emitted.
      chunks: the parts of the program that run in chunks.
    """

    fingerprint: str
    signature: tuple[str, ...]
    argnums: tuple[int, ...] | int
    has_aux: bool
    target: str
    form: Form
    chunks: tuple[Chunked, ...] = ()

    @property
    def emit(self) -> str:
        """ "plain", "schedule", "names" or "segments"."""
        return self.form.emit

    @property
    def leaves_function_alone(self) -> bool:
        """Whether the function runs as it is written: its program is left alone, and no part of it runs in chunks."""
        return is_as_written(self.form) and not self.chunks

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return resolve_target(self.target)

    def emitted(self, primal: Primal) -> FlatFunction:
        """The flat function of a program that traces to the planned one, emitted as decided."""
        return self.form.emitted(primal, self.device)

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "signature": list(self.signature),
            "argnums": self.argnums if isinstance(self.argnums, int) else list(self.argnums),
            "has_aux": self.has_aux,
            "target": self.target,
            "form": self.form.to_json(),
            "chunks": [chunk.to_json() for chunk in self.chunks],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Decision:
        """Raises KeyError, TypeError or ValueError for data that `to_json` did not write."""
        argnums = data["argnums"]
        return Decision(
            fingerprint=str(data["fingerprint"]),
            signature=tuple(data["signature"]),
            argnums=tuple(argnums) if isinstance(argnums, list) else int(argnums),
            has_aux=bool(data["has_aux"]),
            target=str(data["target"]),
            form=form_from_json(data["form"]),
            chunks=tuple(map(Chunked.from_json, data["chunks"])),
        )
