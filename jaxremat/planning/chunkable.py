"""The parts of a program that can run in chunks, and the same program with some of them doing so.

Everything happens before differentiation, from jaxpr to jaxpr, so that the program with chunks is planned like any
other. Attention keeps nothing of its tiles; loss heads and MLPs become loops, of which a planner decides what each
iteration keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax

from jaxremat.attention.pattern import KIND as ATTENTION
from jaxremat.attention.pattern import AttentionFinder
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.chunk.choice import Chunked
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.finding import Finder, Finding
from jaxremat.chunk.rewriting.loss_head import KIND as LOSS_HEAD
from jaxremat.chunk.rewriting.loss_head import LossHeadFinder
from jaxremat.chunk.rewriting.mlp import KIND as MLP
from jaxremat.chunk.rewriting.mlp import MlpFinder
from jaxremat.chunk.rewriting.tokens import PLANNED
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import Primal

KINDS = (ATTENTION, LOSS_HEAD, MLP)


@dataclasses.dataclass(frozen=True)
class Regions:
    """Parts of a program that are alike and can run in chunks.

    Attributes:
      kind: such as "softmax attention".
      shape: of the large value of each.
      number: how many there are in the program as it is written, a loop's body counted once.
      large_bytes: of one large value.
      where: source line of the first.
    """

    kind: str
    shape: tuple[int, ...]
    number: int
    large_bytes: int
    where: str

    def chunked(self, entries: int) -> Chunked:
        return Chunked(self.kind, self.shape, entries)


def find_regions(primal: Primal, entries: int) -> tuple[Regions, ...]:
    """What can run in chunks, the largest values first.

    Args:
      primal: the program.
      entries: about so many of a tile; what fits in one is no candidate.
    """
    found = [f for kind in KINDS for f in program.find(primal.jaxpr, _finder(kind, entries)) if f.replaced]
    alike = lambda finding: (-finding.large_bytes, finding.kind, finding.shape)
    groups = [list(group) for _, group in itertools.groupby(sorted(found, key=alike), key=alike)]
    return tuple(Regions(g[0].kind, g[0].shape, len(g), g[0].large_bytes, g[0].where) for g in groups)


def rewritten(primal: Primal, chunks: Sequence[Chunked]) -> Primal:
    """The program with the chosen parts in chunks; the same inputs and outputs, values up to rounding."""
    if not chunks:
        return primal
    raw = None if primal.raw is None else _in_chunks(primal.raw, chunks)
    jaxpr = jaxprs.inline_calls(_in_chunks(primal.jaxpr, chunks))
    return dataclasses.replace(primal, jaxpr=jaxpr, raw=raw, written=primal)


def _in_chunks(jaxpr: Jaxpr, chunks: Sequence[Chunked]) -> Jaxpr:
    """One kind after the other; a part that is already in chunks is not found again."""
    for chunk in chunks:
        run = functools.partial(program.run, jaxpr, finder=_Only(chunk))
        jaxpr = jax.make_jaxpr(lambda *xs, run=run: run(xs))(*map(jaxprs.shape_of, jaxpr.invars))
    return jaxpr


def _finder(kind: str, entries: int) -> Finder:
    if kind == ATTENTION:
        return AttentionFinder(entries)
    return LossHeadFinder(entries, loop=PLANNED) if kind == LOSS_HEAD else MlpFinder(entries, PLANNED)


class _Only:
    """The finder of one choice."""

    def __init__(self, chunk: Chunked) -> None:
        self._chunk, self._finder = chunk, _finder(chunk.kind, chunk.entries)

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        return self._finder.body_of(eqn)

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        return [f for f in self._finder(jaxpr) if self._chunk.shape in (None, f.shape)]
