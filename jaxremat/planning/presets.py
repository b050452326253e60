"""What people choose by hand, on the same scales: `jax.checkpoint` around every block, with a policy.

A block is a numbered module that has siblings, such as `block_0` to `block_11`; a checkpoint around it keeps its
inputs, whatever its policy keeps inside, and everything outside of blocks. A loop's body is a block. A program
without blocks is one block as a whole.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Eqn, Var
from jaxremat.cost.pricing import price
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.body import Body
from jaxremat.loops.decide import Loops
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.find import find
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import Problem, pose
from jaxremat.report.origin import origin_of
from jaxremat.report.rows import common_path, without_numbers
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import Joint

Policy = Callable[..., object]
"""As `jax.checkpoint` takes it: from a primitive, abstract inputs and parameters to whether the result is kept."""


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


def nothing(_primitive, *_, **__) -> bool:
    """The policy that keeps nothing inside a block: full recomputation."""
    return False


def dots(primitive, *_, **__) -> bool:
    """The policy that keeps the results of contractions."""
    return primitive.name in ("dot_general", "conv_general_dilated", "ragged_dot_general")


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
    schedule, start = assemble_parts(problem.graph, _kept(problem.joint, problem.graph, policy))
    program = schedule_program(problem.graph, schedule, backward_start=start)
    timeline = predict(problem.joint, problem.graph, program, device)
    overhead = float(problem.graph.costs[schedule].sum() / plain_timeline.cost - 1)
    return Preset(name, timeline.peak_bytes, overhead, f"jax.checkpoint around {_places(problem.joint)}")


def _places(joint: Joint) -> str:
    """Where the checkpoints are."""
    paths = block_paths(joint)
    loops = len(find(joint.primal))
    places = [f"each of the {len(paths)} blocks {common_path(paths)}"] if paths and _alike(paths) else []
    places += [f"each of the {len(paths)} numbered modules"] if paths and not places else []
    places += [f"the body of {'the loop' if loops == 1 else f'each of the {loops} loops'}"] if loops else []
    whole = "the whole function, which has no numbered modules: it frees little, since all of it runs again at once"
    return " and ".join(places) or whole


def _alike(paths: Sequence[str]) -> bool:
    return len(set(map(without_numbers, paths))) == 1


def _kept(joint: Joint, graph: Graph, policy: Policy) -> np.ndarray:
    """[V] bool: what checkpoints around the blocks keep for the backward."""
    block = blocks_of(joint)
    inside = block[graph.producer] >= 0
    if not (block >= 0).any() and not find(joint.primal):
        return chosen_by(joint, policy)
    kept = Structure(graph).needed & ~inside
    value, node = graph.reads[~graph.backward[graph.reads[:, 1]]].T
    kept[value[(block[node] >= 0) & (block[node] != block[graph.producer[value]])]] = True
    return (kept | (chosen_by(joint, policy) & inside)) & ~graph.backward[graph.producer]


def chosen_by(joint: Joint, policy: Policy) -> np.ndarray:
    """[V] bool: results of the forward equations that a policy keeps."""
    keeps = [not late and _says_keep(policy, eqn) for eqn, late in zip(joint.eqns, joint.backward) for _ in eqn.outvars]
    return np.asarray(keeps, bool)


def block_paths(joint: Joint) -> tuple[str, ...]:
    """The module paths of the blocks, in the order of the program."""
    return _blocks(joint)[1]


def blocks_of(joint: Joint) -> np.ndarray:
    """[N] number of the block that each forward equation belongs to; -1 outside of blocks."""
    return _blocks(joint)[0]


def _blocks(joint: Joint) -> tuple[np.ndarray, tuple[str, ...]]:
    paths = [origin_of(eqn).path for eqn in joint.eqns]
    numbers: dict[str, set[str]] = collections.defaultdict(set)
    for path in set(paths):
        for stem, number, _ in _numbered(path):
            numbers[stem].add(number)
    ids: dict[str, int] = {}
    block = np.full(len(paths), -1)
    for node, (path, late) in enumerate(zip(paths, joint.backward)):
        names = (full for stem, _, full in _numbered(path) if len(numbers[stem]) > 1)
        name = next(names, None)
        if name is not None and not late:
            block[node] = ids.setdefault(name, len(ids))
    return block, tuple(ids)


def _numbered(path: str) -> list[tuple[str, str, str]]:
    """(stem, number, path up to there) of the numbered parts of a module path, the outermost first."""
    parts = path.split("/")
    found = []
    for depth, part in enumerate(parts):
        match = re.fullmatch(r"(.*?)[_.]?(\d+)", part)
        if match:
            above = "/".join(parts[:depth])
            found.append((f"{above}/{match[1]}", match[2], f"{above}/{part}"))
    return found


def _says_keep(policy: Policy, eqn: Eqn) -> bool:
    avals = [v.aval for v in eqn.invars if isinstance(v, Var) or hasattr(v, "aval")]
    answer = policy(eqn.primitive, *avals, **eqn.params)
    return answer if isinstance(answer, bool) else "Saveable" in type(answer).__name__ or "Saveable" in str(answer)


def _decision(loops: Loops, body: Body, length: int, policy: Policy) -> LoopDecision:
    """Every iteration keeps what a policy keeps."""
    inner = tuple(_decision(loops, loop.body, loop.length, policy) for loop in body.loops)
    joint = loops.emitter.joint(body, inner)
    graph = price(joint, loops.device)
    schedule, start = assemble_parts(graph, chosen_by(joint, policy))
    return LoopDecision((Piece(length, tuple(schedule[:start].tolist()), tuple(schedule[start:].tolist())),), inner)
