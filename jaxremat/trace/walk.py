"""Walking into the bodies of equations: loops, branches and checkpoints, whose bodies a pass may replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.trace.jaxpr import shape_of
from jaxremat.trace.primitives import CHECKPOINTS, LOOPS

RunBody = Callable[[Jaxpr, Sequence[Any]], list[Any]]
"""Runs a body on inputs, in whatever way a pass wants it run."""


def bodies(eqn: Eqn) -> tuple[Jaxpr, ...]:
    """The bodies of a loop, a branch or a checkpoint: what `rerun` runs."""
    if compat.primitive_name(eqn) in CHECKPOINTS:
        return (compat.params_of(eqn)[CHECKPOINTS[compat.primitive_name(eqn)]],)
    return tuple(body for _, group in _groups(eqn) for body in group)


def rerun(eqn: Eqn, inputs: Sequence[Any], run: RunBody) -> list[Any]:
    """A loop, a branch or a checkpoint again, each of whose bodies runs through `run`."""
    if compat.primitive_name(eqn) in CHECKPOINTS:
        return checkpoint_again(eqn, lambda *xs: run(bodies(eqn)[0], xs))(*inputs)
    with compat.in_body_of(eqn):
        made = {key: tuple(_traced(body, run) for body in group) for key, group in _groups(eqn)}
    params = {key: group if isinstance(eqn.params[key], tuple) else group[0] for key, group in made.items()}
    return compat.bind(eqn.replace(params=eqn.params | params), list(inputs))


def checkpoint_again(eqn: Eqn, fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` under a checkpoint like the equation's, at its place in the source."""
    checkpointed = jax.checkpoint(fun, **compat.checkpoint_options(eqn))

    def run(*inputs: Any) -> Any:
        with compat.at_position_of(eqn):
            return checkpointed(*inputs)

    return run


def _groups(eqn: Eqn) -> list[tuple[str, tuple[Jaxpr, ...]]]:
    """(parameter, its bodies) of a loop or a branch."""
    held = [(key, eqn.params[key]) for key in LOOPS.get(eqn.primitive.name, ())]
    return [(key, value if isinstance(value, tuple) else (value,)) for key, value in held]


def _traced(body: Jaxpr, run: RunBody) -> Jaxpr:
    return jax.make_jaxpr(lambda *xs: run(body, xs))(*map(shape_of, body.invars))
