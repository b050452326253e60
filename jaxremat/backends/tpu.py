"""XLA:TPU, through libtpu; its passes are not public, so its rules are what compiled programs show.

Each has a program in `tests/aot/test_tpu_rules.py`. A layer x + gelu(x @ w) of [65536, 128] in bfloat16 leaves one or
two values for its backward, never its tanh: fusions compute what they read again, those of products too, which also sum
what they make. What fits beside main memory is placed there, marked S(1) in the optimized program: six such layers need
64 MiB of main memory on a v5e. What divides rows divides; operands are read as they lie, from the host after a copy.
"""

from jaxremat.backends.backend import Backend

TPU = Backend(
    name="tpu",
    scores_per_tile=2**22,  # 1024 x 4096, the chunk sizes of Rabe & Staats 2021
    barrier_parts=0,
    times_loops=True,
    smallest_modelled_bytes=32 * 2**20,
    products_compute_operands=True,
    rounds_operands=True,
    tile=(8, 128),
    element_work={"random_bits": 300},  # transcendental functions have a unit of their own, and count as one operation
    pool_fraction=0.97,  # 15.75 of 16 GiB on a v5e, 31.25 of 32 on a v6e, by the compiler's own messages when full
)
