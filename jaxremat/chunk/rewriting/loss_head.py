"""Finding loss heads in a jaxpr: logits from a product with a vocabulary axis, reduced to a few numbers per token.

The anchor is a matrix product with a large output; the subgraph is everything between it and the values per token that
leave it (log-sum-exp, the label's logit, an argmax, ...). Its equations run chunk of tokens by chunk of tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.rewriting.tokens import KEEPING_NOTHING, TokenLoop, token_window, tokens_per_tile
from jaxremat.chunk.tiling.subgraph import tiled_subgraph
from jaxremat.chunk.tiling.tiles import Window
from jaxremat.trace.jaxpr import called_body, shape_of, size_bytes, vars_of

KIND = "loss head"


class LossHeadFinder:
    """Finds loss heads in one jaxpr.

    Args:
      entries: about so many logits at a time.
      token_chunk_size: at most so many tokens at a time; None chooses from `entries` and the vocabulary.
      loop: what runs the chunks.
    """

    def __init__(self, entries: int, token_chunk_size: int | None = None, loop: TokenLoop = KEEPING_NOTHING) -> None:
        self.entries, self.token_chunk_size, self.loop = entries, token_chunk_size, loop

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        return called_body(eqn)

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        made_by, readers = producers_of(jaxpr), readers_of(jaxpr)
        products = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
        return [f for eqn in products if (f := self._match(eqn, jaxpr, made_by, readers)) is not None]

    def _match(self, product: Eqn, jaxpr: Jaxpr, made_by: Any, readers: Any) -> Finding | None:
        """What the product is, if a softmax over its vocabulary axis follows it; None otherwise."""
        logits = product.outvars[0]
        shape = shape_of(logits).shape
        cones = {n: _cone(logits, n, jaxpr, readers) for n in _vocabularies(product)}
        vocabulary = next((n for n, cone in cones.items() if cone.has_softmax_over(n)), None)
        if vocabulary is None or "dot_general" in cones[vocabulary].leaves_by:
            return None
        cone = cones[vocabulary]
        finding = Finding(KIND, compat.source_line(product), shape, size_bytes(logits))
        if cone.escapes:
            return dataclasses.replace(finding, reason=f"logits are also read {cone.escapes}")
        lengths = {tuple(n for n in shape_of(v).shape if n != 1) for v in cone.outputs}
        if len(lengths) != 1 or not (box := lengths.pop()):
            return dataclasses.replace(finding, reason="what leaves it does not share the axes of the tokens")
        chosen = self.token_chunk_size
        tiling = self.loop.cut(box, tokens_per_tile(self.entries, vocabulary) if chosen is None else chosen)
        if tiling.sizes == tiling.lengths:
            return dataclasses.replace(finding, reason="the logits fit in one tile")
        needs = [(v, token_window(shape_of(v).shape)) for v in cone.outputs]
        large = vocabulary * math.prod(box)

        def inside(var: Var, window: Window) -> bool:
            return any(window) and (var in cone.below or math.prod(shape_of(var).shape) >= large)

        cut = tiled_subgraph(made_by, needs, inside)
        if any(var in cone.below for var, _ in cut.sources):
            return dataclasses.replace(finding, reason="an equation in it cannot be cut along the tokens")
        return dataclasses.replace(
            finding,
            reads=tuple(var for var, _ in cut.sources),
            gives=cone.outputs,
            emit=functools.partial(self.loop.emit, product, cut, tiling),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Cone:
    """What depends on the logits, up to the values per token that leave.

    Attributes:
      below: every variable that depends on the logits, up to `outputs`.
      inner: equations with a vocabulary axis, or between two of them.
      outputs: values per token that leave.
      leaves_by: primitives that make the outputs.
      escapes: where a value with a vocabulary axis leaves; empty if nowhere.
    """

    below: set[Var]
    inner: list[Eqn]
    outputs: tuple[Var, ...]
    leaves_by: set[str]
    escapes: str

    def has_softmax_over(self, vocabulary: int) -> bool:
        """Whether a maximum over the vocabulary and an exponential with that axis are inside."""
        shapes = {(eqn.primitive.name, vocabulary in shape_of(eqn.outvars[0]).shape) for eqn in self.inner}
        return ("exp", True) in shapes and ("reduce_max", False) in shapes


def _vocabularies(product: Eqn) -> list[int]:
    """Lengths of axes that a plain matrix gives to the product, if they stand out and are longer than the width."""
    contract, batch = product.params["dimension_numbers"]
    shape = shape_of(product.outvars[0]).shape
    if batch[0] or len(contract[0]) != 1 or len(shape) < 2:
        return []
    matrices = [(shape_of(a).shape, axes[0]) for a, axes in zip(product.invars, contract) if shape_of(a).ndim == 2]
    free = [(matrix[1 - axis], matrix[axis]) for matrix, axis in matrices]
    return [length for length, width in free if length > width and shape.count(length) == 1]


def _cone(logits: Var, vocabulary: int, jaxpr: Jaxpr, readers: Any) -> _Cone:
    dependent: list[Eqn] = []
    reached = {logits}
    for eqn in jaxpr.eqns:
        if not reached.isdisjoint(vars_of(eqn.invars)):
            dependent.append(eqn)
            reached.update(eqn.outvars)
    wide = {v for v in reached if vocabulary in getattr(v.aval, "shape", ())}
    inner_vars = set(wide)
    for eqn in reversed(dependent):
        if not inner_vars.isdisjoint(eqn.outvars):
            inner_vars.update(v for v in vars_of(eqn.invars) if v in reached)
    inner = [eqn for eqn in dependent if not inner_vars.isdisjoint(eqn.outvars)]
    leaving = [eqn for eqn in dependent if eqn not in inner and not wide.isdisjoint(vars_of(eqn.invars))]
    inner_ids = {id(eqn) for eqn in inner}
    outputs = [v for eqn in leaving for v in eqn.outvars]
    narrow = [v for eqn in inner for v in eqn.outvars if v not in wide]
    outputs += [v for v in narrow if any(r is None or id(r) not in inner_ids for r in readers.get(v, ()))]
    escapes = "as a result of the function" if any(v in wide for v in vars_of(jaxpr.outvars)) else ""
    return _Cone(
        below=inner_vars | set(outputs),
        inner=inner,
        outputs=tuple(dict.fromkeys(v for v in outputs if v in readers)),
        leaves_by={eqn.primitive.name for eqn in leaving},
        escapes=escapes,
    )
