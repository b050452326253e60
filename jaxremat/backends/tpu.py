"""XLA:TPU, through libtpu; its passes are not public, so its rules are what compiled programs show."""

from jaxremat.backends.backend import Backend

TPU = Backend(
    name="tpu",
    library_groups=False,
    dot_copies=False,
    widened_products=frozenset(),
    rounded_results=frozenset(),
    rolls_threefry=False,
    breadth_first=False,
    expands_searches=False,
    fences_loop_bodies=False,
    names_in_pieces=False,
    scores_per_tile=2**22,  # 1024 x 4096, the chunk sizes of Rabe & Staats 2021
    barrier_parts=(),
    smallest_modelled_bytes=32 * 2**20,
    pool_fraction=0.97,  # 15.75 of 16 GiB on a v5e, 31.25 of 32 on a v6e, by the compiler's own messages when full
)
