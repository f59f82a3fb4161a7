"""Constant index tensors in as few bytes as their entries need, and without the tests that any index needs.

An entry of a constant that only indices read is wrapped and clamped when compiling (ONNX counts negative ones from the
end), so it is not negative, and one or two bytes hold most. Unsigned types say so: what generated code looks up in them
is in range.

In: kernels with their storages. Out: other contents and dtypes of such constants.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from smartmem.index.lin import Lookup, pseudo_axes
from smartmem.kernel.expr import index_values, loads
from smartmem.kernel.stage import Kernel
from smartmem.passes.module import Module


def narrow_indices(module: Module) -> None:
    """Narrows the constants whose entries are all indices of one range."""
    ranges, otherwise = _uses(module)
    for name, extents in ranges.items():
        values = module.constants.get(name)
        if values is None or name in otherwise or len(extents) > 1 or values.dtype.kind != "i":
            continue
        (extent,) = extents
        dtype = np.min_scalar_type(max(extent - 1, 0))
        if dtype.itemsize > 2:
            continue
        wrapped = np.where(values < 0, values + extent, values).clip(0, extent - 1)
        module.constants[name] = wrapped.astype(dtype)
        module.types[name] = (values.shape, dtype)
        module.storages[name] = replace(module.storages[name], dtype=dtype)


def _uses(module: Module) -> tuple[dict[str, set[int]], set[str]]:
    """The ranges of the indices that tensors give, and the tensors that are read as something else, too."""
    ranges: dict[str, set[int]] = {}
    otherwise = {value.name for value in module.outputs} | module.sharing()
    for step in module.kernels:
        if not isinstance(step, Kernel):
            otherwise |= set(step.reads())
            continue
        for stage in step.stages:
            otherwise |= {access.tensor for access in loads(stage.body)}
            for value in index_values(stage.body):
                for axis in pseudo_axes(value):
                    if isinstance(axis, Lookup):
                        ranges.setdefault(axis.tensor, set()).add(axis.ext)
    return ranges, otherwise
