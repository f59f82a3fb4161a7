"""What the passes ask of a target: which kernels its schedules compute, and what a product costs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smartmem.kernel.stage import Kernel

# Why no schedule of the target takes a kernel ("" if one does), given the names of the constants.
Schedulable = Callable[[Kernel, set[str]], str]
# By how many tiles of columns a kernel's product reads its operand A, given the names of the constants.
Tiles = Callable[[Kernel, set[str]], int]


@dataclass(frozen=True)
class Product:
    """Extents of a matrix product; with `windows` rows of operand A lie in several places (a convolution's)."""

    batch: int
    m: int
    n: int
    k: int
    windows: bool = False


# Predicted time of a matrix product, in any unit.
Predict = Callable[[Product], float]
# The same of a pointwise kernel that moves so many bytes.
Moves = Callable[[int], float]


@dataclass(frozen=True)
class Backend:
    """A target, as passes see it.

    Attributes:
        schedulable: what its schedules compute well.
        operators_first: each operator becomes a kernel before kernels are merged, so that a normalization is not taken
            apart by its reader.
        doubles: whether it has 64-bit floats.
        predict: set if products with few tiles are worth taking in two steps; second: what a pointwise kernel costs
            whatever it moves, in the same unit.
        moves: set if, beside `predict`, it tells which convolutions are worth Winograd's transforms.
        units: compute units that a long reduction should keep busy; 0: no matter.
        tiles: where more than one reads operand A, what is not cheap is computed in a kernel of its own.
    """

    schedulable: Schedulable
    operators_first: bool = False
    doubles: bool = True
    predict: Predict | None = None
    second: float = 0.0
    moves: Moves | None = None
    units: int = 0
    tiles: Tiles = lambda kernel, constants: 1
