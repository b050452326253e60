"""What plans say beside their numbers: warnings, in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import Outcome
from jaxremat.planning.plan import UNMEASURED
from jaxremat.planning.recompute_check import copies_undone
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import inexactness

logger = logging.getLogger("jaxremat")


def storage_warnings(outcome: Outcome, report: MemoryReport | None) -> Iterator[str]:
    """Of the forms in which values wait: what may be rounded, and copies that the compiler undid."""
    yield from _inexactness(outcome)
    yield from copies_undone(outcome.problem.joint, outcome.program, report) if report else ()


def budget_warnings(outcome: Outcome, report: MemoryReport | None, limit: int) -> Iterator[str]:
    """Of a plan that is the smallest known and takes more than the budget."""
    peak_bytes = outcome.peak_bytes if report is None else report.peak_bytes
    if peak_bytes > limit:
        needs = "predicted" if report is None else "compiled"
        told = (
            f"over budget: the smallest plan that was found is {needs} to take {format_bytes(peak_bytes)} ({peak_bytes}"
            f" bytes), the budget is {format_bytes(limit)}"
        )
        logger.warning(told)
        yield told


def loss_warnings(primal: Primal, has_aux: bool) -> tuple[str, ...]:
    """Warnings where `jax.grad` would refuse a function that `jax.vjp` takes.

    Args:
      primal: the program.
      has_aux: whether auxiliary data stand beside the loss.

    Raises:
      ArgumentError: for a complex loss.
    """
    results = [jaxprs.shape_of(primal.jaxpr.outvars[i]) for i in primal.cotangents_of]
    told = ", ".join(f"{result.dtype}{list(result.shape)}" for result in results)
    if any(jnp.issubdtype(result.dtype, jnp.complexfloating) for result in results):
        raise ArgumentError(
            f"the function returns {told}: a complex result has no gradient of one number. Return a real one, such as"
            " its absolute value"
        )
    tree = primal.out_tree.children()[0] if has_aux else primal.out_tree
    is_alone = jax.tree_util.treedef_is_leaf(tree)
    if is_alone and not results[0].shape:
        return ()
    inside = "" if is_alone else f" in a {tree.node_data()[0].__name__}"
    if tree.num_leaves > 1:
        remedy = "If only the first is the loss, plan with has_aux=True."
    else:
        remedy = "Or sum it." if is_alone else "Or return it alone."
    return (f"the function returns {told}{inside}, and jax.grad takes one scalar: this plan is for jax.vjp. {remedy}",)


def _inexactness(outcome: Outcome) -> Iterator[str]:
    """Whether values may wait rounded or projected, and how far that may take them."""
    if told := inexactness(outcome.form.storages):
        yield told
        yield UNMEASURED
