"""Modules read from their text: by hand, and of programs that were compiled."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.compiled.hlo_text import Array, dtype_bits, parse_hlo

TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/model.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %tuple.1 = (s32[], f32[8,4]{1,0}) tuple(%arg, %arg)
}

%condition (arg.1: (s32[], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %limit = s32[] constant(7)
  %i = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %away = f32[8,4]{1,0:S(5)} copy-start(%p), metadata={op_name="jit(step)/jvp(block)/dot \\"x\\"" stack_frame_id=1}
  %dot = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %loop = (s32[], f32[8,4]{1,0}) while(%away), condition=%condition, body=%body
  %known = (s32[], f32[8,4]{1,0}) while(%away), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %either = f32[8,4]{1,0} conditional(%p), branch_computations={%body, %condition}, METADATA
}
"""
MODULE = parse_hlo(TEXT.replace("METADATA", 'metadata={source_file="/a/b.py" source_line=3}'))
ENTRY = {each.name: each for each in MODULE.computations[MODULE.entry]}


def test_instructions_are_read_in_order_with_what_they_read_and_run():
    assert MODULE.entry == "main" and list(MODULE.computations) == ["body", "condition", "main"]
    assert list(ENTRY) == ["p", "away", "dot", "loop", "known", "either"]
    assert ENTRY["dot"].operands == ("p", "p") and ENTRY["p"].operands == ()
    assert set(ENTRY["loop"].called) == {"body"} and ENTRY["either"].called == ("body", "condition")
    assert ENTRY["dot"].opcode == "dot" and ENTRY["dot"].numbers("lhs_contracting_dims") == (0,)


def test_arrays_say_where_they_lie():
    assert ENTRY["away"].arrays == (Array("f32", (8, 4), on_host=True),)
    assert ENTRY["p"].arrays == (Array("bf16", (8, 4), in_vector_memory=True),)
    assert ENTRY["p"].size_bytes == 0, "vector memory is not counted"
    assert ENTRY["loop"].size_bytes == 4 + 8 * 4 * 4


def test_loops_run_as_often_as_is_known_or_counted():
    assert MODULE.trip_count(ENTRY["known"]) == 3 and MODULE.trip_count(ENTRY["loop"]) == 7
    assert MODULE.trip_count(ENTRY["dot"]) == 1


def test_sources_come_from_frames_or_stand_beside():
    assert MODULE.source(ENTRY["away"]) == "model.py:12" and MODULE.source(ENTRY["either"]) == "b.py:3"
    assert MODULE.source(ENTRY["dot"]) == "" == ENTRY["dot"].operation
    assert ENTRY["away"].operation.startswith("jit(step)/jvp(block)/dot")


@pytest.mark.parametrize(
    ("dtype", "bits"), [("bf16", 16), ("f8e4m3fn", 8), ("pred", 8), ("c64", 64), ("s4", 4), ("token", 0)]
)
def test_bits_of_dtypes(dtype, bits):
    assert dtype_bits(dtype) == bits


def test_half_bytes_are_rounded_up():
    assert Array("s4", (3,)).size_bytes == 2


def test_a_compiled_scan_is_a_loop_of_its_length():
    fun = lambda ws, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]
    compiled = jax.jit(fun).lower(jnp.ones((9, 4, 4)), jnp.ones((2, 4))).compile()
    module = parse_hlo(compiled.as_text())
    loops = [each for body in module.computations.values() for each in body if each.opcode == "while"]
    assert [module.trip_count(loop) for loop in loops] == [9]
    assert module.computations[module.entry][-1].size_bytes == 32
