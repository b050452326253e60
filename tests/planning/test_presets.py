"""What is predicted of checkpoints by hand."""

import show_programs

import jaxremat


def test_loops_are_blocks():
    loss, args = show_programs.tower(layers=8, scan=True)
    front = jaxremat.pareto(loss, *args, budgets=(0.7,))
    none, full, dots = front.presets
    assert full.peak_bytes < dots.peak_bytes < none.peak_bytes
    assert full.overhead > dots.overhead > 0
