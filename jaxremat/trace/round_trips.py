"""Other forms in which a value can wait for its last readers, each a round trip of two equations.

    source -> stored (and scales) -> restored

The late readers of a source read what is restored instead. To a search this is a program like any other: keeping what
is stored in place of the source, and running the way back late, is one more thing that it may decide. Where both ways
run in one stretch of a schedule, the restored value is the source itself (`Joint.round_trips` tells which it is).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace import projections
from jaxremat.trace.bounds import Bounds
from jaxremat.trace.indices import Indices
from jaxremat.trace.mixing import mixed, scattered
from jaxremat.trace.primitives import LOOPS
from jaxremat.trace.projections import Readers
from jaxremat.trace.splice import Splice, at

BITS_PER_BYTE = 8  # so many masks in a byte
_STORE, _RESTORE = "store_as_", "restore_from_"


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a value before it runs.

    Attributes:
      shape: and dtype.
      maker: the name of the primitive that makes it.
      bounds: of an index: between which numbers all of it lies.
    """

    shape: jax.ShapeDtypeStruct
    maker: str
    bounds: Bounds | None = None


@dataclasses.dataclass(frozen=True)
class Storage:
    """A form in which values can be stored.

    Attributes:
      form: its name, such as "bits".
      takes: whether it stores a value.
      store: from the value, and what is known of it, to the arrays that wait: what is stored, and its scales where it
        has some.
      restore: from those, and what is known of the value, to the value.
      rounding: the most that a number is off by: of itself, or where rows have scales of the largest in its row.
      for_any_reader: whether it stores what no late equation reads, too: an early one that reads it may run again late.
      only_estimates: whether it stores what only gradients of weights are made of, which are then estimates, right on
        average; anything else that reads a value reads the value itself.
      for_all_readers: whether early equations read what comes back, too, so that they can run again from what waits.
    """

    form: str
    takes: Callable[[Source], bool]
    store: Callable[[jax.Array, Source], tuple[jax.Array, ...]]
    restore: Callable[[Sequence[jax.Array], Source], jax.Array]
    rounding: float = 0.0
    for_any_reader: bool = False
    only_estimates: bool = False
    for_all_readers: bool = False


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """One value with another form to wait in.

    Attributes:
      form: the name of its storage.
      way_there, way_back: the equations from the value to what may wait in its place, and from there to what late
        readers read.
    """

    form: str
    way_there: Eqn
    way_back: Eqn

    @property
    def source(self) -> Var:
        """The value."""
        return jaxprs.vars_of(self.way_there.invars)[0]

    @property
    def stored(self) -> Var:
        """What may wait in its place."""
        return self.waiting[0]

    @property
    def waiting(self) -> Sequence[Var]:
        """All that waits then: what is stored, and its scales."""
        return self.way_there.outvars

    @property
    def restored(self) -> Var:
        """What late readers read."""
        return self.way_back.outvars[0]

    @property
    def only_estimates(self) -> bool:
        """Whether what comes back is good for estimates only; see `Storage`."""
        return STORAGES[self.form].only_estimates


def _is_mask(value: Source) -> bool:
    """Whether packing saves bytes: rows shorter than a byte's bits would take as many bytes as before."""
    shape = value.shape
    return shape.dtype == jnp.bool_ and bool(shape.shape) and shape.shape[-1] >= BITS_PER_BYTE


BITS = Storage(
    "bits",
    _is_mask,
    lambda mask, value: (jnp.packbits(mask, axis=-1),),
    lambda waiting, value: jnp.unpackbits(waiting[0], axis=-1, count=value.shape.shape[-1]).astype(jnp.bool_),
)
"""Masks of one bit per element instead of one byte: lossless."""


def _integers(stored: Any) -> Storage:
    """Integers between known bounds as unsigned ones of fewer bits, counted from the lower bound: lossless.

    A barrier holds them: else XLA narrows where it widens again, in one kernel, and keeps what is wide until then.
    """
    most = int(jnp.iinfo(stored).max)

    def first(value: Source) -> Any:
        """The number that is stored as zero."""
        assert value.bounds is not None
        low, high = value.bounds
        return value.shape.dtype.type(0 if low >= 0 and high <= most else low)

    def takes(value: Source) -> bool:
        return (
            value.bounds is not None
            and value.bounds.high - value.bounds.low <= most
            and np.dtype(stored).itemsize < value.shape.dtype.itemsize
        )

    def store(x: jax.Array, value: Source) -> tuple[jax.Array, ...]:
        counted = x - first(value) if first(value) else x
        return (jax.lax.optimization_barrier(counted.astype(stored)),)

    def restore(waiting: Sequence[jax.Array], value: Source) -> jax.Array:
        counted = waiting[0].astype(value.shape.dtype)
        return counted + first(value) if first(value) else counted

    return Storage(np.dtype(stored).name, takes, store, restore, for_any_reader=True, for_all_readers=True)


INTEGERS = tuple(map(_integers, (jnp.uint8, jnp.uint16, jnp.uint32)))
"""The narrowest first."""


def is_worth_a_transfer(shape: jax.ShapeDtypeStruct) -> bool:
    """Arrays of numbers whose copy takes longer than to start it: at 64 GB/s a MiB takes 16 microseconds."""
    size_bytes = math.prod(shape.shape) * np.dtype(shape.dtype).itemsize
    return jnp.issubdtype(shape.dtype, jnp.inexact) and size_bytes >= 2**20


def _as_rows(x: jax.Array) -> jax.Array:
    lengths = [length for length in x.shape if length > 1]
    return x.reshape(-1, *lengths[-1:])


HOST = Storage(
    "host",
    lambda value: is_worth_a_transfer(value.shape),
    lambda x, value: (jax.device_put(x, jax.memory.Space.Host),),
    lambda waiting, value: jax.device_put(waiting[0], jax.memory.Space.Device),
)
"""The host's memory, over the link: only with permission, where the device has a link."""

ANY_ON_HOST = Storage(
    HOST.form,
    HOST.takes,
    lambda x, value: HOST.store(_as_rows(x), value),
    lambda waiting, value: HOST.restore(waiting, value).reshape(value.shape.shape),
    for_any_reader=True,
)
"""The same outside of loops, also for what only the forward reads: what runs again begins with it, as a layer does with
what enters it. As rows, since XLA:GPU fails on copies with more axes that readers want in another order ("Bitcast
cannot have different memory spaces")."""

BFLOAT16 = Storage(
    "bfloat16",
    lambda value: value.shape.dtype == jnp.float32 and bool(value.shape.shape),
    lambda x, value: (x.astype(jnp.bfloat16),),
    lambda waiting, value: waiting[0].astype(value.shape.dtype),
    rounding=2.0**-9,
)
"""Half the bytes of float32: rounded to the nearest of 8 bits."""

_LEAST_ROW = 32  # numbers that share a scale in the OCP Microscaling Formats, 2023
_SPREADING = ("div", "exp", "exp2", "expm1", "logistic", "pow", "square")
_LARGEST_INT8 = 127  # of eight bits, one of them the sign
_LARGEST_E4M3 = float(jnp.finfo(jnp.float8_e4m3fn).max)


def _has_rows(shape: jax.ShapeDtypeStruct) -> bool:
    """Whether a byte per number, and a scale per row, are fewer bytes."""
    wide = jnp.issubdtype(shape.dtype, jnp.floating) and np.dtype(shape.dtype).itemsize >= 2
    return wide and bool(shape.shape) and shape.shape[-1] >= _LEAST_ROW


def _scales(x: jax.Array, largest: float) -> jax.Array:
    """One per row: with it, the row's largest number is `largest`. Of a row that is not finite it is no number either:
    that takes a sum, since XLA:CPU's maxima pass over what is no number."""
    wide = x.astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) + jnp.sum(wide * 0, axis=-1, keepdims=True)
    least = jnp.full_like(most, jnp.finfo(jnp.float32).tiny)  # below it, compilers take numbers for zero
    return jnp.where(most < largest * least, least, most / largest)


def _to_e4m3(x: jax.Array, value: Source) -> tuple[jax.Array, ...]:
    scales = _scales(x, _LARGEST_E4M3)
    return (x.astype(jnp.float32) / scales).astype(jnp.float8_e4m3fn), scales


def _to_int8(x: jax.Array, value: Source) -> tuple[jax.Array, ...]:
    scales = _scales(x, _LARGEST_INT8)
    steps = jnp.floor(x.astype(jnp.float32) / scales + _scattered(x))
    return jnp.minimum(steps, jnp.full_like(steps, _LARGEST_INT8)).astype(jnp.int8), scales


def _scattered(x: jax.Array) -> jax.Array:
    """Numbers in [0, 1) that look random: the bits of each entry and its place in the row, mixed. Equal arrays are
    rounded alike, so that what runs again gives the same."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    spread = mixed(bits ^ scattered(jax.lax.broadcasted_iota(jnp.uint32, x.shape, x.ndim - 1)))
    return (spread >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def _rescaled(waiting: Sequence[jax.Array], value: Source) -> jax.Array:
    stored, scales = waiting
    return (stored.astype(jnp.float32) * scales).astype(value.shape.dtype)


E4M3 = Storage(
    "float8_e4m3",
    lambda value: _has_rows(value.shape) and value.maker in _SPREADING,
    _to_e4m3,
    _rescaled,
    rounding=2.0**-4,
)
"""A byte per number and a scale per row, for what spreads over magnitudes, such as exponentials: rounded to the nearest
of 4 bits, as COAT (Xi et al. 2024) keeps activations."""

INT8 = Storage(
    "int8",
    lambda value: _has_rows(value.shape) and value.maker not in _SPREADING,
    _to_int8,
    _rescaled,
    rounding=1 / _LARGEST_INT8,
)
"""A byte per number and a scale per row: rounded up or down at random, so that gradients are right on average, as
ActNN (Chen et al. 2021) asks of what is kept in few bits."""

PROJECTED = Storage(
    "projected",
    lambda value: projections.is_worth_projecting(value.shape),
    lambda x, value: projections.stored(x),
    lambda waiting, value: projections.restored(waiting, value.shape),
    only_estimates=True,
)
"""A random projection to a quarter of the width, for what only gradients of weights read, as CompAct (Shamshoum et al.
2024) keeps it: they are right on average."""

NARROW = ((BFLOAT16.form,), (E4M3.form, INT8.form))
"""Forms that round, only with permission: sets that are used together, the widest first."""
IN_BYTES = NARROW[1]
"""Those of a byte per number."""
PERMITTED = {"narrow": NARROW, "project": ((PROJECTED.form,),)}
"""Sets of inexact forms by permission."""


def permitted(allow: Set[str]) -> Sequence[tuple[str, ...]]:
    """The sets of forms that may be used together with some permissions, the nearest to exact first."""
    both = ((PROJECTED.form, *IN_BYTES),) if allow >= PERMITTED.keys() else ()
    return *(forms for permission in PERMITTED if permission in allow for forms in PERMITTED[permission]), *both


ON_HOST_OUTSIDE = "host, outside of loops"
"""The name of `ANY_ON_HOST` among storages; to readers of a plan its form is that of `HOST`."""
STORAGES: dict[str, Storage] = {
    storage.form: storage for storage in (BITS, *INTEGERS, HOST, BFLOAT16, E4M3, INT8, PROJECTED)
} | {ON_HOST_OUTSIDE: ANY_ON_HOST}
LOSSLESS = (BITS.form, *(storage.form for storage in INTEGERS))
"""Forms that need no permission."""
UNDONE = tuple(name for name in STORAGES if name not in LOSSLESS)
"""Forms that XLA undoes outside of loops, unless they are tied to what runs around them: it cancels the way there with
the way back, or keeps the source and goes there late. A form with scales is made by kernels of its own, and XLA:GPU
joins all of them at the end of the forward, unless a barrier stands behind each (`planner/hosted`)."""


def is_exact(form: str) -> bool:
    """Whether values come back from a form as they were."""
    return not (STORAGES[form].rounding or STORAGES[form].only_estimates)


def inexactness(forms: Sequence[str]) -> str:
    """How far values that wait in some forms may be off, in words; empty where all come back as they were."""
    rounded = [f"{form} (off by up to {STORAGES[form].rounding:.2g})" for form in forms if STORAGES[form].rounding]
    told = [f"values may wait rounded to {' or '.join(rounded)}"] if rounded else []
    if any(STORAGES[form].only_estimates for form in forms):
        told.append(
            f"gradients of weights may be estimates, off by {projections.DEVIATION:.2g} times themselves in each step"
            " and right on average: what they read waits as random projections"
        )
    return "; ".join(told)


def with_round_trips(jaxpr: Jaxpr, late: np.ndarray, forms: Sequence[str], weights: Set[Var] = frozenset()) -> Jaxpr:
    """The same program with a round trip for every value that some storage takes and some late equation reads,
    or might read if it ran again.

    Args:
      jaxpr: a flat program.
      late: [E] bool, equations whose reads go through the round trips.
      forms: names of storages; the first one that takes a value stores it.
      weights: inputs whose gradients may be estimates.
    """
    chosen = _choices(jaxpr, late, forms, Readers(jaxpr, late, weights))
    if not chosen:
        return jaxpr

    program, way = Splice(jaxpr), functools.cache(_traced_trip)
    results, early, later = program.inputs, program.inputs, program.inputs
    for eqn, is_late in zip(jaxpr.eqns, late):
        env = later if is_late else early
        program.put(eqn, env)
        made = {v: env[v] for v in eqn.outvars}
        for reader in (results, early, later):
            reader.update(made)
        for var in filter(chosen.__contains__, eqn.outvars):
            storage, value = chosen[var]
            later[var] = _put_trip(program, way(storage, value), made[var], eqn)
            early[var] = later[var] if storage.for_all_readers else made[var]
    return program.program([at(results, atom) for atom in jaxpr.outvars])


def _choices(
    jaxpr: Jaxpr, late: np.ndarray, forms: Sequence[str], readers: Readers
) -> dict[Var, tuple[Storage, Source]]:
    """What stores which values."""
    read_late = {v for eqn, is_late in zip(jaxpr.eqns, late) if is_late for v in jaxprs.vars_of(eqn.invars)}
    storages, indices = [STORAGES[form] for form in forms], Indices(jaxpr, late)
    chosen = {}
    for eqn, is_late in zip(jaxpr.eqns, late):
        if is_late or jaxprs.is_constant(eqn):
            continue
        for var in filter(_is_array, eqn.outvars):
            value = Source(jaxprs.shape_of(var), eqn.primitive.name, indices.bounds.get(var))
            taking = (each for each in storages if (var in read_late or each.for_any_reader) and each.takes(value))
            of_use = (each for each in taking if not each.only_estimates or readers.only_products(var))
            if storage := next(of_use, None):
                chosen[var] = storage, value
    return chosen


def _is_array(var: Var) -> bool:
    """Whether it is one of numbers."""
    return hasattr(var.aval, "shape") and not jnp.issubdtype(jaxprs.dtype_of(var), jax.dtypes.extended)


def _put_trip(program: Splice, trip: Jaxpr, source: Atom, maker: Eqn) -> Atom:
    """Adds a round trip where its source is made; returns what comes back."""
    env = {trip.invars[0]: source}
    for eqn in trip.eqns:
        program.put(compat.placed_like(eqn, maker), env)
    return at(env, trip.outvars[0])


def round_trips_in(jaxpr: Jaxpr) -> tuple[RoundTrip, ...]:
    """The round trips that `with_round_trips` put into a program."""
    ways_there = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if _form(eqn, _STORE)}
    ways_back = ((form, eqn) for eqn in jaxpr.eqns if (form := _form(eqn, _RESTORE)))
    return tuple(RoundTrip(form, ways_there[jaxprs.vars_of(eqn.invars)[0]], eqn) for form, eqn in ways_back)


def is_way_back(eqn: Eqn) -> bool:
    """Whether an equation is one that `with_round_trips` put into a program, from what waited to the value."""
    return bool(_form(eqn, _RESTORE))


def transferred_bytes(eqn: Eqn) -> tuple[int, int]:
    """Bytes that an equation copies (to the host, from the host): what it makes there, and what it reads of there; all
    trips of loops inside it counted."""
    trips = int(eqn.params["length"]) if eqn.primitive.name == "scan" else 1
    inner = (each for body in jaxprs.subjaxprs(eqn) for each in body.eqns if each.primitive.name in LOOPS)
    out, back = zip((0, 0), *map(transferred_bytes, inner))
    return _host_bytes(eqn.outvars) + trips * sum(out), _host_bytes(eqn.invars) + trips * sum(back)


def waiting_bytes(eqn: Eqn) -> int:
    """Bytes of the host's memory that an equation fills at once: what it makes there, and what one trip of loops inside
    it does."""
    inner = (each for body in jaxprs.subjaxprs(eqn) for each in body.eqns if each.primitive.name in LOOPS)
    return _host_bytes(eqn.outvars) + sum(map(waiting_bytes, inner))


def _host_bytes(atoms: Sequence[Atom]) -> int:
    return sum(jaxprs.array_bytes(v) for v in atoms if jaxprs.is_on_host(v))


def _traced_trip(storage: Storage, value: Source) -> Jaxpr:
    return jax.make_jaxpr(lambda x: _there_and_back(x, storage, value))(value.shape)


def _there_and_back(x: Any, storage: Storage, value: Source) -> Any:
    waiting = jax.jit(_named(lambda x: storage.store(x, value), _STORE + storage.form))(x)
    return jax.jit(_named(lambda *arrays: storage.restore(arrays, value), _RESTORE + storage.form))(*waiting)


def _named(fun: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of its own under a name that the equation of its call keeps."""

    def called(*arrays: Any) -> Any:
        return fun(*arrays)

    called.__name__ = called.__qualname__ = name
    return called


def _form(eqn: Eqn, prefix: str) -> str:
    """The storage that an equation leads to or from; empty for any other equation."""
    name = str(eqn.params.get("name", "")) if eqn.primitive.name in ("jit", "pjit") else ""
    return name.removeprefix(prefix) if name.startswith(prefix) else ""
