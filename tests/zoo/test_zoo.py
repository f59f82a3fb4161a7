"""The zoo's registry and error messages, which need nothing; the networks and their files, which need the zoo extra."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model
from typer.testing import CliRunner

from smartmem.errors import InputError, ModelError, SmartmemError
from smartmem.zoo import NETWORKS, MissingPackageError, UnknownNetworkError, count, find, packages
from smartmem.zoo.cli import zoo_app

PAPER = {  # millions of parameters, GMACs at batch 1
    "swin_t": (28.29, 4.49),
    "vit_b16": (86.57, 17.56),
    "convnext_t": (28.59, 4.46),
    "regnetx_032": (15.30, 3.18),
    "resnext50_32x4d": (25.03, 4.23),
    "efficientvit_b3": (48.65, 5.16),
    "yolov8n": (3.16, 4.37),
    "sd15_text_encoder": (123.06, 6.65),
    "pythia_1b": (1011.8, 117.3),
    "pythia_1b_2": (306.8, 26.2),
    "sd15_unet": (859.5, 90.05),
    "sd15_vae_decoder": (49.49, 311),
    "autoformer_s": (22.89, 5.16),
    "biformer_s": (25.54, 4.46),
    "crossformer_s": (30.66, 4.91),
    "cswin_s": (34.64, 6.80),
    "flatten_swin_t": (29.19, 4.48),
    "smt_s": (22.55, 4.84),
    "conformer_m": (27.51, 10.26),
}
EXPORTED = ("swin_t", "convnext_t", "regnetx_032", "resnext50_32x4d", "efficientvit_b3", "yolov8n")
"""Exported in the tests: some seconds each. SMARTMEM_TEST_ZOO=all: all, in 16 GiB and half an hour."""
if os.environ.get("SMARTMEM_TEST_ZOO") == "all":
    EXPORTED = tuple(NETWORKS)


def needs(name: str) -> None:
    """Skip the test where a package of this network is absent."""
    for package in NETWORKS[name].needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two arrays, relative to the second one's length."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_registry_holds_the_networks_of_the_paper() -> None:
    assert set(PAPER) <= set(NETWORKS)
    for name, (millions, gmacs) in PAPER.items():
        network = NETWORKS[name]
        assert network.name == name
        assert network.params / 1e6 == pytest.approx(millions, rel=2e-3)
        assert network.gmacs == pytest.approx(gmacs, rel=2e-3)


def test_factories_exist_without_importing_them() -> None:
    folder = Path(packages.__file__).parent
    for network in NETWORKS.values():
        module, _, function = network.factory.partition(":")
        file = folder.joinpath(*module.split(".")[2:]).with_suffix(".py")
        assert f"def {function}(" in file.read_text(), network.name


def test_import_and_list_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import smartmem.zoo, smartmem.zoo.export\n"
        "from smartmem.zoo.cli import zoo_app; zoo_app(['list'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in NETWORKS)


@pytest.mark.parametrize(
    "wrong, near",
    [("swin", "swin_t"), ("Swin-T", "swin_t"), ("vit_b_16", "vit_b16"), ("yolo8n", "yolov8n"), ("pythia", "pythia_1b")],
)
def test_unknown_name_suggests_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(UnknownNetworkError, match=f"no network '{wrong}'.*did you mean .*{near}") as caught:
        find(wrong)
    assert isinstance(caught.value, SmartmemError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "qqqqqq"])
def test_name_with_nothing_near_lists_all(wrong: str) -> None:
    with pytest.raises(UnknownNetworkError, match=r"there are swin_t, .*conformer_m"):
        find(wrong)


@pytest.mark.parametrize(
    "name, size",
    [("convnext_t", 100), ("convnext_t", 0), ("convnext_t", -32), ("convnext_t", 32000), ("sd15_text_encoder", 78)],
)
def test_impossible_resolution(name: str, size: int) -> None:
    with pytest.raises(InputError, match=f"{name}: --resolution {size}: "):
        find(name).resolve(size)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"torch is not installed: pip install 'smartmem\[zoo\]'.*torch==2"):
        find("swin_t").build()


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"exporter": "jit"}, {"path": "swin.pt"}, {"path": "no/such/s.onnx"}]
)
def test_export_refuses_bad_arguments(options: dict[str, object], tmp_path: Path) -> None:
    from smartmem.zoo.export import export

    path = tmp_path / str(options.pop("path", "s.onnx"))
    with pytest.raises(InputError):
        export("swin_t", path, **options)
    assert not list(tmp_path.iterdir())


def test_example_follows_from_the_seed() -> None:
    network = find("sd15_unet")
    one, same, other = network.example(), network.example(), network.example(seed=1)
    assert {key: array.shape for key, array in one.items()} == {
        "sample": (1, 4, 32, 32),
        "timestep": (1,),
        "encoder_hidden_states": (1, 77, 768),
    }
    assert one["timestep"].dtype == np.int64
    for key in one:
        assert np.array_equal(one[key], same[key])
        assert not np.array_equal(one[key], other[key])
    assert network.example(3, 64)["sample"].shape == (3, 4, 64, 64)


def test_list_as_json() -> None:
    result = CliRunner().invoke(zoo_app, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == list(NETWORKS)
    assert rows["swin_t"]["inputs"] == {"image": [1, 3, 224, 224]}


COUNTED = [
    ("Conv", {"group": 2, "pads": [1, 1, 1, 1]}, [(2, 4, 5, 6), (8, 2, 3, 3)], 2 * 8 * 5 * 6 * 2 * 9),
    ("Conv", {"strides": [2]}, [(1, 3, 9), (4, 3, 3)], 4 * 4 * 3 * 3),
    ("ConvTranspose", {"strides": [2, 2]}, [(1, 3, 4, 4), (3, 5, 2, 2)], 3 * 16 * 5 * 4),
    ("MatMul", {}, [(2, 3, 4), (4, 5)], 2 * 3 * 4 * 5),
    ("MatMul", {}, [(4,), (4, 5)], 20),
    ("MatMul", {}, [(2, 1, 3, 4), (7, 4, 5)], 2 * 7 * 3 * 4 * 5),
    ("Gemm", {"transA": 1, "transB": 1}, [(4, 3), (5, 4)], 60),
    ("Einsum", {"equation": "bij, bjk -> bik"}, [(2, 3, 4), (2, 4, 5)], 120),
    ("Einsum", {"equation": "...ij,jk->...ik"}, [(7, 2, 3, 4), (4, 5)], 840),
    ("Einsum", {"equation": "ij->ji"}, [(3, 4)], 0),
    ("Add", {}, [(3, 4), (3, 4)], 0),
]


@pytest.mark.parametrize("op, attributes, shapes, expected", COUNTED)
def test_macs_of_one_node(op: str, attributes: dict[str, object], shapes: list[tuple[int, ...]], expected: int) -> None:
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    assert count.macs(model([node], inputs)) == expected


def test_macs_evaluates_arithmetic_on_shapes() -> None:
    """As torch's older exporter writes it: a slice up to half of an extent."""
    constants = {"start": np.array([0]), "two": np.array([2]), "w": np.ones((4, 5), np.float32)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], end=1),
        helper.make_node("Div", ["shape", "two"], ["half"]),
        helper.make_node("Slice", ["x", "start", "half"], ["part"]),
        helper.make_node("MatMul", ["part", "w"], ["y"]),
    ]
    assert count.macs(model(nodes, {"x": (6, 4)}, constants=constants)) == 3 * 4 * 5


def test_macs_wants_static_shapes(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    proto = model([node], {"x": ("n", 4)}, constants={"w": np.ones((4, 5), np.float32)})
    with pytest.raises(InputError, match="x"):
        count.macs(proto)
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        count.macs(tmp_path / "absent.onnx")


def test_randomise_leaves_nothing_constant() -> None:
    torch = pytest.importorskip("torch")
    from smartmem.zoo.weights import calibrate, randomise

    def build() -> object:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.GroupNorm(2, 8)).eval()
        model[0].gamma = torch.nn.Parameter(torch.full((8,), 1e-6))
        model[0].fixed = torch.nn.Parameter(torch.ones(8), requires_grad=False)
        randomise(model, 3)
        calibrate(model, [torch.randn(4, 3, 9, 9) * 5 + 2])
        return model

    one, other = build(), build()
    for (name, value), same in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, same), name
        assert name.endswith(("fixed", "num_batches_tracked")) or value.std() > 0.02, name
    assert torch.equal(one[0].fixed, torch.ones(8))
    assert 0.2 < one[0].gamma.mean() < 0.8
    assert not any(module.training for module in one.modules())
    assert one[1].momentum == 0.1
    assert one[1].running_var.mean() > 2


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].params < 60e6])
def test_parameters_are_exact(name: str) -> None:
    needs(name)
    assert count.parameters(find(name).build()) == find(name).params


@pytest.mark.parametrize("name", EXPORTED)
def test_export_is_right_and_depends_on_its_input(name: str, tmp_path: Path) -> None:
    needs(name)
    runtime = pytest.importorskip("onnxruntime")
    from smartmem.zoo.export import export

    network = find(name)
    made = export(name, tmp_path / f"{name}.onnx")
    assert set(tmp_path.iterdir()) == {made.path, made.sample, made.data} - {None}
    assert made.params == network.params
    assert made.macs / 1e9 == pytest.approx(network.gmacs, rel=0.02)
    onnx.checker.check_model(made.path)
    with np.load(made.sample) as sample:
        arrays = dict(sample)
    session = runtime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    results = session.run(None, {key: arrays[f"input.{key}"] for key in network.example()})
    others = session.run(None, network.example(seed=1))
    for key, result, other in zip(network.outputs, results, others, strict=True):
        expected = arrays[f"output.{key}"]
        assert relative(result, expected) < 1e-4
        assert relative(other, expected) > 0.1
        assert 0.01 < expected.std() < 1000


def test_export_with_options(tmp_path: Path) -> None:
    needs("regnetx_032")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "r.onnx"
    arguments = ["export", "regnetx_032", "-o", str(path), "--batch", "2", "--resolution", "64", "--exporter", "script"]
    result = CliRunner().invoke(zoo_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "15.30 M parameters" in result.stdout
    with np.load(path.with_suffix(".npz")) as sample:
        assert sample["input.image"].shape == (2, 3, 64, 64)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = session.run(None, {"image": sample["input.image"]})[0]
        assert relative(got, sample["output.logits"]) < 1e-4


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("regnetx_032")
    export = importlib.import_module("smartmem.zoo.export")
    monkeypatch.setattr(export, "LARGEST_FILE", 1_000_000)
    for exporter in export.EXPORTERS:
        made = export.export("regnetx_032", tmp_path / f"{exporter}.onnx", resolution=64, exporter=exporter)
        assert made.data == tmp_path / f"{exporter}.onnx.data"
        assert made.data.stat().st_size > 50e6
        assert made.path.stat().st_size < 5e6
        onnx.checker.check_model(str(made.path))
    assert len(list(tmp_path.iterdir())) == 6


def test_another_torch_is_told(monkeypatch):
    monkeypatch.setattr(packages, "load", lambda module, package: SimpleNamespace(__version__="2.11.0+cu130"))
    assert packages.other_torch().startswith("note: exported by torch 2.11.0;")
    monkeypatch.setattr(packages, "load", lambda module, package: SimpleNamespace(__version__=f"{packages.TORCH}+cpu"))
    assert packages.other_torch() == ""
