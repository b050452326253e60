"""What is computed of a loop's results moves into the loop: the same values and gradients, and nothing stacked."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from loop_programs import array, assert_same_gradients

import jaxremat
from jaxremat.chunk.rewriting.epilogue import with_epilogues_inside
from jaxremat.trace.jaxpr import evaluate, size_bytes
from jaxremat.trace.primal import read_primal

LENGTH, BATCH, WIDTH = 12, 3, 4
W = array(WIDTH, WIDTH, seed=1)
X = array(LENGTH, BATCH, WIDTH, seed=2)
TARGET = array(BATCH, LENGTH, WIDTH, seed=3)
LABELS = jnp.asarray([[i % WIDTH for i in range(LENGTH)]] * BATCH, jnp.int32)


def states(w, x, **options):
    def step(h, x):
        h = jnp.tanh(h @ w + x)
        return h, h

    return lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), x, **options)


def distance(w, x):
    return jnp.mean((jnp.swapaxes(states(w, x)[1], 0, 1) - TARGET) ** 2)


def reversed_distance(w, x):
    return jnp.sum(jnp.abs(states(w, x, reverse=True, unroll=2)[1] - jnp.swapaxes(TARGET, 0, 1)))


def weighted(w, x):
    """A mask that is spread over the width, and weights that depend on the position."""
    h = states(w, x)[1]
    mask = (LABELS.T > 0)[:, :, None]
    return jnp.sum(jnp.where(mask, h, 0.0) * jnp.arange(LENGTH, dtype=h.dtype)[:, None, None])


def cross_entropy(w, x):
    logits = jnp.swapaxes(states(w, x)[1], 0, 1) @ w
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[..., None], -1))


def one_hot(w, x):
    logits = states(w, x)[1] @ w
    return -jnp.sum(jax.nn.one_hot(LABELS.T, WIDTH) * jax.nn.log_softmax(logits))


def pooled(w, x):
    """Only the iterations are summed over; the last state is read, too."""
    last, h = states(w, x)
    return jnp.sum(jnp.mean(jax.nn.relu(h), 0) ** 2) + jnp.sum(last)


def two_losses(w, x):
    h = states(w, x)[1]
    return jnp.sum(h**2) + jnp.sum(jnp.max(h, -1))


def two_loops(w, x):
    h, k = states(w, x)[1], states(w.T, x)[1]
    return jnp.sum(h * k)


def inside_a_loop(w, x):
    def step(total, scale):
        return total + jnp.sum(states(w * scale, x)[1] ** 2), None

    return lax.scan(step, jnp.zeros(()), jnp.asarray([0.5, 1.0, 1.5]))[0]


def next_entry(w, x):
    """Each entry predicts the next label: the last one predicts nothing."""
    logits = jnp.swapaxes(states(w, x)[1], 0, 1) @ w
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), LABELS[:, 1:, None], -1)
    return -jnp.sum(chosen * TARGET[:, 1:, :1])


def shifted(w, x):
    """Two parts of the iterations, each beside another part of a target; positions count."""
    h, target = states(w, x)[1], jnp.swapaxes(TARGET, 0, 1)
    early = jnp.sum((h[2:7] - target[:5]) ** 2)
    return early + jnp.sum(h[3:] * target[1:-2] * jnp.arange(LENGTH - 3, dtype=h.dtype)[:, None, None])


def next_label(w, x):
    """What the library's own loss reads of the logits, a few numbers per entry, is sorted and stays outside."""
    logits = jnp.swapaxes(states(w, x)[1], 0, 1) @ jnp.tile(w, (1, 8))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], LABELS[:, 1:])
    return jnp.sum(jnp.sort(losses, 0)[1:])


def last_of_all(w, x):
    return jnp.sum(lax.squeeze(states(w, x)[1][-1:], (0,)) ** 2)


MOVED = [
    next_entry,
    shifted,
    next_label,
    last_of_all,
    distance,
    reversed_distance,
    weighted,
    cross_entropy,
    one_hot,
    pooled,
    two_losses,
    two_loops,
    inside_a_loop,
]


def returned(w, x):
    h = states(w, x)[1]
    return jnp.sum(h**2), h


def centred(w, x):
    """What is subtracted depends on every iteration."""
    h = states(w, x)[1]
    return jnp.sum((h - jnp.mean(h, 0)) ** 2)


def differences(w, x):
    """Each entry is compared with the next one."""
    h = states(w, x)[1]
    return jnp.sum((h[1:] - h[:-1]) ** 2)


def narrow(w, x):
    """A sum in sixteen bits, one entry after another, would lose what it adds."""
    h = states(w.astype(jnp.bfloat16), x.astype(jnp.bfloat16))[1]
    return lax.reduce_sum(h, axes=(0, 1, 2)).astype(jnp.float32)


LEFT = [returned, centred, differences, narrow]


def primal_of(fun):
    return read_primal(fun, (W, X), (0, 1), fun is returned)


def stacked_bytes(jaxpr):
    """Bytes of what loops return that has an entry for each iteration."""
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    outputs = [v for eqn in scans for v in eqn.outvars if v.aval.shape[:1] == (LENGTH,)]
    return sum(size_bytes(v) for v in outputs)


@pytest.mark.parametrize("fun", MOVED)
def test_nothing_is_stacked_and_all_is_computed_as_before(fun):
    primal = primal_of(fun)
    moved = with_epilogues_inside(primal)
    assert moved is not primal and moved.given is primal
    assert stacked_bytes(moved.jaxpr) <= (stacked_bytes(primal.jaxpr) // 2 if fun in (two_loops, next_label) else 0)
    gradient = lambda program: jax.value_and_grad(lambda *xs: evaluate(program.jaxpr, xs)[0], (0, 1))
    ours, theirs = map(jax.tree.leaves, jax.jit(lambda *xs: [gradient(p)(*xs) for p in (moved, primal)])(W, X))
    assert all(jnp.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert with_epilogues_inside(moved) is moved


@pytest.mark.parametrize("fun", LEFT)
def test_what_does_not_go_entry_by_entry_stays(fun):
    primal = primal_of(fun)
    assert with_epilogues_inside(primal) is primal


@pytest.mark.parametrize("fun", [distance, next_entry, shifted])
def test_plans_have_the_gradient_of_the_program(fun, tmp_path):
    plan = jaxremat.plan(fun, W, X, argnums=(0, 1), budget="least", verify="replay")
    assert plan.decision.form.has_epilogues_inside
    assert_same_gradients(fun, plan.apply(fun), (W, X), (0, 1))
    plan.save(tmp_path / "plan.json")
    again = jaxremat.load_plan(tmp_path / "plan.json", fun, W, X)
    assert again.decision.to_json() == plan.decision.to_json()
    assert_same_gradients(fun, again.apply(fun), (W, X), (0, 1))


def test_a_long_loop_fits_beside_what_it_reads():
    """The states are 2 MiB, as many as the inputs; a plan that stacks them needs them twice in its backward."""
    w, x, target = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 32), (2048, 8, 32), (8, 2048, 32)))

    def loss(w, x, target):
        return jnp.mean((jnp.swapaxes(states(w, x)[1], 0, 1) - target) ** 2)

    plan = jaxremat.plan(loss, w, x, target, budget="least")
    assert plan.decision.form.has_epilogues_inside
    assert plan.compiled.peak_bytes < (2 + 2 + 0.5) * 2**20
