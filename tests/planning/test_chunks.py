"""Chunks as choices of the search: taken where they pay, left alone elsewhere, kept by plan files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxremat

TOKENS, WIDTH, VOCABULARY = 1024, 32, 8192


def loss(params, x, labels):
    """Logits of 32 MiB, of which autodiff keeps or makes several at once; all else is small."""
    for w in params["layers"]:
        x = x + jnp.tanh(x @ w)
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["head"], labels).mean()


def arguments():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "layers": [jax.random.normal(k, (WIDTH, WIDTH)) / 8 for k in keys[:2]],
        "head": jax.random.normal(keys[2], (WIDTH, VOCABULARY)) / 8,
    }
    return params, jnp.ones((TOKENS, WIDTH)), jax.random.randint(keys[3], (TOKENS,), 0, VOCABULARY)


@pytest.fixture(scope="module")
def made():
    return jaxremat.plan(loss, *arguments(), budget=0.35, allow=("chunk",))


def test_a_loss_head_goes_below_what_recomputation_reaches(made):
    with pytest.raises(jaxremat.BudgetError, match=r'allow=\("chunk",\).*loss head'):
        jaxremat.plan(loss, *arguments(), budget=0.35)
    assert made.compiled.peak_bytes <= made.budget_bytes
    assert [chunk.kind for chunk in made.decision.chunks] == ["loss head"]
    assert "in chunks" in str(made) and "loss head with [1024, 8192]" in " ".join(str(made).split())
    assert made.baseline_timeline.peak_bytes == pytest.approx(made.baseline_peak_bytes, rel=0.1)
    assert made.baseline_peak_bytes >= made.budget_bytes / 0.35 - 1


def test_values_agree_up_to_rounding(made):
    args = arguments()
    both = (jax.jit(jax.value_and_grad(f))(*args) for f in (loss, made.apply(loss)))
    for wanted, got in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_files_keep_the_choice(made, tmp_path):
    made.save(tmp_path / "plan.json")
    again = jaxremat.load_plan(tmp_path / "plan.json", loss, *arguments())
    assert again.decision.chunks == made.decision.chunks
    report = jaxremat.verify(again)
    assert report.peak_bytes == pytest.approx(made.compiled.peak_bytes, rel=0.01)


def test_nothing_is_cut_that_fits_whole():
    plan = jaxremat.plan(loss, *arguments(), budget=1.0, allow=("chunk",), verify="replay")
    assert plan.overhead == 0 and plan.decision.chunks == ()


def test_the_least_is_lower_with_chunks():
    least = [jaxremat.plan(loss, *arguments(), budget="least", allow=allow) for allow in ((), ("chunk",))]
    assert least[1].compiled.peak_bytes < 0.5 * least[0].compiled.peak_bytes


def test_a_permission_that_nobody_knows_is_named():
    with pytest.raises(jaxremat.ArgumentError, match=r"chnk.*chunk"):
        jaxremat.plan(loss, *arguments(), budget=0.5, allow=("chnk",))
