"""Into how many parts XLA:GPU splits what a product contracts, where its tiles are too few for all cores.

The parts are written side by side, as a batch, and summed where the product is read. (openxla/xla:
`splitk_rewriter.cc`, from which the constants of its model are.)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from jaxremat.backends.devices import Device

_PARTS = tuple(2**power for power in range(12))  # candidates
_TILE = 128  # kMTileSize, kNTileSize
_MULTIPLY_AND_ADD = 2  # GetAlgoritmFlopsPerElement
_ALIGNED_BYTES = 16  # GetPaddedK


class Product(NamedTuple):
    """A product of two batches of matrices.

    Attributes:
      sizes: batches, rows, columns and contracted, as in `Matrices`.
      itemsizes, sum_itemsize, itemsize: bytes per entry of the operands, of what is summed, and of the result.
    """

    sizes: tuple[int, int, int, int]
    itemsizes: tuple[int, ...]
    sum_itemsize: int
    itemsize: int


class _Weights(NamedTuple):
    """What a generation of devices takes, in the unit of XLA's model (GetCostWeights).

    Attributes:
      operation: one arithmetic operation on a core.
      byte: one that a product reads or writes.
      summed_byte: one that the sum of parts reads or writes.
      sum_launch: that sum, however short.
    """

    operation: float
    byte: float
    summed_byte: float
    sum_launch: float


_WEIGHTS = {
    10: _Weights(100.0, 0.0848863, 189.711, 1.21563e08),
    9: _Weights(100.0, 0.194136, 193.1384, 4.36e07),
    0: _Weights(100.0, 0.0666955, 467.815, 5.65307e07),
}
"""By the least compute capability of the generation, the newest first."""


def parts_of(product: Product, device: Device) -> int:
    """Into how many parts a GPU's compiler splits what a product contracts; 1 where it does not."""
    return _parts_of(product, device.cores, device.compute_capability)


@functools.cache
def _parts_of(product: Product, cores: int, compute_capability: int) -> int:
    weights = next(weights for least, weights in _WEIGHTS.items() if compute_capability >= least)
    return min(_PARTS, key=lambda parts: _cost(product, parts, cores, weights))


def padded(product: Product, parts: int) -> int:
    """To how many entries what is contracted is filled up, so that all parts are as long, and aligned."""
    unit = parts * (_ALIGNED_BYTES // min(_ALIGNED_BYTES, *product.itemsizes))
    return -(-product.sizes[-1] // unit) * unit


def _cost(product: Product, parts: int, cores: int, weights: _Weights) -> float:
    """What a product takes that is split into parts, with their sum."""
    (batches, rows, columns, contracted), itemsizes, sum_itemsize, itemsize = product
    entries = batches * rows * columns
    tile = min(rows, _TILE) * min(columns, _TILE)
    tiles = batches * parts * math.ceil(rows / _TILE) * math.ceil(columns / _TILE)
    waves = max(1.0, tiles * tile / (cores * _TILE**2))
    operations = _MULTIPLY_AND_ADD * tile * math.ceil(contracted / parts) * waves
    read_bytes = batches * contracted * (rows * itemsizes[0] + columns * itemsizes[1])
    written_bytes = entries * (itemsize if parts == 1 else parts * sum_itemsize)
    multiplied = max(operations * weights.operation, (read_bytes + written_bytes) * weights.byte)
    if parts == 1:
        return multiplied
    summed_bytes = entries * (parts * sum_itemsize + itemsize)
    return multiplied + weights.sum_launch + summed_bytes * weights.summed_byte
