"""Device programs written by hand, so that the OpenCL runtime is tested without the compiler."""

from __future__ import annotations

import numpy as np

from smartmem.runtime.artifact import HostStep, TensorSpec
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot, LaunchStep

BUFFERS = """
__kernel void scale(__global const float *x, __global const float *w, __global float *h) {
    int i = get_global_id(0);
    h[i] = x[i] * w[i % 8];
}

__kernel void sums(__global const float *h, __global float *y) {
    int i = get_global_id(0);
    float sum = 0.0f;
    for (int j = 0; j < 8; j++) sum += h[i * 8 + j];
    y[i] = sum;
}
"""
IMAGES = """
__constant sampler_t at = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;

__kernel void scale(__global const float *x, __read_only image2d_t w, __write_only image2d_t h) {
    int column = get_global_id(0), row = get_global_id(1);
    write_imagef(h, (int2)(column, row), vload4(row * 2 + column, x) * read_imagef(w, at, (int2)(column, 0)));
}

__kernel void sums(__read_only image2d_t h, __global float *y) {
    int row = get_global_id(0);
    float4 sum = read_imagef(h, at, (int2)(0, row)) + read_imagef(h, at, (int2)(1, row));
    y[row] = sum.x + sum.y + sum.z + sum.w;
}
"""
CHECKED = """
__kernel void scale(__global const float *x, __global const float *w, __global float *h, __global int *check) {
    int i = get_global_id(0) + SHIFT;
    if (i >= 40) {
        if (atomic_inc(check) == 0) { check[1] = 0; check[2] = i; check[3] = 40; }
        return;
    }
    h[i] = x[i] * w[i % 8];
}
"""
WEIGHT = np.linspace(-1, 1, 8, dtype=np.float32)
ROWS = 5


def in_buffers(local: tuple[int, ...] = (8,)) -> DeviceProgram:
    """x: [5, 8] -> s = row sums of x * w, all in buffers."""
    return DeviceProgram(
        name="tiny",
        level="full",
        device="any",
        options="",
        inputs=[TensorSpec("x", (ROWS, 8), "float32")],
        outputs=[TensorSpec("s", (ROWS,), "float32")],
        slots=[
            DeviceSlot("input", "x", (ROWS, 8), "float32", "float32", elements=40),
            DeviceSlot("weight", "w", (8,), "float32", "float32", elements=8),
            DeviceSlot("activation", "h", (ROWS, 8), "float32", "float32", elements=40, place=1),
            DeviceSlot("output", "s", (ROWS,), "float32", "float32", elements=ROWS),
        ],
        steps=[
            LaunchStep("scale", "k.cl", (40,), local, (0, 1, 2), (2,), "Mul 1"),
            LaunchStep("sums", "k.cl", (ROWS,), (), (2, 3), (3,), "ReduceSum 2"),
        ],
        buffers=[256, 256],
        images=[],
        weights={"w": WEIGHT},
        sources={"k.cl": BUFFERS},
    )


def in_images(stored: str = "float32") -> DeviceProgram:
    """The same with the weight and the intermediate in images."""
    program = in_buffers()
    program.slots[1] = DeviceSlot("weight", "w", (8,), "float32", stored, "texture", width=2, height=1)
    program.slots[2] = DeviceSlot("activation", "h", (ROWS, 8), "float32", stored, "texture", width=2, height=ROWS)
    program.steps = [
        LaunchStep("scale", "k.cl", (2, ROWS), (2, 1), (0, 1, 2), (2,), "Mul 1"),
        LaunchStep("sums", "k.cl", (ROWS,), (1,), (2, 3), (3,), "ReduceSum 2"),
    ]
    program.images = [(2, ROWS, stored)]
    program.weights = {"w": WEIGHT.astype(stored).reshape(1, 2, 4)}
    program.sources = {"k.cl": IMAGES}
    program.buffers = []
    return program


def with_host() -> DeviceProgram:
    """h = x * w on the device, n = Neg(h) and the places where h is not zero on the host, s = row sums of n."""
    import onnx.helper

    from smartmem.runtime.host import pack

    def node(op: str) -> bytes:
        return pack(onnx.helper.make_node(op, ["a"], ["b"]))

    program = in_buffers()
    program.slots[2] = DeviceSlot("output", "h", (ROWS, 8), "float32", "float32", elements=40)
    program.slots += [
        DeviceSlot("activation", "n", (ROWS, 8), "float32", "float32", elements=40, place=0),
        DeviceSlot("output", "at", None, "int64", "int64"),
    ]
    program.outputs = [
        TensorSpec("h", (ROWS, 8), "float32"),
        TensorSpec("s", (ROWS,), "float32"),
        TensorSpec("at", None, "int64"),
    ]
    program.steps = [
        program.steps[0],
        HostStep("neg", "Neg", node("Neg"), 17, (2,), (4,)),
        HostStep("nonzero", "NonZero", node("NonZero"), 17, (2,), (5,)),
        LaunchStep("sums", "k.cl", (ROWS,), (), (4, 3), (3,), "ReduceSum 2"),
    ]
    return program


def checked(shift: int) -> DeviceProgram:
    """A kernel that reports coordinates out of range; `shift` moves them."""
    program = in_buffers()
    program.options = f"-DSHIFT={shift}"
    program.slots.append(DeviceSlot("check", "check", (4,), "int32", "int32", elements=4))
    program.steps[0] = LaunchStep("scale", "c.cl", (40,), (8,), (0, 1, 2, 4), (2,), "Mul 1")
    program.sources = {"k.cl": BUFFERS, "c.cl": CHECKED}
    program.checks = ["kernel scale, load x"]
    return program


CHAIN = """
__kernel void add_one(__global const float *a, __global float *b) { b[get_global_id(0)] = a[get_global_id(0)] + 1; }
"""


def chain(count: int) -> DeviceProgram:
    """x: [64] -> x + count by `count` kernels that each add 1."""
    args = [(0, 2), *((2 + at % 2, 3 - at % 2) for at in range(count - 2)), (2 + (count - 2) % 2, 1)]
    return DeviceProgram(
        name="chain",
        level="full",
        device="any",
        options="",
        inputs=[TensorSpec("x", (64,), "float32")],
        outputs=[TensorSpec("y", (64,), "float32")],
        slots=[
            DeviceSlot("input", "x", (64,), "float32", "float32", elements=64),
            DeviceSlot("output", "y", (64,), "float32", "float32", elements=64),
            DeviceSlot("activation", "a", (64,), "float32", "float32", elements=64, place=0),
            DeviceSlot("activation", "b", (64,), "float32", "float32", elements=64, place=1),
        ],
        steps=[
            LaunchStep("add_one", "k.cl", (64,), (64,), pair, pair[1:], f"Add {at}") for at, pair in enumerate(args)
        ],
        buffers=[256, 256],
        images=[],
        weights={},
        sources={"k.cl": CHAIN},
    )


def expected(x: np.ndarray) -> np.ndarray:
    return (x * WEIGHT).sum(1)
