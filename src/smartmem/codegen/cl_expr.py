"""Expressions as OpenCL C: the C emitter with vectors of four, device memories and 32-bit indices.

Loads carry places, not coordinates: one Lin for a buffer, three for a texture (`DeviceStorage.access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from smartmem.codegen.c_expr import Context, Emitter, LocalReader, Value, lane_free, step_along
from smartmem.codegen.c_index import Axes, c_lin
from smartmem.codegen.c_operations import C_TYPES
from smartmem.codegen.cl_memory import MemoryAccess, shifted
from smartmem.index.lin import Lin
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Expr, Iota, Load


@dataclass
class DeviceContext(Context):
    """A `Context` whose tensors are read through `memories`."""

    memories: Mapping[str, MemoryAccess] = field(default_factory=dict)


class DeviceEmitter(Emitter):
    """Writes OpenCL C; see `Emitter`."""

    divides_by_products = False
    context: DeviceContext

    def holds(self, guards: tuple[Guard, ...]) -> str:
        return cl_guards(guards, self.context.axes)

    def _iota(self, node: Iota) -> Value:
        lane = self.context.lane
        kind = C_TYPES[node.dtype.name]
        if lane is None or step_along(node.lin, lane) == 0:
            return self.name(f"({kind})({c_lin(node.lin, self.context.axes)})", node.dtype, False)
        return self._per_lane(node)

    def _load(self, node: Load) -> Value:
        reader = self.context.local.get(node.tensor)
        if reader is not None:
            return reader(self, node.index)
        memory, lane, axes = self.context.memories[node.tensor], self.context.lane, self.context.axes
        if lane is None or memory.is_uniform(node.index, lane):
            return self.name(memory.scalar(node.index, axes), node.dtype, False)
        text = memory.vector(node.index, axes, lane) if node.dtype == np.float32 else None
        if text is not None:
            return self.name(text, node.dtype, True)
        parts = [memory.scalar(node.index, shifted(axes, lane, k)) for k in range(lane.width)]
        if node.dtype == np.bool_:
            parts = [f"-({part} != 0)" for part in parts]
        kind = "int4" if node.dtype == np.bool_ else "float4"
        return self.name(f"({kind})({', '.join(parts)})", node.dtype, True)

    def _choose(self, node: Choose) -> Value:
        lane = self.context.lane
        if lane is not None and not lane_free(node.guards, lane):
            return self._per_lane(node)
        return super()._choose(node)

    def _per_lane(self, node: Expr) -> Value:
        """Four scalar results, one after the other; vectors known already give their components."""
        lane, axes = self.context.lane, self.context.axes
        assert lane is not None
        parts = []
        for k in range(lane.width):
            known = {
                key: Value(f"{value.text}.{'xyzw'[k]}") if value.vector else value for key, value in self.known.items()
            }
            local = {name: _component(reader, k) for name, reader in self.context.local.items()}
            context = replace(self.context, axes=shifted(axes, lane, k), lane=None, local=local)
            value = self.again(context, known).value(node).text
            parts.append(f"-({value} != 0)" if node.dtype == np.bool_ else value)
        kind = "int4" if node.dtype == np.bool_ else "float4"
        return self.name(f"({kind})({', '.join(parts)})", node.dtype, True)


def _component(reader: LocalReader, k: int) -> LocalReader:
    """A reader of local vectors as a reader of their component k (scalars stay)."""

    def read(emitter: Emitter, index: tuple[Lin, ...]) -> Value:
        value = reader(emitter, index)
        return Value(f"{value.text}.{'xyzw'[k]}") if value.vector else value

    return read


def cl_guards(guards: tuple[Guard, ...], axes: Axes) -> str:
    """``0 <= a < n`` for every guard, each as one unsigned comparison."""
    return " && ".join(f"(uint)({c_lin(g.lin, axes)}) < {g.ext}u" for g in guards)
