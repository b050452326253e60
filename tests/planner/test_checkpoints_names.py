"""Names and policies: what they save is what is saved, and they work wherever `jax.checkpoint` takes a policy."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import count
from jax.ad_checkpoint import checkpoint_name

import jaxremat
from jaxremat.base.policy import NamePolicy
from jaxremat.trace.origins import names_in


def loss(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


ARGS = (
    [jnp.asarray(np.random.default_rng(i).normal(size=(32, 32)) / 6, jnp.float32) for i in range(12)],
    jnp.asarray(np.random.default_rng(12).normal(size=(512, 32)), jnp.float32),
)


def assert_same_gradients(ours, theirs, *args):
    for a, b in zip(jax.tree.leaves(jax.grad(ours)(*args)), jax.tree.leaves(jax.grad(theirs)(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def compiled_peak(fun, *args):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


@pytest.fixture(scope="module")
def plan():
    return jaxremat.plan(loss, *ARGS, budget=0.8, emit="names")


def test_policy_is_data(plan):
    policy = NamePolicy(("b", "a", "b"))
    assert policy == NamePolicy(("a", "b")) and hash(policy) == hash(NamePolicy(("a", "b")))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert str(policy) == 'save_only_these_names("a", "b")'
    assert pickle.loads(pickle.dumps(plan.policy)) == plan.policy


def test_named_function_with_its_policy_in_jax_checkpoint(plan):
    wrapped = jax.checkpoint(plan.named(loss), policy=plan.policy)
    assert_same_gradients(wrapped, loss, *ARGS)
    residuals = lambda f: sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *ARGS)))
    assert residuals(wrapped) < residuals(loss)


def test_every_name_of_the_policy_is_in_the_named_function(plan):
    program = jax.make_jaxpr(jax.checkpoint(plan.named(loss)))(*ARGS)
    assert plan.policy.names and set(plan.policy.names) <= set(names_in(program))


def test_applied_plan_fits_as_compiled(plan):
    assert compiled_peak(plan.apply(loss), *ARGS) <= plan.budget_bytes
    assert_same_gradients(plan.apply(loss), loss, *ARGS)


def test_saved_and_loaded_plan_says_the_same(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = jaxremat.load_plan(tmp_path / "plan.json", loss, *ARGS)
    assert loaded.policy == plan.policy
    assert_same_gradients(loaded.apply(loss), loss, *ARGS)


def test_a_schedule_has_no_policy():
    schedule = jaxremat.plan(loss, *ARGS, budget=0.8, verify="replay")
    with pytest.raises(jaxremat.EmissionError, match="names"):
        schedule.policy_text()


def test_a_program_that_fits_saves_everything():
    plan = jaxremat.plan(loss, *ARGS, budget=1.0, emit="names", verify="replay")
    wrapped = jax.checkpoint(plan.named(loss), policy=plan.policy)
    assert count(wrapped, *ARGS) == count(loss, *ARGS)


def authored(policy=None):
    """A model whose author placed checkpoints and names."""

    def block(w, x):
        h = checkpoint_name(x @ w["up"], "up")
        return x + checkpoint_name(jnp.sin(h) @ w["down"], "down")

    def model(ws, x):
        for w in ws:
            x = jax.checkpoint(block, policy=policy)(w, x)
        return jnp.sum(x**2)

    return model


def test_the_authors_own_names():
    up, down = jnp.ones((32, 96)) / 32, jnp.ones((96, 32)) / 96
    args = ([{"up": up * i, "down": down} for i in range(1, 9)], ARGS[1])
    plan = jaxremat.plan(authored(), *args, budget=0.9, emit="names")
    assert plan.policy.names == ("up",)  # nobody needs "down": the sum's gradient does not read it
    assert plan.policy_text() == 'save_only_these_names("up")'
    assert plan.to_maxtext() == "remat_policy=custom up=device decoder_layer_input=remat"
    chosen = authored(plan.policy)
    assert compiled_peak(chosen, *args) <= plan.budget_bytes
    assert count(chosen, *args) < count(authored(), *args)
    assert_same_gradients(plan.apply(authored()), authored(), *args)
    assert count(plan.apply(authored()), *args) == count(chosen, *args)


def block(up, down, x):
    h = checkpoint_name(x @ up, "up")
    return x + checkpoint_name(jnp.sin(h) @ down, "down")


def in_jax(policy):
    return jax.checkpoint(block, policy=policy)


def in_linen(policy):
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        def __call__(self, up, down, x):
            return block(up, down, x)

    return lambda *args: nn.remat(Block, policy=policy)().apply({}, *args)


def in_nnx(policy):
    return pytest.importorskip("flax.nnx").remat(block, policy=policy)


def in_equinox(policy):
    return pytest.importorskip("equinox").filter_checkpoint(block, policy=policy)


@pytest.mark.parametrize("place", [in_jax, in_linen, in_nnx, in_equinox])
def test_one_policy_works_unchanged_in_every_library(place):
    def model(policy):
        step = place(policy)
        return lambda ws, x: jnp.sum(functools.reduce(lambda x, w: step(*w, x), ws, x) ** 2)

    args = ([(jnp.ones((32, 96)) * i / 32, jnp.ones((96, 32)) / 96) for i in range(1, 7)], ARGS[1])
    plan = jaxremat.plan(model(None), *args, budget=0.9, emit="names", verify="replay")
    policy = pickle.loads(pickle.dumps(plan.policy))
    assert policy == plan.policy == NamePolicy(("up",)) and len({policy, plan.policy}) == 1
    assert plan.policy_text() == 'save_only_these_names("up")'
    plain, nothing, chosen = (count(model(p), *args) for p in (everything, None, policy))
    assert plain == chosen < nothing  # "up" is all that a product would be repeated for
    assert_same_gradients(model(policy), model(None), *args)


everything = jax.checkpoint_policies.everything_saveable


def test_equal_policies_are_one_to_a_cache():
    traced = []

    @functools.partial(jax.jit, static_argnames="policy")
    def gradient(w, x, policy):
        traced.append(policy)
        return jax.grad(lambda w: jnp.sum(jax.checkpoint(block, policy=policy)(w, w.T, x)))(w)

    for policy in (NamePolicy(("up", "down")), NamePolicy(("down", "up")), NamePolicy(("up",))):
        gradient(jnp.ones((32, 96)), ARGS[1], policy)
    assert traced == [NamePolicy(("down", "up")), NamePolicy(("up",))]
