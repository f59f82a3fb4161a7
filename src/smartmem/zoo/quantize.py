"""Quantize a network with ONNX Runtime's tools, as their users do.

    dynamic   activations when the network runs: DynamicQuantizeLinear, MatMulInteger, ConvInteger
    static    activations by their ranges on random inputs: QuantizeLinear and DequantizeLinear around each operator
    fp16      all floats as halves, inputs and outputs too

Weights of the first two are int8, with a scale for each output channel if static; activations uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from smartmem.errors import InputError, ModelError, RuntimeFailure
from smartmem.zoo.export import quiet
from smartmem.zoo.registry import Array

METHODS = ("dynamic", "static", "fp16")
CALIBRATIONS = 3  # random inputs that the ranges of activations are taken from


def quantize(source: Path, target: Path, method: str) -> None:
    """Writes `target`, the quantized network of the ONNX file `source`.

    A static one sees the inputs of ``input.NAME`` in the .npz file beside `source`, those of floats with other random
    numbers each time; without such a file all inputs must be floats of known shapes.

    Raises:
        InputError: the method is unknown, there is no such file, or nothing tells what the inputs are.
        RuntimeFailure: onnxruntime is missing.
        ModelError: it cannot quantize the network.
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: choose one of {', '.join(METHODS)}")
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    try:
        from onnxruntime import InferenceSession
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise RuntimeFailure(f"quantizing needs onnxruntime ({error}): pip install onnxruntime") from None

    class Reader(CalibrationDataReader):
        """Random inputs like the example."""

        def __init__(self) -> None:
            session = InferenceSession(str(source), providers=["CPUExecutionProvider"])
            self.example = _example(source, session.get_inputs())
            self.random, self.left = np.random.default_rng(0), CALIBRATIONS

        def get_next(self) -> dict[str, Array] | None:
            self.left -= 1
            return {name: self._like(x) for name, x in self.example.items()} if self.left >= 0 else None

        def _like(self, x: Array) -> Array:
            return np.asarray(self.random.standard_normal(x.shape), x.dtype) if x.dtype.kind == "f" else x

    try:
        with quiet():
            if method == "dynamic":
                quantize_dynamic(source, target, weight_type=QuantType.QInt8)
            elif method == "fp16":
                onnx.save(convert_float_to_float16(onnx.load(source), disable_shape_infer=True), target)
            else:
                kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
                quantize_static(source, target, Reader(), per_channel=True, **kinds)
    except InputError:
        raise
    except Exception as error:  # it raises whatever its Python code does
        raise ModelError(f"{source}: onnxruntime cannot quantize it: {error}") from None


def _example(source: Path, inputs: list[Any]) -> dict[str, Array]:
    """An input of the network: of the file beside it, else zeros of the inputs' shapes."""
    sample = source.with_suffix(".npz")
    if sample.is_file():
        with np.load(sample, allow_pickle=False) as file:
            return {each.name: file[f"input.{each.name}"] for each in inputs}
    if any(each.type != "tensor(float)" or not all(isinstance(n, int) for n in each.shape) for each in inputs):
        raise InputError(
            f"{source}: its inputs are no floats of known shapes; give an example in {sample} (input.NAME)"
        )
    return {each.name: np.zeros(each.shape, np.float32) for each in inputs}
