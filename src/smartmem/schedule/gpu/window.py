"""Windows on a device: the loads of one row of taps are under way together.

    out[y, x] = sum over i, j of image[y + i, x + j] * weights[i, j]
      ->  for each i:  v[j] = image[y + i, x + j] if that is inside, else 0, for all j
                       out[y, x] += v[j] * weights[i, j], for all j

As one loop with a branch around product and loads, each load would wait for the one before. In: a sum's body with its
reduce loops. Out: a `Row`, and the code that adds it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.writer import Writer
from smartmem.index.map import Guard
from smartmem.kernel.expr import Alu, Choose, Expr, Load, choose, const, is_zero, walk

Array = np.ndarray[Any, Any]

TAPS = 16  # of a row, at most


@dataclass(frozen=True)
class Row:
    """A sum of `guarded` * `plain` over the reduce loop `tap`, of `taps` iterations."""

    tap: int
    taps: int
    guarded: Expr
    plain: Expr


def find(body: Expr, tap: int, taps: int, constants: Mapping[str, Array]) -> Row | None:
    """The row that a sum over `tap` is, if its body is zero where guards fail, else a product with constants."""
    guards: tuple[Guard, ...] = ()
    if isinstance(body, Choose) and is_zero(body.otherwise):
        guards, body = body.guards, body.then
    if not guards or taps > TAPS or not isinstance(body, Alu) or body.op != "mul":
        return None
    for plain, other in (body.args[::-1], body.args):
        if all(isinstance(node, Load) and _always(node, constants) for node in walk(plain)):
            return Row(tap, taps, choose(guards, other, const(0, other.dtype)), plain)
    return None


def _always(node: Load, constants: Mapping[str, Array]) -> bool:
    """Whether a load may be made, and multiplied by zero, where guards fail: inside of a constant that is finite."""
    data = constants.get(node.tensor)
    if data is None or len(node.index) != 1 or not node.index[0].within(0, data.size):
        return False
    return bool(np.isfinite(data).all())


def add(w: Writer, row: Row, context: DeviceContext, total: str) -> None:
    """Adds the row to `total`, in the loops outside of it."""
    vector, values, kind = context.lane is not None, w.fresh("row"), "float4" if context.lane else "float"
    w.line(f"{kind} {values}[{row.taps}];")
    for target, body in ((f"{values}[i{row.tap}] =", row.guarded), (f"{total} += {values}[i{row.tap}] *", row.plain)):
        w.line("#pragma unroll")
        with w.loop(f"i{row.tap}", row.taps, reduces=True):
            emitter = DeviceEmitter(w, context)
            value = emitter.value(body)
            w.line(f"{target} {emitter.as_vector(value, body.dtype) if vector else value.text};")
