"""The paper's tables are the test: classes and mapping types come out of the definitions, not out of a list."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.definitions import make_node, normalised, random, reference, stages_of

from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.expr import alu, load
from smartmem.kernel.stage import Stage
from smartmem.passes import classify as c
from smartmem.passes.classify import Action, Mapping

Array = np.ndarray[Any, Any]
X = random(2, 8, 4, 4)
M = random(6, 8)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# operator, inputs, constant inputs, attributes
OPERATORS: dict[str, tuple[str, list[Array], tuple[int, ...], dict[str, Any]]] = {
    "Conv": ("Conv", [X, random(5, 8, 3, 3)], (1,), {}),
    "MatMul": ("MatMul", [M, random(8, 5)], (), {}),
    "Gemm": ("Gemm", [M, random(8, 5), random(5)], (1, 2), {}),
    "LayerNorm": ("LayerNormalization", [M, random(8), random(8)], (1, 2), {}),
    "Softmax": ("Softmax", [M], (), {"axis": -1}),
    "ReduceSum": ("ReduceSum", [M, ints(1)], (1,), {}),
    "ReduceMean": ("ReduceMean", [X, ints(2, 3)], (1,), {}),
    "MaxPool": ("MaxPool", [X], (), {"kernel_shape": [2, 2]}),
    "Relu": ("Relu", [M], (), {}),
    "Erf": ("Erf", [M], (), {}),
    "Add": ("Add", [M, random(6, 8, seed=1)], (), {}),
    "Add bias": ("Add", [M, random(8)], (), {}),
    "Where": ("Where", [M > 0, M, random(6, 8, seed=1)], (), {}),
    "Reshape": ("Reshape", [M, ints(3, 16)], (1,), {}),
    "Flatten": ("Flatten", [X], (), {"axis": 1}),
    "Transpose": ("Transpose", [M], (), {"perm": [1, 0]}),
    "DepthToSpace": ("DepthToSpace", [X], (), {"blocksize": 2}),
    "SpaceToDepth": ("SpaceToDepth", [X], (), {"blocksize": 2}),
    "Slice": ("Slice", [M, ints(1), ints(5), ints(0)], (1, 2, 3), {}),
    "Slice reversed": ("Slice", [M, ints(-1), ints(-99), ints(0), ints(-1)], (1, 2, 3, 4), {}),
    "Gather": ("Gather", [M, ints(4, 0, 3)], (), {"axis": 0}),
    "Gather constant": ("Gather", [M, ints(4, 0, 3)], (1,), {"axis": 0}),
    "Concat": ("Concat", [M, random(2, 8)], (), {"axis": 0}),
    "Pad": ("Pad", [M, ints(0, 1, 0, 1)], (1,), {}),
    "Expand": ("Expand", [random(1, 8), ints(6, 8)], (1,), {}),
    "Unsqueeze": ("Unsqueeze", [M, ints(1)], (1,), {}),
}
CLASSES = {
    c.ILD_VARIABLE: ["Conv", "MatMul", "Gemm", "LayerNorm", "Softmax", "ReduceSum", "ReduceMean", "MaxPool"],
    c.ILI_VARIABLE: ["Relu", "Erf", "Add", "Add bias", "Where"],
    c.ILD_FIXED: ["Reshape", "Flatten", "Transpose", "DepthToSpace", "SpaceToDepth"],
    c.ILI_FIXED: ["Slice", "Slice reversed", "Gather", "Gather constant", "Concat", "Pad", "Expand", "Unsqueeze"],
}
MAPPINGS = {
    Mapping.ONE_TO_ONE: ["Relu", "Erf", "Add", "Where", "Slice", "Slice reversed", "Concat", "Pad"],
    Mapping.ONE_TO_MANY: ["Add bias", "Gather", "Gather constant", "Expand"],
    Mapping.MANY_TO_MANY: CLASSES[c.ILD_VARIABLE],
    Mapping.REORGANIZE: ["Reshape", "Flatten", "Unsqueeze"],
    Mapping.SHUFFLE: ["Transpose", "DepthToSpace", "SpaceToDepth"],
}


def stages(name: str) -> list[Stage]:
    op, inputs, constant, attrs = OPERATORS[name]
    results = reference(op, inputs, **attrs)
    found = stages_of(normalised(make_node(op, inputs, results, dict(attrs), constant=constant)))
    assert found is not None
    return found[0]


def pairs(table: dict[Any, list[str]]) -> list[Any]:
    return [pytest.param(name, kind, id=f"{name}: {kind}") for kind, names in table.items() for name in names]


@pytest.mark.parametrize("name, kind", pairs(CLASSES))
def test_class(name: str, kind: c.Class) -> None:
    assert c.classify(stages(name)) == kind


@pytest.mark.parametrize("name, mapping", pairs(MAPPINGS))
def test_mapping_type(name: str, mapping: Mapping) -> None:
    assert c.mapping_of(stages(name)) == mapping


def view(name: str, shape: tuple[int, ...], tensor: str, index: tuple[Lin, ...]) -> Stage:
    return Stage(name, shape, np.dtype(np.float32), load(tensor, index), origin=(name,))


def test_add_of_tensors_that_lie_differently_depends_on_layout() -> None:
    i, j = axis_digit(0, 6), axis_digit(1, 8)
    same = alu("add", load("x", (i, j)), load("y", (i, j)))
    differing = alu("add", load("x", (i, j)), load("y", (j, i)))
    kind = np.dtype(np.float32)
    assert c.classify(Stage("z", (6, 8), kind, same)) == c.ILI_VARIABLE
    assert c.classify(Stage("z", (6, 8), kind, differing)) == c.ILD_VARIABLE


def test_a_reduction_of_padded_elements_is_no_view() -> None:
    padded = stages("Pad")[0]
    summed = Stage("s", (6,), padded.dtype, padded.body, (10,), "sum")
    assert c.classify(padded).output is c.Output.FIXED
    assert c.classify(summed) == c.ILD_VARIABLE


KEEP, FUSE = Action.KEEP_BOTH, Action.FUSE
FIRST, SECOND, BOTH = Action.ELIMINATE_FIRST, Action.ELIMINATE_SECOND, Action.ELIMINATE_BOTH
ORDER = (c.ILD_VARIABLE, c.ILI_VARIABLE, c.ILD_FIXED, c.ILI_FIXED)
PAPER = [
    [(KEEP, "first second"), (FUSE, "fused"), (SECOND, "first"), (SECOND, "first")],
    [(FUSE, "fused"), (FUSE, ""), (SECOND, ""), (SECOND, "")],
    [(FIRST, "second"), (FIRST, ""), (BOTH, ""), (BOTH, "")],
    [(FIRST, "second"), (FIRST, ""), (BOTH, ""), (BOTH, "")],
]


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", range(4))
def test_pair_table(row: int, column: int) -> None:
    action, search = PAPER[row][column]
    assert c.decide(ORDER[row], ORDER[column]) == c.Decision(action, tuple(search.split()))


def test_a_pair_has_the_class_of_higher_complexity() -> None:
    for first, kind in enumerate(ORDER):
        for second, other in enumerate(ORDER):
            assert c.combined(kind, other) == ORDER[min(first, second)]


def test_legality() -> None:
    many, one = Mapping.MANY_TO_MANY, Mapping.ONE_TO_ONE
    assert c.legality(many, many) is c.Legality.ROWS
    for mapping in Mapping:
        assert c.legality(one, mapping) is c.legality(mapping, one) is c.Legality.FUSE
    assert c.legality(Mapping.SHUFFLE, Mapping.REORGANIZE) is c.Legality.FUSE
    assert c.legality(Mapping.ONE_TO_MANY, many) is c.Legality.CHECK
    assert c.legality(Mapping.SHUFFLE, many) is c.Legality.CHECK


def chain() -> list[Stage]:
    """x -> transpose -> sum over rows -> relu -> transpose -> (two readers: sum, relu)."""
    i, j = axis_digit(0, 6), axis_digit(1, 6)
    kind = np.dtype(np.float32)
    return [
        view("t", (6, 6), "x", (j, i)),
        Stage("m", (6, 6), kind, alu("mul", load("t", (i, axis_digit(2, 6))), load("w", (j,))), (6,), "sum", ("m",)),
        Stage("r", (6, 6), kind, alu("neg", load("m", (i, j))), origin=("r",)),
        view("u", (6, 6), "r", (j, i)),
        Stage("a", (6,), kind, load("u", (i, axis_digit(1, 6))), (6,), "sum", ("a",)),
        Stage("b", (6, 6), kind, alu("neg", load("u", (i, j))), origin=("b",)),
    ]


def test_what_remains_are_ild_and_variable_operators() -> None:
    left = c.remaining(chain())
    assert {str(group.kind) for group in left} == {"ILD & Variable"}
    assert sorted(group.members[0] for group in left) == ["a", "m"]
    assert {name for group in left for name in group.members} == {"t", "m", "r", "u", "a", "b"}


def test_views_without_a_partner_remain() -> None:
    i, j = axis_digit(0, 6), axis_digit(1, 6)
    left = c.remaining([view("t", (6, 6), "x", (j, i)), view("u", (6, 6), "t", (j, i))])
    assert [(group.members, str(group.kind)) for group in left] == [(["t", "u"], "ILD & Fixed")]
    assert c.remaining([]) == []
