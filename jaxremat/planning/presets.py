"""What people choose by hand, on the same scales: `jax.checkpoint` around every block, with a policy.

A block is a numbered module that has siblings, such as `block_0` to `block_11`; a checkpoint around it keeps its
inputs, whatever its policy keeps inside, and everything outside of blocks. A loop's body is a block. A program
without blocks is one block as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxremat.backends.devices import Device
from jaxremat.cost.pricing import price
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.body import Body
from jaxremat.loops.decide import Loops
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.find import find
from jaxremat.planner.by_hand import Policy, block_paths, blocks_of, chosen_by, kept_by_hand
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import Problem, pose
from jaxremat.report.rows import common_path, without_numbers
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace.joint import Joint


@dataclasses.dataclass(frozen=True)
class Preset:
    """A choice by hand and what is predicted for it.

    Attributes:
      name: what the choice is called.
      peak_bytes: predicted.
      overhead: extra time over the program as written, as a fraction.
      meaning: what was chosen, in words.
    """

    name: str
    peak_bytes: int
    overhead: float
    meaning: str = ""


def evaluate_preset(name: str, policy: Policy, plain: Problem, plain_timeline: Timeline, device: Device) -> Preset:
    """Predicts `jax.checkpoint(block, policy=policy)` for every block of a program.

    Args:
      name: for the preset.
      policy: what is kept inside a block.
      plain: the program with its loops left alone.
      plain_timeline: its timeline as written.
      device: what bytes and seconds are for.
    """
    loops = Loops(plain.primal, device)
    decisions = tuple(_decision(loops, loop.body, loop.length, policy) for loop in loops.found)
    problem = pose(plain.primal, device, decisions, loops) if decisions else plain
    kept = kept_by_hand(problem.joint, problem.graph, blocks_of(problem.joint), policy)
    schedule, start = assemble_parts(problem.graph, kept)
    program = schedule_program(problem.graph, schedule, backward_start=start)
    timeline = predict(problem.joint, problem.graph, program, device)
    overhead = timeline.cost / plain_timeline.cost - 1
    return Preset(name, timeline.peak_bytes, overhead, f"jax.checkpoint around {_places(problem.joint)}")


def _places(joint: Joint) -> str:
    """Where the checkpoints are."""
    paths = block_paths(joint)
    loops = len(find(joint.primal))
    places = [f"each of the {len(paths)} blocks {common_path(paths)}"] if paths and _alike(paths) else []
    places += [f"each of the {len(paths)} numbered modules"] if paths and not places else []
    places += [f"the body of {'the loop' if loops == 1 else f'each of the {loops} loops'}"] if loops else []
    whole = "the whole function, without numbered modules: all of it runs again at once, and little or nothing is freed"
    return " and ".join(places) or whole


def _alike(paths: Sequence[str]) -> bool:
    return len(set(map(without_numbers, paths))) == 1


def _decision(loops: Loops, body: Body, length: int, policy: Policy) -> LoopDecision:
    """Every iteration keeps what a policy keeps."""
    inner = tuple(_decision(loops, loop.body, loop.length, policy) for loop in body.loops)
    joint = loops.emitter.joint(body, inner)
    graph = price(joint, loops.device)
    schedule, start = assemble_parts(graph, chosen_by(joint, policy))
    return LoopDecision((Piece(length, tuple(schedule[:start].tolist()), tuple(schedule[start:].tolist())),), inner)
