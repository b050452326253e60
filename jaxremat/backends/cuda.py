"""XLA:GPU on NVIDIA devices.

Read in openxla/xla at `xla/backends/gpu/` and `xla/service/gpu/`: `softmax_rewriter_triton.cc` (rows in one kernel),
`priority_fusion.cc` and `multi_output_fusion.cc` (loops and reductions that read the same),
`fusion_dynamic_memcpy_rewriter.cc` and `gpu_hlo_schedule.cc` (in loops, slices are copied before all else, and copies
into stacks end after it).

Kernels run in the one of three orders that takes the fewest bytes (`hlo_memory_scheduler.cc`, over whole modules): by
what each frees, as a search finds them through what has most readers, or as one does through arguments in order. The
smaller of the first two is followed outside of loops (`cost/run_orders.py`); scanned transformers were found in the
third, so of a loop's body the larger of two counts (`tests/aot/test_gpu_rules.py` has a loop of either kind). Predicted
over compiled peak of plans for half of it, before and since: a scanned GPT .89 and 1.07, gated MLPs 1.16 and 1.12.
"""

import dataclasses

from jaxremat.backends.backend import Backend
from jaxremat.trace.primitives import ELEMENTWISE

# float32 on an H100, as `xla/service/gpu/model/hlo_op_profiles_data.h` has it; what that does not list takes 3. There,
# logistic is 1 / (1 + exp(-x)), erf a rational function, and random bits are twenty rounds of additions and rotations.
_LISTED = {
    "add": 7, "sub": 7, "div": 19, "sqrt": 75, "rsqrt": 75, "exp": 79, "exp2": 79, "logistic": 108, "erf": 130,
    "log": 166, "cbrt": 178, "expm1": 190, "log1p": 229, "erf_inv": 300, "random_bits": 300, "atan2": 431, "tanh": 467,
    "pow": 510, "sin": 958, "tan": 958, "cos": 978,
}  # fmt: skip
_ELEMENT_WORK = dict.fromkeys(ELEMENTWISE, 3) | _LISTED

CUDA = Backend(
    name="cuda",
    scores_per_tile=2**22,  # 1024 x 4096, the chunk sizes of Rabe & Staats 2021
    barrier_parts=16,
    times_loops=True,
    predicts_closely=True,
    frees_first=True,
    reorders_iterations=True,
    smallest_modelled_bytes=32 * 2**20,
    batch_copies=True,
    transposes_late=True,
    rewrites_products=True,
    small_products=10**7,  # `gpu_algebraic_simplifier.cc`
    written_again_bytes=2**20,  # of 4096 rows of 64 numbers, not of 4095: `tests/aot/test_gpu_rules.py`
    splits_reductions=True,
    filter_copies=True,
    returns_workspace=True,
    fuses_windows=True,
    computes_entries_once=True,
    rows_in_one_kernel=True,
    scatters_maxima=True,
    element_work=_ELEMENT_WORK,
    ties_transfers=True,
    reads_host=True,
    pool_fraction=0.75,  # JAX's page on GPU memory allocation
    pool_variable="XLA_PYTHON_CLIENT_MEM_FRACTION",
)

CUDA_TRIED = dataclasses.replace(CUDA, library_products=True)
"""Where kernels can be tried out, cuBLAS wins: on an H200, of the products of a ViT and a LLaMA of
`benchmarks/large.py` all without batch dimensions but the smallest and two kinds that turn what they read, and about
half of the others."""
