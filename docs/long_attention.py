"""Write attention.onnx: self-attention of one sequence with its four projections. Needs only onnx and numpy.

    python docs/long_attention.py TOKENS HEADS DEPTH

The SD 1.5 U-Net attends to 4096 tokens in 8 heads of 40 columns at a latent of 64x64, its VAE decoder to 4096 in 1 head
of 512. Weights come from a seed.
"""

import sys

import numpy as np
import onnx

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
long_attention (float[1,{tokens},{width}] x) => (float[1,{tokens},{width}] y)
<int64[4] cut = {{1, {tokens}, {heads}, {depth}}}, int64[3] whole = {{1, {tokens}, {width}}}, float scale = {{{scale}}}>
{{
  q0 = MatMul (x, w_q)
  k0 = MatMul (x, w_k)
  v0 = MatMul (x, w_v)
  q1 = Reshape (q0, cut)
  k1 = Reshape (k0, cut)
  v1 = Reshape (v0, cut)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  s = MatMul (q, k)
  t = Mul (s, scale)
  p = Softmax <axis = -1> (t)
  o = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o)
  o2 = Reshape (o1, whole)
  y = MatMul (o2, w_o)
}}
"""

tokens, heads, depth = map(int, sys.argv[1:])
width = heads * depth
model = onnx.parser.parse_model(
    MODEL.format(tokens=tokens, heads=heads, depth=depth, width=width, scale=f"{depth**-0.5:.9f}")
)
rng = np.random.default_rng(0)
for name in ("w_q", "w_k", "w_v", "w_o"):
    weight = rng.standard_normal((width, width), dtype=np.float32) * width**-0.5
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
onnx.checker.check_model(model)
onnx.save(model, "attention.onnx")
