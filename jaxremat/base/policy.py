"""A policy for `jax.checkpoint` that is data: it compares, hashes and pickles by the names that it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax

from jaxremat.base import compat


@dataclasses.dataclass(frozen=True, init=False)
class NamePolicy(compat.NamesToSave):
    """Saves the values that carry one of some names, recomputes everything else.

    Works wherever a `jax.checkpoint` policy does: `flax.linen.remat`, `flax.nnx.remat`, `equinox.filter_checkpoint`.

    Attributes:
      names: sorted, without repeats.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]):
        object.__setattr__(self, "names", tuple(sorted(set(names))))
        object.__setattr__(self, "saveable_names", frozenset(names))  # the field of jax 0.11's class

    def __call__(self, primitive, *avals, **params):
        return jax.checkpoint_policies.save_only_these_names(*self.names)(primitive, *avals, **params)

    def __str__(self) -> str:
        """What to paste where a policy is written by hand."""
        return f"save_only_these_names({', '.join(map(_quoted, self.names))})"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
