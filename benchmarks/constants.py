"""What the searches' constants are worth: what is found, and how long that takes, at other values of each.

    python benchmarks/constants.py              # all of them: an hour on two cores
    python benchmarks/constants.py _PLACES      # those whose name contains a word

One line per value, the one in use marked. `least`: the smallest replayed peak, as a share of the program as it stands.
`extra`: extra time by the cost model within budgets of 75, 60 and 45 % of it. `missed`: of those, how many were not
met. Each is the mean, or the sum, over a few programs as traced for a CPU, or for an H200 where names are chosen; where
plans are compiled, all three are of what was compiled; of lower bounds, `extra` is the bound. `seconds` is the time
that all took. The last results are in `results/constants.md`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import sys
import time
import unittest.mock as mock
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.loops import options
from jaxremat.planner import checkpoints
from jaxremat.planner.choose import planner_for
from jaxremat.planning.memory import PLANS
from jaxremat.solvers.fastsa import FastSA
from jaxremat.solvers.mincut.bound import lower_bound
from jaxremat.solvers.registry import solver_named
from jaxremat.step.planner import ProgramPlanner
from jaxremat.step.program import trace_step
from jaxremat.trace.primal import read_primal

SHARES = (0.75, 0.6, 0.45)
SHARES_OF_SLICES = (0.5, 0.3, 0.15)  # of steps in slices, which reach further
SHARES_OF_LEAST = (1.0, 0.9, 0.75, 0.6)  # of what was reached: only the first can be met
CPU = resolve_target("cpu")


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def gated(layers, x):
    for up, gate, down in layers:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = x + (jax.nn.silu(h @ gate) * (h @ up)) @ down
    return jnp.mean(x * x)


def scanned(layers, x):
    return jnp.mean(jax.lax.scan(lambda x, layer: (attended(layer, x), None), x, layers)[0] ** 2)


def branched(layers, x):
    """All layers in a branch: a loop of one iteration."""
    return jax.lax.cond(x[0, 0] > 0, gated, lambda _, x: jnp.mean(x), layers, x)


def chosen(layers, x):
    """A choice of two functions for every layer."""
    for up, gate, down in layers:
        wide = jax.lax.cond(x[0, 0] > 0, lambda h: jnp.tanh(h * h), jnp.sin, x @ up)
        x = x + (wide * jax.nn.silu(x @ gate)) @ down
    return jnp.mean(x * x)


def attended(layer, x):
    query, key, value, up, down = layer
    weights = jax.nn.softmax((x @ query) @ (x @ key).mT / 8.0)
    x = x + weights @ (x @ value)
    return x + jax.nn.gelu(x @ up) @ down


def with_skips(kernels, x):
    """Down and up again, each level read by its like on the way up."""
    conv = lambda x, k: jax.nn.relu(
        jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    levels = []
    for k in kernels[: len(kernels) // 2]:
        x = conv(x, k)
        levels.append(x)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for k, level in zip(kernels[len(kernels) // 2 :], reversed(levels)):
        x = conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), k) + level
    return jnp.mean(x * x)


GATED = [(shape(256, 512), shape(256, 512), shape(512, 256))] * 6, shape(4096, 256)
STACKED = tuple(shape(12, *dims) for dims in [(64, 64)] * 3 + [(64, 256), (256, 64)]), shape(16, 512, 64)
TOKENS = jax.ShapeDtypeStruct((4096,), jnp.int32)
KERNELS = [shape(3, 3, 32, 32)] * 6, shape(8, 64, 64, 32)
GRADIENTS = ((gated, GATED), (scanned, STACKED), (with_skips, KERNELS))


def trained(loss: Callable) -> Callable:
    """A step of Adam."""
    optimizer = optax.adam(1e-3)

    def step(params, state, *data):
        value, grads = jax.value_and_grad(loss)(params, *data)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def penalised(params, x):
    """The squared gradient by the data beside the loss: a gradient inside one."""
    return gated(params, x) + jnp.mean(jax.grad(gated, 1)(params, x) ** 2)


class Score(NamedTuple):
    least: float
    extra: float
    missed: int


def score(planner: Any) -> Score:
    """What a fresh planner of a gradient finds."""
    return scored(planner, planner.least()[0])


def scored(planner: Any, smallest: Any) -> Score:
    """What a planner finds whose smallest outcome is known."""
    plain = planner.plain
    found = [planner.fit(int(share * plain.replayed_bytes)) for share in SHARES]
    met = [o for o, share in zip(found, SHARES) if o.replayed_bytes <= share * plain.replayed_bytes]
    extra = float(np.mean([o.cost / plain.cost - 1 for o in met])) if met else float("nan")
    return Score(smallest.replayed_bytes / plain.replayed_bytes, extra, len(SHARES) - len(met))


def gradients(emit: str = "schedule", target: str = "cpu") -> list[Score]:
    device, auto = resolve_target(target), solver_named("auto")
    return [score(planner_for(read_primal(f, args, 0, False), device, auto, emit, 0)) for f, args in GRADIENTS]


def unrolled() -> list[tuple[Callable, tuple]]:
    return [(loss, args) for loss, args in GRADIENTS if loss is not scanned]


def hosted() -> list[Score]:
    """What unrolled programs take whose values may wait on the host."""
    primals = (read_primal(loss, args, 0, False) for loss, args in unrolled())
    device, auto = resolve_target("h200"), solver_named("auto")
    return [score(planner_for(primal, device, auto, "schedule", 0, frozenset({"offload"}))) for primal in primals]


def away() -> list[Score]:
    """What a scanned program takes whose stacks may wait on the host."""
    primal = read_primal(scanned, STACKED, 0, False)
    return [score(planner_for(primal, resolve_target("h200"), solver_named("auto"), "schedule", 0, {"offload"}))]


def packed() -> list[Score]:
    """What unrolled programs take whose values may wait as a byte per number."""
    primals = (read_primal(loss, args, 0, False) for loss, args in unrolled())
    device, auto = resolve_target("h200"), solver_named("auto")
    return [score(planner_for(primal, device, auto, "schedule", 0, frozenset({"narrow"}))) for primal in primals]


def bounds() -> list[Score]:
    """By how much, at least, running some things again raises the cost, by the bound: the more, the better."""
    found = []
    for loss, args in unrolled():
        planner = planner_for(read_primal(loss, args, 0, False), CPU, solver_named("auto"), "schedule", 0)
        graph, most = planner.plain.problem.graph, planner.plain.replayed_bytes
        least = planner.least()[0].replayed_bytes
        budgets = [max(int(share * most), least) for share in SHARES]
        costs = [lower_bound(graph, budget) / graph.costs.sum() - 1 for budget in budgets]
        found.append(Score(least / most, float(np.mean(costs)), 0))
    return found


def flat_step(step: Callable, args: tuple) -> Any:
    """The jaxpr of a step."""
    leaves, tree = jax.tree.flatten(args)
    number = len(leaves)
    flat = lambda *leaves: step(*jax.tree.unflatten(tree, leaves))
    return trace_step(flat, leaves, [""] * number, [False] * number, [None] * number).jaxpr


@functools.cache
def step_programs() -> tuple:
    """The steps, flat."""
    losses = (GRADIENTS[0], GRADIENTS[2], (penalised, ([GATED[0][0]] * 3, GATED[1])))
    init = optax.adam(1e-3).init
    return tuple(flat_step(trained(loss), (args[0], jax.eval_shape(init, args[0]), *args[1:])) for loss, args in losses)


def steps() -> list[Score]:
    planners = [ProgramPlanner(jaxpr, CPU) for jaxpr in step_programs()]
    return [scored(planner, planner.smallest) for planner in planners]


@functools.cache
def written_steps() -> tuple:
    """Steps of `steps.py`, flat."""
    written = importlib.import_module("steps")
    programs = (written.convolved(), written.two_players(), written.gated(), written.distilled())
    return tuple(flat_step(program.step(lambda loss: loss), program.args) for program in programs)


def predicted_steps() -> list[Score]:
    """What steps take within budgets of their predicted peak."""
    return [predicted(ProgramPlanner(jaxpr, CPU)) for jaxpr in written_steps()]


def predicted(planner: ProgramPlanner) -> Score:
    """What a fresh planner of a step finds that is predicted to fit."""
    plain = planner.plain
    found = [planner.predicted(int(share * plain.peak_bytes)) for share in SHARES]
    extra = [each.best.candidate.cost / plain.cost - 1 for each in found if each.best]
    least = min(each.smallest.peak_bytes for each in found) / plain.peak_bytes
    return Score(least, float(np.mean(extra)) if extra else float("nan"), len(SHARES) - len(extra))


def in_branches() -> list[Score]:
    """What loops of one iteration decide."""
    return [score(planner_for(read_primal(branched, GATED, 0, False), CPU, solver_named("auto"), "schedule", 0))]


def in_small_branches() -> list[Score]:
    """What branches of a few equations decide."""
    planner = planner_for(read_primal(chosen, GATED, 0, False), CPU, solver_named("auto"), "schedule", 0)
    return [score(planner)]


def annealed() -> list[Score]:
    return [score(planner_for(read_primal(gated, GATED, 0, False), CPU, FastSA(), "schedule", 0))]


def headed(params, tokens):
    """Logits that are larger than all else, behind two gated layers."""
    table, layers = params
    x = table[tokens]
    for up, gate, down in layers:
        x = x + (jax.nn.silu(x @ gate) * (x @ up)) @ down
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ table.T), tokens[:, None], 1))


HEADED = (shape(8192, 128), [(shape(128, 1024), shape(128, 1024), shape(1024, 128))] * 2), TOKENS
OF_SLICES = ((headed, HEADED), (gated, GATED))


def in_slices() -> list[Score]:
    """What steps take that may run slice by slice, by prediction."""
    init = optax.adam(1e-3).init
    steps = ((trained(loss), (args[0], jax.eval_shape(init, args[0]), *args[1:])) for loss, args in OF_SLICES)
    return [sliced(step, args) for step, args in steps]


def sliced(step: Callable, args: tuple) -> Score:
    """What a fresh planned step finds that is predicted to fit."""
    plan = lambda budget: jaxremat.jit(step, budget=budget, allow=("chunk",), target="cpu").predicted(*args)
    return met_by(plan)


def met_by(plan: Callable, shares: Sequence[float] = SHARES_OF_SLICES) -> Score:
    """What comes out for the least and for shares of the whole, compiled where plans are."""
    least = plan("least")
    met = []
    for share in shares:
        with contextlib.suppress(jaxremat.BudgetError):
            met.append(plan(share).overhead)
    extra = float(np.mean(met)) if met else float("nan")
    return Score(_peak_bytes(least) / least.baseline_peak_bytes, extra, len(shares) - len(met))


def _peak_bytes(plan: Any) -> int:
    return plan.compiled.peak_bytes if plan.compiled else plan.peak_bytes


def plans(programs: Sequence = GRADIENTS, **options: Any) -> list[Score]:
    """What fresh plans of gradients take."""
    each = (
        lambda budget, loss=loss, args=args: jaxremat.plan(loss, *args, budget=budget, **options)
        for loss, args in programs
    )
    return [met_by(plan, SHARES) for plan in each]


def within(share: float, plan: Callable, least_bytes: int) -> Any:
    """The plan for a share of the least, or the refusal."""
    try:
        return plan(budget=int(share * least_bytes))
    except jaxremat.BudgetError as error:
        return error


def refused() -> list[Score]:
    """What refusals name as the least, where predictions are trusted; `missed` are refusals of what was reached."""
    found = []
    for loss, args in (*GRADIENTS, *IN_CHUNKS):
        plan = functools.partial(jaxremat.plan, loss, *args, verify="replay")
        least_bytes = plan(budget="least", verify="compile").compiled.peak_bytes
        reached, *below = (within(share, plan, least_bytes) for share in SHARES_OF_LEAST)
        named = [each.min_peak_bytes / plan(budget=1.0).baseline_peak_bytes for each in below]
        is_met = isinstance(reached, jaxremat.Plan)
        found.append(Score(float(np.mean(named)), reached.overhead if is_met else float("nan"), 1 - is_met))
    return found


def attending(layers, x):
    """Layers with scores over a whole sequence, one after another."""
    return jnp.mean(functools.reduce(lambda x, layer: attended(layer, x), layers, x) ** 2)


ATTENDING = [tuple(shape(*dims) for dims in [(64, 64)] * 3 + [(64, 256), (256, 64)])] * 3, shape(8, 512, 64)
IN_CHUNKS = ((headed, HEADED), (attending, ATTENDING))


def in_chunks() -> list[Score]:
    """What gradients take of which some parts may run in chunks, by prediction."""
    return [chunked(loss, args) for loss, args in IN_CHUNKS]


def chunked(loss: Callable, args: tuple) -> Score:
    """What a fresh planning finds that is predicted to fit."""
    plan = lambda budget: jaxremat.plan(loss, *args, budget=budget, allow="chunk", verify="replay")
    return met_by(plan)


def unmarked() -> list[Score]:
    """What is annealed of a graph that nobody has marked as forward and backward."""
    jaxpr = read_primal(gated, ([GATED[0][0]] * 10, GATED[1]), 0, False)
    graph = planner_for(jaxpr, CPU, solver_named("auto"), "schedule", 0).plain.problem.graph
    graph = dataclasses.replace(graph, backward=np.zeros(graph.num_nodes, bool))
    most = jaxremat.replay(graph, np.arange(graph.num_nodes)).peak_bytes
    found = [jaxremat.solve(graph, int(share * most), solver="auto") for share in SHARES]
    met = [o for o, share in zip(found, SHARES) if o.peak_bytes <= share * most]
    extra = float(np.mean([o.cost / graph.costs.sum() - 1 for o in met])) if met else float("nan")
    return [Score(min(o.peak_bytes for o in found) / most, extra, len(SHARES) - len(met))]


compiled = functools.partial(plans, verify="compile")
foretold = functools.partial(plans, verify="replay")
looped = functools.partial(plans, [(scanned, STACKED)], verify="compile", target="h200")
named = functools.partial(gradients, "names", "h200")  # in one checkpoint: CPUs take a checkpoint per piece
timed = functools.partial(gradients, "schedule", "h200")  # by the time of kernels
Sweep = tuple[Callable[[], list[Score]], Sequence[Any]]
SWEEPS: dict[str, Sweep] = {
    "step.hills._PLACES": (steps, (3, 6, 12, 24)),
    "step.hills._AS_MUCH": (steps, (0.5, 0.8, 0.95, 1.0)),
    "step.hills._DEAR": (steps, (1, 3, 10, 30, 100)),
    "step.scheduling._MOST_ROUNDS": (steps, (1, 2, 3, 5)),
    "step.scheduling._GAIN": (steps, (0.005, 0.02, 0.1)),
    "step.planner._REFINEMENTS": (steps, (3, 6, 9)),
    "step.planner._RUNG": (predicted_steps, (0.8, 0.9, 0.95)),
    "step.planner._LOW_RUNGS": (predicted_steps, (0, 2, 4, 8)),
    "step.planner._STRIDE": (predicted_steps, (1, 4, 8)),
    "step.planner._MOST_SMALL": (predicted_steps, (1, 6, 12)),
    "step.slicing._PARTS": (in_slices, ((4,), (16,), (64,), (4, 16, 64), (2, 4, 8, 16, 32, 64))),
    "step.slicing._MOST_SHAPES": (in_slices, (1, 2, 3, 4)),
    "chunk.rewriting.sliced._ALIKE": (in_slices, (1, 2, 4, 8)),
    "planning.chunks._MATTERS": (in_chunks, (0.0, 0.02, 0.1)),
    "planning.chunks._TILES": (in_chunks, (16, 64, 256)),
    "planning.chunks._FINER": (in_chunks, (2, 8, 32)),
    "planner.schedules.LOOP_PRICES": (gradients, tuple(np.logspace(-2, 4, number) for number in (7, 13, 25, 49))),
    "planner.schedules._MOST_LEAST": (gradients, (6, 24, 48)),
    "planner.schedules._MOST_LOOP_DECISIONS": (gradients, (1, 3, 6)),
    "planner.schedules._HALVINGS": (gradients, (4, 8, 12, 16)),
    "planner.schedules._MOST_PRICES": (gradients, (2, 4, 6, 10)),
    "planner.schedules.APART": (gradients, (1.0, 1.005, 1.02, 1.1)),
    "planner.checkpoints._READ_AT_ONCE": (named, (0.0, 0.05, 0.15, 0.5, 1.0)),
    "planner.checkpoints._REFINEMENTS": (named, (0, 2, 5, 8)),
    "planner.checkpoints._PIECES": (named, ((2, 4, 8, 16), (2, 3, 4, 6, 8, 12, 16, 24, 32), tuple(range(2, 33)))),
    "planner.checkpoints._PRICES": (named, ((0.01, 1.0, 50.0), checkpoints._PRICES, np.logspace(-2, 2, 25))),
    "planner.timed._OTHER_PARTS": (timed, ((0.5,), (0.5, 2.0), (0.25, 0.5, 2.0, 4.0))),
    "planner.timed._SEGMENTS": (timed, ((1,), (1, 16), (1, 4, 16), (1, 8, 16, 32))),
    "planner.timed._HALVINGS": (timed, (2, 5, 8)),
    "planner.timed._ROUNDS": (timed, (0, 2, 4)),
    "planner.timed._MOST_LEAST": (timed, (3, 12, 24)),
    "planner.timed._MOST_MIXTURES": (timed, (0, 3, 6)),
    "planner.contract.TOLD_APART": (timed, (1.0, 1.01, 1.05)),
    "planner.transfers._PROBES": (away, (3, 6, 9)),
    "planner.moving.MOST_TRIED": (hosted, (1, 4, 8)),
    "planner.moving._MOST_ROUNDS": (hosted, (2, 6, 12)),
    "planner.schedules.MOST_IN_CHECKPOINTS": (gradients, (1, 2, 4)),
    "planner.timed_bytes._MOST_FAILING": (packed, (4, 12, 24)),
    "planner.timed_loops._TIMED_DOUBT": (looped, (1.0, 1.05, 1.3)),
    "planner.timed_loops._BODY_DOUBT": (looped, (0.0, 0.15, 0.5)),
    "planner.schedules._CLOSE": (gradients, (0.0, 0.002, 0.02)),
    "planner.correction.CLOSE_ENOUGH": (compiled, (0.0, 0.02, 0.1)),
    "planning.compiled_search._MOST_COMPILATIONS": (compiled, (2, 4, 8)),
    "planning.least_search._MOST_LEAST": (compiled, (2, 6, 12)),
    "planning.predicted_search._MOST_PREDICTIONS": (foretold, (2, 6, 12)),
    "planning.predicted_search._BEYOND_DOUBT": (refused, (1.0, 1.2, 1.6, 3.0)),
    "loops.options._PARTS": (gradients, (((1, 1),), ((1, 1), (2, 1), (4, 1), (8, 1)), options._PARTS)),
    "loops.options._SINGLE_ITERATION_SURCHARGE": (in_branches, (0.0, 0.02, 0.05, 0.2)),
    "loops.options._LITTLE": (gradients, (0.0, 0.01, 0.05)),
    "loops.options._MOST_OPTIONS": (gradients, (8, 24, 48, 96)),
    "loops.find._FEWEST_EQUATIONS": (in_small_branches, (1, 3, 5)),
    "loops.decide._MOST_PIECES": (gradients, (1, 2, 3, 4)),
    "loops.decide._DEEPEST": (gradients, (1, 2, 4, 6)),
    "solvers.mincut.structure._EARLY_SURCHARGE": (gradients, (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)),
    "solvers.mincut.structure._CHEAP_FRACTION": (gradients, (0.0, 5e-4, 2e-3, 1e-2)),
    "solvers.mincut.search._LITTLE": (gradients, (0.0, 0.01, 0.03, 0.1, 1.0)),
    "solvers.mincut.structure.SEGMENTS": (
        gradients,
        ((1, 4, 16), (1, 2, 4, 8, 16, 32), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48), tuple(range(1, 49))),
    ),
    "solvers.mincut.boundary._PRICES": (gradients, tuple(np.logspace(-2, 2.5, number) for number in (4, 10, 20))),
    "solvers.mincut.peaks._SEGMENTS": (gradients, ((1, 8), (1, 2, 4, 8, 16, 32), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))),
    "solvers.mincut.peaks._PRICES": (gradients, tuple(np.logspace(-2, 2.5, number) for number in (3, 6, 12))),
    "solvers.mincut.boundary._REFINEMENTS": (gradients, (2, 4, 6, 10)),
    "solvers.mincut.peaks._REFINEMENTS": (gradients, (2, 4, 6, 10)),
    "solvers.mincut.peaks._PATIENCE": (gradients, (1, 2, 4, 8)),
    "solvers.mincut.peaks._GAIN": (gradients, (0.002, 0.01, 0.05)),
    "solvers.mincut.peaks._COST_GAIN": (gradients, (0.0, 0.002, 0.02)),
    "solvers.mincut.peaks._MOST_ROUNDS": (gradients, (8, 32, 128)),
    "solvers.mincut.peaks._WORK_PER_LAYOUT": (gradients, (0, 1000, 10_000)),
    "solvers.mincut.peaks._MOST_WORK": (gradients, (200_000, 2_000_000, 8_000_000)),
    "solvers.auto._CHEN_NODE_STEPS": (unmarked, (30_000, 300_000)),
    "solvers.fastsa._SQUEEZE_COST_WEIGHT": (annealed, (0.0, 0.02, 0.1)),
    "solvers.fastsa._TIGHT_COST_WEIGHT": (annealed, (0.05, 0.2, 1.0)),
    "solvers.mincut.bound._MOST_MOMENTS": (bounds, (4, 16, 64)),
    "solvers.mincut.bound._HALVINGS": (bounds, (5, 10, 20)),
    "solvers.mincut.bound._WIDEST": (bounds, (1e2, 1e4, 1e6)),
    "solvers.mincut.layout._NORM": (gradients, (8, 64, 512)),
    "solvers.mincut.barriers.PARTS": (gradients, (16, 64, 256)),
}
"""By constant: what is scored, and at which values."""


def swept(name: str, value: Any, scored: Callable[[], list[Score]]) -> tuple[list[Score], float]:
    """(scores, seconds) with a constant at a value, wherever it was imported."""
    module, attribute = name.rsplit(".", 1)
    home = importlib.import_module(f"jaxremat.{module}")
    before = getattr(home, attribute)
    others = [] if attribute.startswith("_") else [m for n, m in sys.modules.items() if n.startswith("jaxremat.")]
    with contextlib.ExitStack() as stack:
        for owner in {home, *others}:
            if getattr(owner, attribute, None) is before:
                stack.enter_context(mock.patch.object(owner, attribute, value))
        PLANS.clear()
        start = time.process_time()
        return scored(), time.process_time() - start


def told(value: Any) -> str:
    """A value; of many, how many, and from where to where."""
    if np.ndim(value) == 0:
        return f"{value}"
    each = [f"{entry:.3g}" if np.ndim(entry) == 0 else f"{entry}" for entry in value]
    return ", ".join(each) if len(each) < 9 else f"{len(each)} from {each[0]} to {each[-1]}"


def main() -> None:
    print("| constant | value | least | extra | missed | seconds |\n|---|---|---|---|---|---|")
    for name, (scored, values) in SWEEPS.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        module, attribute = name.rsplit(".", 1)
        used = getattr(importlib.import_module(f"jaxremat.{module}"), attribute)
        for value in values:
            scores, seconds = swept(name, value, scored)
            least, extra = (float(np.nanmean([getattr(s, field) for s in scores])) for field in ("least", "extra"))
            shown = f"**{told(value)}**" if np.array_equal(value, used) else told(value)
            missed = sum(s.missed for s in scores)
            print(f"| `{name}` | {shown} | {least:.3f} | {extra:.2%} | {missed} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
