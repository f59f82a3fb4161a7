"""Floating-point operations and least bytes of kernels."""

from __future__ import annotations

import numpy as np

from smartmem.index.lin import axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import alu, choose, const, load
from smartmem.kernel.stage import Kernel, Stage
from smartmem.passes.count_work import count_bytes, count_flops

F32, I64, U8 = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.uint8)


def test_a_contraction_of_parts_of_one_tensor() -> None:
    """q k^T where q, k and v lie in one tensor: a third of it is not read."""
    i, j, k = axis_digit(0, 49), axis_digit(1, 49), axis_digit(2, 32)
    body = alu("mul", load("d", (i, k)), load("d", (j, k + 32)))
    stage = Stage("s", (49, 49), F32, body, (32,), "sum")
    kernel = Kernel([stage], "s", (49, 49), rows=1)
    assert count_flops(kernel) == 2 * 49 * 49 * 32
    assert count_bytes(kernel, {"d": ((49, 96), F32), "s": ((49, 49), F32)}) == 4 * (49 * 49 + 49 * 64)


def test_a_window_counts_padding_as_nothing_and_overlaps_once() -> None:
    at = axis_digit(0, 8) + axis_digit(1, 3) - 1
    body = choose((Guard(at, 8),), load("x", (at,)), const(0))
    kernel = Kernel.of(Stage("y", (8,), F32, body, (3,), "sum"))
    assert count_bytes(kernel, {"x": ((8,), F32), "y": ((8,), F32)}) == 4 * (8 + 8)
    assert count_flops(kernel) == 8 * 3


def test_a_gather_reads_no_more_rows_than_it_names() -> None:
    from smartmem.kernel.definitions.tables import looked_up

    row = looked_up("at", (axis_digit(0, 5),), 1000)
    kernel = Kernel.of(Stage("y", (5, 16), F32, load("table", (row, axis_digit(1, 16)))))
    types = {"table": ((1000, 16), F32), "at": ((5,), I64), "y": ((5, 16), F32)}
    assert count_bytes(kernel, types) == 4 * 5 * 16 * 2 + 8 * 5
    assert count_flops(kernel) == 0


def test_a_diagonal() -> None:
    i = axis_digit(0, 6)
    kernel = Kernel.of(Stage("y", (6,), F32, load("x", (i, i))))
    assert count_bytes(kernel, {"x": ((6, 6), F32), "y": ((6,), F32)}) == 4 * (6 + 6)
    assert count_bytes(kernel, {"x": ((6, 6), F32), "y": ((6,), U8)}) == 4 * 6 + 6
