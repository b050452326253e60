"""What the package gives; `__init__.py` reads this list, and imports a thing when it is first asked for."""

from jaxremat import attention as attention
from jaxremat import chunk as chunk
from jaxremat import compact as compact
from jaxremat import solvers as solvers
from jaxremat.backends.calibration import calibrate as calibrate
from jaxremat.base.errors import ArgumentError as ArgumentError
from jaxremat.base.errors import BudgetError as BudgetError
from jaxremat.base.errors import EmissionError as EmissionError
from jaxremat.base.errors import GradientError as GradientError
from jaxremat.base.errors import GraphError as GraphError
from jaxremat.base.errors import JaxrematError as JaxrematError
from jaxremat.base.errors import PlanMismatchError as PlanMismatchError
from jaxremat.base.errors import PlanningInterrupted as PlanningInterrupted
from jaxremat.base.errors import TargetError as TargetError
from jaxremat.graph.graph import Chain as Chain
from jaxremat.graph.graph import Graph as Graph
from jaxremat.graph.replay import Timeline as Timeline
from jaxremat.graph.replay import replay as replay
from jaxremat.planning.decorator import remat as remat
from jaxremat.planning.entry import plan as plan
from jaxremat.planning.load import load_plan as load_plan
from jaxremat.planning.pareto import Front as Front
from jaxremat.planning.pareto import pareto as pareto
from jaxremat.planning.plan import Plan as Plan
from jaxremat.planning.tracing import trace as trace
from jaxremat.planning.verification import Verification as Verification
from jaxremat.planning.verification import verify as verify
from jaxremat.solvers import Solution as Solution
from jaxremat.solvers import solve as solve
from jaxremat.step import LargestBatch as LargestBatch
from jaxremat.step import StepPlan as StepPlan
from jaxremat.step import jit as jit
from jaxremat.step import largest_batch as largest_batch

__version__: str
