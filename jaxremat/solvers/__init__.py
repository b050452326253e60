"""Every solver of the literature under one contract, each by name and as a class with its parameters."""

from jaxremat.solvers.base import Proposal, Solution, Solver, Status
from jaxremat.solvers.chen import Chen, ChenRecursive
from jaxremat.solvers.fastsa import FastSA
from jaxremat.solvers.registry import SOLVERS
from jaxremat.solvers.solve import solve

__all__ = ["SOLVERS", "Chen", "ChenRecursive", "FastSA", "Proposal", "Solution", "Solver", "Status", "solve"]
