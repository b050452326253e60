"""Solvers by name. A solver is selected by its name or given as an instance of its class, parameters included."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxremat.base.errors import ArgumentError
from jaxremat.base.near_miss import did_you_mean
from jaxremat.solvers.auto import Auto
from jaxremat.solvers.base import Solver
from jaxremat.solvers.checkmate import Checkmate
from jaxremat.solvers.checkmate_lp import CheckmateLP
from jaxremat.solvers.chen import Chen, ChenRecursive
from jaxremat.solvers.fastsa import FastSA
from jaxremat.solvers.mincut.solver import MinCut
from jaxremat.solvers.moccasin import Moccasin
from jaxremat.solvers.rotor import Rotor

_CLASSES = (Auto, MinCut, FastSA, Rotor, Checkmate, CheckmateLP, Moccasin, Chen, ChenRecursive)
SOLVERS: dict[str, type[Solver]] = {str(solver.name): solver for solver in _CLASSES}


def solver_named(solver: str | Solver | type[Solver]) -> Solver:
    """The solver that a name, a class or an instance stands for.

    Raises:
      ArgumentError: for a name that no solver has, or an object that is not a solver.
    """
    if isinstance(solver, str):
        if solver not in SOLVERS:
            hint = did_you_mean(solver, SOLVERS)
            raise ArgumentError(f"no solver is called {solver!r}; the solvers are {', '.join(SOLVERS)}.{hint}")
        return SOLVERS[solver]()
    made = solver() if isinstance(solver, type) else solver
    if not isinstance(made, Solver):
        raise ArgumentError(
            f"{solver!r} is not a solver: give one of {', '.join(SOLVERS)}, or an instance of a solver class"
        )
    return made


def solver_parameters(solver: Solver) -> dict[str, Any]:
    """The parameters of a solver as plain data, for plan files."""
    return dataclasses.asdict(solver) if dataclasses.is_dataclass(solver) else {}
