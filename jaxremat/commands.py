"""The commands of the command line: `plan module:function`, `show plan.json`, `targets`, `selftest`.

Exit status: 0, done; 1, no plan fits the budget, or a promise does not hold; 2, the command, its program or its file
cannot be used. What goes wrong is told on standard error, in a sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxremat
from jaxremat.backends.devices import DEVICES
from jaxremat.base.budget import Budget
from jaxremat.base.commands import COMMANDS, EPILOGUE, front
from jaxremat.base.errors import ArgumentError, BudgetError, JaxrematError
from jaxremat.compiled.targets import list_targets
from jaxremat.planner.decision import FORMS, told_form
from jaxremat.planning.entry import plan
from jaxremat.planning.load import load_plan
from jaxremat.planning.request import VERIFICATIONS
from jaxremat.planning.selftest import promises
from jaxremat.planning.storage import read_plan
from jaxremat.report.records import records_of
from jaxremat.report.report import Numbers
from jaxremat.show.stored import stored_to_text
from jaxremat.solvers.registry import SOLVERS

DONE, DOES_NOT_FIT, CANNOT_BE_USED = 0, 1, 2  # exit statuses, as docs/reading-a-plan.md has them
_PROGRAM = "module:function that takes no arguments and returns (function to plan, tuple of its arguments)"


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (BudgetError, BrokenPromise) as error:
        return _failed(error, DOES_NOT_FIT)
    except (JaxrematError, OSError) as error:
        return _failed(error, CANNOT_BE_USED)
    return DONE


def run_plan(options: argparse.Namespace) -> None:
    """Plans a program, prints the plan, and writes what was asked for."""
    fun, args = load_program(options.program)
    made = plan(
        fun, *args, budget=_budget(options.budget), argnums=options.argnums, has_aux=options.has_aux,
        solver=options.solver, target=options.target, emit=options.emit, verify=options.verify, seed=options.seed,
    )  # fmt: skip
    _print_plan(made, options.json)
    if options.save:
        made.save(options.save)
    if options.html:
        made.show(file=options.html)


def run_show(options: argparse.Namespace) -> None:
    """Prints a plan file; with its program, all that a plan shows."""
    if options.program:
        fun, args = load_program(options.program)
        _print_plan(load_plan(options.file, fun, *args), options.json)
        return
    stored = read_plan(options.file)
    form = told_form(stored.decision.emit, stored.decision.chunks)
    numbers = Numbers(form=form, compiled=stored.compiled, **stored.numbers)
    if options.json:
        _print_json({"summary": numbers.summary(), "values": stored.actions})
    else:
        print(stored_to_text(numbers, stored.actions))


def show_targets(options: argparse.Namespace) -> None:
    """Prints every target: whether it works here, and what to install where it does not."""
    found = list_targets()
    if options.json:
        _print_json([
            {"target": d.name, "platform": d.platform, "memory_bytes": d.memory_bytes, "problem": why}
            for d, why in found
        ])  # fmt: skip
        return
    for device, problem in found:
        memory = f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else "this machine"
        print(f"{device.name:<8}  {device.platform:<5} {memory:>12}  {'works' if not problem else 'no: ' + problem}")


def run_selftest(options: argparse.Namespace) -> None:
    """Prints each promise as it is tried.

    Raises:
      BrokenPromise: if one does not hold.
    """
    device = jax.devices()[0]
    print(f"jaxremat {jaxremat.__version__}, jax {jax.__version__}, {device.device_kind}", file=sys.stderr)
    tried = []
    for promise in promises():
        tried.append(promise)
        if not options.json:
            print(promise, flush=True)
    if options.json:
        _print_json([dataclasses.asdict(promise) for promise in tried])
    broken = [promise.name for promise in tried if not promise.holds]
    if broken:
        raise BrokenPromise(f"{len(broken)} of {len(tried)} promises do not hold here: {'; '.join(broken)}")


class BrokenPromise(JaxrematError):
    """What the library promises does not hold on this machine."""


def load_program(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function and arguments that `module:function` returns.

    Raises:
      ArgumentError: if it cannot be imported, fails, or returns something else.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"{name!r} cannot be loaded ({_told(error)}); give {_PROGRAM}") from error
    except Exception as error:  # whatever the user's module raises is told as the user's
        raise ArgumentError(f"{name!r} failed: {_told(error)}") from error
    finally:
        sys.path.pop(0)
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise ArgumentError(f"{name!r} returned {type(made).__name__}; give {_PROGRAM}")
    return made[0], tuple(made[1])


def _failed(error: Exception, status: int) -> int:
    print(f"jaxremat: {error}", file=sys.stderr)
    return status


def _told(error: Exception) -> str:
    """What went wrong, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, at {where.filename}:{where.lineno}"


def _print_plan(made: jaxremat.Plan, as_json: bool) -> None:
    if not as_json:
        print(made)
        return
    values = records_of((*made.saved, *made.recomputed))
    _print_json({"summary": made.summary(), "peak": dict(made.report.peak), "values": values})


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser, commands = front()
    planning = _command(commands, "plan", run_plan)
    planning.add_argument("program", help=_PROGRAM)
    planning.add_argument("--budget", required=True, help='bytes, "12GiB", or a fraction of the plain peak such as 0.5')
    planning.add_argument("--argnums", type=int, nargs="+", default=0, help="arguments to differentiate (default 0)")
    planning.add_argument("--has-aux", action="store_true", help="the function returns (result, auxiliary data)")
    planning.add_argument("--solver", choices=tuple(SOLVERS), default="auto", help="who decides the schedule")
    planning.add_argument("--seed", type=int, default=0, help="for solvers that draw random numbers")
    planning.add_argument("--target", choices=sorted(DEVICES), help="device to plan for (default: this machine's)")
    planning.add_argument("--emit", choices=FORMS, default="schedule")
    planning.add_argument("--verify", choices=VERIFICATIONS, default="compile")
    planning.add_argument("--save", metavar="PLAN.json", help="write the plan here")
    planning.add_argument("--html", metavar="PLAN.html", help="write its display here")
    showing = _command(commands, "show", run_show)
    showing.add_argument("file", help="what `plan --save` or Plan.save wrote")
    showing.add_argument("--program", help=f"{_PROGRAM}: shows the timeline and the costs too")
    _command(commands, "selftest", run_selftest)
    _command(commands, "targets", show_targets)
    return parser


def _command(commands: Any, name: str, run: Callable[..., Any]) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=COMMANDS[name], epilog=EPILOGUE)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _budget(text: str) -> Budget:
    """A bare number with a point is a fraction; everything else is read as `jaxremat.plan` reads text."""
    try:
        return float(text) if "." in text else text
    except ValueError:
        return text
