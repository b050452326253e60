"""Which products XLA:GPU makes one: those that read the same, of operands side by side (openxla/xla: `dot_merger.cc`).

Neither may need the other, and both of each two must be small. As compiled for an H200 by jax 0.12.0.1, what is not
shared and the result count, with 64 MiB at most: six shapes in float32 and one in bfloat16 change sides there; of eight
products of 16 MiB each, four become one, and the other four.

XLA decides about the order of dimensions after that, `hlo_orders` before: what is turned, as the queries, keys and
values of attention are for each head, counts as products of their own here. (A GPT of six layers, H200, within the
bytes of dots without batch dimensions: with those merged in the model too, the plan that was found takes 4.54 ms,
predicted 4.41; with them apart 4.31.)
"""

from __future__ import annotations

import collections
from collections.abc import Hashable

from jaxremat.cost.fused import reachable, readers_of
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import Matrices, Op
from jaxremat.trace.primitives import ELEMENTWISE

_MOST_BYTES = 64 * 2**20  # as compiled; tests/aot/test_gpu_rules.py asks on both sides of it


def merged_products(program: HloProgram) -> list[tuple[int, ...]]:
    """Products of a program that become one, as numbers of operations, in their order; see `shared_side`."""
    products = _Products(program)
    for candidates in products.by_operand():
        products.merge_among(candidates)
    return [tuple(group) for group in products.groups.values() if len(group) > 1]


def operands_of(program: HloProgram, product: int) -> tuple[int, int]:
    """What a product reads, in the order of its result's rows and columns."""
    matrices, (first, second) = program.ops[product].matrices, program.reads[product]
    return (second, first) if matrices is not None and matrices.is_flipped else (first, second)


def contracts_of(matrices: Matrices) -> tuple[tuple[int, ...], ...]:
    """What is contracted of what a product reads, in that order."""
    return matrices.contracts[::-1] if matrices.is_flipped else matrices.contracts


def shared_side(program: HloProgram, group: tuple[int, ...]) -> int:
    """Which operand all products of a group read: 0, that of the rows, or 1, that of the columns."""
    first, second = (operands_of(program, product) for product in group[:2])
    return 0 if first[0] == second[0] else 1


class _Products:
    """Products under way to become one.

    Attributes:
      groups: by the first of each.
    """

    def __init__(self, program: HloProgram) -> None:
        self._program = program
        live = reachable(program)
        turned = self._turned(live)
        products = [index for index in live if program.ops[index].matrices is not None and index not in turned]
        self.groups = {product: [product] for product in products}
        self._merged: set[int] = set()
        self._bit = {product: 1 << k for k, product in enumerate(products)}
        self._before = self._products_before(live)

    def _products_before(self, live: list[int]) -> dict[int, int]:
        """For each product, the products that it needs, as bits."""
        needed: dict[int, int] = {}
        for index in live:
            bits = 0
            for read in self._program.reads[index]:
                bits |= needed[read] | self._bit.get(read, 0)
            needed[index] = bits
        return {product: needed[product] for product in self._bit}

    def _turned(self, live: list[int]) -> set[int]:
        """What is read in another order of its dimensions, or something that is computed of it entry by entry."""
        ops, turned = self._program.ops, set[int]()
        users = readers_of(self._program, live)
        for index in reversed(live):
            if any(_turns(ops[user]) or (user in turned and ops[user].kind in ELEMENTWISE) for user in users[index]):
                turned.add(index)
        return turned

    def by_operand(self) -> list[list[int]]:
        """Products that read the same operand in the same way, by operand."""
        classes: dict[tuple[int, Hashable], list[int]] = collections.defaultdict(list)
        for product in self.groups:
            matrices = self._program.ops[product].matrices
            assert matrices is not None
            for side, read in enumerate(operands_of(self._program, product)):
                contracts = contracts_of(matrices)
                how = (contracts, matrices.batches) if matrices.batches > 1 else contracts[side]
                classes[read, (side, how, self._dtypes(product, side))].append(product)
        return [classes[key] for key in sorted(classes, key=lambda key: key[0]) if len(classes[key]) > 1]

    def _dtypes(self, product: int, side: int) -> tuple[str, str]:
        ops, other = self._program.ops, operands_of(self._program, product)[1 - side]
        return ops[other].dtype, ops[product].dtype

    def merge_among(self, candidates: list[int]) -> None:
        """Makes products that read the same operand one where nothing forbids it: each with all that follow, unless it
        was merged before, by another operand maybe."""
        left = [product for product in candidates if product not in self._merged]
        while left:
            one, *others = left
            joined = [other for other in others if self._joins(one, other)]
            self._merged.update([one, *joined] if joined else ())
            left = [other for other in others if other not in joined]

    def _joins(self, one: int, other: int) -> bool:
        """Makes two products one, the first maybe one of several already; whether that can be."""
        bits = self._bit[one] | self._bit[other]
        needed = self._before[one] | self._before[other]
        larger = max(self._unshared_bytes(one, other), self._unshared_bytes(other, one))
        if larger > _MOST_BYTES or needed & bits:
            return False
        self.groups[one].append(other)
        self._bit[one], self._before[one], self._before[other] = bits, needed, needed
        self._before = {
            product: before | needed | bits if before & bits else before for product, before in self._before.items()
        }
        return True

    def _unshared_bytes(self, one: int, other: int) -> int:
        """What products that are one write, and read but for what another one reads, too."""
        ops, shared = self._program.ops, set(operands_of(self._program, other))
        group = self.groups[one]
        read = {each for product in group for each in operands_of(self._program, product)} - shared
        return sum(ops[index].size_bytes for index in (*group, *read))


def _turns(op: Op) -> bool:
    """Whether an operation reads what it reads in another order of dimensions: products of batches may."""
    return op.kind == "transpose" or (op.matrices is not None and op.matrices.batches > 1)
