"""The ONNX operator test cases: every model loads, static shapes are true, and the host computes the expected results.

Each case runs twice: as it is (parameters such as axes are inputs, so data), and with its small operands made constant
(so they become attributes and shapes).
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from frontend_models import run_graph
from onnx import numpy_helper

from smartmem.frontend import load_graph
from smartmem.frontend.read import OLDEST_OPSET

#: Faults of the reference implementation, not of ours, and results that are random.
EXPECTED = ("bernoulli", "group_normalization_example", "group_normalization_epsilon", "string_concat_zero_dimensional")


def _supported(proto: onnx.ModelProto) -> bool:
    tensors = all(value.type.WhichOneof("value") == "tensor_type" for value in proto.graph.input)
    return tensors and all(o.version >= OLDEST_OPSET or o.domain for o in proto.opset_import)


def _problem(case, freeze: bool) -> str | None:
    """What is wrong with one case, None where it passes."""
    feeds, expected = (
        [numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else a for a in arrays]
        for arrays in case.data_sets[0]
    )
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    names = [value.name for value in proto.graph.input]
    if freeze:
        for name, array in list(zip(names, feeds, strict=False))[1:]:
            if array.dtype.kind in "iufb" and array.size < 64:
                proto.graph.initializer.append(numpy_helper.from_array(array, name))
    graph = load_graph(proto)
    results = run_graph(graph, dict(zip(names, feeds, strict=False)))
    for value, got, want in zip(graph.outputs, results, expected, strict=False):
        if not isinstance(want, np.ndarray):
            continue
        if value.shape is not None and value.shape != want.shape:
            return f"inferred {value.shape}, but it is {want.shape}"
        if want.dtype.kind in "iufb":
            np.testing.assert_allclose(np.asarray(got, want.dtype), want, rtol=1e-3, atol=1e-4)
    return None


@pytest.mark.parametrize("freeze", [False, True], ids=["data", "constant"])
def test_operator_cases(freeze):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = [case for case in collect_testcases(None) if _supported(case.model)]
        failures = {}
        for case in cases:
            if any(name in case.name for name in EXPECTED):
                continue
            try:
                problem = _problem(case, freeze)
            except Exception as error:  # every failure is reported, whatever it is
                problem = " ".join(str(error).split())[:200]
            if problem:
                failures[case.name] = problem
    assert len(cases) > 1000
    assert not failures
