"""What checkpoints by hand keep: `jax.checkpoint` around every block, with a policy.

A block is a numbered module that has siblings, such as `block_0` to `block_11`; a checkpoint around it keeps its
inputs, whatever its policy keeps inside, and everything outside of blocks. A program without blocks is one block as a
whole.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Var
from jaxremat.graph.graph import Graph
from jaxremat.loops.find import find
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import Joint
from jaxremat.trace.paths import clean_path

Policy = Callable[..., object]
"""As `jax.checkpoint` takes it: from a primitive, abstract inputs and parameters to whether the result is kept."""


def nothing(_primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy that keeps nothing inside a block: full recomputation."""
    return False


def dots(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy that keeps the results of contractions."""
    return primitive.name in ("dot_general", "conv_general_dilated", "ragged_dot_general")


def dots_without_batch(primitive: Any, *_: Any, **params: Any) -> bool:
    """The policy that keeps the results of contractions without batch dimensions: the projections of a transformer."""
    return primitive.name == "dot_general" and not any(params["dimension_numbers"][1])


POLICIES = (nothing, dots, dots_without_batch)
"""The policies that people choose among."""


def kept_by_hand(joint: Joint, graph: Graph, block: np.ndarray, policy: Policy) -> np.ndarray:
    """[V] bool: what checkpoints around the blocks ([N], as `blocks_of` numbers them) keep for the backward."""
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
    paths = [clean_path(compat.name_stack(eqn)) for eqn in joint.eqns]
    numbered = {path: _numbered(path) for path in set(paths)}
    numbers: dict[str, set[str]] = collections.defaultdict(set)
    for stem, number, _ in itertools.chain.from_iterable(numbered.values()):
        numbers[stem].add(number)
    ids: dict[str, int] = {}
    block = np.full(len(paths), -1)
    for node, (path, late) in enumerate(zip(paths, joint.backward)):
        name = next((full for stem, _, full in numbered[path] if len(numbers[stem]) > 1), None)
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
