"""The values that a plan decides about, and what they are called."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import show_programs

import jaxremat
from jaxremat.report.names import Names
from jaxremat.report.origin import origins_of
from jaxremat.trace.joint import trace_joint
from jaxremat.trace.paths import clean_path


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dropout(0.5, deterministic=False)(nn.gelu(nn.Dense(32, name="up")(nn.LayerNorm()(x))))
        weights = nn.softmax(jnp.einsum("btd,bsd->bts", h, h))
        h = jnp.einsum("bts,bsd->btd", weights, h)
        return nn.Dense(50, name="head")(nn.relu(nn.Dense(8, name="down")(h)))


@pytest.fixture(scope="module")
def joint():
    model, x = Model(), jnp.ones((2, 4, 8))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def loss(params, x, labels):
        logits = model.apply(params, x, rngs={"dropout": jax.random.key(3)})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return trace_joint(loss, jax.eval_shape(model.init, keys, x), x, jnp.zeros((2, 4), int))


@pytest.mark.parametrize(
    "label, primitive, path",
    [
        ("gelu", "tanh", "Model"),
        ("softmax weights", "div", "Model"),
        ("dropout mask", "lt", "Model/Dropout_0"),
        ("LayerNorm", "rsqrt", "Model/LayerNorm_0"),
        ("Dense dot_general", "dot_general", "Model/up"),
        ("relu", "custom_jvp_call", "Model"),
        ("relu mask", "gt", "Model"),
        ("btd,bsd->bts", "dot_general", "Model"),
        ("cross entropy", "exp", ""),
    ],
)
def test_results_go_by_the_names_that_people_use(joint, label, primitive, path):
    found = {(o.label, eqn.primitive.name, o.path) for eqn, o in zip(joint.eqns, origins_of(joint))}
    assert (label, primitive, path) in found


def test_what_a_loss_reads_are_its_logits(joint):
    logits = [eqn for eqn, o in zip(joint.eqns, Names(joint).origins) if o.label == "loss logits"]
    assert [eqn.outvars[0].aval.shape for eqn in logits] == [(2, 4, 50)]


@pytest.mark.parametrize(
    "stack, path",
    [
        ("transpose(jvp(GPT))/block_3/query", "GPT/block_3/query"),
        ("jvp(GPT)/checkpoint/block_3", "GPT/block_3"),
        ("vmap(jit(f))/A_0", "f/A_0"),
        ("", ""),
        ("GPT/Block_0.<lambda>/Block_0", "GPT/Block_0"),
    ],
)
def test_transformations_leave_paths(stack, path):
    assert clean_path(stack) == path


def test_every_value_is_told_once(plan):
    told = plan.table()
    actions = [row["action"] for row in told] if isinstance(told, list) else list(told["action"])
    assert len(plan.saved) == actions.count("save")
    assert len(plan.recomputed) == actions.count("recompute")
    assert {value.path for value in plan.saved + plan.recomputed} >= {f"Tower/block_{i}/up" for i in range(6)}


def test_what_runs_once_is_not_called_recomputed(plain_plan):
    assert plain_plan.recomputed == ()
    assert plain_plan.saved


def test_a_smaller_budget_saves_less(plan):
    loss, args = show_programs.tower()
    tighter = jaxremat.plan(loss, *args, budget=0.45, verify="replay")
    saved = lambda p: sum(value.total_bytes for value in p.saved)
    assert saved(tighter) < saved(plan)


def test_values_of_loops_say_how_many_there_are(loop_plan):
    inside = [value for value in loop_plan.saved + loop_plan.recomputed if value.iterations]
    assert inside
    assert all((value.copies >= 1 and "of 8" in value.iterations) or "all 8" in value.iterations for value in inside)
