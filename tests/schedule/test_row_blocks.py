"""How many rows a block of a matrix product has, how its work divides, and operands B whose rows an index gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.pipeline import run_passes
from smartmem.schedule.code import Target
from smartmem.schedule.pipeline import Pipeline, prepare
from smartmem.schedule.tasks import FEWEST, Task, divide_work

TARGET = Target(lanes=16, registers=32, l1=32 << 10, l2=1 << 20)


def constant(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(list(shape))
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def inputs(shapes: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
    """Inputs of float32, and of int64 where `i` is an index."""
    return [info(n, s, onnx.TensorProto.INT64 if n == "i" else onnx.TensorProto.FLOAT) for n, s in shapes.items()]


def product(rows: int, depth: int, columns: int, before: str = "", after: str = "") -> onnx.ModelProto:
    """A product with constant weights after `before` and before `after` ("norm", "gelu" or neither)."""
    nodes, weights, name = [], {"w": constant(depth, columns)}, "x"
    for place, operator, width in (("before", before, depth), ("product", "", columns), ("after", after, columns)):
        if place == "product":
            nodes.append(helper.make_node("MatMul", [name, "w"], [place]))
        elif operator == "norm":
            weights |= {f"{place}.scale": constant(width), f"{place}.shift": constant(width)}
            scaled = [name, f"{place}.scale", f"{place}.shift"]
            nodes.append(helper.make_node("LayerNormalization", scaled, [place]))
        elif operator == "gelu":
            nodes.append(helper.make_node("Gelu", [name], [place]))
        else:
            continue
        name = place
    nodes[-1].output[0] = "y"
    return model(nodes, {"x": (rows, depth)}, constants=weights, opset=20)


def kernels(proto: onnx.ModelProto) -> list[tuple[Pipeline, Task]]:
    """The row pipelines with a product, and how each is divided."""
    module = run_passes(load_graph(proto, None), "full")
    pipelines = [
        prepare(k, module.storages, TARGET, module.constants)
        for k in module.kernels
        if isinstance(k, Kernel) and k.rows is not None
    ]
    found = [p for p in pipelines if p.contractions()]
    return [(p, divide_work(p, p.flats[p.stages[-1].name].columns)) for p in found]


@pytest.mark.parametrize("before", ["", "norm"])
def test_large_weights_are_read_once(before: str) -> None:
    ((pipeline, task),) = kernels(product(128, 512, 8192, before))
    assert pipeline.tiling.group == pipeline.tiling.count
    assert task.row_chunks == 1
    assert task.column_chunks >= FEWEST


@pytest.mark.parametrize("rows", [112, 196, 197, 249])
@pytest.mark.parametrize("before", ["", "norm"])
def test_rows_in_two_halves(rows: int, before: str) -> None:
    """Neighbouring kernels give a thread the same rows, whatever their columns; each half is one block."""
    for depth, columns in ((256, 1024), (1024, 256), (384, 384)):
        ((pipeline, task),) = kernels(product(rows, depth, columns, before))
        assert pipeline.tiling.count == 2 * pipeline.tiling.group
        assert task.row_chunks == 2
        assert task.column_chunks >= FEWEST // 2


def test_small_weights_are_read_once_per_block_of_rows() -> None:
    ((pipeline, task),) = kernels(product(784, 256, 1024, "norm"))
    assert 50 <= pipeline.tiling.block <= 70
    assert task.row_chunks >= 784 // 70


def test_taps_of_a_convolution_count_once() -> None:
    """64 pixels x 9 x 256 floats are more than half of L2, the 256 x 256 that they are taken from are not."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Conv", ["a", "w3"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    weights = {"w1": constant(256, 8, 1, 1), "w3": constant(256, 256, 3, 3)}
    (_, (pipeline, _)) = kernels(model(nodes, {"x": (1, 8, 16, 16)}, constants=weights))
    assert pipeline.height == 64
    assert pipeline.tiling.group == pipeline.tiling.count


def test_few_columns_for_what_comes_before() -> None:
    """GELU of 5120 inputs would be computed by each task of 1280 columns: it stays in a kernel of its own."""
    ((pipeline, task),) = kernels(product(64, 2048, 512, "gelu"))
    assert len(pipeline.stages) == 1
    assert task.column_chunks >= FEWEST
    ((pipeline, _),) = kernels(product(4096, 128, 128, "gelu"))
    assert len(pipeline.stages) > 1, "with rows enough for all tasks it belongs to the product"


def test_columns_stay_divided_when_rows_follow() -> None:
    ((pipeline, task),) = kernels(product(64, 1024, 2048, after="norm"))
    assert pipeline.stages[-1] in [*pipeline.regions[-1].stages, pipeline.regions[-1].contraction]
    assert task.column_chunks >= FEWEST


def shares(pipeline: Pipeline, task: Task, threads: int) -> list[int]:
    """Row tiles x columns of each thread, whose tasks are neighbours: the emitter's formulas."""
    tiles, width = pipeline.tiling.count, pipeline.flats[pipeline.stages[-1].name].columns
    work = []
    for number in range(task.count):
        rest, column = divmod(number, task.column_chunks)
        chunk = rest % task.row_chunks
        height = (chunk + 1) * tiles // task.row_chunks - chunk * tiles // task.row_chunks
        assert 0 < height <= task.chunk
        work.append(height * min(task.span, width - column * task.span))
    ends = [len(work) * t // threads for t in range(threads + 1)]
    return [sum(work[low:high]) for low, high in pairwise(ends)]


@pytest.mark.parametrize("rows", [49, 64, 98, 196, 197, 249, 500, 784, 1000, 1024, 3136])
@pytest.mark.parametrize(("depth", "columns"), [(256, 1024), (384, 384), (1024, 256)])
@pytest.mark.parametrize(("before", "after"), [("norm", "gelu"), ("", "norm")])
def test_two_threads_get_the_same(rows: int, depth: int, columns: int, before: str, after: str) -> None:
    for pipeline, task in kernels(product(rows, depth, columns, before, after)):
        mine, yours = shares(pipeline, task, 2)
        tile = pipeline.flats[pipeline.stages[-1].name].columns  # one row tile of all columns
        assert abs(mine - yours) <= tile, (task, pipeline.tiling)


@pytest.mark.parametrize("level", ["fuse", "full"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "before", "after"),
    [(128, 320, 8192, "norm", "gelu"), (33, 700, 300, "gelu", "norm"), (130, 1100, 40, "norm", "norm")],
)
def test_results(level: str, rows: int, depth: int, columns: int, before: str, after: str) -> None:
    proto = product(rows, depth, columns, before, after)
    x = np.random.default_rng(0).standard_normal((rows, depth)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [130, 249])
def test_local_rows_are_those_of_the_kernel(rows: int, threads: int) -> None:
    """Tasks of columns share normalized rows in scratch; the next kernel of the same shape computes its own."""
    nodes, weights, name = [], {}, "x"
    for k in range(4):
        weights |= {f"scale{k}": constant(256), f"shift{k}": constant(256), f"w{k}": constant(256, 256)}
        last = "y" if k == 3 else f"a{k}"
        nodes.append(helper.make_node("LayerNormalization", [name, f"scale{k}", f"shift{k}"], [f"n{k}"]))
        nodes.append(helper.make_node("MatMul", [f"n{k}", f"w{k}"], [f"m{k}"]))
        nodes.append(helper.make_node("Add", [f"m{k}", name], [last]))
        name = last
    proto = model(nodes, {"x": (rows, 256)}, constants=weights)
    found = kernels(proto)
    assert len(found) == 4 and all(len(p.regions) == 2 and t.column_chunks > 1 for p, t in found)
    x = np.random.default_rng(1).standard_normal((rows, 256)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, threads=threads) as compiled:
        for _ in range(3):
            np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)


def routed(regions: int, keys: int, width: int) -> onnx.ModelProto:
    """Attention of 4 queries per region to keys and values of the regions that an index names."""
    names = ["k", "v"]
    nodes = [helper.make_node("Gather", [n, "i"], [f"{n}.taken"], axis=0) for n in names]  # (regions, routes, keys, w)
    nodes += [helper.make_node("Reshape", [f"{n}.taken", "shape"], [f"{n}.flat"]) for n in names]
    nodes += [
        helper.make_node("Transpose", ["k.flat"], ["k.turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k.turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["parts"], axis=-1),
        helper.make_node("MatMul", ["parts", "v.flat"], ["y"]),
    ]
    shapes = {"q": (regions, 4, width), "i": (regions, 3), "k": (regions, keys, width), "v": (regions, keys, width)}
    return model(nodes, inputs(shapes), constants={"shape": np.array([regions, -1, width])})


@pytest.mark.parametrize("level", ["layout", "full"])
@pytest.mark.parametrize(("regions", "keys", "width"), [(6, 4, 32), (5, 7, 40), (3, 16, 24), (4, 1, 9)])
def test_keys_that_an_index_names(level: str, regions: int, keys: int, width: int) -> None:
    proto, rng = routed(regions, keys, width), np.random.default_rng(2)
    feeds = {n: rng.standard_normal((regions, 4 if n == "q" else keys, width)).astype(np.float32) for n in "qkv"}
    feeds["i"] = rng.integers(-regions, regions, (regions, 3))
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        np.testing.assert_allclose(compiled(**feeds), wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_an_index_names_are_found_once() -> None:
    """V is packed row by row, K in squares of columns: the index is looked up where a row or a column starts."""
    nodes = [helper.make_node("Gather", ["w", "i"], ["b"], axis=0), helper.make_node("MatMul", ["x", "b"], ["y"])]
    (text,) = build_program(model(nodes, inputs({"x": (4, 20), "i": (20,), "w": (9, 64)}))).sources.values()
    inside = [line for line in text.splitlines() if "sm_load(from" in line]
    assert inside
    assert not any("sm_index" in line and "sm_load(" in line for line in text.splitlines())


def test_entries_that_share_routes_share_starts() -> None:
    """Heads look the routes of their region up once, though each has its own columns; so does the next call."""
    heads, regions, width = 4, 6, 32
    k = helper.make_node("Gather", ["k", "i"], ["taken"], axis=0)  # (regions, routes, heads, width)
    nodes = [
        k,
        helper.make_node("Transpose", ["taken"], ["keys"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["q", "keys"], ["y"]),
    ]
    shapes = {"q": (regions, heads, 3, width), "i": (regions, 20), "k": (regions, heads, width)}
    proto, rng = model(nodes, inputs(shapes)), np.random.default_rng(5)
    (text,) = build_program(proto).sources.values()
    assert f"!= b / {heads}" in text
    with smartmem.compile(proto, threads=2) as compiled:
        for _ in range(3):
            feeds = {n: rng.standard_normal(shapes[n]).astype(np.float32) for n in "qk"}
            feeds["i"] = rng.integers(-regions, regions, shapes["i"])
            wanted = feeds["q"] @ feeds["k"][feeds["i"]].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(compiled(**feeds), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "by_rows"), [(40, False), (1000, True)])
def test_rows_of_a_deep_operand_are_packed_whole(depth: int, by_rows: bool) -> None:
    """A line that holds two vectors of a row should not be read again after it has left L1."""
    proto = model([helper.make_node("MatMul", ["x", "b"], ["y"])], {"x": (8, depth), "b": (depth, 33)})
    (text,) = build_program(proto).sources.values()
    packing = text[text.index("*held !=") :]
    assert (packing.index("for (long k0") < packing.index("for (long n = 0")) == by_rows
    rng = np.random.default_rng(0)
    x, b = (rng.standard_normal(s).astype(np.float32) for s in ((8, depth), (depth, 33)))
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x=x, b=b), x @ b, rtol=1e-4, atol=1e-4)
