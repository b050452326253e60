"""What is transposed, as XLA:GPU has it: it lies as it was made, until something needs another order of its dimensions.

Products write their results in order. From the first one in the program on, an order goes through all that is done
entry by entry, through sums and through barriers; where two of them meet, what comes of the later product is copied.
(openxla/xla: `layout_assignment.cc`, `gpu_layout_assignment.cc`.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self


class View(int):
    """The number of an operation, for a variable whose dimensions lie in another order; those of one entry aside.

    Attributes:
      order: for each dimension as it lies, its place in the variable.
      sizes: of the dimensions as they lie.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]

    def __new__(cls, index: int, order: Sequence[int], sizes: Sequence[int]) -> Self:
        view = super().__new__(cls, index)
        view.order, view.sizes = tuple(order), tuple(sizes)
        return view

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the variable."""
        return tuple(size for _, size in sorted(zip(self.order, self.sizes)))

    def of(self, index: int) -> View:
        """The result of another operation, which lies like this one."""
        return View(index, self.order, self.sizes)

    @property
    def in_order_or_turned(self) -> int:
        """The number alone where nothing is turned, else the view."""
        return int(self) if list(self.order) == sorted(self.order) else self

    def through(self, moved: View) -> int:
        """The variable, of what was computed anew: its operation, whose dimensions lie in another order now."""
        return View(moved, [self.order[place] for place in moved.order], moved.sizes).in_order_or_turned

    def has_shape(self, shape: Sequence[int]) -> bool:
        """Whether the variable has a shape, dimensions of one entry aside."""
        return list(self.shape) == _wide(shape)

    def positions(self, places: Collection[int]) -> list[int]:
        """Where dimensions in some places lie."""
        return [position for position, place in enumerate(self.order) if place in places]

    def without(self, places: Collection[int]) -> View:
        """A view without the dimensions in some places."""
        kept = [(place, size) for place, size in zip(self.order, self.sizes) if place not in places]
        ranks = {place: rank for rank, (place, _) in enumerate(sorted(kept))}
        return View(self, [ranks[place] for place, _ in kept], [size for _, size in kept])

    def in_places(self, order: Sequence[int]) -> View | None:
        """The variable, were its dimensions to lie in an order; None where that does not say where all of them lie."""
        if len(order) != len(self.order):
            return None
        return View(self, order, [self.sizes[self.order.index(place)] for place in order])

    def after(self, order: Sequence[int]) -> tuple[int, ...]:
        """Where each dimension comes from when this is copied into an order."""
        return tuple(self.order.index(place) for place in order)


def view_of(read: int, shape: Sequence[int]) -> View:
    """An operand of a shape, however it lies."""
    if isinstance(read, View):
        return read
    sizes = _wide(shape)
    return View(read, range(len(sizes)), sizes)


def turned(read: int, shape: Sequence[int], permutation: Sequence[int]) -> int:
    """An operand of a shape, transposed without being moved."""
    view, wide = view_of(read, shape), [dim for dim in permutation if shape[dim] > 1]
    after = {place: position for position, place in enumerate(places(shape, wide))}
    return View(read, [after[place] for place in view.order], view.sizes).in_order_or_turned


def places(shape: Sequence[int], dims: Collection[int]) -> tuple[int, ...]:
    """The places of some dimensions of a shape among those of more than one entry."""
    wide = [dim for dim, size in enumerate(shape) if size > 1]
    return tuple(wide.index(dim) for dim in dims if shape[dim] > 1)


def _wide(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size > 1]
