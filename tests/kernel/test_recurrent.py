"""LSTM, GRU and RNN: as ONNX Runtime computes them, and not on the host where a definition covers them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program
from smartmem.kernel.definitions.recurrent import LONGEST

STEPS, BATCH, INPUTS, SIZE = 5, 3, 10, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Arrays = dict[str, np.ndarray]


def network(
    op: str, direction: str = "forward", steps: int = STEPS, bias: bool = True, state: bool = False,
    last_only: bool = False, lengths: list[int] | None = None, **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    """A node with constant weights; x and, with `state`, the states before the first step are inputs."""
    rng, ways = np.random.default_rng(0), 2 if direction == "bidirectional" else 1
    shapes = {"w": (ways, GATES[op] * SIZE, INPUTS), "r": (ways, GATES[op] * SIZE, SIZE)}
    if bias:
        shapes["b"] = (ways, 2 * GATES[op] * SIZE)
    constants: Arrays = {k: (0.3 * rng.standard_normal(shape)).astype(np.float32) for k, shape in shapes.items()}
    first = attributes.get("layout")
    inputs = [info("x", (BATCH, steps, INPUTS) if first else (steps, BATCH, INPUTS))]
    operands = ["x", "w", "r", "b" if bias else "", ""]
    if lengths is not None:
        constants["lengths"] = np.array(lengths, np.int32)
        operands[4] = "lengths"
    if state:
        names = ["h0", "c0"] if op == "LSTM" else ["h0"]
        inputs += [info(name, (BATCH, ways, SIZE) if first else (ways, BATCH, SIZE)) for name in names]
        operands += names
    results = ["" if last_only else "y", "h", *(["c"] if op == "LSTM" else [])]
    node = helper.make_node(op, operands, results, hidden_size=SIZE, direction=direction, **attributes)
    return model([node], inputs, {name: None for name in results if name}, constants)


def feeds(proto: onnx.ModelProto) -> Arrays:
    rng = np.random.default_rng(1)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def agrees(proto: onnx.ModelProto, wanted: list[np.ndarray], level: str = "full") -> None:
    with smartmem.compile(proto, threads=1, level=level) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled.run(feeds(proto))
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"state": True}, {"last_only": True}, {"steps": 1}, {"lengths": [STEPS] * BATCH}],
    ids=str,
)
def test_as_onnx_runtime_does(op: str, direction: str, options: dict[str, object]) -> None:
    proto = network(op, direction, **options)
    agrees(proto, ort.InferenceSession(proto.SerializeToString()).run(None, feeds(proto)))


@pytest.mark.parametrize("options", [{"state": True}, {"bias": False}, {"bias": False, "state": True}], ids=str)
def test_reset_after_the_product(options: dict[str, object]) -> None:
    proto = network("GRU", linear_before_reset=1, **options)
    agrees(proto, ort.InferenceSession(proto.SerializeToString()).run(None, feeds(proto)))


def test_other_activations() -> None:
    proto = network("RNN", "bidirectional", activations=["Relu", "Sigmoid"])
    agrees(proto, ort.InferenceSession(proto.SerializeToString()).run(None, feeds(proto)))


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str) -> None:
    """ONNX Runtime has none."""
    proto = network(op, state=True, layout=1)
    agrees(proto, ReferenceEvaluator(proto).run(None, feeds(proto)))


@pytest.mark.parametrize("level", ["naive", "eliminate"])
def test_other_levels(level: str) -> None:
    proto = network("LSTM", "bidirectional")
    agrees(proto, ort.InferenceSession(proto.SerializeToString()).run(None, feeds(proto)), level)


@pytest.mark.parametrize(
    "options",
    [{"lengths": [5, 3, 4]}, {"steps": LONGEST + 1}, {"clip": 0.5}, {"input_forget": 1}],
    ids=str,
)
def test_on_the_host(options: dict[str, object]) -> None:
    report = build_program(network("LSTM", **options)).report
    assert report["totals"]["host_steps"] == 1


def test_steps_share_their_weights_and_states_need_no_copies() -> None:
    program = build_program(network("LSTM", steps=20))
    packed = [data.size for name, data in program.weights.items() if name.endswith(".panels")]
    assert sorted(packed) == sorted([4 * SIZE * INPUTS, 4 * SIZE * SIZE])
    # y takes the states as they are stored; the last ones are outputs of their own, too
    assert program.report["totals"]["copies"] <= 2
