"""CompAct: training with low-rank saved activations, gradients and optimizer state (Shamshoum et al., NAACL 2025).

Of a selected layer y = xW the backward pass keeps xP instead of x; the optimizer sees the r x m gradient Pᵀ ∂W; its
update U enters the full weight as W + scale * P U. Deviations from the paper: layers that read the same input share one
P (the paper draws one per layer and keeps up to three projections of one input), and decay acts on the full weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxremat.base.errors import ArgumentError
from jaxremat.base.shapes import Int32
from jaxremat.compact.decay import decay_rates, is_decoupled
from jaxremat.compact.projection import compressed_shape, rank_last
from jaxremat.compact.selection import (
    Compression,
    check_rank,
    default_select,
    is_matrix,
    make_compression,
    named_leaves,
    rank_of,
)
from jaxremat.compact.update import Projections, drawn_late, moved_weight, shrunk_weight
from jaxremat.compact.weight import Parameter, whole
from jaxremat.compact.weight_tracer import Uses, compress, find_uses
from jaxremat.trace.jaxpr import read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompActState:
    """Everything that training carries from step to step; a pytree of arrays.

    Attributes:
      params: the full parameters.
      optimizer_state: the optimizer's state over `CompAct.trainable`: r x m moments for compressed weights.
      step: int32 scalar, the number of steps done; the projections are drawn from it and the seed.
      compressions: which parameters are compressed, and how (static).
    """

    params: Any
    optimizer_state: Any
    step: Int32[jax.Array, ""]
    compressions: tuple[Compression, ...] = dataclasses.field(metadata={"static": True})


class CompAct:
    """Trains any loss with any optimizer, keeping random projections of the inputs of selected weights.

    The loss value and the gradients of everything that is not selected, inputs included, are exact. Gradient clipping
    acts on the compressed gradients, whose expected squared norm is that of the full ones. Weight decay that is
    decoupled from the gradient (AdamW, Lion) decays the full weights; optimizers that use the weights in another way
    (an L2 term in the gradient, trust ratios) see Pᵀ W in their place.

    Args:
      loss: `loss(params, *batch)` -> a scalar, or (scalar, aux) with `has_aux`.
      optimizer: an optax optimizer, used on compressed variables and all other parameters alike.
      rank: width of the projections: an int, or a fraction of each weight's input width.
      scale: factor on the updates of compressed weights (the paper's alpha).
      refresh_every: steps between new projections; the optimizer's moments stay.
      select: `select(path, leaf) -> bool`, path such as `params/block_0/up/kernel`; None is `default_select`.
      seed: of the projections.
      has_aux: whether the loss returns (scalar, aux).

    Raises:
      ArgumentError: a rank, scale or refresh interval that means nothing.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        *,
        rank: int | float,
        scale: float = 0.25,
        refresh_every: int = 200,
        select: Callable[[str, Any], bool] | None = None,
        seed: int = 0,
        has_aux: bool = False,
    ) -> None:
        if isinstance(refresh_every, bool) or not isinstance(refresh_every, int) or refresh_every < 1:
            raise ArgumentError(f"refresh_every={refresh_every!r} is not a positive number of steps")
        if not scale > 0:
            raise ArgumentError(f"scale={scale!r} is not a positive number: nothing compressed would train")
        self._loss = loss
        self._optimizer = optax.with_extra_args_support(optimizer)
        self._rank = check_rank(rank)
        self._scale = scale
        self._refresh_every = refresh_every
        self._select = select
        self._seed = seed
        self._has_aux = has_aux

    def init(self, params: Any, *batch: Any) -> CompActState:
        """Prepares training of `params`.

        Args:
          params: the full parameters, arrays or shapes; the state holds them as they are.
          *batch: optional, arrays or shapes as `loss` takes them. With a batch the loss is read to find which axes of a
            selected parameter are its input; without, the last two axes are taken to be (input, output) and the axes
            before them to be stacked layers.

        Raises:
          ArgumentError: nothing is selected, or a selected parameter cannot be compressed; the message names it, what
            consumes it and what to do.
        """
        leaves = named_leaves(params)
        select = self._select or default_select
        chosen = [i for i, (path, leaf) in enumerate(leaves) if select(path, leaf)]
        for i in chosen:
            if not is_matrix(leaves[i][1]):
                raise ArgumentError(
                    f"{leaves[i][0]} is {leaves[i][1].dtype}{leaves[i][1].shape}: only floating-point arrays of two or "
                    "more dimensions can be compressed; leave it out of `select`"
                )
        in_axes = self._find_in_axes(params, batch, chosen) if batch else self._guess_in_axes(leaves, chosen)
        if not in_axes:
            hint = (
                "" if batch else "; pass a batch, init(params, *batch), so that stacked and many-axis weights are found"
            )
            raise ArgumentError(f"no parameter is selected among {', '.join(path for path, _ in leaves[:8])}...{hint}")
        compressions = tuple(make_compression(i, *leaves[i], axes, self._rank) for i, axes in in_axes.items())
        trainable = _trainable(params, compressions)
        return CompActState(params, self._optimizer.init(trainable), jnp.zeros((), jnp.int32), compressions)

    def trainable(self, state: CompActState) -> Any:
        """The parameters, each selected one replaced by its compressed variable: zeros, rank wide on the input axis."""
        return _trainable(state.params, state.compressions)

    def loss(self, trainable: Any, state: CompActState, *batch: Any) -> Any:
        """The loss, whose gradient for a selected leaf of `trainable` is the compressed gradient Pᵀ ∂W.

        Selected leaves of `trainable` are read for their derivative only: their value is taken to be zero.

        Args:
          trainable: as from `CompAct.trainable`; unselected parameters are taken from here.
          state: the full selected weights and the step, which decides the projections.
          *batch: what the loss takes.

        Returns:
          What the loss returns.
        """
        return self._compressed(state, batch)[0](trainable)

    def step(self, state: CompActState, *batch: Any) -> tuple[CompActState, dict[str, Any]]:
        """One optimizer step; pure, to be jitted with the state donated.

        Args:
          state: from `init` or an earlier step.
          *batch: what the loss takes.

        Returns:
          The next state, and metrics: `loss`, and `aux` with `has_aux`.
        """
        loss, uses = self._compressed(state, batch)
        trainable = self.trainable(state)
        value, gradients = jax.value_and_grad(loss, has_aux=self._has_aux)(trainable)
        value, metrics = (value[0], {"loss": value[0], "aux": value[1]}) if self._has_aux else (value, {"loss": value})
        params, optimizer_state = self._update(state, uses, trainable, gradients, value)
        return CompActState(params, optimizer_state, state.step + 1, state.compressions), metrics

    def _find_in_axes(self, params: Any, batch: Any, chosen: list[int]) -> dict[int, tuple[int, ...]]:
        uses = self._uses(read(self._loss, params, *batch), params, {i: None for i in chosen})
        if self._select is not None:
            _refuse(uses.refusals, named_leaves(params))
        leaves = jax.tree.leaves(params)
        found = {i: uses.in_axes[i] for i in chosen if i in uses.in_axes and i not in uses.refusals}
        if self._select is not None:
            return found
        width = lambda i: rank_of(1.0, leaves[i].shape, found[i])
        return {i: axes for i, axes in found.items() if rank_of(self._rank, leaves[i].shape, axes) < width(i)}

    def _guess_in_axes(self, leaves: Any, chosen: list[int]) -> dict[int, tuple[int, ...]]:
        shapes = {i: leaves[i][1].shape for i in chosen}
        if self._select is None:
            shapes = {i: s for i, s in shapes.items() if len(s) == 2 and rank_of(self._rank, s, (0,)) < s[0]}
        return {i: (len(shape) - 2,) for i, shape in shapes.items()}

    def _uses(self, program: Any, params: Any, in_axes: dict[int, tuple[int, ...] | None]) -> Uses:
        """What the loss does with the parameters whose leaf numbers are given."""
        wanted = program.jaxpr.outvars[:1] if self._has_aux else program.jaxpr.outvars
        found = []

        def look(*inputs: Any) -> None:
            weights = _weights(params, in_axes, inputs)
            found.append(find_uses(program.jaxpr, weights, wanted))

        jax.eval_shape(look, *[jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars])
        return found[-1]

    def _compressed(self, state: CompActState, batch: Any) -> tuple[Callable[..., Any], Uses]:
        """The loss as a function of the trainable tree alone, and what it does with the compressed weights."""
        program = read(self._loss, state.params, *batch)
        in_axes: dict[int, tuple[int, ...] | None] = {c.leaf: c.in_axes for c in state.compressions}
        uses = self._uses(program, state.params, dict.fromkeys(in_axes))
        _refuse(uses.refusals, named_leaves(state.params))
        _check_layouts(uses, state.compressions)
        wanted = program.jaxpr.outvars[:1] if self._has_aux else program.jaxpr.outvars
        key, full = self._key(state.step), jax.tree.leaves(state.params)

        def loss(trainable: Any) -> Any:
            given = jax.tree.leaves(trainable)
            variables = {c.leaf: rank_last(given[c.leaf], c.in_axes) for c in state.compressions}
            mixed = [lax.stop_gradient(full[i]) if i in variables else x for i, x in enumerate(given)]
            inputs = _weights(state.params, in_axes, [*mixed, *jax.tree.leaves(batch)], variables)
            return jax.tree.unflatten(program.out_tree, compress(program.jaxpr, inputs, wanted, uses, key))

        return loss, uses

    def _key(self, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._seed), step // self._refresh_every)

    def _update(self, state: CompActState, uses: Uses, trainable: Any, gradients: Any, value: Any) -> tuple[Any, Any]:
        """The full parameters and the optimizer state after one step."""
        leaves: list[Any] = jax.tree.leaves(state.params)
        treedef: Any = jax.tree.structure(state.params)
        chosen = [c.leaf for c in state.compressions]
        key = self._key(state.step)

        def update(params: Any) -> Any:
            extra = {"value": value, "grad": gradients}
            return self._optimizer.update(gradients, state.optimizer_state, params, **extra)

        if is_decoupled(update, trainable):
            rates = decay_rates(update, trainable, chosen)
        else:
            rates = [jnp.zeros(())] * len(chosen)
            trainable = self._shrunk(state, uses)
        updates, optimizer_state = update(trainable)
        flat = treedef.flatten_up_to(updates)
        after = [
            p if i in chosen else optax.apply_updates(p, u) for i, (p, u) in enumerate(zip(leaves, flat, strict=True))
        ]
        for group in sorted(set(uses.group.values())):
            members = [(c, rate) for c, rate in zip(state.compressions, rates) if uses.group.get(c.leaf) == group]
            late_key, moves = drawn_late(key, [flat[c.leaf] for c, _ in members])
            late = Projections(uses, late_key)
            for (c, rate), move in zip(members, moves):
                after[c.leaf] = moved_weight(leaves[c.leaf], move, c, late, scale=self._scale, rate=rate)
        return jax.tree.unflatten(treedef, after), optimizer_state

    def _shrunk(self, state: CompActState, uses: Uses) -> Any:
        leaves, treedef = jax.tree.flatten(self.trainable(state))
        full, projections = jax.tree.leaves(state.params), Projections(uses, self._key(state.step))
        for c in state.compressions:
            if c.leaf in uses.group:
                leaves[c.leaf] = shrunk_weight(full[c.leaf], c, projections)
        return jax.tree.unflatten(treedef, leaves)


def _trainable(params: Any, compressions: Sequence[Compression]) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    for c in compressions:
        weight, shape = leaves[c.leaf], compressed_shape(c.shape, c.in_axes, c.rank)
        leaves[c.leaf] = jnp.zeros(shape, weight.dtype, device=_variable_sharding(weight, c))
    return jax.tree.unflatten(treedef, leaves)


def _variable_sharding(weight: Any, compression: Compression) -> NamedSharding | None:
    """The sharding of a concrete weight without its input axes; None where there is nothing to follow."""
    sharding = None if isinstance(weight, jax.core.Tracer) else getattr(weight, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    spec = [*sharding.spec, *[None] * (len(compression.shape) - len(sharding.spec))]
    first, *gone = compression.in_axes
    spec[first] = None
    return sharding.update(spec=PartitionSpec(*[axis for a, axis in enumerate(spec) if a not in gone]))


def _weights(
    params: Any,
    in_axes: dict[int, tuple[int, ...] | None],
    inputs: Sequence[Any],
    variables: dict[Any, Any] | None = None,
) -> list[Any]:
    """The inputs of a program, those that are followed wrapped as weights."""
    names = named_leaves(params)
    out = list(inputs)
    for i, axes in in_axes.items():
        parameter = Parameter(i, names[i][0], tuple(names[i][1].shape), axes)
        out[i] = whole(parameter, inputs[i], variables and variables[i])
    return out


def _refuse(refusals: dict[int, str], leaves: Any) -> None:
    if refusals:
        reasons = "; ".join(f"{leaves[i][0]}: {reason}" for i, reason in refusals.items())
        raise ArgumentError(f"cannot be compressed, leave out of `select` -- {reasons}")


def _check_layouts(uses: Uses, compressions: Sequence[Compression]) -> None:
    for c in compressions:
        axes = uses.in_axes.get(c.leaf, c.in_axes)
        if axes != c.in_axes:
            raise ArgumentError(
                f"{c.path} {c.shape} was initialised with input axes {c.in_axes}, but the loss contracts its axes "
                f"{axes}: pass a batch to init, init(params, *batch), which reads the axes from the loss"
            )
