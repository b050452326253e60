"""What a program is told by: a text that is the same for equal programs in any process, and its digest."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var

_PLACEMENT = re.compile(r"\b(out_)?sharding=(None|NamedSharding\(.*?spec=P\(.*?\)(, \w+=\w+)*\))|@(\([^)]*\)|\w+)")


def fingerprint(jaxpr: Jaxpr, seed: str = "") -> str:
    """A digest of what a jaxpr computes: primitives, parameters, shapes and wiring, not the values of constants."""
    digest = hashlib.sha256(seed.encode())
    for line in describe(jaxpr):
        digest.update(line.encode())
    return digest.hexdigest()


def fingerprint_anywhere(jaxpr: Jaxpr) -> str:
    """The same without where values lie on a mesh: a program is traced with that, or without."""
    lines = (_PLACEMENT.sub("", line) for line in describe(jaxpr))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(jaxpr: Jaxpr) -> list[str]:
    """One line per input and equation, the same for equal programs in any process."""
    number: dict[Var, int] = {}

    def refer(atom: Any) -> str:
        return f"%{number[atom]}" if isinstance(atom, Var) else f"{atom.val}:{atom.aval.str_short()}"

    lines = []
    for var in (*jaxpr.constvars, *jaxpr.invars):
        number[var] = len(number)
        lines.append(f"input {var.aval.str_short()}")
    for eqn in jaxpr.eqns:
        reads = ",".join(map(refer, eqn.invars))
        for var in eqn.outvars:
            number[var] = len(number)
        makes = ",".join(v.aval.str_short() for v in eqn.outvars)
        lines.append(f"{eqn.primitive.name}({reads})->{makes} {_stable_params(eqn)}")
    lines.append("return " + ",".join(map(refer, jaxpr.outvars)))
    return lines


def _stable_params(eqn: Eqn) -> str:
    parts = []
    for key, value in sorted(eqn.params.items()):
        if compat.is_jaxpr(value):
            parts.append(f"{key}={'|'.join(describe(value))}")
        elif isinstance(value, tuple) and value and all(map(compat.is_jaxpr, value)):
            parts.append(f"{key}={';'.join('|'.join(describe(v)) for v in value)}")
        elif not callable(value):
            parts.append(f"{key}={re.sub(r'0x[0-9a-f]+', '', str(value))}")
    return " ".join(parts)
