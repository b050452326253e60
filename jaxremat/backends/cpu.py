"""XLA:CPU.

Read in openxla/xla at `xla/service/cpu/`: `cpu_compiler.cc` (order of passes), `library_rewriter.cc` and
`ynn_support.cc` (groups around contractions and reductions), `cpu_instruction_fusion.cc`, `dot_op_emitter.cc` and
`conv_canonicalization.cc` (operand layouts), and `xla/service/select_and_scatter_expander.cc`. Temporaries are one
aligned allocation of each run (`xla/pjrt/cpu/tracked_cpu_device_buffer.cc`), which the C library serves.
"""

from jaxremat.backends.backend import Backend

CPU = Backend(
    name="cpu",
    library_groups=True,
    predicts_closely=True,
    dot_copies=True,
    widened_products=frozenset({"bfloat16", "float16"}),  # float_normalization.cc, change_op_data_type.cc
    rounded_results=frozenset({"bfloat16"}),
    spreads_reciprocals=True,  # as compiled programs show; others divide (tests/cost, tests/aot)
    rolls_threefry=True,  # jax/_src/prng.py: the lowering for CPUs is the rolled one
    breadth_first=True,
    expands_searches=True,
    fences_loop_bodies=True,
    names_in_pieces=True,
    scores_per_tile=2**20,  # 4 MiB of float32: what stays in a core's cache
    barrier_parts=0,
    smallest_modelled_bytes=32 * 2**20,
    pool_fraction=1.0,
    reused_bytes=32 * 2**20,  # DEFAULT_MMAP_THRESHOLD_MAX in glibc's malloc.c: what is larger is mapped, and unmapped
)
