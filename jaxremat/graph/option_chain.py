"""Chains whose stages can be run in several ways: the general problem of Rotor's dynamic program.

A stage may save much and run backward fast, or save little and recompute inside: each way is a `StageOption`
(Rockmate's extension of Rotor, Zhao et al., ICML 2023). A forward that saves nothing is the same for all options.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxremat.base.errors import GraphError
from jaxremat.graph.graph import Chain


@dataclasses.dataclass(frozen=True)
class StageOption:
    """One way to run a stage so that its backward can follow.

    Attributes:
      forward_seconds, backward_seconds: time of the forward that saves, and of the backward.
      saved_bytes: all that is kept from the forward to the backward, the stage's output included.
      forward_overhead_bytes: transient beyond the stage's input, what it saves and what is held elsewhere.
      backward_overhead_bytes: transient beyond the input, what was saved, and the gradients of output and input.
    """

    forward_seconds: float
    backward_seconds: float
    saved_bytes: int
    forward_overhead_bytes: int = 0
    backward_overhead_bytes: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class OptionChain:
    """A chain of stages 1..L with one or more options each (indexed from 0 here).

    Attributes:
      options: the options of each stage.
      fast_forward_seconds: time of a forward that keeps the output only.
      fast_forward_overhead_bytes: its transient beyond input and output.
      output_bytes: the output of each stage.
      gradient_bytes: the gradient of each stage's output; the last is held from the start.
      input_bytes: the input of the first stage, held throughout.
      input_gradient_bytes: the gradient that the backward of the first stage produces.
    """

    options: tuple[tuple[StageOption, ...], ...]
    fast_forward_seconds: tuple[float, ...]
    fast_forward_overhead_bytes: tuple[int, ...]
    output_bytes: tuple[int, ...]
    gradient_bytes: tuple[int, ...]
    input_bytes: int
    input_gradient_bytes: int

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises GraphError where lengths differ, a stage has no option, or a number is out of range."""
        length = self.num_stages
        if length == 0:
            raise GraphError("a chain needs at least one stage")
        for field in ("fast_forward_seconds", "fast_forward_overhead_bytes", "output_bytes", "gradient_bytes"):
            entries = getattr(self, field)
            if len(entries) != length:
                raise GraphError(f"{field} has {len(entries)} entries for {length} stages")
            if not np.isfinite(entries).all() or min(entries) < 0:
                raise GraphError(f"{field} must be finite and non-negative; the smallest is {min(entries)}")
        for stage, (options, output) in enumerate(zip(self.options, self.output_bytes), start=1):
            if not options:
                raise GraphError(f"stage {stage} has no option")
            for option in options:
                numbers = dataclasses.astuple(option)
                if not np.isfinite(numbers).all() or min(numbers) < 0:
                    raise GraphError(f"an option of stage {stage} has a negative or infinite number: {option}")
                if option.saved_bytes < output:
                    raise GraphError(f"saved_bytes of stage {stage} is below its output_bytes; it includes the output")
        if min(self.input_bytes, self.input_gradient_bytes) < 0:
            raise GraphError(f"input_bytes is {self.input_bytes}; it must not be negative")

    @property
    def num_stages(self) -> int:
        return len(self.options)

    @staticmethod
    def from_chain(chain: Chain) -> OptionChain:
        """The chain with its one option per stage."""
        options = zip(
            chain.forward_seconds.tolist(),
            chain.backward_seconds.tolist(),
            chain.saved_bytes.tolist(),
            chain.forward_overhead_bytes.tolist(),
            chain.backward_overhead_bytes.tolist(),
        )
        return OptionChain(
            options=tuple((StageOption(*numbers),) for numbers in options),
            fast_forward_seconds=tuple(chain.forward_seconds.tolist()),
            fast_forward_overhead_bytes=tuple(chain.forward_overhead_bytes.tolist()),
            output_bytes=tuple(chain.output_bytes.tolist()),
            gradient_bytes=tuple(chain.gradient_bytes.tolist()),
            input_bytes=chain.input_bytes,
            input_gradient_bytes=chain.input_bytes,
        )
