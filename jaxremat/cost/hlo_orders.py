"""In which order the dimensions of results lie, where the compiler chooses; see `hlo_views`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxremat.backends.backend import Backend
from jaxremat.cost.hlo_operations import Operations
from jaxremat.cost.hlo_ops import SCATTERS, Templates
from jaxremat.cost.hlo_views import View, view_of
from jaxremat.trace.primitives import ELEMENTWISE

_HANDS_ON = ELEMENTWISE | {"reduce", "fenced"}
_NEVER = sys.maxsize


class OrderedOperations(Operations):
    """Operations whose results lie in some order.

    Attributes:
      swapped: of products, how their results are transposed where the operands change places.
      places: of products, that of their equation in the program without recomputation.
      free: that place of products of matrices, whose results lie as they are read.
    """

    def __init__(self, backend: Backend, templates: Templates) -> None:
        super().__init__(backend, templates)
        self.swapped: dict[int, tuple[int, ...]] = {}
        self.places: dict[int, int] = {}
        self.free: dict[int, int] = {}
        self._moved: dict[int, View] = {}
        self._origins: list[int] = []
        self._copied_whole: list[bool] = []

    def lying(self, read: int) -> int:
        """What stands for an operation: the one that was computed in another order after all, if there is one."""
        moved = self._moved.get(read)
        if moved is None:
            return read
        return read.through(moved) if isinstance(read, View) else moved

    def in_order(self, read: int) -> int:
        """An operand whose dimensions lie in the order of its variable: copied where they do not."""
        return self._turned(read, sorted(read.order)) if isinstance(read, View) else read

    def like(self, view: View, read: int) -> int:
        """An operand of the shape of a view, computed so that it lies as that does: from copies where it has to be."""
        if isinstance(read, View):
            return int(read) if read.order == view.order else self._turned(read, view.order)
        lying: dict[int, int] = {}
        for index in self._computed_lying(read):
            operands = [lying.get(each) or self._lies_like(view, each) for each in self.reads[index]]
            lying[index] = self._again(index, view.sizes, tuple(operands))
        if self.is_free(view, read):
            self._moved |= {index: view.of(made) for index, made in lying.items()}
        return lying.get(read) or self._lies_like(view, read)

    def is_free(self, view: View, read: int) -> bool:
        """Whether an operand of the shape of a view can lie as that does without a copy: products of matrices write
        rows and columns in either order."""
        if isinstance(read, View):
            return False
        return all(self._is_free_product(view, each) for each in self._bases(read))

    def lies_anyhow(self, read: int) -> bool:
        """Whether nothing gives the result of an operation an order: what is spread, or scattered into that."""
        if isinstance(read, View):
            return False
        base = self.reads[read][0] if self.ops[read].kind in SCATTERS else read
        return self.ops[base].kind == "broadcast"

    def spread_otherwise(self, read: int, shape: tuple[int, ...]) -> int | None:
        """What is computed from nothing but what is spread, as outer products are, transposed: it is spread over the
        other shape at once. None of anything else."""
        chain = () if isinstance(read, View) else self._computed_lying(read)
        if not chain or self._bases(read):
            return None
        made: dict[int, int] = {}
        for index in chain:
            operands = tuple([made.get(each, each) for each in self.reads[index]])
            made[index] = self._again(index, shape, operands)
        return made[read]

    def _bases(self, read: int) -> list[int]:
        """What an operand is computed from entry by entry, but for what is spread."""
        chain = self._computed_lying(read)
        found = [each for index in chain for each in self.reads[index]] if chain else [read]
        return [each for each in dict.fromkeys(found) if each not in chain and self.ops[each].kind != "broadcast"]

    def _is_free_product(self, view: View, read: int) -> bool:
        return read in self.free and self.ops[read].shape == view.shape and view.order == self.swapped[read]

    def _computed_lying(self, read: int) -> list[int]:
        """The operations that are computed in another order, so that their result need not be copied."""
        found: set[int] = set()
        waiting = [read]
        while waiting:
            index = waiting.pop()
            if index not in found and self.ops[index].kind in ELEMENTWISE and not self._is_copied_whole(index):
                found.add(index)
                waiting += self.reads[index]
        return sorted(found)

    def _lies_like(self, view: View, read: int) -> int:
        if self.lies_anyhow(read):
            return read if self.ops[read].kind == "broadcast" else self._again(read, view.sizes, self.reads[read])
        if not self._is_free_product(view, read):
            return self._turned(view_of(read, view.shape), view.order)
        made = self._again(read, view.sizes, self.reads[read])
        self._moved[read], self.places[made] = view.of(made), self.free[read]
        return made

    def _again(self, index: int, sizes: tuple[int, ...], operands: tuple[int, ...]) -> int:
        """An operation on operands that lie otherwise, as its result does then."""
        op = self.ops[index]
        template = self.templates.merged(self.templates.changed(op, shape=sizes), ("lying", op))
        return self.merge(template, operands, self.equations[index])

    def _is_copied_whole(self, read: int) -> bool:
        """Whether what is copied into another order is a result, not what it is computed from: copies of all that it is
        computed from come after that (`move_copy_to_users.cc`)."""
        for index in range(len(self._copied_whole), read + 1):
            kind = self.ops[index].kind
            whole = kind not in ELEMENTWISE or all([self._copied_whole[each] for each in self.reads[index]])
            self._copied_whole.append(kind != "broadcast" and index not in self.free and whole)
        return self._copied_whole[read]

    def _turned(self, view: View, order: Sequence[int]) -> int:
        sizes = dict(zip(view.order, view.sizes))
        shape = tuple(sizes[place] for place in order)
        turns_rows = view.order[-1] != order[-1]
        made = self.templates.resized(self.ops[view], "transpose", shape, view.after(order), turns_rows=turns_rows)
        return self.merge(made, (int(view),))

    def origin(self, read: int) -> int:
        """The place of the first product of those whose order an operand has; what comes from none is last."""
        for index in range(len(self._origins), read + 1):
            hands_on = self.ops[index].kind in _HANDS_ON
            from_operands = [self._origins[each] for each in self.reads[index]] if hands_on else ()
            self._origins.append(self.places.get(index, min(from_operands, default=_NEVER)))
        return self._origins[read]
