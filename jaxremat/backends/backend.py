"""What one platform's compiler does with a program, and what a plan for that platform does about it.

Only data and predicates of single equations: whoever prices, schedules, emits or tiles reads them here, and asks no
platform's name. A plan is made for a device; its backend is `Device.backend`, whatever this process runs on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from jaxremat.base.compat import Eqn, Var
from jaxremat.trace.jaxpr import vars_of
from jaxremat.trace.joint import Joint
from jaxremat.trace.masks import NO_MASKS, Masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """One platform.

    Attributes:
      name: "cpu", "cuda" or "tpu", as JAX names platforms when it lowers for them.
      library_groups: contractions and reductions gather element-wise neighbours before loops are fused.
      dot_copies: contractions and convolutions read transposed copies of operands that are not laid out for them.
      batch_copies: contractions of batches do so, one copy for all of them.
      transposes_late: what is transposed lies as it was made, until something needs another order of its dimensions.
      filter_copies: convolutions of images with channels last read filters output by output.
      widened_products: dtypes whose contractions and convolutions, where no library takes them, run in float32 on
        copies of their operands.
      rounded_results: dtypes in which arithmetic runs in float32, every result rounded: too dear to compute twice.
      rewrites_products: products that read the same become one, of which readers take slices, and what products
        contract is split where tiles are too few for all cores; whoever reads a product sums its parts.
      small_products: with fewer entries, rows and columns together, products of a matrix and a vector are sums of
        products entry by entry, as those of two vectors are; 0 where all are products.
      written_again_bytes: constants of so many bytes are written again for each scatter into them; smaller ones are
        copied when they are made.
      splits_reductions: one of dimensions that are apart, or too long, becomes several kernels.
      spreads_reciprocals: what is divided by a row, spread, is multiplied by the reciprocals of the row; elsewhere only
        divisors that are constants are inverted.
      rolls_threefry: random bits are made by a loop that carries twice as many, and kept so; elsewhere they are
        element-wise arithmetic.
      breadth_first: instructions run as soon as they can, not in program order.
      frees_first: outside of loops, of the kernels that are ready, the one that frees most bytes runs first.
      expands_searches: the gradient of a pooling maximum looks for the maxima again in arrays of indices, one per
        axis, each as large as what is searched, held from the start of the program until what is searched is there.
      scatters_maxima: the gradient of a pooling maximum looks for the maxima again, with one array of indices per axis,
        and is scattered into zeros that whatever reads zeros of its shape shares, from the forward on.
      fences_loop_bodies: an iteration that repeats nothing is fenced all the same; elsewhere the loop is fence enough.
      names_in_pieces: names save nothing in one checkpoint over everything, and need a checkpoint per piece.
      scores_per_tile: entries of a tile of attention scores, or of logits, whose size nobody chose.
      barrier_parts: into how many parts recomputation is divided at least, a barrier before each, in plans that are
        judged by the time of their kernels; 0 where plans are judged by their replay. A barrier makes the compiler
        write what enters it, so there are few, and only what is recomputed from and cotangents enter them.
      times_loops: plans of programs with loops are judged by the time of their kernels.
      smallest_modelled_bytes: programs whose values take less together are replayed value by value, which is about as
        near and takes no time; see `benchmarks/threshold.py`.
      pool_fraction: the part of a device's memory that the runtime's allocator hands out.
      pool_variable: of the environment, which sets that part; empty where nothing does.
      reused_bytes: the largest allocation that a program gets again at its next run; larger ones are new memory each
        time, which the system clears. None where a pool keeps everything.
      predicts_closely: predicted peaks are near enough to compiled ones to compile but one plan for budgets far below;
        see `benchmarks/results/prediction.md`.
      reorders_iterations: in a loop's body, kernels run in the order of the program, or as a search from its outputs
        finds them.
      products_compute_operands: contractions compute what they read, of any rank, whoever else does, and sum what they
        make.
      rounds_operands: contractions in float32, at default precision, read what was rounded to bfloat16: by what makes
        it, where nobody reads all its bits.
      library_products: contractions of matrices are left to a library, which computes nothing but them.
      returns_workspace: a library returns what it worked in beside its result.
      fuses_windows: windows that slide are computed in loops with what they read and with what reads them.
      computes_entries_once: a kernel that reads what it computes several times, at the same place, computes it once.
      rows_in_one_kernel: what normalises rows goes over them once.
      ties_transfers: barriers hold copies over the host's link, and rounding, to their places outside of loops, too.
      reads_host: element-wise kernels read the host's memory themselves: what they fetch takes no buffer.
      tile: rows and columns of the tiles in which arrays lie in memory, the last ones filled up; None where entries lie
        side by side.
      element_work: where loops are fused by what that saves, arithmetic operations per element of primitives that take
        more than one; None where they are fused by rules.
    """

    name: str
    library_groups: bool = False
    dot_copies: bool = False
    batch_copies: bool = False
    transposes_late: bool = False
    filter_copies: bool = False
    widened_products: frozenset[str] = frozenset()
    rounded_results: frozenset[str] = frozenset()
    rewrites_products: bool = False
    small_products: int = 0
    written_again_bytes: float = math.inf
    splits_reductions: bool = False
    spreads_reciprocals: bool = False
    rolls_threefry: bool = False
    breadth_first: bool = False
    frees_first: bool = False
    expands_searches: bool = False
    scatters_maxima: bool = False
    fences_loop_bodies: bool = False
    names_in_pieces: bool = False
    scores_per_tile: int
    barrier_parts: int
    smallest_modelled_bytes: int
    pool_fraction: float
    pool_variable: str = ""
    reused_bytes: int | None = None
    times_loops: bool = False
    predicts_closely: bool = False
    reorders_iterations: bool = False
    products_compute_operands: bool = False
    rounds_operands: bool = False
    library_products: bool = False
    returns_workspace: bool = False
    fuses_windows: bool = False
    computes_entries_once: bool = False
    rows_in_one_kernel: bool = False
    ties_transfers: bool = False
    reads_host: bool = False
    tile: tuple[int, int] | None = None
    element_work: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)

    def late_writes(self, joint: Joint) -> dict[int, Eqn]:
        """What runs in the place of scans and scatters, by node, where what they write into would be made at first."""
        return joint.late_writes if self.breadth_first else {}

    def masks(self, joint: Joint) -> Masks:
        """What is written before anything else: masks whose indices kernels would compare, which then take rows that
        lie apart."""
        return joint.masks if self.rows_in_one_kernel else NO_MASKS

    def unfenced(self, eqns: Iterable[Eqn]) -> set[Var]:
        """What equations read that never enters a barrier, and is best never made again."""
        return searched_windows(eqns) if self.expands_searches else set()


def searched_windows(eqns: Iterable[Eqn]) -> set[Var]:
    """What gradients of pooling maxima search again for the maxima."""
    return set(vars_of([eqn.invars[1] for eqn in eqns if eqn.primitive.name == "select_and_scatter_add"]))
