"""What is planned: the program of a request, with some of its parts in chunks."""

from __future__ import annotations

import dataclasses
import functools

from jaxremat.chunk.choice import Chunked
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.choose import planner_for
from jaxremat.planner.contract import Outcome, Planner, without_permission
from jaxremat.planner.decision import Decision, is_as_written
from jaxremat.planning.chunkable import rewritten
from jaxremat.planning.executable import compile_program
from jaxremat.planning.request import Request
from jaxremat.planning.signature import signature_of
from jaxremat.planning.warnings import loss_warnings
from jaxremat.trace.primal import Primal


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A program to be planned.

    Attributes:
      request: what was asked for, with the program as it is written.
      chunks: the parts that run in chunks.
      primal: the program.
      warnings: what there is to say of it, whatever is planned.
      planner: what proposes.
    """

    request: Request
    chunks: tuple[Chunked, ...]
    primal: Primal
    warnings: tuple[str, ...]
    planner: Planner

    @staticmethod
    def of(request: Request, chunks: tuple[Chunked, ...] = ()) -> Subject:
        """The program of a request.

        Raises:
          ArgumentError: for a complex loss, and for a solver or a form that does not take this program.
          EmissionError: if the program has nothing that the form could save.
        """
        primal = rewritten(request.primal, chunks)
        loss = loss_warnings(primal, request.has_aux) if request.is_loss else ()
        in_chunks = (f"in chunks, so that values agree up to rounding: {chunk}" for chunk in chunks)
        return Subject(request, chunks, primal, (*loss, *in_chunks), _planner(request, primal))

    @functools.cached_property
    def unpermitted(self) -> Subject | None:
        """The same program, planned with one permission less; None where there is none."""
        planner = without_permission(self.planner)
        return dataclasses.replace(self, planner=planner) if planner else None

    @property
    def is_usual(self) -> bool:
        """Whether it is a whole program for one device, planned as schedules are."""
        return self.request.emit == "schedule" and not self.chunks and not any(self.primal.shardings)

    def is_as_written(self, outcome: Outcome) -> bool:
        """Whether an outcome leaves the program alone."""
        return is_as_written(outcome.form)

    def compiled(self, outcome: Outcome) -> MemoryReport:
        """What the compiler says of an outcome's gradient program.

        Raises:
          TargetError: if this machine cannot compile for the device.
        """
        request = self.request
        flat = outcome.form.emitted(self.primal, request.device, outcome.problem.joint)
        return compile_program(self.primal, flat, request.has_aux, request.device).report

    def decision(self, outcome: Outcome) -> Decision:
        """An outcome as data, with the program that it is for."""
        request = self.request
        return Decision(
            self.primal.fingerprint,
            signature_of(request.args),
            request.argnums,
            request.has_aux,
            request.device.name,
            outcome.form,
            self.chunks,
        )


def _planner(request: Request, primal: Primal) -> Planner:
    return planner_for(
        primal,
        request.device,
        request.solver,
        request.emit,
        request.seed,
        request.allow,
        host_budget_bytes=request.host_budget_bytes,
    )
