"""A policy for `jax.checkpoint` that is data: it compares, hashes and pickles by the names that it saves."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Collection, Iterable
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.policy_texts import text_of_policy

logger = logging.getLogger("jaxremat")

_LOOKED_AT: weakref.WeakSet[compat.Jaxpr] = weakref.WeakSet()
"""Bodies of checkpoints whose names were looked for: a policy is asked of every equation."""


@dataclasses.dataclass(frozen=True, init=False)
class NamePolicy(compat.NamesToSave):  # type: ignore[misc]  # which class, JAX decides
    """Saves the values that carry one of some names, recomputes everything else.

    Works wherever a `jax.checkpoint` policy does: `flax.linen.remat`, `flax.nnx.remat`, `equinox.filter_checkpoint`.

    Attributes:
      names: sorted, without repeats.
      put_by_plan: whether it is `plan.named` that puts the names on values: where it was left out, that is told.
    """

    names: tuple[str, ...]
    put_by_plan: bool = dataclasses.field(default=False, compare=False, repr=False)

    def __init__(self, names: Iterable[str], put_by_plan: bool = False) -> None:
        names = tuple(names)
        object.__setattr__(self, "names", tuple(sorted(set(names))))
        object.__setattr__(self, "put_by_plan", put_by_plan)
        object.__setattr__(self, "saveable_names", frozenset(names))  # the field of jax 0.11's class

    def __reduce__(self) -> tuple[Any, ...]:
        return NamePolicy, (self.names, self.put_by_plan)

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> Any:
        if self.put_by_plan:
            _require_names(self.names, compat.checkpoint_that_asks())
        return jax.checkpoint_policies.save_only_these_names(*self.names)(primitive, *avals, **params)

    def __str__(self) -> str:
        """What to paste where a policy is written by hand."""
        return text_of_policy(self.names, "jax")


def _require_names(names: Collection[str], body: compat.Jaxpr | None) -> None:
    """Says, once for the body of a checkpoint, where it has none of the names that are to be saved."""
    if body is None or body in _LOOKED_AT:
        return
    _LOOKED_AT.add(body)
    if not any(name in names for name in compat.names_inside(body)):
        logger.warning(
            "the policy of a plan saves names that plan.named(fun) puts on values, and a function without them is being"
            " differentiated: nothing of it is saved. Write jax.checkpoint(plan.named(fun), policy=plan.policy)"
        )
