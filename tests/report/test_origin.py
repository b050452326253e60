"""Where equations come from, by name stacks and tracebacks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxremat.report.origin import is_transposed, origin_of, origins_of, rules_in
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import trace_joint

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))


def origins(fun, *args):
    eqns = jaxprs.inline_calls(jax.make_jaxpr(fun)(*args)).eqns
    return {eqn.primitive.name: origin_of(eqn) for eqn in eqns}


def scoped(x, w):
    with jax.named_scope("block"), jax.named_scope("query"):
        return jnp.einsum("td,df->tf", jnp.tanh(x), w)  # the line of the product


def test_scopes_are_paths_and_formulas_are_labels():
    found = origins(scoped, X, W)
    assert found["tanh"].path == found["dot_general"].path == "block/query"
    assert found["dot_general"].label == "td,df->tf" and found["dot_general"].operation == "td,df->tf dot_general"


def test_the_source_is_the_line_of_whoever_wrote_the_program():
    found = origins(scoped, X, W)
    file, line = found["dot_general"].source.split(":")
    assert file == "test_origin.py"
    assert "the line of the product" in Path(__file__).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    ("fun", "primitive", "label"),
    [(jax.nn.gelu, "tanh", "gelu"), (jax.nn.silu, "logistic", "silu"), (jax.nn.softmax, "exp", "softmax")],
)
def test_values_go_by_the_functions_that_people_call(fun, primitive, label):
    assert origins(fun, X)[primitive].label.startswith(label)


def test_backward_equations_are_told_by_their_name_stack():
    joint = trace_joint(lambda w, x: jnp.sum(jnp.tanh(x @ w)), W, X)
    transposed = [is_transposed(eqn) for eqn in joint.eqns]
    assert any(transposed) and not transposed[0]
    assert len(origins_of(joint)) == len(joint.eqns)


def test_what_a_rule_adds_goes_by_the_name_of_its_function():
    joint = trace_joint(lambda x: jnp.sum(jax.nn.relu(x)), X)
    assert "relu" in set(rules_in(joint.eqns).values())
    labels = {eqn.primitive.name: origin.label for eqn, origin in zip(joint.eqns, origins_of(joint))}
    assert labels["gt"].startswith("relu")
