"""Run single operators on the host through the onnx package's reference implementations: slow, correct, complete.

In: a `Node` and its operands as arrays. Out: its results as arrays.

`pack` makes a node self-contained: operands are called `in:0`, `in:1` …, results `out:0`, `out:1` …, whatever the graph
calls them, so passes may rename values freely. Operands that the frontend turned into attributes are in `Node.baked`
and are fed again here. Subgraphs (If, Loop, Scan) may read values of the graph around them: those are extra operands at
the end of `Node.inputs`, under the names in `attrs["captures"]`.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smartmem.errors import RuntimeFailure
from smartmem.graph.ir import Node

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]


def pack(proto: onnx.NodeProto) -> bytes:
    """A copy of `proto` with positional names, as `Node.proto` holds it. Absent operands stay ""."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.input[:] = [f"in:{i}" if name else "" for i, name in enumerate(proto.input)]
    # Absent results are named too: the results of `run_node` then line up with `Node.outputs`.
    copy.output[:] = [f"out:{i}" for i in range(len(proto.output))]
    return bytes(copy.SerializeToString())


def run_node(node: Node, inputs: list[Array | None]) -> list[Array]:
    """Run one node.

    Args:
        node: a node of an imported graph (its `proto` is set).
        inputs: one array per entry of `node.inputs`, None where that is absent.

    Returns:
        One array per entry of `node.outputs`.

    Raises:
        RuntimeFailure: the onnx package is missing, or its reference implementation refuses the node.
    """
    runner = _runner(node)
    given = iter(inputs)
    feeds: dict[str, Array] = {}
    for index, name in enumerate(runner.operands):
        array = node.baked[index] if index in node.baked else next(given, None)
        if array is not None and name:
            feeds[name] = array
    feeds.update((name, array) for name, array in zip(runner.captures, given, strict=False) if array is not None)
    try:
        with runner.lock, np.errstate(all="ignore"):
            if runner.flatten_axis is not None:
                return _flattened(runner, feeds)
            results = runner.evaluator.run(None, feeds)
    except Exception as error:  # reference operators raise whatever their numpy code raises
        shapes = ", ".join("absent" if a is None else f"{np.shape(a)}" for a in inputs)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeFailure(
            f"{node.describe()} on inputs of shape {shapes}: the onnx reference implementation failed: {first}"
        ) from error
    return list(results)


@dataclass
class _Runner:
    """A prepared evaluator of one node."""

    evaluator: Any
    operands: list[str]
    captures: list[str]
    flatten_axis: int | None
    lock: threading.Lock


_runners: weakref.WeakKeyDictionary[Node, _Runner] = weakref.WeakKeyDictionary()
_runners_lock = threading.Lock()


def _runner(node: Node) -> _Runner:
    with _runners_lock:
        runner = _runners.get(node)
        if runner is None:
            runner = _runners[node] = _prepare(node)
        return runner


def _prepare(node: Node) -> _Runner:
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise RuntimeFailure(
            f"{node.describe()} runs on the host, which needs the onnx package ({error}); run: pip install onnx"
        ) from None
    if not node.proto:
        raise RuntimeFailure(f"{node.describe()} cannot run on the host: it was made by a pass and has no ONNX form")
    proto = onnx.NodeProto.FromString(node.proto)
    for index, array in node.baked.items():
        if array is None:  # the frontend found it to mean "absent"
            proto.input[index] = ""
    captures = list(node.attrs.get("captures", ()))
    # Softmax below opset 13 flattens its input; the reference only knows the newer meaning.
    flatten = node.attrs["axis"] if node.attrs.get("flatten") else None
    if flatten is not None:
        del proto.attribute[:]
        proto.attribute.append(onnx.helper.make_attribute("axis", -1))
    operands = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys((*proto.input, *captures)) if name]
    graph = onnx.GraphProto(name=node.name, node=[proto], input=operands)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
    opsets = {**node.attrs.get("opsets", {}), node.domain: node.version if flatten is None else 13}
    opsets.setdefault("", onnx.defs.onnx_opset_version())
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=graph)
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items())
    try:
        evaluator = ReferenceEvaluator(model, new_ops=_own_operators(proto))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeFailure(
            f"{node.describe()} has no reference implementation to run on the host: {first}"
        ) from error
    return _Runner(evaluator, list(proto.input), captures, flatten, threading.Lock())


def _own_operators(proto: onnx.NodeProto) -> list[Any]:
    """Our versions of reference operators that are wrong or go element by element; control flow may hold any."""
    from smartmem.runtime.host_operators import OPERATORS

    if any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute):
        from smartmem.runtime.loop import Loop

        return [Loop, *OPERATORS.values()]
    return [OPERATORS[proto.op_type]] if proto.op_type in OPERATORS else []


def _flattened(runner: _Runner, feeds: dict[str, Array]) -> list[Array]:
    """`f(x, axis) -> reshape(f(reshape(x, [prod(shape[:axis]), -1]), 1))`: Softmax and its like below opset 13."""
    (name, array), axis = next(iter(feeds.items())), runner.flatten_axis
    rows = int(np.prod(array.shape[:axis], dtype=np.int64))
    flat = array.reshape(rows, array.size // max(rows, 1))
    return [result.reshape(array.shape) for result in runner.evaluator.run(None, {name: flat})]
