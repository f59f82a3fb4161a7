"""Write window.onnx: one window attention as in Swin, the example of the documentation. Needs only onnx and numpy.

An image of 56x56 tokens with 96 channels is cut into 64 windows of 7x7 tokens; each attends to itself in 3 heads; the
windows are put together again and the input is added. Weights come from a seed.
"""

import numpy as np
import onnx

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
window_attention (float[1,56,56,96] x) => (float[1,56,56,96] y)
<int64[6] cut = {1, 8, 7, 8, 7, 96}, int64[3] windows = {64, 49, 96}, int64[5] heads = {64, 49, 3, 3, 32},
 int64[6] uncut = {1, 8, 8, 7, 7, 96}, int64[4] image = {1, 56, 56, 96}, float scale = {0.17677669}>
{
  a = Reshape (x, cut)
  b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
  c = Reshape (b, windows)
  d = MatMul (c, w_qkv)
  e = Reshape (d, heads)
  f = Transpose <perm = [2, 0, 3, 1, 4]> (e)
  q, k, v = Split <axis = 0, num_outputs = 3> (f)
  kt = Transpose <perm = [0, 1, 2, 4, 3]> (k)
  s = MatMul (q, kt)
  t = Mul (s, scale)
  p = Softmax <axis = -1> (t)
  o = MatMul (p, v)
  g = Transpose <perm = [0, 1, 3, 2, 4]> (o)
  h = Reshape (g, windows)
  i = MatMul (h, w_out)
  j = Reshape (i, uncut)
  l = Transpose <perm = [0, 1, 3, 2, 4, 5]> (j)
  m = Reshape (l, image)
  y = Add (m, x)
}
"""

model = onnx.parser.parse_model(MODEL)
rng = np.random.default_rng(0)
for name, shape in (("w_qkv", (96, 288)), ("w_out", (96, 96))):
    weight = rng.standard_normal(shape, dtype=np.float32) / 10
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
onnx.checker.check_model(model)
onnx.save(model, "window.onnx")
