"""Command line: `python -m jaxremat plan module:function`, `show plan.json`, `targets`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from jaxremat.backends.devices import DEVICES
from jaxremat.base.budget import Budget
from jaxremat.base.errors import ArgumentError, JaxrematError
from jaxremat.compiled.targets import list_targets
from jaxremat.planner.decision import FORMS
from jaxremat.planning.load import load_plan
from jaxremat.planning.planning import plan
from jaxremat.planning.request import VERIFICATIONS
from jaxremat.planning.storage import read_plan
from jaxremat.report.report import Numbers
from jaxremat.show.stored import stored_to_text

_PROGRAM = "module:function that takes no arguments and returns (function to plan, tuple of its arguments)"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except JaxrematError as error:
        print(f"jaxremat: {error}", file=sys.stderr)
        return 1


def run_plan(options: argparse.Namespace) -> int:
    """Plans a program, prints the plan, and writes what was asked for."""
    fun, args = load_program(options.program)
    made = plan(
        fun, *args, budget=_budget(options.budget), argnums=options.argnums, has_aux=options.has_aux,
        target=options.target, emit=options.emit, verify=options.verify,
    )  # fmt: skip
    print(made)
    if options.save:
        made.save(options.save)
    if options.html:
        made.show(file=options.html)
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Prints a plan file; with its program, all that a plan shows."""
    if options.program:
        fun, args = load_program(options.program)
        print(load_plan(options.file, fun, *args))
        return 0
    stored = read_plan(options.file)
    numbers = Numbers(form=stored.decision.emit, compiled=stored.compiled, **stored.numbers)
    print(stored_to_text(numbers, stored.actions))
    return 0


def show_targets(_: argparse.Namespace) -> int:
    """Prints every target: whether it works here, and what to install where it does not."""
    for device, problem in list_targets():
        memory = f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else "this machine"
        print(f"{device.name:<8}  {device.platform:<5} {memory:>12}  {'works' if not problem else 'no: ' + problem}")
    return 0


def load_program(name: str) -> tuple[Callable, tuple]:
    """The function and arguments that `module:function` returns.

    Raises:
      ArgumentError: if it cannot be imported or returns something else.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"{name!r} cannot be loaded ({error}); give {_PROGRAM}") from error
    finally:
        sys.path.pop(0)
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise ArgumentError(f"{name!r} returned {type(made).__name__}; give {_PROGRAM}")
    return made[0], tuple(made[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxremat", description="Gradients of JAX functions that fit in your memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", help="plan a program and print the plan")
    planning.add_argument("program", help=_PROGRAM)
    planning.add_argument("--budget", required=True, help='bytes, "12GiB", or a fraction of the plain peak such as 0.5')
    planning.add_argument("--argnums", type=int, nargs="+", default=0, help="arguments to differentiate (default 0)")
    planning.add_argument("--has-aux", action="store_true", help="the function returns (result, auxiliary data)")
    planning.add_argument("--target", choices=sorted(DEVICES), help="device to plan for (default: this machine's)")
    planning.add_argument("--emit", choices=FORMS, default="schedule")
    planning.add_argument("--verify", choices=VERIFICATIONS, default="compile")
    planning.add_argument("--save", metavar="PLAN.json", help="write the plan here")
    planning.add_argument("--html", metavar="PLAN.html", help="write its display here")
    planning.set_defaults(run=run_plan)
    showing = commands.add_parser("show", help="print a plan file")
    showing.add_argument("file", help="what `plan --save` or Plan.save wrote")
    showing.add_argument("--program", help=f"{_PROGRAM}: shows the timeline and the costs too")
    showing.set_defaults(run=run_show)
    targets = commands.add_parser("targets", help="list the devices that this machine can compile for")
    targets.set_defaults(run=show_targets)
    return parser


def _budget(text: str) -> Budget:
    """A bare number with a point is a fraction; everything else is read as `jaxremat.plan` reads text."""
    try:
        return float(text) if "." in text else text
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
