"""Names that a policy can save: put where a plan wants them, or the author's own with another policy around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.base.policy import NamePolicy
from jaxremat.trace import jaxpr as jaxprs

Labels = Mapping[tuple[int, int], str]


def name_results(index: int, outputs: Sequence[Any], labels: Labels) -> list[Any]:
    return [checkpoint_name(x, labels[index, k]) if (index, k) in labels else x for k, x in enumerate(outputs)]


def emit_repoliced(raw: Jaxpr, names: Sequence[str]) -> Callable[..., list[Any]]:
    """A program in which every checkpoint that the author placed saves the given names and nothing else."""
    policy = NamePolicy(tuple(names))

    def rule(eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        body = jaxprs.inlined_body(eqn)
        if body is None:
            return None
        run: Callable[..., list[Any]] = functools.partial(_evaluate_flat, body, rule)
        with compat.at_position_of(eqn):
            if jaxprs.is_checkpoint(eqn):
                run = jax.checkpoint(run, **compat.checkpoint_options(eqn) | {"policy": policy})
            return run(*inputs)

    return lambda *inputs: jaxprs.evaluate(raw, inputs, rule)


def _evaluate_flat(body: Jaxpr, rule: Any, *inputs: Any) -> list[Any]:
    return jaxprs.evaluate(body, inputs, rule)
