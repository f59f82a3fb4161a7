"""One-node graphs for the tests of compute definitions: definition evaluated by numpy against onnx's reference.

``check("Softmax", [x], axis=1)`` runs ``onnx.reference`` on the node, builds the canonical `Node` by hand with shapes
and dtypes of the reference's results, evaluates the definition's stages and compares.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.reference
from tests.support.onnx_models import info, model

from smartmem.frontend.normalise import Context, normalise
from smartmem.graph.ir import Node, Value
from smartmem.index.map import evaluate
from smartmem.kernel.definitions.registry import Defined, definition_of
from smartmem.kernel.evaluate import evaluate_stages
from smartmem.kernel.expr import Alu, Choose, Expr, Load
from smartmem.kernel.stage import Stage

Array = np.ndarray[Any, Any]


def random(*shape: int, dtype: Any = np.float32, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    """Fresh random values of a shape: floats in [low, high), ints in [low * 10, high * 10), bools.

    The seed is mixed with the shape, so that two operands of one test differ.
    """
    generator = np.random.default_rng([seed, *shape])
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if np.issubdtype(kind, np.integer):
        least = 0 if np.issubdtype(kind, np.unsignedinteger) else int(low * 10)
        return generator.integers(least, int(high * 10), shape).astype(kind)
    return generator.uniform(low, high, shape).astype(kind)


def reference(
    op: str, inputs: Sequence[Array | None], *, outputs: int = 1, opset: int = 21, **attrs: Any
) -> list[Array]:
    """What `onnx.reference` gives for one node."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    proto = onnx.helper.make_node(op, names, results, name="node", **attrs)
    feeds = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    infos = [info(name, x.shape, onnx.helper.np_dtype_to_tensor_dtype(x.dtype)) for name, x in feeds.items()]
    evaluator = onnx.reference.ReferenceEvaluator(model([proto], infos, results, opset=opset))
    return [np.asarray(y) for y in evaluator.run(None, feeds)]


def make_node(
    op: str,
    inputs: Sequence[Array | None],
    results: Sequence[Array | None],
    attrs: dict[str, Any],
    *,
    opset: int = 21,
    constant: Collection[int] = (),
) -> Node:
    """A canonical node over values x0, x1, … and y0, y1, …; inputs at positions in `constant` have their data."""
    operands = [
        None if x is None else Value(f"x{i}", x.shape, x.dtype, x if i in constant else None)
        for i, x in enumerate(inputs)
    ]
    outputs = [None if y is None else Value(f"y{i}", y.shape, y.dtype) for i, y in enumerate(results)]
    return Node(op, "", "node", operands, outputs, attrs, opset)


def stages_of(node: Node) -> tuple[list[Stage], dict[str, Array]] | None:
    """The stages of a node's definition and the constants that it adds, or None."""
    definition = definition_of(node)
    assert definition is not None, f"{node.op} has no definition function"
    found = definition(node)
    if found is None:
        return None
    return (found.stages, found.constants) if isinstance(found, Defined) else (found, {})


def normalised(node: Node) -> Node:
    """`node` as the frontend leaves it: default attributes filled in, then brought to canonical form."""
    schema = onnx.defs.get_schema(node.op, node.version)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            node.attrs.setdefault(name, value.decode() if isinstance(value, bytes) else value)
    known = {v: v.data for v in node.inputs if v is not None and v.data is not None}
    normalise(node, Context(known, lambda name, data: Value(name, data.shape, data.dtype, data)))
    return node


def evaluate_node(node: Node, inputs: Sequence[Array | None]) -> tuple[list[Array], list[Stage]]:
    """The outputs of a node by its definition, and the stages. Each load must stay inside its tensor."""
    found = stages_of(node)
    assert found is not None, f"{node.op} with {node.attrs} has no definition"
    stages, constants = found
    tensors = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    tensors |= {v.name: v.data for v in node.inputs if v is not None and v.data is not None}
    known = {**tensors, **constants}
    known |= evaluate_stages(stages, known)
    for stage in stages:
        assert stage.origin == ("node",), stage
        rank = len(stage.domain)
        axes = [np.arange(n).reshape([-1 if a == k else 1 for k in range(rank)]) for a, n in enumerate(stage.domain)]
        assert_in_bounds(stage.body, axes, known, np.array(True))
    return [known[y.name].reshape(y.dims) for y in node.outputs if y is not None], stages


def assert_in_bounds(expr: Expr, axes: Sequence[Array], tensors: Mapping[str, Array], reached: Array) -> None:
    """Every load of `expr` is inside its tensor at the coordinates that guards let through (`reached`)."""

    def lookup(name: str, index: tuple[Any, ...]) -> Any:
        return tensors[name][tuple(np.clip(i, 0, n - 1) for i, n in zip(index, tensors[name].shape, strict=True))]

    if isinstance(expr, Load):
        for position, extent in zip(expr.index, tensors[expr.tensor].shape, strict=True):
            value = np.asarray(evaluate(position, axes, lookup))
            assert np.all(~reached | ((value >= 0) & (value < extent))), f"{expr} leaves its tensor"
    elif isinstance(expr, Choose):
        holds = np.array(True)
        for guard in expr.guards:
            value = np.asarray(evaluate(guard.lin, axes, lookup))
            holds = holds & (value >= 0) & (value < guard.ext)
        assert_in_bounds(expr.then, axes, tensors, reached & holds)
        assert_in_bounds(expr.otherwise, axes, tensors, reached & ~holds)
    elif isinstance(expr, Alu):
        for argument in expr.args:
            assert_in_bounds(argument, axes, tensors, reached)


def check(
    op: str,
    inputs: Sequence[Array | None],
    *,
    outputs: int = 1,
    opset: int = 21,
    constant: Collection[int] = (),
    canonical: dict[str, Any] | None = None,
    expected: Sequence[Array] | None = None,
    frontend: bool = False,
    rtol: float = 2e-5,
    atol: float = 2e-6,
    **attrs: Any,
) -> list[Stage]:
    """Compares a definition with the reference; returns its stages.

    Args:
        op: the operator.
        inputs: its inputs, None where absent.
        outputs: how many outputs it has.
        opset: its opset version.
        constant: positions of inputs that are constants of the graph.
        canonical: attributes that normalisation adds or changes.
        expected: results to compare with, where the reference cannot give them.
        frontend: let the frontend bring the node to canonical form, instead of `canonical`.
        rtol: relative tolerance.
        atol: absolute tolerance.
        attrs: attributes as in the ONNX file.
    """
    results = expected if expected is not None else reference(op, inputs, outputs=outputs, opset=opset, **attrs)
    node = make_node(op, inputs, results, {**attrs, **(canonical or {})}, opset=opset, constant=constant)
    if frontend:
        node = normalised(node)
    found, stages = evaluate_node(node, inputs)
    for mine, wanted in zip(found, results, strict=True):
        assert mine.shape == wanted.shape
        assert mine.dtype == wanted.dtype
        if mine.dtype.kind in "biu":
            np.testing.assert_array_equal(mine, wanted)
        else:
            wide = np.complex128 if mine.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(mine.astype(wide), wanted.astype(wide), rtol=rtol, atol=atol)
    return stages


def undefined(op: str, inputs: Sequence[Array | None], results: Sequence[Array], **options: Any) -> bool:
    """Whether this use of `op` has no definition; `options` as in `check`."""
    constant, opset = options.pop("constant", ()), options.pop("opset", 21)
    return stages_of(make_node(op, inputs, results, options, opset=opset, constant=constant)) is None
