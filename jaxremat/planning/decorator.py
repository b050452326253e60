"""The decorator: a function that plans its own gradient where it is differentiated."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxremat.base.budget import Budget, format_bytes
from jaxremat.base.compat import Literal, Var
from jaxremat.base.errors import BudgetError
from jaxremat.emit.scheduled import Script, emit_scheduled
from jaxremat.planner.decision import Decision
from jaxremat.planner.emission import emit as emit_form
from jaxremat.planner.emission import scheduled_program
from jaxremat.planning.plan import Plan, apply_flat
from jaxremat.planning.planning import check_options, plan
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal, differentiate, fingerprint, read_primal

logger = logging.getLogger("jaxremat")


def remat(
    fun: Callable | None = None,
    *,
    budget: Budget,
    has_aux: bool = False,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    solver: str = "auto",
    target: str | None = None,
    emit: str = "schedule",
    verify: str = "replay",
    seed: int = 0,
) -> Callable:
    """The same function, whose gradient is planned for a budget where it is first differentiated.

    A plan is made once per program, argument shapes and set of differentiated arguments; it is kept with the
    decorated function, and told at INFO on the logger "jaxremat". What the function closes over is differentiated
    too. Under `vmap` and `scan` the inner function is planned.

    Args:
      fun: any JAX function; without it, `remat(budget=...)` is a decorator.
      budget: as in `jaxremat.plan`; a fraction is of this function's own gradient program.
      has_aux: whether the function returns (result, auxiliary data), of which only the result is differentiated.
      static_argnums, static_argnames: arguments that are no arrays, as in `jax.checkpoint`.
      solver, target, verify, seed: as in `jaxremat.plan`.
      emit: "schedule"; or "segments", which also works in forward mode and is planned for every floating argument.

    Raises:
      ArgumentError: for an option that cannot be understood.
      BudgetError: when the function is differentiated and nothing that was found fits.
    """
    if fun is None:
        return functools.partial(
            remat, budget=budget, has_aux=has_aux, static_argnums=static_argnums, static_argnames=static_argnames,
            solver=solver, target=target, emit=emit, verify=verify, seed=seed,
        )  # fmt: skip
    name = getattr(fun, "__name__", type(fun).__name__)
    once = PlanOnce(name, budget=budget, solver=solver, target=target, emit=emit, verify=verify, seed=seed)
    return once.decorate(fun, has_aux=has_aux, static_argnums=static_argnums, static_argnames=static_argnames)


class PlanOnce:
    """One plan per program; threads that ask for the same one wait for it.

    Args:
      name: for the log.
      options: `budget`, `solver`, `target`, `emit`, `verify` and `seed`, as in `jaxremat.plan`.

    Raises:
      ArgumentError: for an option that cannot be understood.
    """

    def __init__(
        self, name: str, *, budget: Budget, solver="auto", target=None, emit="schedule", verify="replay", seed=0
    ):
        check_options(budget, solver, emit, verify)
        self.name = name
        self.emit = emit
        self.options = {
            "budget": budget, "solver": solver, "target": target, "emit": emit, "verify": verify, "seed": seed
        }  # fmt: skip
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._made: dict[str, Decision] = {}

    def decorate(
        self,
        fun: Callable,
        *,
        has_aux: bool = False,
        static_argnums: int | Sequence[int] = (),
        static_argnames: str | Iterable[str] = (),
    ) -> Callable:
        """The same function, planned where it is differentiated. Several functions may share one memory of plans."""
        numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
        names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)

        @functools.wraps(fun)
        def planned(*args, **kwargs):
            free, dynamic = _bound(fun, args, kwargs, numbers, names)
            primal = read_primal(free, dynamic, None, has_aux)
            return apply_flat(primal, _forwarding(primal, self._emitted), dynamic)

        return planned

    def _decision(self, primal: Primal) -> Decision:
        """What to do for a primal program, whose `wrt` says what is differentiated."""
        key = fingerprint(differentiate(primal).jaxpr, f"{primal.wrt} {primal.cotangents_of}")
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = self._decide(primal)
        return self._made[key]

    def _decide(self, primal: Primal) -> Decision:
        last = max(primal.cotangents_of) + 1

        def flat(*inputs):
            outputs = jaxprs.evaluate(primal.jaxpr, inputs)
            return (outputs[0] if last == 1 else outputs[:last]), outputs[last:]

        shapes = map(jaxprs.shape_of, primal.jaxpr.invars)
        made = self._planned(flat, shapes, primal.wrt)
        logger.info("%s: %s", self.name, _summary(made))
        return made.decision

    def _planned(self, flat: Callable, shapes: Iterable, wrt: tuple[int, ...]) -> Plan:
        """A plan as asked for; before a prediction alone refuses a budget, the compiler is heard."""
        request = functools.partial(plan, flat, *shapes, argnums=wrt, has_aux=True)
        try:
            return request(**self.options)
        except BudgetError as refusal:
            if self.options["verify"] == "compile":
                raise
            logger.info("%s: %s Compiling to be sure.", self.name, refusal)
            return request(**{**self.options, "verify": "compile"})

    def _emitted(self, primal: Primal) -> Callable[..., list]:
        if not primal.wrt or not primal.cotangents_of:
            return lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs)
        if self.emit != "schedule":
            return emit_form(primal, self._decision(primal))

        def choose(wrt: tuple[int, ...]) -> tuple[Joint, Script]:
            planned = dataclasses.replace(primal, wrt=wrt)
            decision = self._decision(planned)
            if decision.emit == "plain":
                decision = dataclasses.replace(decision, schedule=tuple(range(len(differentiate(planned).eqns))))
            return scheduled_program(planned, decision)

        return emit_scheduled(primal, choose)


def _forwarding(primal: Primal, emit: Callable[[Primal], Callable]) -> Callable[..., list]:
    """The flat function of a primal, of which only results that are computed are emitted: inputs pass by themselves."""
    position = {var: i for i, var in enumerate(primal.jaxpr.invars)}
    atoms = primal.jaxpr.outvars
    computed = [k for k, atom in enumerate(atoms) if not isinstance(atom, Literal) and atom not in position]

    def run(*inputs):
        outputs = jaxprs.evaluate(primal.jaxpr, inputs)
        return [outputs[k] for k in computed]

    jaxpr = jax.make_jaxpr(run)(*map(jaxprs.shape_of, primal.jaxpr.invars))
    wanted = tuple(n for n, k in enumerate(computed) if k in set(primal.cotangents_of))
    emitted = emit(dataclasses.replace(primal, jaxpr=jaxpr, cotangents_of=wanted, raw=None))

    def flat(*inputs):
        env: dict[Var, Any] = dict(zip(primal.jaxpr.invars, inputs))
        env.update(zip(jaxprs.vars_of([atoms[k] for k in computed]), emitted(*inputs)))
        return [jaxprs.value_of(env, atom) for atom in atoms]

    return flat


def _summary(made: Plan) -> str:
    plain, peak = format_bytes(made.baseline_peak_bytes), format_bytes(made.peak_bytes)
    if made.decision.emit == "plain":
        return f"fits as it is: {plain} within {format_bytes(made.budget_bytes)}"
    return (
        f"planned for {format_bytes(made.budget_bytes)} on {made.target}: peak {peak} of {plain}, {made.overhead:+.1%}"
        f" time, in {made.solve_seconds:.1f} s"
    )


def _bound(fun: Callable, args: Sequence, kwargs: dict, numbers: Sequence[int], names: Sequence[str]):
    """(`fun` of its array arguments alone, those arguments): static arguments are bound, keywords become one tree."""
    static_positions = {i % len(args) for i in numbers if -len(args) <= i < len(args)}
    static_positions |= _positions_of(fun, names)
    static_keywords = {name: kwargs[name] for name in kwargs if name in names}
    dynamic = [None if i in static_positions else arg for i, arg in enumerate(args)]
    keywords = {name: value for name, value in kwargs.items() if name not in static_keywords}
    leaves, tree = jax.tree.flatten((dynamic, keywords))

    def free(*arrays):
        given = iter(arrays)
        full, named = jax.tree.unflatten(tree, [next(given) if _is_array(leaf) else leaf for leaf in leaves])
        full = [arg if i in static_positions else full[i] for i, arg in enumerate(args)]
        return fun(*full, **named, **static_keywords)

    return free, tuple(filter(_is_array, leaves))


def _is_array(leaf) -> bool:
    """Whether JAX can trace a leaf: activation functions and axis names, which Equinox modules hold, it cannot."""
    return hasattr(leaf, "dtype") or hasattr(leaf, "__jax_array__") or isinstance(leaf, bool | int | float | complex)


def _positions_of(fun: Callable, names: Sequence[str]) -> set[int]:
    if not names:
        return set()
    return {i for i, name in enumerate(inspect.signature(fun).parameters) if name in names}
