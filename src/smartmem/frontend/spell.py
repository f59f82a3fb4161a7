"""Change a node while its host form stays runnable: `bake` inputs, or `respell` it as another operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from smartmem.graph.ir import Node, Value
from smartmem.runtime.host import pack


def bake(node: Node, arrays: Mapping[int, np.ndarray[Any, Any] | None]) -> None:
    """Take inputs out of `node.inputs` (they became attributes) and keep their contents for the host.

    Only once per node: the keys are positions in `node.proto`, which are those of `node.inputs` until then.
    """
    assert not node.baked, f"{node.describe()} was baked twice"
    node.baked = dict(arrays)
    node.inputs = [v for i, v in enumerate(node.inputs) if i not in arrays]
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()


def respell(node: Node, op: str, version: int, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> None:
    """Make `node` another operator of the ONNX domain (or another version of its own), host form included.

    Attributes are `attrs` and nothing else. An input that is None here is expected to be baked next, or is absent.
    """
    node.op, node.domain, node.version = op, "", version
    node.attrs = dict(attrs)
    node.inputs = list(inputs)
    names = [f"in:{i}" for i in range(len(inputs))]
    outputs = [f"out:{i}" for i in range(len(node.outputs))]
    node.proto = pack(onnx.helper.make_node(op, names, outputs, name=node.name, **attrs))
