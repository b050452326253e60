"""XLA:GPU on NVIDIA devices."""

from jaxremat.backends.backend import Backend

CUDA = Backend(
    name="cuda",
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
    smallest_modelled_bytes=32 * 2**20,
    pool_fraction=0.75,  # XLA_PYTHON_CLIENT_MEM_FRACTION when it is not set: JAX's page on GPU memory allocation
)
