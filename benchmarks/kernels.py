"""Where the time of a program goes, kernel by kernel, beside another: bytes, FLOPs and roofline as compiled.

    python benchmarks/kernels.py GPT plain plan:0.6               # for an h200; --target names another device
    python benchmarks/kernels.py "GPT, bfloat16" full plan:0.25   # beside nn.remat on every block
    python benchmarks/kernels.py ResNet plan:0.7 xla:0.7          # beside XLA's own rematerialization pass

Each program is `plain`, a policy of `nn.remat` on every block (`full`, `dots`, `dots, no batch`), a plan for a part of
the plain peak (`plan:0.6`), or what XLA's pass makes of the plain program with so much memory (`xla:0.7`, GPUs alone).
The table says, by JAX operation with layers folded, what the second program has more than the first.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
from collections.abc import Callable

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from large import LARGE, SCANNED
from models import MODELS
from running import peak_bytes
from zoo import HAND, by_hand

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.compile import compile_for, gradient_program
from jaxremat.compiled.gpu_configs import target_config
from jaxremat.compiled.roofline import Kernel, roofline

_LAYER = re.compile(r"(?<=[A-Za-z])_\d+\b")
_STACK = re.compile(r"\b(?:jit|jvp|transpose|pjit)\(|\)|<lambda>")
_LIMIT_SHARE = 0.8 * 0.95  # XLA's pass starts at this part of a GPU's memory: `gpu_memory_limit_slop_factor` and pool


@dataclasses.dataclass
class Sum:
    """Of the kernels of one operation."""

    kernels: int = 0
    seconds: float = 0.0
    moved_bytes: int = 0
    flops: float = 0.0

    def add(self, kernel: Kernel) -> None:
        self.kernels += kernel.runs
        self.seconds += kernel.seconds
        self.moved_bytes += kernel.runs * kernel.moved_bytes
        self.flops += kernel.runs * kernel.flops


def by_operation(kernels: tuple[Kernel, ...]) -> dict[str, Sum]:
    """Sums over kernels of one JAX operation and line of source, layers folded."""
    sums: dict[str, Sum] = collections.defaultdict(Sum)
    for kernel in kernels:
        sums[_operation(kernel)].add(kernel)
    return sums


def _operation(kernel: Kernel) -> str:
    late = "backward " if "transpose(" in kernel.operation else ""
    parts = [part for part in _STACK.sub("", kernel.operation).split("/") if part]
    return f"{late}{_LAYER.sub('', '/'.join(parts[-3:]))} {kernel.source}".strip() or kernel.name.rstrip(".0123456789")


def difference(first: tuple[Kernel, ...], second: tuple[Kernel, ...], rows: int) -> str:
    """A table of the operations whose time differs most."""
    a, b = by_operation(first), by_operation(second)
    lines = [f"{'time':>11} {'moved':>12} {'GFLOP':>8} {'kernels':>12}  operation"]
    for key in sorted({*a, *b}, key=lambda key: -abs(b[key].seconds - a[key].seconds))[:rows]:
        old, new = a[key], b[key]
        lines.append(
            f"{1e6 * (new.seconds - old.seconds):+8.1f} us {(new.moved_bytes - old.moved_bytes) / 2**20:+8.1f} MiB"
            f" {(new.flops - old.flops) / 1e9:+8.1f} {f'x{old.kernels} -> {new.kernels}':>12}  {key}"
        )
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The peak and the text of a compiled program."""

    peak_bytes: int
    text: str


def compiled(name: str, choice: str, target: str) -> Compiled:
    """One program of a model, compiled for a target."""
    model = (MODELS | LARGE)[name]
    kind, _, fraction = choice.partition(":")
    if HAND.get(kind):
        return compiled_for(*by_hand(model, HAND[kind](), name in SCANNED), target)
    loss, args = model(lambda block: block)
    if kind == "plan":
        plan = jaxremat.plan(loss, *args, budget=float(fraction), target=target)
        print(f"{choice} announces {plan.overhead:+.1%} after {plan.compilations} compilations")
        return compiled_for(plan.apply(loss), args, target)
    plain = compiled_for(loss, args, target)
    if kind == "plain":
        return plain
    return rematerialized(loss, args, target, int(float(fraction) * plain.peak_bytes / _LIMIT_SHARE))


def compiled_for(loss: Callable, args: tuple, target: str) -> Compiled:
    program = compile_for(loss, args, target=target)
    return Compiled(program.report.peak_bytes, program.hlo_text())


def rematerialized(loss: Callable, args: tuple, target: str, memory_bytes: int) -> Compiled:
    """The plain program as XLA compiles it for a device of this kind with so much memory."""
    config = re.sub(r"device_memory_size: \d+", f"device_memory_size: {memory_bytes}", target_config(target))
    device = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=config).devices[0]
    program, inputs = gradient_program(loss, args)
    place = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), inputs)
    lowered = jax.jit(program).trace(*placed).lower(lowering_platforms=("cuda",))
    executable = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})
    return Compiled(peak_bytes(executable), executable.as_text())


def describe(choice: str, program: Compiled, target: str) -> tuple[Kernel, ...]:
    """The kernels of a program; prints their sums."""
    report = roofline(program.text, resolve_target(target))
    print(
        f"{choice}: {program.peak_bytes / 2**20:.1f} MiB, {1e3 * report.seconds:.3f} ms,"
        f" {report.flops / 1e9:.1f} GFLOP, {report.moved_bytes / 2**30:.2f} GiB moved,"
        f" {sum(kernel.runs for kernel in report.kernels)} kernels"
    )
    return report.kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"one of {', '.join(MODELS)}, {', '.join(LARGE)}")
    parser.add_argument("programs", nargs=2, metavar="program", help="plain, full, dots, plan:0.6, xla:0.7, ...")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    first, second = (
        describe(choice, compiled(options.model, choice, options.target), options.target) for choice in options.programs
    )
    print(difference(first, second, options.rows))


if __name__ == "__main__":
    print(f"jax {jax.__version__}, jaxremat from {jaxremat.__path__[0].rpartition('/')[0].rpartition('/')[2]}")
    main()
