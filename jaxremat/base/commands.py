"""What the command line can do, known before anything is loaded to do it."""

from __future__ import annotations

import argparse
from typing import Any

import jaxremat

COMMANDS = {
    "plan": "plan a program and print the plan",
    "show": "print a plan file",
    "selftest": "try on this JAX and device what the library promises (a minute)",
    "targets": "list the devices that this machine can compile for",
}
EPILOGUE = (
    "exit status: 0, done; 1, no plan fits the budget, or a promise does not hold; 2, the command, its program or its"
    " file cannot be used"
)


def front() -> tuple[argparse.ArgumentParser, Any]:
    """The parser, and what takes the parsers of its commands."""
    description = "Gradients of JAX functions that fit in your memory."
    parser = argparse.ArgumentParser(prog="jaxremat", description=description, epilog=EPILOGUE)
    parser.add_argument("--version", action="version", version=f"jaxremat {jaxremat.__version__}")
    return parser, parser.add_subparsers(dest="command", required=True)
