"""Steps that change NNX modules: planned, they change the same as under `nnx.jit`, within their bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_programs
from flax import nnx
from gradient_programs import assert_same
from jax.sharding import NamedSharding, PartitionSpec

import jaxremat
import jaxremat.nnx


def trained(model, optimizer, metrics, x, rngs, scale=1.0):
    """One step of a model with batch statistics and dropout: it changes all but `x`."""

    x = x + 0.01 * rngs.normal(x.shape)
    value, grads = nnx.value_and_grad(lambda model: scale * (model(x) ** 2).mean())(model)
    metrics.update(loss=value)
    optimizer.update(model, grads)
    return value


def modules():
    model, optimizer, x = step_programs.nnx_modules()
    return model, optimizer, nnx.MultiMetric(loss=nnx.metrics.Average("loss")), jnp.tile(x, (16, 1)), nnx.Rngs(7)


def after(step, times=3, **kwargs):
    """What three steps return, and all that they change."""
    args = modules()
    values = [step(*args, **kwargs) for _ in range(times)]
    held = [nnx.state(arg) for arg in args if not isinstance(arg, jax.Array)]
    return values, [jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in leaves(held)]


def leaves(tree):
    return jax.tree.leaves(tree)


def test_modules_change_as_without_a_plan():
    step = jaxremat.nnx.jit(trained, budget="least", donate_argnums=(0, 1, 2, 4))
    assert not step.plan(*modules()).is_plain
    assert_same(after(step), after(nnx.jit(trained)), rtol=2e-3)


def test_the_compiled_step_is_within_its_bytes_and_donated_state_is_reused():
    step = jaxremat.nnx.jit(trained, budget=0.8, donate_argnums=(0, 1, 2, 4))
    plan, memory = step.plan(*modules()), step.lower(*modules()).compile().memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert used - memory.alias_size_in_bytes <= plan.budget_bytes
    state_bytes = sum(leaf.nbytes for leaf in leaves(nnx.state(modules()[:2], nnx.Param)))
    assert memory.alias_size_in_bytes >= state_bytes


def test_a_plan_leaves_modules_alone_and_names_them_by_their_paths():
    args = modules()
    before = leaves(nnx.state(args[0]))
    plan = jaxremat.nnx.jit(trained, budget="least", verify="replay").plan(*args)
    assert all(old is new for old, new in zip(before, leaves(nnx.state(args[0])), strict=True))
    assert {"model/layers/0/kernel", "optimizer/step", "metrics/loss/total", "x"} <= set(plan.program.names)


def test_it_decorates_functions_with_static_arguments():
    decorated = jaxremat.nnx.jit(budget="least", verify="replay", static_argnames="scale")(trained)
    assert_same(after(decorated, scale=2.0), after(nnx.jit(trained, static_argnames="scale"), scale=2.0), rtol=2e-3)


def test_it_decorates_methods():
    class Model(step_programs._Module):
        @jaxremat.nnx.jit(budget="least", verify="replay")
        def moved(self, x):
            value, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(self)
            nnx.update(self, jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(self, nnx.Param), grads))
            return value

    model, x = Model(nnx.Rngs(0)), modules()[3]
    first, second = model.moved(x), model.moved(x)
    assert second < first


def test_a_module_that_is_held_twice_is_one_and_one_that_is_made_is_returned():
    def step(models, x):
        def loss(first):
            return (first(x) ** 2).mean()

        grads = nnx.grad(loss)(models["first"])
        nnx.update(
            models["second"], jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(models["first"], nnx.Param), grads)
        )
        return nnx.clone(models["first"])

    def held_twice(jitted):
        model, _, x = step_programs.nnx_modules()
        made = jitted({"first": model, "second": model}, x)
        return leaves(nnx.state((model, made), nnx.Param))

    planned = jaxremat.nnx.jit(step, budget="least", verify="replay")
    assert_same(held_twice(planned), held_twice(nnx.jit(step)), rtol=1e-4)


def test_it_takes_shardings_of_whole_modules():
    mesh = jax.make_mesh((1,), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def step(model, x):
        value, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        nnx.update(model, jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(model, nnx.Param), grads))
        return value

    def stepped(jit, **options):
        model, _, x = step_programs.nnx_modules()
        value = jit(step, in_shardings=(whole, rows), out_shardings=whole, **options)(model, x)
        return value, leaves(nnx.state(model, nnx.Param))

    planned = stepped(jaxremat.nnx.jit, budget="least")
    assert_same(planned, stepped(nnx.jit), rtol=1e-4)
    assert planned[1][0].sharding.is_equivalent_to(whole, planned[1][0].ndim)


def test_a_bound_method_is_refused_and_a_changed_module_names_the_way():
    model = step_programs.nnx_modules()[0]
    with pytest.raises(jaxremat.ArgumentError, match="the class's own"):
        jaxremat.nnx.jit(model.__call__, budget="least")
    with pytest.raises(jaxremat.EmissionError, match=r"jaxremat\.nnx\.jit"):
        jaxremat.jit(step_programs.nnx_trained, budget="least")(*step_programs.nnx_modules())


def test_a_plan_file_is_loaded_for_modules(tmp_path):
    step = jaxremat.nnx.jit(trained, budget="least", verify="replay")
    step.plan(*modules()).save(tmp_path / "plan.json")
    again = jaxremat.nnx.jit(trained, budget="least", verify="replay")
    loaded = again.load_plan(tmp_path / "plan.json", *modules())
    assert loaded.peak_bytes == step.plan(*modules()).peak_bytes
    np.testing.assert_allclose(after(again, 1)[0], after(step, 1)[0], rtol=1e-6)
