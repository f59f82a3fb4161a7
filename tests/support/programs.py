"""Programs written by hand, so that the runtime is tested without the compiler."""

from __future__ import annotations

import numpy as np

from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot, TensorSpec

KERNELS = """
#include "simd.h"

/* y = exp(x) * w + scale, one row of 8 per task; scratch holds the row. */
void scale_0(void *const *args, long begin, long end, void *scratch) {
    const float *x = args[0], *w = args[1];
    float *y = args[2], *row = scratch;
    for (long i = begin; i < end; i++) {
        for (long j = 0; j < 8; j++) row[j] = sm_exps(x[i * 8 + j]);
        for (long j = 0; j < 8; j++) y[i * 8 + j] = row[j] * w[j];
    }
}
"""
SUMS = """
#include "simd.h"

/* y[i] = sum of row i */
void sum_0(void *const *args, long begin, long end, void *scratch) {
    const float *x = args[0];
    float *y = args[1];
    (void)scratch;
    for (long i = begin; i < end; i++) {
        y[i] = 0.0f;
        for (long j = 0; j < 8; j++) y[i] += x[i * 8 + j];
    }
}
"""
WEIGHT = np.linspace(-1, 1, 8, dtype=np.float32)
REPORT = {
    "model": "tiny",
    "level": "full",
    "layout": [
        {
            "node": "t",
            "op": "Transpose",
            "shape": [8, 5],
            "fate": "load",
            "places": [{"kernel": "scale_0", "access": "load", "tensor": "x", "before": "[i, j]", "after": "[j, i]"}],
            "reason": "",
        },
        {"node": "r", "op": "Reshape", "shape": [40], "fate": "copy", "places": [], "reason": "it is an output"},
    ],
    "kernels": [
        {
            "name": "scale_0",
            "family": "pointwise",
            "shape": [5, 8],
            "flops": 80,
            "bytes": 320,
            "copy": False,
            "origin": ["Exp", "Mul"],
            "notes": ["[hoisted]"],
        },
        {
            "name": "s",
            "family": "row reduction",
            "shape": [5],
            "flops": 40,
            "bytes": 180,
            "copy": False,
            "origin": ["ReduceSum"],
            "notes": [],
        },
    ],
    "host": [{"node": "nz", "op": "NonZero", "reason": "its shape depends on data"}],
    "apart": [{"first": "scale_0", "second": "sum_0", "reason": "a reduction follows"}],
    "layouts": [{"tensor": "h", "layout": "row-major", "asked_by": ["sum_0"]}],
    "totals": {
        "operators": 4,
        "layout_operators": 2,
        "kernels": 2,
        "copies": 1,
        "copied_bytes": 160,
        "host_steps": 0,
    },
    "memory": {"arena_bytes": 160, "lower_bound_bytes": 160, "weights_bytes": 32, "scratch_bytes": 64},
}


def tiny(rows: int = 5, march: str = "native") -> Program:
    """x: [rows, 8] -> y = exp(x) * w (an output), s = row sums of y."""
    return Program(
        name="tiny",
        level="full",
        march=march,
        inputs=[TensorSpec("x", (rows, 8), "float32")],
        outputs=[TensorSpec("s", (rows,), "float32")],
        slots=[
            Slot("input", "x", shape=(rows, 8)),
            Slot("weight", "w", shape=(8,)),
            Slot("arena", "h", 0, (rows, 8)),
            Slot("output", "s", shape=(rows,)),
        ],
        steps=[
            NativeStep("scale_0", rows, 2, (0, 1, 2), "Mul */ 1"),
            NativeStep("sum_0", rows, 1, (2, 3), "ReduceSum 2"),
        ],
        arena_bytes=rows * 32,
        scratch_bytes=64,
        weights={"w": WEIGHT},
        sources={"scale_0.c": KERNELS, "sum_0.c": SUMS},
        report=REPORT,
    )


def with_host() -> Program:
    """x: [5, 8] -> y = exp(x) * w, its NonZero (shape depends on data), and row sums of Neg(y), run on the host."""
    import onnx.helper

    from smartmem.runtime.host import pack

    def node(op: str) -> bytes:
        return pack(onnx.helper.make_node(op, ["a"], ["b"]))

    program = tiny()
    program.slots += [Slot("arena", "n", 192, (5, 8)), Slot("output", "at", 0, None, "int64")]
    program.slots[2] = Slot("output", "y", shape=(5, 8))
    program.outputs = [
        TensorSpec("y", (5, 8), "float32"),
        TensorSpec("s", (5,), "float32"),
        TensorSpec("at", None, "int64"),
    ]
    program.steps = [
        program.steps[0],
        HostStep("neg", "Neg", node("Neg"), 17, (2,), (4,)),
        HostStep("nonzero", "NonZero", node("NonZero"), 17, (2,), (5,)),
        NativeStep("sum_0", 5, 1, (4, 3), "ReduceSum"),
    ]
    program.arena_bytes = 192 + 160
    return program


def expected(x: np.ndarray) -> np.ndarray:
    return np.exp(x) * WEIGHT
