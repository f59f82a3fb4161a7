"""Writes docs/operators.md: how smartmem runs each operator of the installed onnx package.

python tools/operator_table.py            # writes the file
python tools/operator_table.py --print    # prints it
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
from onnx.reference import ops

from smartmem.frontend.schemas import NATIVE
from smartmem.kernel.definitions import defined_operators
from smartmem.kernel.definitions.build import is_supported

OLDEST = 9  # the frontend reads opsets from here on
FILE = Path(__file__).parent.parent / "docs" / "operators.md"
HEAD = """# Operators

How each operator of the ONNX domain runs, for onnx {version} (opsets {oldest} to {newest}). Made by
`python tools/operator_table.py`.

- **native**: a compute definition, compiled to C. Some attributes, or operands that are not constant where a
  definition needs them to be, still send a node to the host; `smartmem explain` names it and says why.
- **inlined**: replaced by the operators of its ONNX function body.
- **host**: run in Python between kernels, most by the onnx package's reference implementation: slow, correct, and named
  by `smartmem explain`.
- **unsupported**: none of these.

Native kernels cover {dtypes} (arithmetic on 16-bit floats is done in float32). Other types the operator allows run on
the host. "Since" is the opset that gave the operator its present form; older forms from opset {oldest} on are read too.

| operator | runs | since | types of its operands that native kernels cover |
|---|---|---|---|
"""


def _has_reference(name: str) -> bool:
    try:
        ops._op_list.load_op("", name)  # the package has no public table of them
    except Exception:  # whatever says that there is none
        return False
    return True


def _kind(schema: onnx.defs.OpSchema, native: set[str]) -> str:
    if schema.name in native:
        return "native"
    if (schema.has_function or schema.has_context_dependent_function) and schema.name not in NATIVE:
        return "inlined"
    return "host" if _has_reference(schema.name) else "unsupported"


def _types(schema: onnx.defs.OpSchema) -> list[str]:
    """Element types of the tensors that any operand may have and that definitions cover, in a fixed order."""
    import ml_dtypes
    import numpy as np

    names = {"float": "float32", "double": "float64"}
    allowed = {t for constraint in schema.type_constraints for t in constraint.allowed_type_strs}
    allowed |= {i.type_str for i in schema.inputs}
    found = set()
    for text in allowed:
        if text.startswith("tensor(") and "," not in text:
            name = names.get(text[7:-1], text[7:-1])
            try:
                kind = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
            except TypeError:
                continue
            if is_supported(kind):
                found.add(kind.name)
    return sorted(found, key=lambda n: (n.rstrip("0123456789"), int("".join(c for c in n if c.isdigit()) or 0)))


def table() -> str:
    """The text of docs/operators.md."""
    native = set(defined_operators())
    latest: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas():
        if schema.domain == "" and not schema.deprecated:
            latest[schema.name] = schema
    covered = "bool, integers of 8 to 64 bits, float16, bfloat16, float32 and float64"
    head = HEAD.format(version=onnx.__version__, oldest=OLDEST, newest=onnx.defs.onnx_opset_version(), dtypes=covered)
    rows = []
    for name in sorted(latest):
        kind = _kind(latest[name], native)
        types = ", ".join(_types(latest[name])) if kind == "native" else ""
        rows.append(f"| {name} | {kind} | {latest[name].since_version} | {types} |")
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(table(), end="")
    else:
        FILE.write_text(table())
