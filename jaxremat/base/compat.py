"""The only room that touches what JAX does not promise to keep. Everything else imports these names.

Checked against jax 0.11.1 and 0.12.0.1 by tests/base/test_compat.py. Which form keeps its saving under which flag:

    form        default   JAX_REMAT3=1   JAX_REMAT_BARRIER_NO_COTANGENTS=1
    schedule    yes       yes            yes: the barrier is our own
    segments    yes       yes            not promised: the barrier is JAX's
    names       yes       yes            not promised: the barrier is JAX's

Bare callables as policies are ignored under JAX_REMAT3; policies of names are not. XLA:CPU honours barriers from
jaxlib 0.11.1 on.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax._src import ad_checkpoint as _ad_checkpoint
from jax._src import ad_util as _ad_util
from jax._src import config as _config
from jax._src import core as _core
from jax._src import effects as _effects
from jax._src import mesh as _mesh
from jax._src import shard_map as _shard_map
from jax._src import source_info_util as _source
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import batching as _batching
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.lax import lax as _lax
from jax._src.state import discharge as _discharge
from jax._src.state import types as _state
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType

HOST_MEMORY = "pinned_host"
"""The kind of memory of the host that devices copy from and to: JAX's name of it."""

PAGED_HOST_MEMORY = "unpinned_host"
"""The rest of the host's memory, which a trace of JAX takes for the device's."""

Jaxpr = _core.Jaxpr
Eqn = _core.JaxprEqn
Var = _core.Var
Literal = _core.Literal
DropVar = _core.DropVar
Atom = Var | Literal

_USUAL_NAMES = {"RematTraced": "checkpoint", "CheckpointName": "name"}

NamesToSave: Any = getattr(_ad_checkpoint, "SaveOnlyTheseNames", object)
"""jax 0.11 ignores, under JAX_REMAT3=1, policies of names that are not of this class; later ones ask any policy."""


def check_jaxpr(jaxpr: Jaxpr) -> None:
    """Type-checks a jaxpr; raises JAX's own JaxprTypeError."""
    _core.check_jaxpr(jaxpr)


def is_jaxpr(x: Any) -> bool:
    return isinstance(x, Jaxpr)


def consts_of(jaxpr: Jaxpr) -> list[Any]:
    """The constants that a jaxpr carries, one per `constvars`."""
    return list(jaxpr.consts)


def with_constants_as_inputs(jaxpr: Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """The same jaxpr with its constants as leading inputs, and their values."""
    return _partial_eval.convert_constvars_jaxpr(jaxpr), list(jaxpr.consts)


def without_dead_code(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr without equations that neither reach an output nor have an effect; inputs stay."""
    return _partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def bind(eqn: Eqn, inputs: list[Any]) -> list[Any]:
    """Applies an equation's primitive to new inputs, under its own context, name stack and source position."""
    stack = _source.current_name_stack() + eqn.source_info.name_stack
    with _source.user_context(eqn.source_info.traceback, name_stack=stack), eqn.ctx.manager:
        out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def variable_like(atom: Atom) -> Var:
    """A new variable of the type of another."""
    return Var(atom.aval)


def constant(value: Any) -> Atom:
    """What stands for a constant in a program: a literal for a number, else a variable."""
    aval = _core.typeof(value)
    return Literal(value, aval) if _core.is_literalable(value) else Var(aval)


def stack_of(*eqns: Eqn) -> Any:
    """The name stack of equations one inside the other, the outermost first; false where it is empty."""
    return sum((eqn.source_info.name_stack for eqn in eqns), _source.NameStack())


def placed_like(eqn: Eqn, other: Eqn) -> Eqn:
    """An equation at the place in the source, and in the name stack, of another."""
    return eqn.replace(source_info=other.source_info)


def rewired(eqn: Eqn, invars: list[Atom], outvars: list[Var], within: Any = ()) -> Eqn:
    """An equation that reads and makes other variables, and stands within a name stack."""
    source = eqn.source_info
    if within:
        source = source.replace(name_stack=within + source.name_stack)
    effects = _moved_effects(eqn, invars) if eqn.effects else eqn.effects
    return eqn.replace(invars=invars, outvars=outvars, source_info=source, effects=effects)


def _moved_effects(eqn: Eqn, invars: list[Atom]) -> set[Any]:
    """The effects of an equation; those on what it reads are on other variables then."""
    now = {old: new for old, new in zip(eqn.invars, invars) if isinstance(old, Var)}
    on_inputs = _effects.JaxprInputEffect
    return {effect.replace(now[effect.input]) if isinstance(effect, on_inputs) else effect for effect in eqn.effects}


def folded(eqn: Eqn, reads: Sequence[Atom]) -> list[Literal] | None:
    """The results of an equation that JAX works out while it traces, since it reads literals only; else None."""
    rule = _partial_eval.const_fold_rules.get(eqn.primitive)
    literals = [atom.val for atom in reads if isinstance(atom, Literal)]
    if rule is None or len(literals) < len(reads):
        return None
    avals = [var.aval for var in eqn.outvars]
    values = rule(literals, eqn.params, avals)
    return None if values is None else [Literal(value, aval) for value, aval in zip(values, avals)]


def barrier(invars: list[Atom]) -> Eqn:
    """An optimization barrier around some variables."""
    return _core.new_jaxpr_eqn(invars, [Var(v.aval) for v in invars], _lax.optimization_barrier_p, {}, _core.no_effects)


def assembled(like: Jaxpr, eqns: Sequence[Eqn], outvars: Sequence[Atom], constants: dict[Var, Any]) -> Jaxpr:
    """A program of equations, with the inputs and the number of results of another."""
    names = list(constants)
    return like.replace(
        constvars=names,
        consts=list(constants.values()),
        eqns=list(eqns),
        outvars=list(outvars),
        effects=_partial_eval.make_jaxpr_effects(names, like.invars, outvars, eqns),
        debug_info=like.debug_info,
    )


def derivative_rule(eqn: Eqn) -> Callable[..., list[Any]]:
    """The rule of a `custom_jvp_call`: from its inputs, then their tangents, to its outputs, then theirs."""
    _, rule = eqn.primitive.get_bind_params(eqn.params)["subfuns"]
    return rule.call_wrapped


@contextlib.contextmanager
def at_position_of(eqn: Eqn) -> Iterator[None]:
    """Work done inside is attributed to the equation's source position and name stack."""
    stack = _source.current_name_stack() + eqn.source_info.name_stack
    with _source.user_context(eqn.source_info.traceback, name_stack=stack), eqn.ctx.manager:
        yield


@contextlib.contextmanager
def in_body_of(*eqns: Eqn) -> Iterator[None]:
    """Work done inside is traced as in a body of nested equations: the axes of a shard_map are manual there."""
    with contextlib.ExitStack() as stack:
        for eqn in eqns:
            if eqn.primitive.name == "shard_map":
                stack.enter_context(_manual_axes(eqn))
        yield


@contextlib.contextmanager
def _manual_axes(eqn: Eqn) -> Iterator[None]:
    mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
    with (
        _shard_map._extend_axis_env(mesh, axes),
        _mesh.use_abstract_mesh(_shard_map._as_manual_mesh(mesh, axes)),
        _config._check_vma(eqn.params["check_vma"]),
    ):
        yield


def in_row_major(x: Any) -> Any:
    """An array that compilers lay out as they do the arguments and results of a program."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def zeros_of(aval: Any) -> Any:
    """Zeros of an abstract value, sharded over and varying along the same axes; keys of zeros for PRNG keys."""
    with on_mesh_of(aval):
        if jax.numpy.issubdtype(aval.dtype, jax.dtypes.extended):
            return jax.lax.full(aval.shape, 0, aval.dtype)
        return _ad_util.zeros_like_aval(aval)


def on_mesh_of(aval: Any) -> contextlib.AbstractContextManager[Any]:
    """Arrays that are made inside lie on the mesh of an abstract array, whether or not a mesh is set: outside of
    `jax.set_mesh`, the types of what comes in are all that says so."""
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    return contextlib.nullcontext() if mesh is None or mesh.empty else _mesh.use_abstract_mesh(mesh)


def instantiated(cotangent: Any) -> Any:
    """A cotangent as an array, where it may be a symbolic zero."""
    return zeros_of(cotangent.aval) if isinstance(cotangent, jax.custom_derivatives.SymbolicZero) else cotangent


def memory_kind(leaf: Any) -> str | None:
    """The kind of memory that the sharding of an array or a ShapeDtypeStruct asks for; a tracer has none to ask."""
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    return getattr(sharding, "memory_kind", None)


def in_host_memory(shape: jax.ShapeDtypeStruct) -> Any:
    """The abstract array of a shape that lies in the host's memory, as a trace takes it: JAX reads no memory kind from
    the sharding of a ShapeDtypeStruct."""
    aval: Any = jax.typeof(shape)
    return aval.update(memory_space=jax.memory.Space.Host)


def is_in_host_memory(aval: Any) -> bool:
    """Whether an abstract array lies in the host's memory."""
    return getattr(aval, "memory_space", None) == jax.memory.Space.Host


def placement(aval: Any) -> dict[str, Any]:
    """What an abstract array says of meshes, as arguments of ShapeDtypeStruct: how it is sharded over explicit axes,
    and along which manual axes it varies."""
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    kinds = set() if mesh is None or mesh.empty else set(mesh.axis_types)
    if kinds <= {AxisType.Auto}:
        return {}
    return {"sharding": aval.sharding, "manual_axis_type": aval.manual_axis_type}


def is_manual(aval: Any) -> bool:
    """Whether an abstract array is one device's share in a shard_map."""
    sharding = placement(aval).get("sharding")
    return sharding is not None and bool(sharding.mesh.manual_axes)


def name_stack(eqn: Eqn) -> str:
    """The name stack of an equation, such as `GPT/block_3/query`, transformations included (`jvp(GPT)/...`)."""
    return str(eqn.source_info.name_stack)


def source_line(eqn: Eqn) -> str:
    """`file.py:12 (function)` of the user's frame that made the equation, or an empty string."""
    frame = _source.user_frame(eqn.source_info.traceback)
    return f"{frame.file_name}:{frame.start_line} ({frame.function_name})" if frame else ""


def source_frames(eqn: Eqn) -> list[tuple[str, int, str]]:
    """(file, line, qualified function) of the frames outside JAX that made the equation, the innermost first."""
    frames = _source.user_frames(eqn.source_info.traceback)
    return [(frame.file_name, frame.start_line, frame.function_name) for frame in frames]


def call_frames(eqn: Eqn) -> list[tuple[str, int, str]]:
    """As `source_frames`, with the frames inside JAX."""
    traceback = eqn.source_info.traceback
    return [(frame.file_name, frame.line_num, frame.function_name) for frame in traceback.frames] if traceback else []


def traceback_of(eqn: Eqn) -> Any:
    """Where an equation was made, as something to compare: the equations of one derivative rule share it."""
    return eqn.source_info.traceback


def rule_name(eqn: Eqn) -> str:
    """The name of the function that a `custom_jvp_call` or `custom_vjp_call` equation calls, else empty."""
    body = eqn.params.get("call_jaxpr") if eqn.primitive.name.startswith("custom_") else None
    jaxpr = getattr(body, "jaxpr", body)
    return jaxpr.debug_info.func_name if jaxpr is not None and jaxpr.debug_info else ""


def scan_arity(eqn: Eqn) -> tuple[int, int]:
    """(number of constants, number of carries) of a scan equation; the other inputs are scanned over."""
    if "ft_in" in eqn.params:
        consts, carry, _ = (len(group.vals) for group in eqn.params["ft_in"].unpack())
        return consts, carry
    return eqn.params["num_consts"], eqn.params["num_carry"]


def mark(x: Any, name: str) -> Any:
    """An identity with a name that survives differentiation, whatever the remat flags; for analysis only."""
    return _ad_checkpoint.name_p.bind(x, name=name)


def as_mark(eqn: Eqn, name: str) -> Eqn:
    """An equation that names its input, whatever the remat flags, in the form of `mark`."""
    return eqn.replace(primitive=_ad_checkpoint.name_p, params={"name": name})


def linear_checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.checkpoint(fun, prevent_cse=False)` for functions that are transposed, which JAX_REMAT3's form cannot be."""

    def run(*args: Any) -> Any:
        with _config.remat3(False):  # jax 0.11 asks when it decorates, later ones when they run
            return jax.checkpoint(fun, prevent_cse=False)(*args)

    return run


def primitive_name(eqn: Eqn) -> str:
    """The name of an equation's primitive; what flags such as JAX_REMAT3=1 write in another form has its usual one."""
    wrapped = eqn.params.get("_prim")
    return eqn.primitive.name if wrapped is None else _USUAL_NAMES.get(type(wrapped).__name__, eqn.primitive.name)


def params_of(eqn: Eqn) -> dict[str, Any]:
    """The parameters of an equation, whichever form flags give it."""
    wrapped: Any = eqn.params.get("_prim")
    return eqn.params if wrapped is None else wrapped.params


def checkpoint_options(eqn: Eqn) -> dict[str, Any]:
    """What `jax.checkpoint` was given to make an equation: `policy` and `prevent_cse`."""
    return {key: params_of(eqn)[key] for key in ("policy", "prevent_cse")}


def name_of(eqn: Eqn) -> str | None:
    """The name that a `mark` or a `checkpoint_name` equation gives, else None."""
    return params_of(eqn)["name"] if primitive_name(eqn) == "name" else None


def names_inside(jaxpr: Jaxpr) -> Iterator[str]:
    """The names that `mark` and `checkpoint_name` give in a program, at every depth."""
    for eqn in jaxpr.eqns:
        name = name_of(eqn)
        if name is not None:
            yield name
        for inner in _core.jaxprs_in_params(eqn.params):
            yield from names_inside(inner)


def checkpoint_that_asks() -> Jaxpr | None:
    """The body of the `jax.checkpoint` that is asking its policy; None where that cannot be seen from here."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _ad_checkpoint.__file__ and is_jaxpr(frame.f_locals.get("jaxpr")):
            return frame.f_locals["jaxpr"]
        frame = frame.f_back
    return None


def trace_context() -> Any:
    """What a traced program depends on beside its function and arguments: precision, axis names, the mesh."""
    return _config.trace_context()


def is_ref(aval: Any) -> bool:
    """Whether an abstract value is that of a mutable `jax.Ref`."""
    return isinstance(aval, _state.AbstractRef)


def held_by(aval: Any) -> Any:
    """The abstract value that a `jax.Ref` holds, or the same of anything else."""
    return aval.inner_aval if is_ref(aval) else aval


def as_ref(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A shape that stands for a `jax.Ref` that holds such an array."""
    return shape.update(is_ref=True)


def with_refs_as_values(jaxpr: Jaxpr) -> Jaxpr:
    """The same program with the values of each `jax.Ref` that it makes in its place, as `jax.jit` lowers it; a Ref that
    comes from outside stays."""
    if _core.internal_mutable_array_effect not in jaxpr.effects:
        return jaxpr
    return _discharge.discharge_state(jaxpr, should_discharge=False, lower=False)


def axes_of_others(jaxpr: Jaxpr) -> set[str]:
    """Names along which a jaxpr communicates, and which a `vmap` or a `shard_map` around it binds."""
    return {str(effect.name) for effect in jaxpr.effects if isinstance(effect, _core.NamedAxisEffect)}


def mapped_axes(jaxpr: Jaxpr) -> set[str]:
    """Those that a `vmap` binds rather than a mesh."""
    return axes_of_others(jaxpr) - set(jax.sharding.get_abstract_mesh().manual_axes)


def differentiations(inputs: Sequence[Any]) -> list[str]:
    """The differentiations that some of the inputs take part in, the one to be applied first first: "forward" or
    "reverse". As far as is known here: inside a `jit`, nothing is known of what is around it.
    """
    passing = {id(tag): kind for x in inputs for tag, kind in _tangents(x)}
    order, trace = [], _core.trace_ctx.trace
    while isinstance(trace, _ad.JVPTrace | _ad.LinearizeTrace | _batching.BatchTrace):
        order.append(id(trace.tag))
        trace = trace.parent_trace
    return [passing[tag] for tag in order if tag in passing]


def primal_of(x: Any) -> Any:
    """The value under the differentiations that are passing through it."""
    while isinstance(x, _ad.JVPTracer | _ad.LinearizeTracer):
        x = x.primal
    return x


def have_tangents(inputs: Sequence[Any]) -> list[bool]:
    """Which of some values a differentiation is passing through, as far as is known here."""
    return [any(True for _ in _tangents(x)) for x in inputs]


def _tangents(x: Any) -> Iterator[tuple[Any, str]]:
    """(tag, kind) of every differentiation in which a value has a tangent."""
    while isinstance(x, _ad.JVPTracer | _ad.LinearizeTracer | _batching.BatchTracer):
        if isinstance(x, _ad.LinearizeTracer):
            yield x._trace.tag, "reverse" if x._trace.is_vjp else "forward"
        elif isinstance(x, _ad.JVPTracer) and not isinstance(x.tangent, _ad_util.Zero):
            yield x._trace.tag, "forward" if _config.use_direct_linearize.value else "reverse"
        x = x.val if isinstance(x, _batching.BatchTracer) else x.primal
