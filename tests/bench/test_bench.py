"""`smartmem bench` on real worker processes, with fake peers where the numbers do not matter."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import time
import xml.etree.ElementTree

import numpy as np
import pytest
from tests.bench import fakes

from smartmem.bench import judge, networks, rounds, run, runner, worker
from smartmem.bench.networks import Case
from smartmem.bench.options import Options, find_device
from smartmem.bench.page import page
from smartmem.bench.peers import PEERS, peer_class
from smartmem.bench.peers.base import Peer, count_kinds, telling_line
from smartmem.bench.result import Result, Row, read_json, write_json
from smartmem.bench.run import measure
from smartmem.bench.table import show
from smartmem.device import Device
from smartmem.errors import InputError, RuntimeFailure

X = np.arange(3.0)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Fake peers; a case with a sample for each network of the zoo that is asked for."""
    monkeypatch.setattr(runner, "worker_command", fakes.command)
    monkeypatch.setattr(runner, "peer_class", fakes.peer_class)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("BENCH_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(runner, "BURST_SECONDS", 0.0)

    def of_zoo(name, folder, batch, resolution):
        if name == "swin_t":
            return Case(name, folder / "swin_t.onnx", network=name, error="cannot be exported: no such luck")
        return Case(name, folder / f"{name}.onnx", {"x": X}, {"y": 2 * X}, name)

    monkeypatch.setattr(run, "of_zoo", of_zoo)
    return tmp_path


def options(folder, **more) -> Options:
    given = {"networks": ("vit_b16",), "zoo_dir": folder, "rounds": 2, "threads": 1, "limit": 20.0}
    return Options(**(given | more))


@pytest.fixture
def result(fake) -> Result:
    peers = ("onnxruntime", "openvino", "mnn", "ncnn", "litert", "tvm", "iree")
    return measure(
        options(fake, networks=("vit_b16", "swin_t"), against=peers, levels=("naive", "fuse", "full"), limit=3.0)
    )


def test_every_failure_has_its_reason(result, fake, capsys):
    rows = {(row.runner, row.level): row for row in result.rows if row.model == "vit_b16"}
    errors = {runner: row.error for (runner, level), row in rows.items() if not level}
    assert errors == {
        "onnxruntime": "",
        "openvino": "wrong answer: relative error 0.5",
        "mnn": "its process ended with SIGABRT: fatal error: corrupted memory",
        "ncnn": "no answer within 3 s (load)",
        "litert": "its process ended with status 7",
        "tvm": "gives no output y",
        "iree": "missing cannot be imported; run: pip install missing",
    }
    assert rows["smartmem", "fuse"].error == "the compiler failed"
    assert rows["openvino", None].relative_error == 0.5
    assert {row.median_ms for row in rows.values() if row.error} == {None}
    full = rows["smartmem", "full"]
    assert (full.operators, full.kernels, full.layouts, full.relative_error, full.runs) == (7, 3, 0, 0.0, 2)
    peer = rows["onnxruntime", None]
    assert (peer.operators, peer.layouts, peer.version, peer.ratio) == (3, 2, "1.2", 1.0)
    assert peer.peak_bytes > 1 << 20
    assert peer.p10_ms <= peer.median_ms <= peer.p90_ms
    assert {row.error for row in result.rows if row.model == "swin_t"} == {"cannot be exported: no such luck"}
    assert result.references == {"vit_b16": "torch"}

    show(result)
    text = " ".join(capsys.readouterr().out.split())
    for part in ("smartmem full", "onnxruntime 1.2", "wrong answer", "failed: the compiler", "2 interleaved rounds"):
        assert part in text
    write_json(result, "-")
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {"model", "runner", "level", "median_ms", "p10_ms", "ratio", "relative_error", "peak_bytes"} <= set(found[0])
    write_json(result, str(fake / "out.json"))
    assert read_json(fake / "out.json") == result
    with pytest.raises(InputError, match="cannot be written"):
        write_json(result, str(fake / "out.json" / "x"))


def test_page_is_self_contained(result):
    text = page(result)
    assert "vit_b16" in text and "no such luck" in text and "SIGABRT" in text
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        xml.etree.ElementTree.fromstring(chart)
    hostile = dataclasses.replace(result, rows=[Row("<m>", "onnxruntime", error="<script>&")])
    assert "<script>" not in page(hostile) and "<m>" not in page(hostile)


def test_turns_are_interleaved(fake):
    measure(options(fake, levels=("naive", "full"), rounds=3))
    turns = (fake / "log").read_text().split()
    each = [name for name in ("smartmem-full", "smartmem-naive", "onnxruntime") for _ in range(2)]
    assert turns == each + each + each * 3  # prepare, load; then rounds of an unmeasured and a measured run


def test_slow_runners_take_part_in_fewer_rounds(fake):
    """The fake takes less than a microsecond of the budget, and nothing fits into none."""
    result = measure(options(fake, levels=("full",), rounds=10, seconds=0.0))
    assert {row.rounds for row in result.rows} == {runner.LEAST_ROUNDS}
    assert [n for n in range(10) if runner.takes_part(n, 3, 10)] == [0, 4, 7]
    assert all(sum(runner.takes_part(n, count, 10) for n in range(10)) == count for count in range(1, 11))
    result = measure(options(fake, levels=("full",), longest=0.0))
    assert {row.error.partition(":")[0] for row in result.rows} == {"not timed"}


def test_preparation_is_kept(fake):
    """The second call loads what the first one converted; a changed model is converted again."""
    model = fake / "vit_b16.onnx"
    model.write_text("a")
    given = options(fake, levels=("fuse", "full"), work=fake / "work", rounds=1)
    first = measure(dataclasses.replace(given, timed=False))
    assert {row.median_ms for row in first.rows} == {None}
    assert first.rows[1].once_ms is not None
    count = len((fake / "log").read_text().split())
    second = measure(given)
    assert len((fake / "log").read_text().split()) == count + 4 * 2  # load and rounds of the two that work
    assert [row.error for row in second.rows] == ["the compiler failed", "", ""]
    assert second.rows[1].prepare_s == first.rows[1].prepare_s
    model.write_text("another")
    assert measure(given).rows[1].prepare_s != first.rows[1].prepare_s


def test_a_full_disk_converts_again(fake, monkeypatch):
    monkeypatch.setattr(runner, "SPARE_DISK", 1 << 62)
    given = options(fake, levels=("full",), work=fake / "work", rounds=1)
    for timed in (False, True, True):
        assert [row.error for row in measure(dataclasses.replace(given, timed=timed)).rows] == ["", ""]
        assert not list((fake / "work").rglob("files"))


def test_results_add_up(fake):
    """An interrupted measurement goes on where it ended."""
    seen: list[list[str]] = []
    first = measure(options(fake, levels=("full",), networks=("vit_b16",)))
    both = options(fake, levels=("full",), networks=("vit_b16", "swin_t", "convnext_t"))
    result = measure(both, first, lambda found: seen.append(found.models()))
    assert seen == [["vit_b16", "swin_t"], ["vit_b16", "swin_t", "convnext_t"]]
    assert set(result.references) == {"vit_b16", "convnext_t"}
    with pytest.raises(InputError, match="the earlier rows are of 1 threads, 2 rounds"):
        measure(dataclasses.replace(both, threads=2), result)
    (fake / "old.json").write_text("[]")
    with pytest.raises(InputError, match="was not written by this version"):
        read_json(fake / "old.json")


@pytest.fixture
def gpu(fake, monkeypatch):
    """A device for smartmem, which the fakes do not use."""
    found = Device(name="Fake GPU", driver="12.3")
    monkeypatch.setattr(run, "find_device", lambda options: found)
    return fake


def test_a_row_for_each_memory_and_precision(gpu, capsys):
    both = {"memories": ("auto", "texture"), "precisions": ("fp32", "fp16"), "levels": ("naive", "full"), "rounds": 3}
    result = measure(options(gpu, device="opencl", against=("onnxruntime", "torch-cuda", "inductor-cuda"), **both))
    levels = [f"smartmem {level}" for level in ("naive", "full")]
    ours = [f"{level} {memory} {p}" for level in levels for p in ("fp32", "fp16") for memory in ("auto", "texture")]
    peers = ["onnxruntime", "torch-cuda fp32", "torch-cuda fp16", "inductor-cuda fp32", "inductor-cuda fp16"]
    assert [row.label for row in result.rows] == ours + peers
    rows = {row.label: row for row in result.rows}
    assert rows["torch-cuda fp32"].error == "wrong answer: relative error 0.01"
    assert {row.error for row in result.rows if row.label != "torch-cuda fp32"} == {""}
    # What the peers say of their runs; ratios compare one precision, and a CPU peer has fp32.
    assert (rows["inductor-cuda fp32"].median_ms, rows["inductor-cuda fp16"].median_ms) == (4000.0, 2000.0)
    assert (rows["torch-cuda fp16"].ratio, rows["inductor-cuda fp16"].ratio) == (1.5, 1.0)
    assert rows["onnxruntime"].ratio == 1.0 and rows["inductor-cuda fp32"].ratio > 1000
    turns = set((gpu / "log").read_text().split())
    assert {"smartmem-full-texture-fp16", "smartmem-naive-auto-fp32", "torch-cuda-fp16", "onnxruntime"} <= turns

    show(result)
    text = " ".join(capsys.readouterr().out.split())
    for part in ("smartmem full texture fp16", "inductor-cuda fp16 1.2", "onnxruntime 1.2", "smartmem on Fake GPU"):
        assert part in text
    html = page(result)
    for part in ("<th>full auto fp16</th>", "<th>full fp32 ÷<br>best peer</th>", "Kernels by level, texture fp16"):
        assert part in html
    assert len(re.findall("Geometric mean", html)) == 2
    write_json(result, str(gpu / "out.json"))
    assert read_json(gpu / "out.json") == result
    found = json.loads((gpu / "out.json").read_text())["rows"][0]
    assert (found["memory"], found["precision"], found["kernels"]) == ("auto", "fp32", 3)


def test_placements_are_prepared_apart(gpu):
    """Another memory or precision is another preparation, and the first one stays."""
    given = options(gpu, device="opencl", against=(), levels=("full",), work=gpu / "work", timed=False)
    for memory, count in (("auto", 2), ("buffer", 4), ("auto", 4)):
        measure(dataclasses.replace(given, memories=(memory,)))
        assert len((gpu / "log").read_text().split()) == count
    assert {path.name for path in (gpu / "work" / "vit_b16").iterdir() if path.is_dir()} == {
        "smartmem-full-auto-fp32",
        "smartmem-full-buffer-fp32",
    }


def test_all_on_a_device_means_gpu_peers(gpu):
    result = measure(options(gpu, device="opencl", against=("all",), levels=(), rounds=1))
    assert [row.label for row in result.rows] == ["torch-cuda fp32", "inductor-cuda fp32"]
    assert list(result.missing) == ["ncnn-vulkan"]


def test_gpu_peers_want_a_device(tmp_path):
    with pytest.raises(InputError, match="torch-cuda runs on a GPU, and smartmem would run on the CPU"):
        measure(options(tmp_path, against=("torch-cuda",)))
    with pytest.raises(InputError, match="for OpenCL devices, this is the CPU"):
        measure(options(tmp_path, precisions=("fp32", "fp16")))
    with pytest.raises(InputError, match="no memory 'textures'"):
        measure(options(tmp_path, device="opencl", memories=("auto", "textures")))


def test_jobs_prepare_and_load_together(fake, monkeypatch):
    """Each of the two loads when both have begun; one after the other, the first waits for ever."""
    given = options(fake, against=("executorch", "inductor"), levels=(), work=fake / "work", rounds=1, limit=3.0)
    monkeypatch.setenv("BENCH_TOGETHER", "2")

    def errors(**more) -> list[str]:
        for path in (fake / "log-begun").glob("*"):
            path.unlink()
        return [row.error for row in measure(dataclasses.replace(given, **more)).rows]

    late = "no answer within 3 s (load)"
    assert errors(timed=False)[0] == late
    shutil.rmtree(fake / "work")
    assert errors(timed=False, jobs=2) == ["", ""]
    assert errors(jobs=2) == ["", ""]
    assert errors()[0] == late


def test_ctrl_c_while_two_prepare(fake, monkeypatch):
    """The one that answers is judged, which is interrupted; the other, which never answers, is not waited for, and its
    end is not kept as an error.
    """
    monkeypatch.setattr(judge.Judge, "__call__", _interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure(options(fake, against=("onnxruntime", "ncnn"), levels=(), work=fake / "work", limit=60.0, jobs=2))
    assert time.monotonic() - began < 50
    assert not list((fake / "work").rglob("prepared.json"))


def _interrupted(*_):
    raise KeyboardInterrupt


def test_groups_share_an_anchor(fake, monkeypatch):
    """With no memory to spare, each group is the anchor and one other."""
    monkeypatch.setattr(rounds, "available_bytes", lambda: 0)
    result = measure(options(fake, levels=("naive", "eliminate", "full"), rounds=1))
    rows = {row.level: row for row in result.rows}
    assert [rows[level].group for level in ("full", "eliminate", "naive", None)] == [1, 2, 3, 4]
    assert (rows["full"].runs, rows["naive"].runs) == (4, 1)
    assert rows["full"].drift >= 1.0
    assert rows["naive"].drift is None


def test_the_floor_is_no_peer(tmp_path, monkeypatch, capsys):
    """A real loop in a real worker, beside ONNX Runtime: it answers nothing, and no ratio is to it."""
    pytest.importorskip("onnxruntime")
    from tests.support.fake_compiler import write_model

    model = write_model(tmp_path / "tiny.onnx")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    given = Options(model, against=("onnxruntime",), floor=True, levels=(), shapes={"x": (5, 8)}, rounds=1, threads=2)
    result = measure(given)
    floor, peer = result.rows
    assert (floor.runner, floor.floor_ratio, floor.ratio, floor.relative_error) == ("floor", 1.0, None, None)
    assert peer.ratio == 1.0
    assert peer.floor_ratio == peer.median_ms / floor.median_ms
    assert list(result.references.values()) == ["onnxruntime"]
    show(result)
    assert "x floor" in capsys.readouterr().out
    assert "x floor" in page(result)
    with pytest.raises(InputError, match="--floor is the CPU's"):
        find_device(dataclasses.replace(given, device="opencl"))


def test_cpu_time(fake, capsys):
    """The fake's runs take no CPU time to speak of, but all of it is of this clock."""
    result = measure(options(fake, levels=("full",), rounds=1, clock="cpu"))
    assert [row.median_ms is not None for row in result.rows] == [True, True]
    show(result)
    assert "CPU time of all threads, 1 threads" in capsys.readouterr().out
    with pytest.raises(InputError, match="no clock 'sun'"):
        measure(options(fake, clock="sun"))


def test_busy_processes_end_with_the_block(monkeypatch):
    started = []

    def start(command, **more):
        started.append(original(command, **more))
        return started[-1]

    original = rounds.subprocess.Popen
    monkeypatch.setattr(rounds.subprocess, "Popen", start)

    def fail():
        assert [process.poll() for process in started] == [None, None]
        raise KeyError

    with pytest.raises(KeyError), rounds.busy_processes(2):
        fail()
    assert [process.poll() for process in started] == [-9, -9]


def test_load_is_a_condition(fake, capsys):
    result = measure(options(fake, levels=("full",), rounds=1, load=1))
    show(result)
    assert "1 busy process beside them, 1 threads" in capsys.readouterr().out
    with pytest.raises(InputError, match="wall time, 1 busy processes"):
        measure(options(fake, rounds=1), result)


def test_all_means_installed(fake):
    result = measure(options(fake, against=("all",), levels=("full",), rounds=1, limit=3.0))
    assert "iree" in result.missing
    assert "tinygrad" in result.missing
    assert [row.runner for row in result.rows][:3] == ["smartmem", "onnxruntime", "openvino"]


def test_first_peer_is_the_reference(fake, monkeypatch):
    monkeypatch.setattr(run, "of_file", lambda model, shapes, seed: Case("m", model, {"x": X}))
    given = options(fake, model=fake / "m.onnx", against=("openvino",), levels=("full",), rounds=1)
    result = measure(given)
    assert result.references == {"m": "openvino"}
    assert result.rows[0].error.startswith("wrong answer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": (), "against": ()}, "nothing to measure"),
        ({"networks": ("vit_b61",)}, "no network 'vit_b61': did you mean vit_b16"),
        ({"against": ("openvin",)}, "no peer 'openvin': did you mean openvino"),
        ({"levels": ("fulll",)}, "no level 'fulll': did you mean full"),
    ],
)
def test_unknown_names(tmp_path, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        measure(options(tmp_path, **change))


def test_export_errors(tmp_path, monkeypatch):
    """What `zoo export` complains about is the case's error, unless a package is missing."""
    line = "smartmem: error: swin_t: torch's exporter failed"
    script = "import sys; sys.exit({!r})"
    original = networks.subprocess.run

    def run(command, **more):
        return original([sys.executable, "-c", script.format(line)], **more)

    monkeypatch.setattr(networks.subprocess, "run", run)
    assert networks.of_zoo("swin_t", tmp_path).error == "cannot be exported: swin_t: torch's exporter failed"
    line = "smartmem: error: timm is not installed: pip install 'smartmem[zoo]'"
    with pytest.raises(RuntimeFailure, match=r"pip install 'smartmem\[zoo\]'"):
        networks.of_zoo("swin_t", tmp_path)


def test_samples(tmp_path):
    from onnx import helper, save

    def export(source):
        node = helper.make_node("Identity", [source], ["logits"])
        x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in (source, "logits"))
        save(helper.make_model(helper.make_graph([node], "g", [x], [y])), tmp_path / "swin_t.onnx")

    export("input")
    with pytest.raises(InputError, match="has inputs input and outputs logits, and swin_t has image and logits"):
        networks.of_zoo("swin_t", tmp_path)
    export("image")
    assert networks.of_zoo("swin_t", tmp_path).inputs["image"].shape == (1, 3, 224, 224)
    np.savez(tmp_path / "swin_t.npz", **{"input.image": X, "output.logits": X})
    case = networks.of_zoo("swin_t", tmp_path)
    size = (tmp_path / "swin_t.onnx").stat().st_size
    assert (list(case.inputs), list(case.outputs), case.size()) == (["image"], ["logits"], size)
    np.savez(tmp_path / "swin_t.npz", other=X)
    with pytest.raises(InputError, match="is no sample of swin_t"):
        networks.of_zoo("swin_t", tmp_path)


def test_every_peer_is_a_class_of_its_name():
    for name in PEERS:
        found = peer_class(name)
        assert issubclass(found, Peer)
        assert found.name == name
        assert found.environment(3)


def test_helpers():
    assert count_kinds(["Conv", "Transpose"]).known() == {"operators": 2, "kernels": 2, "layouts": 1}
    assert telling_line("start\nerror: no such op\n  at line 3\n") == "error: no such op"
    assert telling_line("start\nend\n") == "end"
    assert telling_line("") == ""


def test_reasons_are_one_telling_line():
    reason = worker._reason(RuntimeError("Exception from src/model.cpp:758:\n\nno input image\n"))
    assert reason == "RuntimeError: no input image"
    assert worker._reason(RuntimeFailure("no such file")) == "no such file"
    assert worker._reason(ValueError()) == "ValueError: "


def test_real_workers(tmp_path, monkeypatch):
    """The real worker and ONNX Runtime; smartmem's levels are left out."""
    pytest.importorskip("onnxruntime")
    from tests.support.fake_compiler import write_model

    model = write_model(tmp_path / "tiny.onnx")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    result = measure(
        Options(model, against=("onnxruntime", "openvino"), levels=(), shapes={"x": (5, 8)}, rounds=1, threads=1)
    )
    row, other = result.rows
    assert row.median_ms is not None
    assert row.relative_error == 0.0
    assert row.kernels
    assert other.median_ms is not None or "pip install openvino" in other.error


def test_precisions_of_peers() -> None:
    """Who takes floats for bfloat16 has a row for it beside the one in fp32, which all have; GPUs' peers have each."""
    given = Options(precisions=("fp32", "bf16x3", "bf16"))
    assert run._precisions("openvino", given) == ["", "bf16"]
    assert run._precisions("onnxruntime", given) == [""]
    assert run._precisions("torch-cuda", Options(precisions=("fp32", "fp16"))) == ("fp32", "fp16")
    assert run._precisions("openvino", Options(precisions=("fp16",))) == [""]
