"""Where layout operators go: small graphs with a known answer, and every one of the shipped networks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.networks import NETWORKS, network
from tests.support.onnx_models import info, model

from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.lower import LAYOUT_OPERATORS
from smartmem.passes.module import Fate, Module
from smartmem.passes.pipeline import LEVELS, run_passes


def passed(proto: onnx.ModelProto, level: str = "full") -> Module:
    return run_passes(load_graph(proto), level)


def fates(proto: onnx.ModelProto, level: str = "full") -> dict[str, Fate]:
    return passed(proto, level).fates


def place(fate: Fate) -> tuple[str, str, str, str, str]:
    assert len(fate.places) == 1, fate
    (found,) = fate.places
    return found["kernel"], found["access"], found["tensor"], found["before"], found["after"]


WEIGHT = np.ones((6, 5), np.float32)


def test_transpose_goes_into_the_load_of_a_product() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    found = fates(model(nodes, {"x": (6, 4)}, constants={"w": WEIGHT}))
    assert found["t"].fate == "load"
    assert place(found["t"]) == ("y", "load", "x", "MatMul [i, k] -> Transpose [j, i]", "[k, i]")
    assert found["t"].places[0]["axes"] == "i<4 j<5 k<6"


def test_a_chain_is_one_load() -> None:
    """Window partition: each operator of the chain names the same place."""
    nodes = [
        helper.make_node("Reshape", ["x", "a"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    shapes = {"a": np.array([4, 7, 4, 7]), "b": np.array([16, 49])}
    found = fates(model(nodes, {"x": (28, 28)}, constants=shapes))
    before = "Relu [i, j] -> Reshape [i//4, i%4, j//7, j%7] -> Transpose [i, k, j, l] -> Reshape [7*i + j, 7*k + l]"
    assert [place(found[name]) for name in "rts"] == [
        ("y", "load", "x", before, "[7*(i//4) + j//7, 7*(i%4) + j%7]"),
    ] * 3


def roll() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Slice", ["x", "three", "eight", "axis"], ["a"]),
        helper.make_node("Slice", ["x", "zero", "three", "axis"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    numbers = {name: np.array([n]) for name, n in (("zero", 0), ("three", 3), ("eight", 8), ("axis", 0))}
    return model(nodes, {"x": (8, 4)}, constants=numbers)


def test_roll_is_one_load() -> None:
    found = fates(roll())
    assert {name: fate.fate for name, fate in found.items()} == dict.fromkeys("abc", "load")
    assert place(found["a"])[3:] == ("Relu [i, j] -> Concat [i, j] -> Slice [i + 3, j]", "[(i + 3)%8, j]")
    assert place(found["b"])[3:] == ("Relu [i, j] -> Concat [i - 5, j] -> Slice [i, j]", "[(i + 3)%8, j]")


def test_roll_of_a_view_is_one_load() -> None:
    """Swin's shift back: the slices are of a rearranged tensor."""
    proto = roll()
    proto.graph.node.insert(0, helper.make_node("Reshape", ["z", "s"], ["x"], name="x"))
    proto.graph.input[0].CopyFrom(info("z", (4, 2, 4)))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([8, 4]), "s"))
    module = passed(proto)
    (kernel,) = module.kernels
    assert isinstance(kernel, Kernel)
    assert len(kernel.output.loads()) == 1
    assert {place(module.fates[name])[4] for name in "xabc"} == {"[(i + 3)//2%4, (i + 3)%2, j]"}


def test_concat_is_stored_by_the_producers_of_its_pieces() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("MatMul", ["z", "w"], ["q"]),
        helper.make_node("Concat", ["p", "q"], ["c"], axis=0),
        helper.make_node("Softmax", ["c"], ["y"], axis=0),
    ]
    module = passed(model(nodes, {"x": (4, 6), "z": (3, 6)}, constants={"w": WEIGHT}))
    assert set(module.windows) == {"p", "q"}
    found = module.fates["c"]
    assert found.fate == "store"
    assert [(p["kernel"], p["access"], p["tensor"], p["after"]) for p in found.places] == [
        ("p", "store", "c", "[i, j]"),
        ("q", "store", "c", "[i + 4, j]"),
    ]


def test_view_at_an_output_goes_into_the_store() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Reshape", ["p", "s"], ["r"]),
        helper.make_node("Transpose", ["r"], ["y"], perm=[1, 0, 2]),
    ]
    module = passed(model(nodes, {"x": (4, 6)}, constants={"w": WEIGHT, "s": np.array([2, 2, 5])}))
    assert len(module.kernels) == 1
    assert [module.fates[name].fate for name in "ry"] == ["store", "store"]
    before = "Transpose [j, i, k] -> Reshape [2*i + j, k]"
    assert place(module.fates["y"]) == place(module.fates["r"]) == ("y", "store", "y", before, "[i%2, i//2, j]")


def test_a_rearranged_input_as_output_stays_a_copy() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Transpose", ["r"], ["y"])]
    module = passed(model(nodes, {"x": (12,)}, constants={"s": np.array([3, 4])}))
    (kernel,) = module.kernels
    assert isinstance(kernel, Kernel)
    assert kernel.is_copy
    assert module.fates["y"].fate == "copy"
    assert module.fates["y"].reason == "an output of the model, and a rearrangement of x, which is an input"
    assert kernel.notes == [module.fates["y"].reason]
    assert module.fates["r"].fate == "load"


def test_concat_of_inputs_is_a_copy_too() -> None:
    module = passed(model([helper.make_node("Concat", ["x", "z"], ["y"], axis=0)], {"x": (2,), "z": (3,)}))
    assert module.fates["y"].fate == "copy"
    assert [kernel.is_copy for kernel in module.kernels if isinstance(kernel, Kernel)] == [True]


def test_folded() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Reshape", ["p", "s"], ["same"]),
        helper.make_node("Transpose", ["p"], ["unread"]),
        helper.make_node("Relu", ["same"], ["y"]),
    ]
    found = fates(model(nodes, {"x": (4, 5)}, constants={"w": WEIGHT, "s": np.array([4, 6])}))
    assert {name: (fate.fate, fate.reason) for name, fate in found.items()} == {
        "t": ("folded", "its inputs are constant"),
        "same": ("folded", "a no-op: its result is its operand"),
        "unread": ("folded", "nothing reads its result"),
    }


def test_a_slice_from_the_start_is_no_noop() -> None:
    nodes = [helper.make_node("Slice", ["x", "a", "b"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    found = fates(model(nodes, {"x": (8,)}, constants={"a": np.array([0]), "b": np.array([3])}))
    assert found["s"].fate == "load"


def test_host() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Transpose", ["n"], ["y"])]
    found = fates(model(nodes, {"x": (3, 4)}))["y"]
    assert (found.fate, found.reason) == ("host", "a shape depends on data")


@pytest.mark.parametrize("level", LEVELS)
def test_report(level: str) -> None:
    report = build_program(roll(), level=level).report
    assert report["totals"]["operators"] == 4
    assert report["totals"]["layout_operators"] == 3 == len(report["layout"])
    assert report["totals"]["copies"] == sum(kernel["copy"] for kernel in report["kernels"])
    assert report["totals"]["copies"] == (3 if level == "naive" else 0)
    assert report["classes"]["remaining"] == {"ILI & Variable": 1}
    for entry in report["layout"]:
        assert entry["fate"] == ("copy" if level == "naive" else "load")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    proto = network(name)
    graph = load_graph(proto)
    written = [node.op_type for node in proto.graph.node]
    assert len(graph.operators) >= len(written) - written.count("Constant")
    for level in ("naive", "fuse", "full"):
        module = run_passes(graph, level)
        assert len(module.fates) >= sum(op in LAYOUT_OPERATORS for op in written)
        for fate in module.fates.values():
            check(fate, module)
    assert not any(isinstance(kernel, Kernel) and kernel.is_copy for kernel in module.kernels)
    assert not any(fate.fate in ("copy", "host") for fate in module.fates.values())
    assert module.classes["remaining"]["ILD & Variable"] == module.classes["operators"]["ILD & Variable"]
    if not name.startswith("minilm"):  # its attention mask is shared by all layers
        assert set(module.classes["remaining"]) == {"ILD & Variable"}
    if name.startswith("swin"):
        assert len(module.kernels) <= 90


def check(fate: Fate, module: Module) -> None:
    """The fate is complete, and what it says of kernels is so."""
    kernels = {kernel.tensor: kernel for kernel in module.kernels if isinstance(kernel, Kernel)}
    assert fate.fate in ("load", "store", "folded", "copy", "host"), fate
    assert fate.places if fate.fate in ("load", "store") else fate.reason, fate
    for found in fate.places:
        assert found["before"], fate
        assert found["after"], fate
        assert found["kernel"] in kernels, fate
        assert found["access"] == "store" or found["tensor"] in kernels[found["kernel"]].inputs(), fate
