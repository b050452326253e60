"""What products contract, split into parts; the rows are what jax 0.12.0.1 compiles (tests/aot/test_gpu_rules.py)."""

import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.cost.split_products import Product, padded, parts_of


def product(batches, rows, columns, contracted, itemsize):
    return Product((batches, rows, columns, contracted), (itemsize, itemsize), 4, itemsize)


@pytest.mark.parametrize(
    ("target", "sizes", "parts"),
    [
        ("h200", (1, 256, 256, 4096, 4), 16),
        ("h200", (1, 64, 64, 65536, 4), 128),
        ("h200", (1, 96, 256, 256, 2), 8),
        ("h200", (1, 64, 3072, 4096, 2), 8),
        ("h200", (4, 64, 3072, 4096, 4), 2),
        ("h200", (4, 512, 3072, 50000, 4), 1),
        ("h200", (1, 8192, 512, 2048, 2), 1),
        ("h200", (1, 32, 32, 32, 4), 1),
        ("a100", (1, 64, 128, 16384, 4), 32),
        ("a100", (1, 2048, 256, 2048, 2), 2),
        ("a100", (4, 64, 128, 16384, 2), 16),
        ("a100", (1, 200, 1024, 50000, 2), 8),
    ],
)
def test_few_tiles_are_split_until_they_fill_the_cores(target, sizes, parts):
    assert parts_of(product(*sizes), DEVICES[target]) == parts


def test_parts_are_as_long_and_aligned():
    assert padded(product(1, 256, 256, 500, 4), 8) == 512
    assert padded(product(1, 200, 1024, 50000, 4), 8) == 50016
    assert padded(product(1, 200, 1024, 50000, 2), 8) == 50048
    assert padded(product(1, 256, 256, 4096, 2), 16) == 4096
