"""Other forms in which a value can wait for its last readers, each a round trip of two equations.

    source -> stored -> restored

The late readers of a source read what is restored instead. To a search this is a program like any other: keeping what
is stored in place of the source, and running the way back late, is one more thing that it may decide. Where both ways
run in one stretch of a schedule, the restored value is the source itself (`Joint.round_trips` tells which it is).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primitives import LOOPS
from jaxremat.trace.splice import Splice, at

BITS_PER_BYTE = 8  # so many masks in a byte
_STORE, _RESTORE = "store_as_", "restore_from_"


@dataclasses.dataclass(frozen=True)
class Storage:
    """A form in which values can be stored.

    Attributes:
      form: its name, such as "bits".
      takes: whether it stores a value of this shape and dtype.
      store: from the value to what waits.
      restore: from what waits, and the shape and dtype of the value, to the value.
    """

    form: str
    takes: Callable[[jax.ShapeDtypeStruct], bool]
    store: Callable[[jax.Array], jax.Array]
    restore: Callable[[jax.Array, jax.ShapeDtypeStruct], jax.Array]


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """One value with another form to wait in.

    Attributes:
      form: the name of its storage.
      source, stored, restored: the value, what may wait in its place, and what late readers read.
      way_there, way_back: the equations between them.
    """

    form: str
    source: Var
    stored: Var
    restored: Var
    way_there: Eqn
    way_back: Eqn


def _is_mask(shape: jax.ShapeDtypeStruct) -> bool:
    """Whether packing saves bytes: rows shorter than a byte's bits would take as many bytes as before."""
    return shape.dtype == jnp.bool_ and bool(shape.shape) and shape.shape[-1] >= BITS_PER_BYTE


BITS = Storage(
    "bits",
    _is_mask,
    lambda mask: jnp.packbits(mask, axis=-1),
    lambda bits, like: jnp.unpackbits(bits, axis=-1, count=like.shape[-1]).astype(jnp.bool_),
)
"""Masks of one bit per element instead of one byte: lossless."""


def _is_worth_a_transfer(shape: jax.ShapeDtypeStruct) -> bool:
    """Arrays of numbers whose copy takes longer than to start it: at 64 GB/s a MiB takes 16 microseconds."""
    size_bytes = math.prod(shape.shape) * np.dtype(shape.dtype).itemsize
    return jnp.issubdtype(shape.dtype, jnp.inexact) and size_bytes >= 2**20


HOST = Storage(
    "host",
    _is_worth_a_transfer,
    lambda x: jax.device_put(x, jax.memory.Space.Host),
    lambda stored, like: jax.device_put(stored, jax.memory.Space.Device),
)
"""The host's memory, over the link: only with permission, where the device has a link."""

NARROW = Storage(
    "bfloat16",
    lambda shape: shape.dtype == jnp.float32 and bool(shape.shape),
    lambda x: x.astype(jnp.bfloat16),
    lambda stored, like: stored.astype(like.dtype),
)
"""Half the bytes: rounded to the nearest of 8 bits, so off by at most 2**-9 of itself; only with permission."""

STORAGES: dict[str, Storage] = {storage.form: storage for storage in (BITS, HOST, NARROW)}
UNDONE = (HOST.form, NARROW.form)
"""Forms that XLA undoes outside of loops, unless they are tied to what runs around them."""
LOSSLESS = (BITS.form,)
"""Forms that need no permission."""


def with_round_trips(jaxpr: Jaxpr, late: np.ndarray, forms: Sequence[str]) -> Jaxpr:
    """The same program with a round trip for every value that some storage takes and some late equation reads.

    Args:
      jaxpr: a flat program.
      late: [E] bool, equations whose reads go through the round trips.
      forms: names of storages; the first one that takes a value stores it.
    """
    wanted = {v for eqn, is_late in zip(jaxpr.eqns, late) if is_late for v in jaxprs.vars_of(eqn.invars)}
    chosen = {
        var: storage
        for eqn, is_late in zip(jaxpr.eqns, late)
        for var in eqn.outvars
        if var in wanted and not is_late and not jaxprs.is_constant(eqn) and (storage := _storage_of(var, forms))
    }
    if not chosen:
        return jaxpr

    program, way = Splice(jaxpr), functools.cache(_traced_trip)
    early, later = program.inputs, program.inputs
    for eqn, is_late in zip(jaxpr.eqns, late):
        env = later if is_late else early
        program.put(eqn, env)
        made = {v: env[v] for v in eqn.outvars}
        early.update(made)
        later.update(made)
        for var in filter(chosen.__contains__, eqn.outvars):
            trip = way(jaxprs.shape_of(var), chosen[var])
            later[var] = _put_trip(program, trip, made[var], eqn)
    return program.program([at(early, atom) for atom in jaxpr.outvars])


def _put_trip(program: Splice, trip: Jaxpr, source: Atom, maker: Eqn) -> Atom:
    """Adds a round trip where its source is made; returns what comes back."""
    env = {trip.invars[0]: source}
    for eqn in trip.eqns:
        program.put(compat.placed_like(eqn, maker), env)
    return at(env, trip.outvars[0])


def round_trips_in(jaxpr: Jaxpr) -> tuple[RoundTrip, ...]:
    """The round trips that `with_round_trips` put into a program."""
    ways_there: Mapping[Var, Eqn] = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if _form(eqn, _STORE)}
    return tuple(
        RoundTrip(form, ways_there[stored].invars[0], stored, eqn.outvars[0], ways_there[stored], eqn)  # type: ignore[arg-type]
        for eqn in jaxpr.eqns
        if (form := _form(eqn, _RESTORE))
        for stored in jaxprs.vars_of(eqn.invars)
    )


def transferred_bytes(eqn: Eqn) -> tuple[int, int]:
    """Bytes that an equation copies (to the host, from the host): what it makes there, and what it reads of there; all
    trips of loops inside it counted."""
    trips = int(eqn.params["length"]) if eqn.primitive.name == "scan" else 1
    inner = (each for body in jaxprs.subjaxprs(eqn) for each in body.eqns if each.primitive.name in LOOPS)
    out, back = zip((0, 0), *map(transferred_bytes, inner))
    return _host_bytes(eqn.outvars) + trips * sum(out), _host_bytes(eqn.invars) + trips * sum(back)


def _host_bytes(atoms: Sequence[Atom]) -> int:
    return sum(jaxprs.array_bytes(v) for v in atoms if jaxprs.is_on_host(v))


def _storage_of(var: Var, forms: Sequence[str]) -> Storage | None:
    if not hasattr(var.aval, "shape") or jnp.issubdtype(jaxprs.dtype_of(var), jax.dtypes.extended):
        return None
    shape = jaxprs.shape_of(var)
    return next((storage for storage in map(STORAGES.__getitem__, forms) if storage.takes(shape)), None)


def _traced_trip(shape: jax.ShapeDtypeStruct, storage: Storage) -> Jaxpr:
    return jax.make_jaxpr(lambda x: _there_and_back(x, storage))(shape)


def _there_and_back(x: Any, storage: Storage) -> Any:
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    store, restore = storage.store, lambda stored: storage.restore(stored, like)
    stored = jax.jit(_named(store, _STORE + storage.form))(x)
    return jax.jit(_named(restore, _RESTORE + storage.form))(stored)


def _named(fun: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of its own under a name that the equation of its call keeps."""

    def called(x: Any) -> Any:
        return fun(x)

    called.__name__ = called.__qualname__ = name
    return called


def _form(eqn: Eqn, prefix: str) -> str:
    """The storage that an equation leads to or from; empty for any other equation."""
    name = str(eqn.params.get("name", "")) if eqn.primitive.name in ("jit", "pjit") else ""
    return name.removeprefix(prefix) if name.startswith(prefix) else ""
