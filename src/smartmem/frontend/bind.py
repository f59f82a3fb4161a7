"""Bind symbolic input dimensions: graph inputs and the user's `shapes` → one static shape per input.

Input `x: (batch, 3, ?, 224)` with `shapes={"x": (1, 3, 224, 224)}` binds `batch = 1` everywhere it appears, so another
input `mask: (batch, 10)` needs no entry of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import onnx

from smartmem.errors import InputError

Dims = list[int | str | None]
_ANONYMOUS = {"", "?", "-1", "None"}  # what exporters write for "any extent": such symbols are not one dimension


def declared_dims(info: onnx.ValueInfoProto) -> Dims | None:
    """An input's declared extents: int, symbol, or None where unknown; None where even the rank is."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: Dims = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:  # some exporters write -1 for "unknown"
            dims.append(None if dim.dim_param in _ANONYMOUS else dim.dim_param)
    return dims


def bind_shapes(
    inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The static shape of each tensor input.

    Raises:
        InputError: an entry of `shapes` names no input, has a wrong rank or extent, or contradicts the model or another
            entry; or a dimension stays unbound.
    """
    declared = {info.name: declared_dims(info) for info in inputs}
    for name in shapes:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1, 0.4)
            known = ", ".join(declared) or "none"
            hint = f'did you mean "{near[0]}"?' if near else "use one of these"
            raise InputError(f'shape given for "{name}", which is no input of the model (inputs: {known}); {hint}')
    symbols = _bind_symbols(declared, shapes)
    bound: dict[str, tuple[int, ...]] = {}
    for name, dims in declared.items():
        if name in shapes:
            bound[name] = tuple(int(d) for d in shapes[name])
            continue
        if dims is None:
            raise InputError(f'input "{name}" has no shape in the model; give one: --shape {name}=1,3,224,224')
        static = [symbols.get(d) if isinstance(d, str) else d for d in dims]
        if any(d is None for d in static):
            unbound = ", ".join(str(d) if d is not None else "?" for d in dims)
            raise InputError(f'input "{name}" has the unbound shape ({unbound}); bind it: {shape_option(name, static)}')
        bound[name] = tuple(d for d in static if d is not None)
    return bound


def shape_option(name: str, dims: Sequence[int | None]) -> str:
    """The command line option that would bind `dims`, with plausible numbers for the unknown ones."""
    plausible = {0: 1} if len(dims) < 4 else {0: 1, 2: 224, 3: 224}
    guess = [d if d is not None else plausible.get(i, 128 if len(dims) < 4 else 3) for i, d in enumerate(dims)]
    return f"--shape {name}={','.join(map(str, guess))}"


def _bind_symbols(declared: Mapping[str, Dims | None], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Symbol → value, from every given shape checked against the declared one."""
    symbols: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        dims = declared[name]
        shown = "x".join(map(str, shape)) or "scalar"
        if any(int(d) < 0 for d in shape):
            raise InputError(f'shape {shown} given for input "{name}" has a negative extent')
        if dims is None:
            continue
        wanted = ", ".join(str(d) if d is not None else "?" for d in dims)
        option = shape_option(name, [d if isinstance(d, int) else None for d in dims])
        if len(shape) != len(dims):
            raise InputError(
                f'shape {shown} given for input "{name}" has {len(shape)} dimensions, but the model declares '
                f"{len(dims)}: ({wanted}); write {option}"
            )
        for axis, (dim, extent) in enumerate(zip(dims, shape, strict=True)):
            if isinstance(dim, int) and dim != extent:
                raise InputError(
                    f'shape {shown} given for input "{name}" has {extent} at dimension {axis}, but the model fixes '
                    f"it to {dim}: ({wanted}); export the model with that dimension dynamic, or keep {dim}"
                )
            if isinstance(dim, str):
                value, where = symbols.setdefault(dim, (int(extent), name))
                if value != extent:
                    raise InputError(
                        f'dimension "{dim}" is bound to {value} by input "{where}" and to {extent} by input "{name}"; '
                        "give both the same value"
                    )
    return {symbol: value for symbol, (value, _) in symbols.items()}
