"""Public arrays have the shapes and dtypes that annotations say: modules are imported under beartype and called."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")

MODULES = (
    "attention.dot_product",
    "chunk.cross_entropy",
    "compact",
    "graph.graph",
    "graph.replay",
    "solvers.base",
    "solvers.solve",
)

KEPT = """
import jax, jax.numpy as jnp, numpy as np, optax
import jaxremat
from jaxremat import attention, chunk, compact
from jaxremat.compact.layer import compressed_dense

query, key = jnp.ones((2, 8, 4, 16)), jnp.ones((2, 8, 2, 16))
assert attention.dot_product_attention(query, key, key, mask=np.ones((8, 8), bool)).shape == query.shape
assert attention.dot_product_attention(query[0], key[0], key[0]).shape == query.shape[1:]
attention.dot_product_attention(query, key, key, query_seq_lengths=np.array([3, 5], np.int32))
hidden, embedding, labels = jnp.ones((2, 4, 8)), jnp.ones((8, 10)), jnp.ones((2, 4), jnp.int32)
assert chunk.softmax_cross_entropy(hidden, embedding, labels, bias=jnp.ones(10)).shape == labels.shape
assert compact.projection(jax.random.key(0), 8, 2).shape == (8, 2)
assert compressed_dense(hidden, embedding, jnp.ones((2, 10)), 0, 0).shape == (2, 4, 10)
loss = lambda w, x: jnp.mean((x @ w) ** 2)
compact.CompAct(loss, optax.sgd(0.1), rank=2).init(embedding, hidden)
graph = jaxremat.Graph.from_arrays([4, 2, 1], [1.0, 2.0, 1.0], [(0, 1), (1, 2)])
jaxremat.replay(graph, [0, 1, 2]), jaxremat.replay(graph, np.arange(3))
for solver in ("mincut", "chen"):
    jaxremat.solve(graph, 7, solver=solver)
jaxremat.trace(loss, embedding, hidden)
"""

BROKEN = {
    "two widths": "chunk.softmax_cross_entropy(jnp.ones((4, 7)), jnp.ones((8, 10)), jnp.ones(4, jnp.int32))",
    "labels that are no integers": "chunk.softmax_cross_entropy(jnp.ones((4, 8)), jnp.ones((8, 10)), jnp.ones(4))",
    "two numbers of keys": "attention.dot_product_attention(query, key, key[:, 1:])",
    "a kernel of another width": "compressed_dense(jnp.ones((3, 7)), embedding, jnp.ones((2, 10)), 0, 0)",
    "a schedule of rows": "jaxremat.replay(graph, np.zeros((3, 1), np.int32))",
}


def test_calls_keep_to_their_annotations_and_other_shapes_are_seen():
    """In a process of its own, in which every call into the modules is checked."""
    hooked = ", ".join(repr(f"jaxremat.{module}") for module in MODULES)
    hook = f"import jaxtyping\njaxtyping.install_import_hook([{hooked}], 'beartype.beartype')\n"
    tries = "".join(
        f"""
        try:
            {call}
        except jaxtyping.TypeCheckError:
            pass
        else:
            raise AssertionError({what!r})
        """
        for what, call in BROKEN.items()
    )
    command = [sys.executable, "-c", hook + KEPT + textwrap.dedent(tries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
