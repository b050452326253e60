"""A model that carries names already: which of them should its checkpoints save?"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

import jaxremat


def block(w, x):
    hidden = checkpoint_name(x @ w["up"], "up")
    return x + checkpoint_name(jax.nn.gelu(hidden), "activated") @ w["down"]


def model(policy=None):
    def loss(weights, x):
        for w in weights:
            x = jax.checkpoint(block, policy=policy)(w, x)
        return jnp.mean(x**2)

    return loss


def main():
    shape = jax.ShapeDtypeStruct
    layer = {"up": shape((128, 512), jnp.float32), "down": shape((512, 128), jnp.float32)}
    args = [layer] * 8, shape((2048, 128), jnp.float32)
    for budget in (0.9, 0.5):
        plan = jaxremat.plan(model(), *args, budget=budget, emit="names")
        print(f"{budget:.0%} of the memory without checkpoints: {plan.policy_text()}")
    jax.jit(jax.value_and_grad(model(plan.policy))).lower(*args).compile()  # the policy goes where the author had None


if __name__ == "__main__":
    main()
