"""A line about long work: in terminals alone, not at once, and gone in the end."""

import io
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.base.telling import listening, tell
from jaxremat.show import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(monkeypatch, stream, seconds):
    clock = iter([0.0, 0.0, seconds, seconds])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), progress.StatusLine("planning") as status:
        status.tell("1 compiled")
        raise KeyboardInterrupt
    return stream.getvalue()


def test_a_terminal_is_told_after_two_seconds_and_left_clean_when_interrupted(monkeypatch):
    text = told(monkeypatch, Terminal(), 2.5)
    assert text.startswith("\rplanning: 1 compiled\r")
    assert not text.rpartition("compiled")[2].strip()


@pytest.mark.parametrize("stream, seconds", [(Terminal(), 1.0), (io.StringIO(), 9.0)])
def test_quick_work_and_logs_are_told_nothing(monkeypatch, stream, seconds):
    assert told(monkeypatch, stream, seconds) == ""


def test_a_cell_is_told_in_a_line_that_is_empty_in_the_end(monkeypatch):
    drawn = []
    monkeypatch.setattr(progress, "notebook_shell", object)
    monkeypatch.setattr(progress, "_line_of_a_cell", lambda: drawn.append)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    with progress.StatusLine("planning"):
        tell("40 MiB predicted")
    assert drawn == ["planning: 40 MiB predicted", ""]


def test_what_is_told_inside_is_heard_by_the_innermost_listener_alone():
    outer, inner = [], []
    with listening(outer.append):
        with listening(inner.append):
            tell("one")
        tell("two")
    tell("three")
    assert (outer, inner) == (["two"], ["one"])


@pytest.mark.parametrize("whole_step", [False, True])
def test_plans_tell_of_their_predictions(monkeypatch, whole_step):
    drawn = []
    monkeypatch.setattr(progress, "_line", lambda: drawn.append)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)

    def loss(w, x):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    args = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((65536, 64), "float32")
    if whole_step:
        step = jaxremat.jit(lambda w, x: w - jax.grad(loss)(w, x), budget=0.7, verify="replay", donate_argnums=0)
        step.plan(*args)
    else:
        jaxremat.plan(loss, *args, budget=0.7, verify="replay")
    assert drawn.pop() == ""
    assert drawn and all(line.startswith("planning: ") and line.endswith("iB predicted") for line in drawn)
