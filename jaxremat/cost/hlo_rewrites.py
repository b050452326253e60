"""What a compiler makes of a lowered program before it fuses: products merged, and split into parts.

What products that read the same are merged to, its readers slice; what they do not share it reads side by side, written
so for a library only. Parts of a product are written side by side in full precision, and summed where they are read
(`merged_products`, `split_products`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import Op, Templates
from jaxremat.cost.merged_products import contracts_of, merged_products, operands_of, shared_side
from jaxremat.cost.reductions import is_a_loop
from jaxremat.cost.split_products import Product, padded, parts_of

_SUMMED_WIDE = frozenset({"bfloat16", "float16"})  # GetGemmAccumulatorType
_UNSPLIT = frozenset({"int32"})  # neither of the libraries multiplies them (`splitk_rewriter.cc`)


def rewritten(program: HloProgram, device: Device, templates: Templates) -> HloProgram:
    """A lowered program as a device's compiler fuses it; `templates`: what is known of its equations."""
    return _Rewriter(program, device, templates).run() if device.backend.rewrites_products else program


class _Rewriter:
    """A program under way.

    Attributes:
      ops, reads, equations: as in `HloProgram`.
      place: for each operation of the program before, the one that computes the same.
    """

    def __init__(self, program: HloProgram, device: Device, templates: Templates) -> None:
        self.program, self._device, self._templates = program, device, templates
        self.ops: list[Op] = []
        self.reads: list[tuple[int, ...]] = []
        self.equations: list[int] = []
        self.place: dict[int, int] = {}
        self._group = {product: group for group in merged_products(program) for product in group}

    def run(self) -> HloProgram:
        """The program, in an order in which it can run: what is not merged stays in its own."""
        for index in range(len(self.program.ops)):
            waiting = [index]
            while waiting:
                missing = [read for read in self._needed(waiting[-1]) if read not in self.place]
                waiting += missing
                if not missing:
                    self._put(waiting.pop())
        place, before = self.place, self.program
        return dataclasses.replace(
            before,
            ops=self.ops,
            reads=self.reads,
            equations=self.equations,
            takes_over={place[part]: place[read] for part, read in before.takes_over.items()},
            outputs=tuple(place[index] for index in before.outputs),
            op_of={var: place[index] for var, index in before.op_of.items()},
        )

    def _needed(self, index: int) -> Sequence[int]:
        group = self._group.get(index)
        return self.program.reads[index] if group is None else [r for each in group for r in self.program.reads[each]]

    def _put(self, index: int) -> None:
        if index in self.place:
            return
        op, reads = self.program.ops[index], tuple(self.place[read] for read in self.program.reads[index])
        if index in self._group:
            self._put_merged(self._group[index])
        elif op.matrices is None:
            self.place[index] = self._append(op, reads, index)
        else:
            self.place[index] = self._multiplied(op, reads, index)

    def _append(self, op: Op, reads: tuple[int, ...], like: int) -> int:
        """Adds an operation of the same equation as one of the program before."""
        self.ops.append(op)
        self.reads.append(reads)
        self.equations.append(self.program.equations[like])
        return len(self.ops) - 1

    def _put_merged(self, group: tuple[int, ...]) -> None:
        """One product of what its members share with all that they do not, and a slice of it for each member."""
        before, first = self.program, group[0]
        side, ops = shared_side(before, group), [before.ops[product] for product in group]
        shared = self.place[operands_of(before, first)[side]]
        others = tuple(self.place[operands_of(before, product)[1 - side]] for product in group)
        if ops[0].in_library:
            others = (self._append(self._joined([self.ops[other] for other in others]), others, first),)
        reads = (shared, *others) if side == 0 else (*others, shared)
        product = self._multiplied(_together(self._templates, ops, side), reads, first)
        for index, op in zip(group, ops):
            piece = self._templates.resized(self.ops[product], "slice", op.shape, "merged").op
            self.place[index] = self._append(piece, (product,), index)

    def _joined(self, ops: Sequence[Op]) -> Op:
        shape = (sum(op.elements for op in ops),)
        return self._templates.resized(ops[0], "concatenate", shape, "merged").op

    def _multiplied(self, op: Op, reads: tuple[int, ...], like: int) -> int:
        """A product; of parts of what it contracts, and their sum, where it is split. Operands that cannot be cut into
        equal parts are filled up."""
        product = self._product(op, reads)
        parts = 1 if _UNSPLIT & {self.ops[read].dtype for read in reads} else parts_of(product, self._device)
        if parts == 1:
            return self._append(op, reads, like)
        batches, _, _, contracted = product.sizes
        share = padded(product, parts) / contracted
        cut = tuple(self._filled(read, share, like) for read in reads)
        summed, changed = _summed_dtype(op), self._templates.changed
        size_bytes = product.sum_itemsize * op.elements
        sizes = batches, parts, op.elements // batches
        multiplied = changed(op, shape=sizes, dtype=summed, size_bytes=parts * size_bytes, in_library=False)
        kind = "window" if is_a_loop(*sizes[1:]) else "reduce"
        like_sum = self._templates.resized(multiplied, kind, op.shape, "parts").op
        total = changed(like_sum, combines="add", window=parts, partition=sizes)
        made = self._append(total, (self._append(multiplied, cut, like),), like)
        if summed == op.dtype:
            return made
        rounded = self._templates.resized(op, "convert_element_type", op.shape, "parts").op
        return self._append(rounded, (made,), like)

    def _product(self, op: Op, reads: tuple[int, ...]) -> Product:
        assert op.matrices is not None
        itemsizes = tuple(np.dtype(self.ops[read].dtype).itemsize for read in (reads[0], reads[-1]))
        of_sum, of_result = np.dtype(_summed_dtype(op)).itemsize, np.dtype(op.dtype).itemsize
        return Product(op.matrices.sizes, itemsizes, of_sum, of_result)

    def _filled(self, read: int, share: float, like: int) -> int:
        """An operand with zeros behind what is contracted of it."""
        op = self.ops[read]
        if share == 1.0:
            return read
        filled = self._templates.resized(op, "pad", (round(op.elements * share),), "parts").op
        return self._append(filled, (read,), like)


def _together(templates: Templates, ops: Sequence[Op], side: int) -> Op:
    """The product of what some share, rows or columns, with all that they do not."""
    first = ops[0].matrices
    assert first is not None
    batches, rows, columns, _ = first.sizes
    lengths = sum(op.elements // (batches * (rows, columns)[side]) for op in ops)
    rows, columns = (rows, lengths) if side == 0 else (lengths, columns)
    return templates.changed(
        ops[0],
        shape=(batches, rows, columns),
        size_bytes=sum(op.size_bytes for op in ops),
        flops=sum(op.flops for op in ops),
        matrices=first._replace(rows=rows, columns=columns, contracts=contracts_of(first), is_flipped=False),
    )


def _summed_dtype(op: Op) -> str:
    return "float32" if op.dtype in _SUMMED_WIDE else op.dtype
