"""What a link to the host's memory is good for on the device that is here: bandwidth, overlap, and steps per second.

    python benchmarks/offload.py                     # prints three tables; needs a GPU, and less than a minute of it
    python benchmarks/offload.py --layers 12 --rows 16384
    python benchmarks/offload.py --target h200       # for a GPU that is not here: the third table, by its roofline

The first table is the time of copies by themselves; the second, of products beside a copy that nothing waits for until
they are done: as long as the longer of the two where copies overlap, as long as both where they do not. The third
compares ways to train a stack of residual layers within the bytes of full recomputation: plans by prediction, with
their compiled bytes and their time per gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxremat
from jaxremat.compiled.compile import compile_gradient

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
COPIED_BYTES = 2**30
REPEATS = 7
SHARES = (1.2, 1.35, 1.5)  # of the bytes of full recomputation
GIB = 2**30


def median_seconds(program: Callable[..., Any], *args: Any) -> float:
    """Of several runs after a first one."""
    jax.block_until_ready(program(*args))
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def to_host(x: jax.Array) -> jax.Array:
    return jax.device_put(x, HOST)


def to_device(x: jax.Array) -> jax.Array:
    return jax.device_put(x, DEVICE)


def link() -> Iterator[str]:
    """Bandwidth of a copy by itself, each way."""
    x = jnp.ones((COPIED_BYTES // 2,), jnp.bfloat16)
    away = jax.jit(to_host)(x)
    for name, program, source in (("to the host", to_host, x), ("from the host", to_device, away)):
        seconds = median_seconds(jax.jit(program), source)
        yield f"| {name} | {seconds * 1e3:.1f} ms | {COPIED_BYTES / seconds / 1e9:.1f} GB/s |"


def overlap(width: int = 8192, products: int = 16) -> Iterator[str]:
    """Products alone, a copy alone, and both in one program."""
    y = jnp.ones((COPIED_BYTES // 2,), jnp.bfloat16)
    w = jnp.eye(width, dtype=jnp.bfloat16)

    def multiplied(w: jax.Array) -> jax.Array:
        x = w
        for _ in range(products):
            x = x @ w
        return x

    away = jax.jit(to_host)(y)
    seconds = median_seconds(jax.jit(multiplied), w)
    for name, copy, source in (("to the host", to_host, y), ("from the host", to_device, away)):
        alone = median_seconds(jax.jit(copy), source)
        both = median_seconds(jax.jit(lambda w, y, copy=copy: (multiplied(w), copy(y))), w, source)
        hidden = (seconds + alone - both) / min(seconds, alone)
        yield f"| {name} | {seconds * 1e3:.1f} | {alone * 1e3:.1f} | {both * 1e3:.1f} | {hidden:.0%} |"


def layer(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    up, down = weights
    return x + jax.nn.gelu(x @ up) @ down


def loss_of(layer: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def loss(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
        for weights in layers:
            x = layer(x, weights)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    return loss


def shapes(layers: int, width: int, rows: int) -> tuple[Any, ...]:
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16)
    return [(shape(width, 4 * width), shape(4 * width, width))] * layers, shape(rows, width)


def _normal(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return (0.02 * jax.random.normal(jax.random.key(0), shape.shape)).astype(shape.dtype)


def ways(args: tuple[Any, ...], target: str | None, full_bytes: int) -> Iterator[tuple[str, Callable[..., jax.Array]]]:
    """The function as written, checkpointed by hand, and within a little more than that takes, without the host and
    with it: predictions of this program are a sixth above what it compiles to."""
    loss = loss_of(layer)
    yield "as written", loss
    yield "full recomputation", loss_of(jax.checkpoint(layer))
    for name, allow in (("plan", ()), ("plan with the host", ("offload",))):
        for share in SHARES:
            budget = int(share * full_bytes)
            plan = jaxremat.plan(loss, *args, budget=budget, target=target, verify="replay", allow=allow)
            yield f"{name}, {budget / GIB:.2f} GiB, {plan.overhead:+.1%} predicted", plan.apply(loss)


def training(layers: int, width: int, rows: int, target: str | None) -> Iterator[str]:
    """Compiled bytes, and seconds per gradient, of every way: measured, or of an absent device by the roofline."""
    args = shapes(layers, width, rows)
    values = None if target else jax.tree.map(_normal, args)
    full_bytes = compile_gradient(loss_of(jax.checkpoint(layer)), args, target=target).peak_bytes
    plain_seconds = None
    for name, loss in ways(args, target, full_bytes):
        told = compile_gradient(loss, args, target=target)
        seconds = told.seconds if target else median_seconds(jax.jit(jax.value_and_grad(loss)), *values)
        plain_seconds = plain_seconds or seconds
        own, host, more = told.peak_bytes / GIB, told.host_bytes / GIB, seconds / plain_seconds - 1
        yield f"| {name} | {own:.2f} | {host:.2f} | {seconds * 1e3:.1f} | {more:+.1%} | {1 / seconds:.2f} |"


def print_training(options: argparse.Namespace) -> None:
    print("\n| gradient of residual layers | GiB | on the host | ms | time | per second |\n|---|---|---|---|---|---|")
    for line in training(options.layers, options.width, options.rows, options.target):
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--target", help="an absent device to compile for")
    options = parser.parse_args()
    if options.target:
        return print_training(options)
    device = jax.devices()[0]
    if device.platform != "gpu":
        parser.error(f"there is no GPU here, but {device.device_kind}: see --target")
    print(f"{device.device_kind}, jax {jax.__version__}\n")
    print("| a copy of 1 GiB | time | bandwidth |\n|---|---|---|", *link(), sep="\n", flush=True)
    print("\n| ms | products | copy | both | of the shorter one hidden |\n|---|---|---|---|---|", *overlap(), sep="\n")
    print_training(options)


if __name__ == "__main__":
    main()
