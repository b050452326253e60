"""Rotor: optimal checkpointing of heterogeneous chains by dynamic programming.

Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova, "Optimal checkpointing for heterogeneous chains: how to train deep
neural networks with limited memory", arXiv:1911.13214 (ACM TOMS).

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

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import replay_operations
from jaxremat.solvers.base import Proposal, require_chain
from jaxremat.solvers.rotor_peak import PeakTable
from jaxremat.solvers.rotor_steps import Operation
from jaxremat.solvers.rotor_table import RotorTable

_SMALL_TABLE = 1_000_000  # intervals times slots: short chains get so many slots that the table has at least this size
_ROUNDING_ALLOWANCE = 0.25  # beyond the budget: plans of rounded sizes count too much, and are replayed


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
        chain = require_chain(problem, self.name)
        quantum_bytes, rounded = _quantum(chain, budget_bytes, self.slots)
        reach = max((budget_bytes - chain.input_bytes) // quantum_bytes, 0)
        table = RotorTable(chain, quantum_bytes, int(reach * (1 + _ROUNDING_ALLOWANCE)) if rounded else reach)
        found = _fastest_that_fits(table, budget_bytes)
        if found is None:
            return Proposal(operations=PeakTable(chain).operations(), lower_bound=_seconds_of_one_run(chain))
        operations, seconds = found
        optimal = not rounded and table.is_exact
        return Proposal(
            operations=operations,
            lower_bound=seconds if optimal else _seconds_of_one_run(chain),
            optimal=optimal or seconds <= _seconds_of_one_run(chain),
        )


def _fastest_that_fits(table: RotorTable, budget_bytes: int) -> tuple[tuple[Operation, ...], float] | None:
    """(operations, seconds) of the first plan, from the fastest on, whose replay stays within the budget."""
    for slot in table.distinct_slots():
        operations = table.operations(slot)
        peak_bytes, seconds = replay_operations(table.chain, operations)
        if peak_bytes <= budget_bytes:
            return operations, seconds
    return None


def _seconds_of_one_run(chain: Chain) -> float:
    """What no plan undercuts: every stage once."""
    return float(chain.forward_seconds.sum() + chain.backward_seconds.sum())


def _quantum(chain: Chain, budget_bytes: int, slots: int) -> tuple[int, bool]:
    """Bytes per slot, and whether sizes are rounded: multiples of all sizes' divisor, no finer than `slots` need."""
    kept = (chain.output_bytes, chain.saved_bytes, chain.gradient_bytes, np.asarray([chain.input_bytes]))
    sizes = np.concatenate([*kept, chain.forward_overhead_bytes, chain.backward_overhead_bytes])
    divisor = max(int(np.gcd.reduce(sizes)), 1)
    room = max(budget_bytes - chain.input_bytes, 0)
    per_slot = -(-room // (divisor * max(slots, _SMALL_TABLE // chain.num_stages**2)))
    return divisor * max(per_slot, 1), per_slot > 1
