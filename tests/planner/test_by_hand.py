"""Blocks, as people put checkpoints around them."""

import show_programs

from jaxremat.planner.by_hand import blocks_of
from jaxremat.trace.joint import trace_joint


def test_blocks_are_numbered_siblings():
    loss, args = show_programs.tower(layers=3)
    joint = trace_joint(loss, *args)
    assert set(blocks_of(joint).tolist()) == {-1, 0, 1, 2}
    assert set(blocks_of(trace_joint(*_unpacked(show_programs.unnamed()))).tolist()) == {-1}


def _unpacked(program):
    return program[0], *program[1]
