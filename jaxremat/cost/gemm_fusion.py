"""What XLA:GPU's products take before anything else is fused: what they alone read, and what alone reads them.

(openxla/xla: `gemm_fusion.cc`, `cudnn_fused_conv_rewriter.cc`.)
"""

from __future__ import annotations

import functools
import itertools

from jaxremat.cost.hlo_ops import Op
from jaxremat.cost.kernel_graph import CONSUMERS, PRODUCERS, KernelGraph
from jaxremat.trace.primitives import ELEMENTWISE

_MOST_PIECES = 7  # as compiled by jax 0.12.0.1; tests/aot/test_gpu_rules.py asks on both sides of it
_TILE = 64  # `kMinConcatFragmentSize` in `triton_tiling_propagation.cc`


def fuse_products(graph: KernelGraph) -> None:
    """Lets every contraction and convolution take what it computes."""
    for index in graph.live:
        if graph.ops[index].kind == "dot" and graph.ops[index].in_library:
            graph.products.add(index)
        elif graph.ops[index].kind == "dot":
            _take_operands(graph, index)
            graph.products.add(_take_followers(graph, index))
        elif graph.ops[index].kind == "conv" and not graph.computes_operands:
            graph.products.add(_take_addend(graph, index))


def _take_operands(graph: KernelGraph, product: int) -> None:
    """A product computes itself what follows, entry by entry, from one array that is there, if no one else reads it,
    and on a GPU whoever else does; there it reads a few arrays as if they lay side by side."""
    for read in tuple(dict.fromkeys(graph.buffers(product))):
        start = _take_chain(graph, product, read)
        if start in graph.left and _are_side_by_side(graph, product, graph.reads[product].index(read), start):
            graph.make_inside(start, product)
            for piece in dict.fromkeys(graph.reads[start]):
                _take_chain(graph, product, piece)


def _take_chain(graph: KernelGraph, product: int, read: int) -> int:
    """Lets a product compute what it reads from what that follows from; returns where it begins."""
    chain = _chain(graph, read, product)
    spread = {each for link in chain for each in graph.reads[link] if _is_spread(graph, each)}
    for index in (*chain, *spread):
        graph.make_inside(index, product)
    return next(each for each in graph.reads[chain[-1]] if each not in spread) if chain else read


def _are_side_by_side(graph: KernelGraph, product: int, place: int, index: int) -> bool:
    """Whether what an operand follows from is a few arrays side by side in its rows or columns, whole tiles of each
    (`triton_tiling_propagation.cc`)."""
    op, matrices, pieces = graph.ops[index], graph.ops[product].matrices, graph.reads[index]
    if op.kind != "concatenate" or matrices is None or graph.computes_operands or len(pieces) > _MOST_PIECES:
        return False
    contracted, of_batch = matrices.contracts[min(place, 1)], int(matrices.batches > 1)
    is_matrix = len(op.shape) == of_batch + len(contracted) + 1
    lengths = [graph.ops[piece].elements * op.shape[op.joins] // op.elements for piece in pieces]
    joins_rows = of_batch <= op.joins and op.joins not in contracted
    return is_matrix and joins_rows and not any(length % _TILE for length in lengths)


def _take_followers(graph: KernelGraph, product: int) -> int:
    """A product computes what alone reads it, entry by entry, with what is there; returns the last of it. One that is
    read in another order does no more than narrow its result: that comes before the order changes (ReshapeMover)."""
    is_turned = graph.ops[product].is_turned
    is_reshaped = _is_reshaped(graph.ops[product])
    while (follower := _follower(graph, product)) is not None:
        if is_turned and graph.ops[follower].kind != "convert_element_type":
            break
        if is_reshaped and graph.ops[follower].kind == "select_n":
            break
        graph.fuse(product)
        product = follower
        for read in set(graph.reads[product]) & graph.left:
            if graph.ops[read].kind == "broadcast":
                graph.make_inside(read, product)
    return product


def _is_reshaped(product: Op) -> bool:
    """Whether the result of a product of matrices has more dimensions than theirs: XLA moves no choice between arrays
    over such a change of shape (`reshape_mover.cc`), so that nothing that follows one is computed with the product."""
    matrices = product.matrices
    if matrices is None:
        return False
    return sum(length > 1 for length in product.shape) > 2 + (matrices.batches > 1)


def _take_addend(graph: KernelGraph, convolution: int) -> int:
    """The library's convolutions add a row, and some an array, to what alone reads them; returns the last of it."""
    follower = _only_sum(graph, convolution)
    if follower is None:
        return convolution
    (addend,) = (read for read in graph.reads[follower] if read != convolution)
    is_row = graph.ops[addend].kind == "broadcast" and addend in graph.left
    if not is_row and not graph.ops[convolution].takes_addend:
        return convolution
    graph.fuse(convolution)
    if is_row:
        graph.make_inside(addend, follower)
    return follower


def _only_sum(graph: KernelGraph, convolution: int) -> int | None:
    """The sum with something else that alone reads a convolution."""
    if len(graph.users[convolution]) != 1 or convolution in graph.outputs:
        return None
    (follower,) = graph.users[convolution]
    is_sum = graph.ops[follower].kind == "add" and graph.reads[follower].count(convolution) == 1
    return follower if is_sum and follower in graph.left and follower not in graph.products else None


def _follower(graph: KernelGraph, index: int) -> int | None:
    """What alone reads a product and is computed with it. What is only widened is left to its readers, and what is
    summed to a kernel of its own, unless products compute what they read, too."""
    if len(graph.users[index]) != 1 or index in graph.outputs:
        return None
    (follower,) = graph.users[index]
    op, operands = graph.ops[follower], graph.reads[follower]
    widened = op.kind == "convert_element_type" and op.size_bytes > graph.ops[index].size_bytes
    is_summed = op.kind == "reduce" and graph.computes_operands
    if not (op.kind in ELEMENTWISE or is_summed) or operands.count(index) > 1:
        return None
    if follower in graph.products or follower not in graph.left:
        return None
    if (widened and graph.users[follower] and not graph.computes_operands) or _reads_matrix(graph, index, follower):
        return None
    return follower if all(read == index or _is_there(graph, read) for read in operands) else None


def _reads_matrix(graph: KernelGraph, product: int, follower: int) -> bool:
    """Whether a barrier and others take what follows a product in another shape than the product's: XLA multiplies
    matrices, all rows in one dimension, and only without the barrier would it reshape what follows instead."""
    users = graph.users[follower]
    fenced = len(users) > 1 and any(graph.ops[user].kind == "barrier" for user in users)
    return fenced and not graph.computes_operands and len(graph.ops[product].shape) > 2


def _is_there(graph: KernelGraph, index: int) -> bool:
    """Whether a product can read a value as it is: a constant, a row or an array that no loop computes."""
    if graph.ops[index].kind == "broadcast":
        return all(graph.ops[read].kind not in CONSUMERS for read in graph.reads[index])
    return index in graph.products or graph.ops[index].kind not in CONSUMERS


def _chain(graph: KernelGraph, index: int, product: int) -> list[int]:
    """The operations from a product back to an array that is there, or to what others than the product compute."""
    chain: list[int] = []
    reader = product
    while index in graph.left and index not in graph.products and graph.ops[index].kind in PRODUCERS:
        full = {read for read in graph.reads[index] if not _is_spread(graph, read)}
        alone = set(graph.readers(index)) == {reader} and index not in graph.outputs
        if not _changes_one(graph, index, full) or not (alone or _is_cheap(graph, index)):
            return list(itertools.takewhile(functools.partial(_is_cheap, graph), chain))
        chain.append(index)
        reader, (index,) = index, full
    return chain


def _changes_one(graph: KernelGraph, index: int, full: set[int]) -> bool:
    """Whether an operation changes one array entry by entry: on a GPU alone, or by one constant or given row."""
    can_select = graph.computes_operands or len(graph.reads[index]) <= 2
    return graph.ops[index].kind in ELEMENTWISE and len(full) == 1 and can_select


def _is_cheap(graph: KernelGraph, index: int) -> bool:
    """Whether products compute an operation on one array again, whoever else reads it: not where it narrows it."""
    narrows = graph.ops[index].size_bytes < graph.ops[graph.reads[index][0]].size_bytes
    return not graph.computes_operands and not (graph.ops[index].kind == "convert_element_type" and narrows)


def _is_spread(graph: KernelGraph, index: int) -> bool:
    """Whether a value is a constant or a row, spread: on a GPU one that the program is given
    (`triton_tiling_propagation.cc`); sums of rows belong to what they normalise."""
    kinds = {graph.ops[read].kind for read in graph.reads[index]}
    spread = graph.ops[index].kind == "broadcast"
    return spread and ("reduce" not in kinds if graph.computes_operands else kinds <= {"input", "broadcast"})
