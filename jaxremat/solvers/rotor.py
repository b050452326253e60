"""Rotor: optimal checkpointing of heterogeneous chains by dynamic programming.

Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova, "Optimal checkpointing for heterogeneous chains: how to train deep
neural networks with limited memory", arXiv:1911.13214 (ACM TOMS). Options: Zhao et al., "Rockmate", ICML 2023.

Optimal over *persistent* schedules, in which a stored value stays until its backward (the unrestricted problem is
NP-hard, and not always solved by a persistent schedule), for sizes that are multiples of the memory slot.
O(L^3 S) time and O(L^2 S) space for L stages and S slots. The plans are nestings of `jax.checkpoint`.

Deviations. The backward of a stage is charged the gradients of both its output and its input: without that, plans of
the published ports overrun the budget. A stretch of forwards is charged only for the stages that it runs. Where sizes
must be rounded up to slots the table reaches beyond the budget, and the fastest plan that really fits, by exact
replay, is taken. A budget below what the table can use is met, if at all, by the plan with the smallest peak.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.option_chain import OptionChain
from jaxremat.graph.replay import replay_operations
from jaxremat.solvers.base import Proposal, require_chain
from jaxremat.solvers.rotor_peak import PeakTable
from jaxremat.solvers.rotor_steps import Operation
from jaxremat.solvers.rotor_table import RotorTable

_SMALL_TABLE = 1_000_000  # intervals times slots: short chains get so many slots that the table has at least this size
_ROUNDING_ALLOWANCE = 0.25  # how far beyond the budget a table with rounded sizes reaches


@dataclasses.dataclass(frozen=True, eq=False)
class ChainPlan:
    """A certified plan for a chain.

    Attributes:
      operations: triples (kind, stage, option): stages count from 1; the option is that of the stage's forward_all and
        backward, -1 for the other kinds.
      peak_bytes: replayed peak, the chain's input included.
      seconds: replayed time.
      lower_bound: seconds that no persistent plan within the budget undercuts.
    """

    operations: tuple[Operation, ...]
    peak_bytes: int
    seconds: float
    lower_bound: float

    @property
    def exact(self) -> bool:
        """Whether no persistent plan within the budget is faster, provided that this one is within."""
        return self.seconds <= self.lower_bound * (1 + 1e-12)


@dataclasses.dataclass(frozen=True)
class Rotor:
    """The dynamic program over memory slots.

    Attributes:
      slots: resolution of memory: the budget is counted in at most so many units, or in the sizes' common divisor where
        that is coarser. Short chains get a finer resolution, which costs no time worth mentioning.
    """

    name = "rotor"
    slots: int = 500

    def propose(
        self, problem: Graph | Chain, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The fastest persistent plan within the budget, or the one with the smallest peak; deterministic."""
        chain = OptionChain.from_chain(require_chain(problem, self.name))
        plan = solve_options(chain, budget_bytes, slots=self.slots)
        operations = tuple((kind, stage) for kind, stage, _ in plan.operations)
        optimal = plan.exact and plan.peak_bytes <= budget_bytes
        return Proposal(operations=operations, lower_bound=plan.lower_bound, optimal=optimal)


def solve_options(chain: OptionChain, budget_bytes: int, slots: int = 500) -> ChainPlan:
    """The fastest persistent plan of a chain with options per stage, or the one with the smallest peak.

    Args:
      chain: stages 1..L, each with one or more ways to save for its backward. For the blocks of an unrolled network
        the options of a block are its own plans: `saved_bytes` what each holds between the block's forward and
        backward (the block's output included, its input not), overheads the peak inside the block beyond that.
      budget_bytes: bounds the peak, the chain's input included.
      slots: resolution of memory.

    Returns:
      The plan. Its `peak_bytes` exceeds the budget only where no plan fits.
    """
    return plans_within(chain, (budget_bytes,), slots)[0]


def plans_within(chain: OptionChain, budgets_bytes: tuple[int, ...], slots: int = 500) -> tuple[ChainPlan, ...]:
    """One plan per budget, as `solve_options` makes them, from one table for the largest budget.

    Smaller budgets have proportionally fewer slots.
    """
    quantum_bytes, rounded = _quantum(chain, max(budgets_bytes), slots)
    reach = max((max(budgets_bytes) - chain.input_bytes) // quantum_bytes, 0)
    table = RotorTable(chain, quantum_bytes, int(reach * (1 + _ROUNDING_ALLOWANCE)) if rounded else reach)
    smallest: list[ChainPlan] = []
    plans = []
    for budget_bytes in budgets_bytes:
        plan = _fastest_that_fits(table, budget_bytes, rounded)
        if plan is None:
            smallest = smallest or [_certified(chain, PeakTable(chain).operations())]
            plan = smallest[0]
        plans.append(plan)
    return tuple(plans)


def _certified(chain: OptionChain, operations: tuple[Operation, ...], proven: bool = False) -> ChainPlan:
    """A plan with numbers from the replay; a plan that is not proven is bounded by one run of every stage."""
    peak_bytes, seconds = replay_operations(chain, operations)
    once = sum(min(o.forward_seconds + o.backward_seconds for o in options) for options in chain.options)
    return ChainPlan(operations, peak_bytes, seconds, lower_bound=seconds if proven else once)


def _fastest_that_fits(table: RotorTable, budget_bytes: int, rounded: bool) -> ChainPlan | None:
    """The first plan, from the fastest on, whose replay stays within the budget."""
    most = (budget_bytes - table.chain.input_bytes) // table.quantum_bytes
    for slot in table.distinct_slots():
        if slot <= most or rounded:
            proven = not rounded and table.is_exact
            plan = _certified(table.chain, table.operations(slot), proven)
            if plan.peak_bytes <= budget_bytes:
                return plan
    return None


def _quantum(chain: OptionChain, budget_bytes: int, slots: int) -> tuple[int, bool]:
    """Bytes per slot, and whether sizes are rounded: multiples of all sizes' divisor, no finer than `slots` need."""
    sizes = [chain.input_gradient_bytes, *chain.output_bytes, *chain.gradient_bytes, *chain.fast_forward_overhead_bytes]
    for options in chain.options:
        for option in options:
            sizes += [option.saved_bytes, option.forward_overhead_bytes, option.backward_overhead_bytes]
    divisor = max(functools.reduce(math.gcd, map(int, sizes), 0), 1)
    room = max(budget_bytes - chain.input_bytes, 0)
    per_slot = -(-room // (divisor * max(slots, _SMALL_TABLE // chain.num_stages**2)))
    return divisor * max(per_slot, 1), per_slot > 1
