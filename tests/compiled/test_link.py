"""Copies over the link in a compiled program: what they move, and what the schedule waits for them."""

import dataclasses

import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.compiled.hlo_text import parse_hlo
from jaxremat.compiled.link import Transfer, transfer_of
from jaxremat.compiled.roofline import roofline

DEVICE = dataclasses.replace(
    DEVICES["h200"], launch_seconds=0.0, bandwidth_bytes_per_second=1e9, host_bytes_per_second=1.25e8
)
MEGABYTE_SECONDS = 1e6 / 1e8  # over the link, at what long copies reach of it

THERE_AND_BACK = """HloModule jit_f, is_scheduled=true

ENTRY %main (x: f32[250000], y: f32[250000]) -> f32[250000] {
  %x = f32[250000]{0} parameter(0)
  %y = f32[250000]{0} parameter(1)
  %copy-start = (f32[250000]{0:S(5)}, f32[250000]{0}, u32[]) copy-start(%x)
  %work = f32[250000]{0} negate(%y)
  %copy-done = f32[250000]{0:S(5)} copy-done(%copy-start)
  %copy-start.1 = (f32[250000]{0}, f32[250000]{0:S(5)}, u32[]) copy-start(%copy-done)
  %copy-done.1 = f32[250000]{0} copy-done(%copy-start.1)
  ROOT %sum = f32[250000]{0} add(%work, %copy-done.1)
}
"""

STACKED = """HloModule jit_f, is_scheduled=true

%update (stack: f32[8,250000], x: f32[1,250000], i: s32[]) -> f32[8,250000] {
  %stack = f32[8,250000]{1,0:S(5)} parameter(0)
  %x = f32[1,250000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %updated = f32[8,250000]{1,0:S(5)} dynamic-update-slice(%stack, %x, %i, %zero)
}

ENTRY %main (stack: f32[8,250000], x: f32[1,250000], i: s32[]) -> f32[8,250000] {
  %stack.1 = f32[8,250000]{1,0:S(5)} parameter(0)
  %x.1 = f32[1,250000]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %start = (UPDATED) fusion-start(%stack.1, %x.1, %i.1), calls=%update
  ROOT %done = f32[8,250000]{1,0:S(5)} fusion-done(%start)
}
""".replace("UPDATED", "(f32[8,250000]{1,0:S(5)}, f32[1,250000]{1,0}, s32[]), f32[8,250000]{1,0:S(5)}, u32[]")


def waits(text):
    return {kernel.name: kernel.seconds for kernel in roofline(text, DEVICE).kernels if not kernel.moved_bytes}


def test_a_copy_takes_what_the_work_beside_it_does_not_hide():
    work = 2e6 / 1e9
    told = waits(THERE_AND_BACK)
    assert told["copy-done"] == pytest.approx(MEGABYTE_SECONDS - work)
    assert told["copy-done.1"] == pytest.approx(MEGABYTE_SECONDS)


def test_a_copy_moves_no_bytes_of_main_memory():
    assert roofline(THERE_AND_BACK, DEVICE).moved_bytes == 2e6 + 3e6


def test_of_a_stack_on_the_host_the_part_is_copied():
    start = next(each for each in parse_hlo(STACKED).computations["main"] if each.name == "start")
    assert transfer_of(start, []) == Transfer(size_bytes=10**6, to_host=True, runs_beside=True)
    assert waits(STACKED) == {"done": pytest.approx(MEGABYTE_SECONDS)}


def test_copies_in_one_direction_wait_for_each_other():
    twice = THERE_AND_BACK.replace("copy-start(%copy-done)", "copy-start(%y)").replace(
        "(f32[250000]{0}, f32[250000]{0:S(5)}, u32[]) copy-start",
        "(f32[250000]{0:S(5)}, f32[250000]{0}, u32[]) copy-start",
    )
    assert sum(waits(twice).values()) == pytest.approx(2 * MEGABYTE_SECONDS - 2e6 / 1e9)
