"""Plans that travel: what they decided and what they say goes along, the program stays behind."""

import pickle

import jax
import pytest
from gradient_programs import assert_same
from layer_stacks import attending, layered, scanned

import jaxremat

WS = tuple(0.1 * jax.random.normal(key, (32, 32)) for key in jax.random.split(jax.random.key(0), 6))
X = jax.random.normal(jax.random.key(1), (512, 32))


PLANS = {
    "a schedule": (layered, {"budget": 0.7}),
    "names": (layered, {"budget": 0.8, "emit": "names"}),
    "segments": (layered, {"budget": 0.8, "emit": "segments"}),
    "a scan in pieces": (scanned, {"budget": 0.8}),
    "attention in chunks": (attending, {"budget": 0.4, "allow": ("chunk",)}),
    "as it is written": (layered, {"budget": 1.0}),
}


@pytest.mark.parametrize(("fun", "options"), PLANS.values(), ids=PLANS)
def test_a_plan_says_and_does_the_same_elsewhere(fun, options, tmp_path):
    plan = jaxremat.plan(fun, WS, X, **options)
    again = pickle.loads(pickle.dumps(plan))
    assert (str(again), again.summary(), again.saved) == (str(plan), plan.summary(), plan.saved)
    assert_same(jax.grad(again.apply(fun))(WS, X), jax.grad(fun)(WS, X))
    again.save(tmp_path / "plan.json")
    loaded = jaxremat.load_plan(tmp_path / "plan.json", fun, WS, X)
    assert loaded.decision.to_json() == plan.decision.to_json()


@pytest.mark.parametrize(("fun", "options"), [(layered, {}), (scanned, {}), (attending, {"allow": "chunk"})])
def test_a_step_s_plan_says_the_same_elsewhere_and_its_file_is_read(fun, options, tmp_path):
    def step(ws, x):
        value, grads = jax.value_and_grad(fun)(ws, x)
        return jax.tree.map(lambda w, grad: w - 0.1 * grad, ws, grads), value

    jitted = jaxremat.jit(step, budget=0.85, **options)
    plan = jitted.plan(WS, X)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(plan))))
    assert (str(again), repr(again), again.summary(), again.saved) == (
        str(plan),
        repr(plan),
        plan.summary(),
        plan.saved,
    )
    again.save(tmp_path / "plan.json")
    assert jaxremat.jit(step, budget=0.85, **options).load_plan(tmp_path / "plan.json", WS, X).decision == plan.decision
    for needs_the_step in (again.explain, lambda: again.run([]), lambda: again.program):
        with pytest.raises(jaxremat.JaxrematError, match="load_plan"):
            needs_the_step()
    assert not hasattr(again, "no_such_name")
