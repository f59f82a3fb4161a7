"""A compiler that knows one model, `tests.support.programs.tiny`, so that the interface is tested by itself.

Model files are ONNX files of that model (`write_model`), so ONNX Runtime can run them beside smartmem.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
from tests.support import onnx_models
from tests.support.programs import REPORT, WEIGHT, tiny

from smartmem.errors import ModelError
from smartmem.runtime.artifact import Program


def write_model(path: Path) -> Path:
    """s = ReduceSum(Exp(x) * w)."""
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["e"]),
        onnx.helper.make_node("Mul", ["e", "w"], ["y"]),
        onnx.helper.make_node("ReduceSum", ["y", "axes"], ["s"], keepdims=0),
    ]
    onnx.save(onnx_models.model(nodes, {"x": ["rows", 8]}, {"s": ["rows"]}, {"w": WEIGHT, "axes": np.array([1])}), path)
    return path


def build_program(model, *, shapes, level, march, precision, progress=None) -> Program:
    """Stands for `smartmem.compiler.build_program`."""
    if not Path(model).is_file():
        raise ModelError(f"{model}: no such file")
    if progress is not None:
        progress("passes", 1, 1)
    program = tiny(shapes["x"][0] if shapes else 5, march)
    program.level = level
    program.report = {**REPORT, "level": level}
    return program
