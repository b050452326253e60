"""Draws the figures of the documentation with the library itself: `python docs/figures.py`."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxremat
from jaxremat.show.figure import to_svg
from jaxremat.show.front import front_figure
from jaxremat.show.timeline import still

FOLDER = Path(__file__).resolve().parent / "figures"
GREY = "#6e7781"  # readable on white and on black: an image does not know the page's colour


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        q, k, v = (nn.DenseGeneral((8, 64), use_bias=False, name=name)(h) for name in ("query", "key", "value"))
        x = x + nn.Dense(512, name="out")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        return x + nn.Dense(512, name="down")(nn.gelu(nn.Dense(2048, name="up")(nn.LayerNorm()(x))))


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(8):
            x = Block(name=f"block_{i}")(x)
        return x


def main() -> None:
    model, x = Stack(), jax.ShapeDtypeStruct((8, 512, 512), jnp.float32)
    loss = lambda params, x: jnp.mean(model.apply(params, x) ** 2)
    args = jax.eval_shape(model.init, jax.random.key(0), x), x
    plan = jaxremat.plan(loss, *args, budget=0.5, verify="replay")
    front = jaxremat.pareto(loss, *args, budgets=(0.9, 0.7, 0.5, 0.35, 0.25))
    for name, figure in {"timeline": still(plan.report), "front": front_figure(front._view)}.items():
        (FOLDER / f"{name}.svg").write_text(to_svg(figure).replace("currentColor", GREY) + "\n")


if __name__ == "__main__":
    main()
