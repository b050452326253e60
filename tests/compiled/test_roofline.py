"""The roofline of optimized HLO: bytes, FLOPs and trip counts, by hand-written modules and by compiled ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.compiled.compile import compile_for
from jaxremat.compiled.hlo_text import Array, parse_hlo
from jaxremat.compiled.roofline import roofline

DEVICE = dataclasses.replace(DEVICES["h200"], launch_seconds=1e-6)

LOOP = """HloModule jit_f

FileNames
1 "/home/someone/model.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%fused_slice (param_0: f32[8,64,64], param_1: s32[], param_2: f32[64,64]) -> f32[64,64] {
  %param_0 = f32[8,64,64]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %param_2 = f32[64,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,64,64]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %flat = f32[64,64]{1,0} bitcast(%slice)
  ROOT %sum = f32[64,64]{1,0} add(%flat, %param_2)
}

%fused_update (param_0.1: f32[8,64,64], param_1.1: s32[], param_2.1: f32[1,64,64]) -> f32[8,64,64] {
  %param_0.1 = f32[8,64,64]{2,1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  %param_2.1 = f32[1,64,64]{2,1,0} parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = f32[8,64,64]{2,1,0} dynamic-update-slice(%param_0.1, %param_2.1, %param_1.1, %zero.1, %zero.1)
}

%body (state: (s32[], f32[64,64], f32[8,64,64])) -> (s32[], f32[64,64], f32[8,64,64]) {
  %state = (s32[], f32[64,64]{1,0}, f32[8,64,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%state), index=1
  %stack = f32[8,64,64]{2,1,0} get-tuple-element(%state), index=2
  %part = f32[64,64]{1,0} fusion(%stack, %i, %x), calls=%fused_slice, metadata={op_name="jit(f)/add" stack_frame_id=1}
  %product = f32[64,64]{1,0} dot(%part, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %again = f32[1,64,64]{2,1,0} bitcast(%product)
  %written = f32[8,64,64]{2,1,0} fusion(%stack, %i, %again), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[64,64]{1,0}, f32[8,64,64]{2,1,0}) tuple(%i, %product, %written)
}

%cond (state.1: (s32[], f32[64,64], f32[8,64,64])) -> pred[] {
  %state.1 = (s32[], f32[64,64]{1,0}, f32[8,64,64]{2,1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[64,64], f32[8,64,64])) -> (s32[], f32[64,64], f32[8,64,64]) {
  %a = (s32[], f32[64,64]{1,0}, f32[8,64,64]{2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[64,64], f32[8,64,64]) while(%a), body=%body, backend_config={"known_trip_count":{"n":"8"}}
}
"""
TILE = 4 * 64 * 64


def test_a_loop_runs_its_kernels_as_often_as_it_turns():
    report = roofline(LOOP, DEVICE)
    assert [kernel.runs for kernel in report.kernels] == [8, 8, 8]
    assert report.flops == 8 * 2 * 64**3


def test_a_loop_that_counts_to_a_number_runs_so_often():
    """As a TPU's compiler writes loops: the number stands in the condition."""
    counts = """  %limit = s32[]{:T(128)} constant(5)
  %now = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%now, %limit), direction=LT"""
    until = LOOP.replace(', backend_config={"known_trip_count":{"n":"8"}}', "").replace(
        "while(%a)", "while(%a), condition=%cond"
    )
    assert [kernel.runs for kernel in roofline(until, DEVICE).kernels] == [1, 1, 1]  # until something is found
    counted = until.replace("  ROOT %true = pred[] constant(true)", counts)
    assert [kernel.runs for kernel in roofline(counted, DEVICE).kernels] == [5, 5, 5]


@pytest.mark.parametrize(
    ("window", "labels", "shapes"),
    [
        ("size=16x8 stride=15x7 lhs_dilate=16x8", "0b1f_0o1i->01bf", ("16,512,8,64", "16,512,8,64", "16,8,512,512")),
        ("size=16x8 stride=16x8 pad=15_15x7_7 lhs_dilate=15x7 rhs_reversal=1x1", "0f1b_01oi->01fb",
         ("16,512,8,512", "16,8,64,512", "16,8,64,512")),
    ],
)  # fmt: skip
def test_many_products_are_one_convolution_with_gaps(window, labels, shapes):
    """16 x 8 products of 512 x 512 x 64, as a TPU's compiler writes them."""
    image, kernel, result = shapes
    text = (
        f"ENTRY %main (a: bf16[{image}], b: bf16[{kernel}]) -> bf16[{result}] {{\n"
        f"  %a = bf16[{image}]{{3,2,1,0}} parameter(0)\n  %b = bf16[{kernel}]{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %c = bf16[{result}]{{3,2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert roofline(text, DEVICE).flops == 2 * 16 * 8 * 512 * 512 * 64


def test_padding_is_no_work():
    text = (
        "ENTRY %main (a: f32[2,8,8,16], b: f32[3,3,16,32]) -> f32[2,8,8,32] {\n"
        "  %a = f32[2,8,8,16]{3,2,1,0} parameter(0)\n  %b = f32[3,3,16,32]{3,2,1,0} parameter(1)\n"
        "  ROOT %c = f32[2,8,8,32]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, "
        "dim_labels=b01f_01io->b01f\n}\n"
    )
    assert roofline(text, DEVICE).flops == 2 * 2 * 32 * 16 * (3 * 8 - 2) ** 2


def test_what_lies_in_vector_memory_is_not_moved():
    text = (
        "ENTRY %main (a: f32[8,128]) -> f32[8,128] {\n"
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)\n"
        "  %b = f32[8,128]{1,0:T(8,128)S(1)} add(%a, %a)\n"
        "  %c = f32[8,128]{1,0:T(8,128)S(1)} multiply(%b, %b)\n"
        "  ROOT %d = f32[8,128]{1,0:T(8,128)} negate(%c)\n}\n"
    )
    assert [kernel.moved_bytes for kernel in roofline(text, DEVICE).kernels] == [2 * 4096, 0, 4096]


def test_slices_and_updates_in_place_move_what_they_touch():
    part, product, written = roofline(LOOP, DEVICE).kernels
    assert part.moved_bytes == 3 * TILE + 4  # the slice, the other operand, the sum; and the index
    assert product.moved_bytes == 3 * TILE
    assert written.moved_bytes == 2 * TILE + 4  # the update is read and written, the stack around it is not


def test_seconds_are_the_slower_of_arithmetic_and_traffic_and_a_launch():
    part, product, _ = roofline(LOOP, DEVICE).kernels
    assert part.seconds == pytest.approx(8 * ((3 * TILE + 4) / 4.8e12 + 1e-6))
    slow = dataclasses.replace(DEVICE, matrix_flops_per_second=(1e9,) * 4)
    assert roofline(LOOP, slow).kernels[1].seconds == pytest.approx(8 * (2 * 64**3 / 1e9 + 1e-6))
    assert product.seconds < roofline(LOOP, slow).kernels[1].seconds


def test_kernels_know_their_operation_and_line():
    part = roofline(LOOP, DEVICE).kernels[0]
    assert (part.operation, part.source) == ("jit(f)/add", "model.py:7")


def test_library_convolutions_count_every_place_of_the_output():
    forward = "(f32[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), window={size=3x3 pad=1_1x1_1}"
    kinds = {
        "Forward": forward,
        "BackwardInput": "(f32[2,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%gradient, %kernel), window={size=3x3}",
        "BackwardFilter": "(f32[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%image, %gradient), window={size=3x3}",
    }
    for kind, call in kinds.items():
        text = (
            "ENTRY %main (image: f32[2,8,8,16]) -> f32[1] {\n"
            "  %image = f32[2,8,8,16]{3,2,1,0} parameter(0)\n  %kernel = f32[32,3,3,16]{3,2,1,0} parameter(1)\n"
            "  %gradient = f32[2,8,8,32]{3,2,1,0} parameter(2)\n"
            f'  ROOT %conv = {call}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{kind}"\n}}\n'
        )
        assert roofline(text, DEVICE).flops == 2 * (2 * 8 * 8 * 32) * (3 * 3 * 16), kind


def test_what_a_library_works_in_is_not_its_work():
    text = (
        "ENTRY %main (a: bf16[64,128], b: bf16[128,32]) -> f32[1] {\n"
        "  %a = bf16[64,128]{1,0} parameter(0)\n  %b = bf16[128,32]{1,0} parameter(1)\n"
        "  ROOT %product = (bf16[64,32]{1,0}, s8[33554432]{0}) custom-call(%a, %b),"
        ' custom_call_target="__cublas$lt$matmul", backend_config={"lhs_contracting_dimensions":["1"]}\n}\n'
    )
    time = roofline(text, DEVICE)
    assert time.flops == 2 * 64 * 32 * 128
    assert time.moved_bytes == 2 * (64 * 128 + 128 * 32 + 64 * 32)


@pytest.mark.parametrize(("tile", "slower"), [((1, 8, 512), False), ((8, 1, 512), True), ((1, 1, 512), False)])
def test_a_kernel_whose_rows_lie_apart_reads_slowly(tile, slower):
    sizes = ",".join(f'"{size}"' for size in tile)
    text = (
        "%inside (p: f32[64,512,512]) -> f32[64,512,512] {\n  %p = f32[64,512,512]{2,1,0} parameter(0)\n"
        "  ROOT %y = f32[64,512,512]{2,1,0} exponential(%p)\n}\n\n"
        "ENTRY %main (x: f32[64,512,512]) -> f32[64,512,512] {\n  %x = f32[64,512,512]{2,1,0} parameter(0)\n"
        "  ROOT %z = f32[64,512,512]{2,1,0} fusion(%x), kind=kCustom, calls=%inside,"
        f' backend_config={{"block_level_fusion_config":{{"output_tiles":[{{"sizes":[{sizes}]}}]}}}}\n}}\n'
    )
    (kernel,) = roofline(text, DEVICE).kernels
    alone = kernel.moved_bytes / DEVICE.bandwidth_bytes_per_second
    assert kernel.seconds - DEVICE.launch_seconds == pytest.approx(alone / (0.6 if slower else 1.0))


@pytest.mark.parametrize(("shape", "size"), [("bf16[3,5]", 30), ("pred[9]", 9), ("f8e4m3fn[7]", 7), ("s4[3]", 2)])
def test_sizes_of_arrays(shape, size):
    text = f"ENTRY %main (a: {shape}) -> {shape} {{\n  ROOT %a = {shape}{{0}} parameter(0)\n}}\n"
    assert parse_hlo(text).computations["main"][0].size_bytes == size
    assert isinstance(parse_hlo(text).computations["main"][0].arrays[0], Array)


def test_flops_of_a_compiled_program_are_those_of_its_contractions():
    def loss(w, x):
        return jnp.sum(jnp.einsum("bik,kj->bij", jnp.tanh(x), w))

    shapes = jax.ShapeDtypeStruct((64, 96), jnp.float32), jax.ShapeDtypeStruct((4, 32, 64), jnp.float32)
    compiled = compile_for(loss, shapes)
    assert compiled.report.seconds is None  # on a CPU, libraries hide their work
    assert roofline(compiled.hlo_text(), DEVICES["cpu"]).moved_bytes > 4 * (64 * 96 + 4 * 32 * 64)


@pytest.mark.aot
def test_reports_for_an_accelerator_carry_seconds_and_flops():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    w, x = jax.ShapeDtypeStruct((256, 256), jnp.float32), jax.ShapeDtypeStruct((512, 256), jnp.float32)
    report = compile_for(loss, ([w, w], x), target="h200").report
    assert report.flops == 2 * 512 * 256 * 256 * 5  # two products, two gradients of weights, one of an activation
    traffic = 5 * 4 * (2 * 512 * 256 + 256 * 256) / DEVICES["h200"].bandwidth_bytes_per_second
    assert traffic < report.seconds < 1e-3
