"""Products merged and split in lowered programs; compiled programs are asked in tests/aot/test_gpu_rules.py."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cuda import CUDA_TRIED
from jaxremat.backends.devices import DEVICES
from jaxremat.cost.fused import reachable
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.hlo_ops import Templates
from jaxremat.cost.hlo_rewrites import rewritten

H200 = DEVICES["h200"]


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def program_of(fun, *args, device=H200):
    templates = Templates()
    return rewritten(lower(jax.make_jaxpr(fun)(*args).jaxpr, device.backend, templates), device, templates)


def operations(fun, *args, device=H200):
    program = program_of(fun, *args, device=device)
    return [program.ops[index] for index in reachable(program) if program.ops[index].kind != "input"]


def gradient_of_weights(x, y):
    return x.T @ y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parts_are_written_in_full_precision_and_summed_where_they_are_read(dtype):
    made = operations(gradient_of_weights, *[array(4096, 256, dtype=dtype)] * 2)
    multiplied, summed, *rounded = made
    assert multiplied.kind == "dot" and multiplied.size_bytes == 16 * 256 * 256 * 4
    assert multiplied.flops == 2 * 4096 * 256 * 256
    assert summed.kind == "window" and summed.window == 16 and summed.size_bytes == 256 * 256 * 4
    assert [op.kind for op in rounded] == ["convert_element_type"] * (dtype == jnp.bfloat16)
    assert made[-1].size_bytes == 256 * 256 * jnp.dtype(dtype).itemsize


def test_many_parts_are_summed_by_a_kernel_of_their_own():
    multiplied, summed = operations(gradient_of_weights, *[array(65536, 64)] * 2)
    assert summed.kind == "reduce" and summed.partition == (1, 128, 64 * 64) == multiplied.shape


def test_what_is_contracted_is_filled_up():
    kinds = [(op.kind, op.size_bytes) for op in operations(gradient_of_weights, *[array(500, 256)] * 2)]
    assert kinds[:2] == [("pad", 512 * 256 * 4)] * 2


@pytest.mark.parametrize("device", [DEVICES["cpu"], DEVICES["tpu-v5e"]], ids=["cpu", "tpu"])
def test_only_gpus_split_and_merge_products(device):
    both = lambda x, y, z: (x.T @ y, x.T @ z)
    kinds = {op.kind for op in operations(both, *[array(4096, 256)] * 3, device=device)}
    assert kinds.isdisjoint({"window", "slice"})


def test_whole_numbers_are_not_split():
    made = operations(gradient_of_weights, *[array(4096, 256, dtype=jnp.int32)] * 2)
    assert "window" not in [op.kind for op in made]


def both(x, w, v):
    return jnp.sin(x @ w), jnp.cos(x @ v)


SHAPES = array(16384, 128), array(128, 256), array(128, 512)


def test_a_merged_product_reads_what_is_not_shared_side_by_side_and_is_sliced():
    program = program_of(both, *SHAPES)
    (product,) = (index for index, op in enumerate(program.ops) if op.kind == "dot")
    assert program.ops[product].shape == (1, 16384, 768) and program.ops[product].size_bytes == 4 * 16384 * 768
    assert program.ops[product].flops == 2 * 16384 * 128 * 768
    assert [program.ops[read].shape for read in program.reads[product]] == [array.shape for array in SHAPES]
    slices = [op.shape for op in program.ops if op.kind == "slice"]
    assert slices == [(16384, 256), (16384, 512)]
    assert [program.ops[index].kind for index in program.outputs] == ["sin", "cos"]


def test_columns_come_last():
    program = program_of(lambda x, y, w: (x @ w, y @ w), SHAPES[0], SHAPES[0], SHAPES[1])
    (product,) = (index for index, op in enumerate(program.ops) if op.kind == "dot")
    assert program.ops[product].shape == (1, 2 * 16384, 256)
    assert program.ops[program.reads[product][-1]].shape == SHAPES[1].shape


def test_a_library_reads_one_array():
    tried = dataclasses.replace(H200, backend=CUDA_TRIED)
    kinds = [op.kind for op in operations(both, *SHAPES, device=tried)]
    assert kinds.count("concatenate") == 1


def test_a_merged_product_runs_before_all_that_reads_a_part_of_it():
    """The first is read before the second is written in the program."""

    def fun(x, w, v):
        first = jnp.sin(x @ w)
        return first, x @ jnp.exp(v)

    program = program_of(fun, *SHAPES)
    assert all(read < index for index, reads in enumerate(program.reads) for read in reads)
    assert [program.equations[index] for index in program.outputs] == [1, 3]
