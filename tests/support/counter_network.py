"""A small network with every family of device schedules, compiled for a device of the counters."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from smartmem.compiler import device_module
from smartmem.counters.profiles import CounterDevice
from smartmem.device import DeviceOptions
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import DeviceStorage
from smartmem.passes.assemble_device import schedule_all
from smartmem.schedule.gpu.code import DeviceCode

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 8, 14, 14] x) => (float[1, 40, 16] y, float[1, 16] z)
<float[16, 8, 3, 3] w, float[16] scale, float[16] shift, float[16, 48] qkv, int64[3] tokens, int64[3] half,
 float[16, 1, 3, 3] window>
{
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  d = Conv <pads = [1, 1, 1, 1], group = 16> (r, window)
  flat = Reshape (d, tokens)
  t = Transpose <perm = [0, 2, 1]> (flat)
  n = LayerNormalization <axis = 2> (t, scale, shift)
  p = MatMul (n, qkv)
  q, k, v = Split <axis = 2> (p, half)
  kt = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  a = Softmax <axis = 2> (s)
  o = MatMul (a, v)
  z = ReduceMean <axes = [1], keepdims = 0> (o)
  from = Constant <value_ints = [0]> ()
  to = Constant <value_ints = [40]> ()
  axis = Constant <value_ints = [1]> ()
  y = Slice (o, from, to, axis)
}
"""


def _model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NETWORK)
    values = {
        "w": (16, 8, 3, 3), "scale": (16,), "shift": (16,), "qkv": (16, 48), "window": (16, 1, 3, 3),
    }  # fmt: skip
    noise = np.random.default_rng(0)
    arrays = {name: noise.standard_normal(shape, np.float32) for name, shape in values.items()}
    arrays["tokens"] = np.array([1, 16, 196])
    arrays["half"] = np.array([16, 16, 16])
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    return model


def compiled(
    level: str, memory: str, device: CounterDevice, precision: str = "fp32", model: onnx.ModelProto | None = None
) -> tuple[list[tuple[Kernel, DeviceCode]], dict[str, DeviceStorage]]:
    """Each kernel of the network, or another `model`, with its code, and where tensors lie."""
    options = DeviceOptions(memory=memory, precision=precision)
    module, storages, target, _ = device_module(model or _model(), None, level, device.device, options)
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    return list(zip(kernels, schedule_all(module, storages, target, None), strict=True)), storages
