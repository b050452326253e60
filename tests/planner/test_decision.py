"""What each form of a decision runs, and that all of it is data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import count
from jax.ad_checkpoint import checkpoint_name

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import EmissionError, PlanMismatchError
from jaxremat.chunk.choice import Chunked
from jaxremat.emit.segments import Pieces
from jaxremat.graph.scheduled import schedule_program
from jaxremat.planner.decision import (
    AsWritten,
    Checkpoints,
    Decision,
    OwnNames,
    Schedule,
    form_from_json,
    form_of,
    told_form,
)
from jaxremat.planner.problem import pose
from jaxremat.trace.primal import read_primal

CPU = resolve_target("cpu")
ARGS = jnp.full((4, 4), 0.1), jnp.ones((2, 4))


def author(w, x):
    """Two products in a checkpoint that saves nothing."""
    block = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(checkpoint_name(x @ w, "first")) @ w))
    return jnp.sum(block(w, x))


PRIMAL = read_primal(author, ARGS, 0, False)


def products(form):
    """How many products the gradient holds of what a form emits."""
    run = form.emitted(PRIMAL, CPU)
    return count(lambda *args: run(*args)[0], *ARGS)


def test_what_is_left_alone_keeps_the_checkpoints_of_its_author():
    assert products(AsWritten()) == count(author, *ARGS) == 7


@pytest.mark.parametrize(("names", "number"), [((), 7), (("first",), 6), (None, 5)])
def test_own_names_save_those_or_everything(names, number):
    assert products(OwnNames(names)) == number  # two products, three of their transposes, and what runs again


PIECES = Pieces((3,))
FORMS = [
    AsWritten(),
    OwnNames(("first",)),
    OwnNames(None),
    Checkpoints("names", PIECES, ((0, 0, "x"),), outer=True),
    Checkpoints("segments", PIECES, (), outer=False),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.emit)
def test_a_form_is_read_from_what_it_writes(form):
    assert form_from_json(form.to_json()) == form


def test_a_form_of_another_version_is_named():
    with pytest.raises(PlanMismatchError, match="'woven' is unknown"):
        form_from_json({"emit": "woven"})


def test_what_has_no_names_has_no_policy():
    form = Checkpoints("segments", PIECES, (), outer=False)
    for ask in (lambda: form.policy, lambda: form.named(PRIMAL, CPU), lambda: form.script(PRIMAL, CPU)):
        with pytest.raises(EmissionError, match="this plan is in the form 'segments'"):
            ask()


def test_only_a_schedule_in_order_is_as_written():
    problem = pose(PRIMAL, CPU)
    steps = problem.in_order.steps
    again = np.concatenate([steps, steps[:1]])
    assert form_of(problem, problem.in_order) == AsWritten()
    form = form_of(problem, schedule_program(problem.graph, again))
    assert isinstance(form, Schedule) and form.gradient == problem.joint.fingerprint


@pytest.mark.parametrize("chunks", [(), (Chunked("loss head", None, 8),)])
def test_a_function_is_left_alone_where_its_program_is_and_no_part_is_in_chunks(chunks):
    decided = [Decision("", (), 0, False, "cpu", form, chunks) for form in FORMS]
    assert [decision.leaves_function_alone for decision in decided] == [not chunks, False, False, False, False]
    assert [told_form(decision.emit, decision.chunks) for decision in decided[:2]] == [
        "chunks" if chunks else "plain",
        "names",
    ]
    assert all(Decision.from_json(each.to_json()).to_json() == each.to_json() for each in decided)
