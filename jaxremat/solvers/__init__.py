"""Every solver of the literature under one contract, each by name and as a class with its parameters."""

from jaxremat.solvers.auto import Auto
from jaxremat.solvers.base import Proposal, Solution, Solver, StatefulSolver, Status
from jaxremat.solvers.checkmate import Checkmate
from jaxremat.solvers.checkmate_lp import CheckmateLP
from jaxremat.solvers.chen import Chen, ChenRecursive
from jaxremat.solvers.fastsa import FastSA
from jaxremat.solvers.mincut.solver import MinCut
from jaxremat.solvers.moccasin import Moccasin
from jaxremat.solvers.registry import SOLVERS
from jaxremat.solvers.rotor import Rotor
from jaxremat.solvers.solve import solve

__all__ = [
    "SOLVERS",
    "Auto",
    "Checkmate",
    "CheckmateLP",
    "Chen",
    "ChenRecursive",
    "FastSA",
    "MinCut",
    "Moccasin",
    "Proposal",
    "Rotor",
    "Solution",
    "Solver",
    "StatefulSolver",
    "Status",
    "solve",
]
