"""Give any JAX function and a number of bytes; get back the same function whose compiled gradient fits."""

import importlib

from jaxremat import attention as attention
from jaxremat import chunk as chunk
from jaxremat import compact as compact
from jaxremat import solvers as solvers
from jaxremat.api import load_plan as load_plan
from jaxremat.api import trace as trace
from jaxremat.decorator import remat as remat
from jaxremat.errors import ArgumentError as ArgumentError
from jaxremat.errors import BudgetError as BudgetError
from jaxremat.errors import EmissionError as EmissionError
from jaxremat.errors import GradientError as GradientError
from jaxremat.errors import GraphError as GraphError
from jaxremat.errors import JaxrematError as JaxrematError
from jaxremat.errors import PlanMismatchError as PlanMismatchError
from jaxremat.errors import TargetError as TargetError
from jaxremat.graph import Chain as Chain
from jaxremat.graph import Graph as Graph
from jaxremat.pareto import Front as Front
from jaxremat.pareto import pareto as pareto
from jaxremat.plan import Plan as Plan
from jaxremat.planning import plan as plan
from jaxremat.schedule import Timeline as Timeline
from jaxremat.schedule import replay as replay
from jaxremat.solvers import Solution as Solution
from jaxremat.solvers import solve as solve
from jaxremat.verification import Verification as Verification
from jaxremat.verification import verify as verify


def __getattr__(name: str):
    """`jaxremat.linen` and `jaxremat.nnx` need Flax: they are imported when they are first asked for."""
    if name in ("linen", "nnx"):
        return importlib.import_module(f"jaxremat.{name}")
    raise AttributeError(f"module 'jaxremat' has no attribute {name!r}")
