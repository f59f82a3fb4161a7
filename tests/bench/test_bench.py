"""`smartmem bench` on real worker processes, with fake runners where the numbers do not matter."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from smartmem.bench import run as bench
from smartmem.bench.run import Options, Result, Row
from smartmem.bench.table import show
from smartmem.errors import InputError

WORKER = """
import json, os, sys, time
import numpy as np
for line in sys.stdin:
    request = json.loads(line)
    kind = request.get("runner", "") + str(request.get("level"))
    if request["do"] == "load":
        name = kind
        if name == "openvinoNone":
            answer = {"error": "no such layer"}
        elif name == "smartmemfuse":
            print("corrupted memory", file=sys.stderr, flush=True)
            os._exit(7)
        else:
            np.savez(request["outputs"], y=np.ones(3) * (1.5 if name == "smartmemnaive" else 1.0))
            answer = {"version": "1.2", "seconds": 0.05}
    else:
        log = open(os.environ["BENCH_LOG"], "a")
        print(name, request["runs"], file=log, flush=True)
        seconds = 0.002 if name == "onnxruntimeNone" else 0.001
        answer = {"seconds": [seconds * (1 + i) for i in range(3)]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def result(tmp_path, monkeypatch) -> Result:
    (tmp_path / "worker.py").write_text(WORKER)
    original = bench.subprocess.Popen

    def fake(command, **options):
        return original([sys.executable, str(tmp_path / "worker.py")], **options)

    monkeypatch.setattr(bench.subprocess, "Popen", fake)
    monkeypatch.setenv("BENCH_LOG", str(tmp_path / "log"))
    inputs = {"x": np.zeros(3)}
    monkeypatch.setattr(bench, "_compile_levels", lambda *args: ({"layout": "the compiler failed"}, inputs))
    options = Options(
        tmp_path / "m.onnx", ("onnxruntime", "openvino"), ("naive", "fuse", "layout", "full"), rounds=2, threads=1
    )
    return bench.measure(options)


def test_rows(result):
    rows = {(row.runner, row.level): row for row in result.rows}
    full, naive, peer = rows["smartmem", "full"], rows["smartmem", "naive"], rows["onnxruntime", None]
    assert (full.median_ms, full.min_ms, full.runs) == (2.0, 1.0, 6)
    assert (full.ratio, peer.ratio) == (0.5, 1.0)
    assert (full.relative_error, naive.relative_error) == (0.0, 0.5)
    assert rows["openvino", None].error == "no such layer"
    assert rows["smartmem", "fuse"].error == "its process ended with status 7 corrupted memory"
    assert rows["smartmem", "layout"].error == "the compiler failed"
    assert result.reference == "onnxruntime"


def test_turns_are_interleaved(result, tmp_path):
    turns = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, _ in turns] == ["smartmemnaive", "smartmemfull", "onnxruntimeNone"] * 2
    assert {runs for _, runs in turns} == {"5"}


def test_output(result, tmp_path, capsys):
    show(result)
    text = capsys.readouterr().out
    for part in (
        "smartmem full",
        "onnxruntime 1.2",
        "failed: no such layer",
        "wrong",
        "fastest",
        "2 interleaved rounds",
    ):
        assert part in text
    bench.write_json(result, "-")
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"model", "runner", "level", "median_ms", "min_ms", "ratio", "relative_error"} <= set(rows[0])
    bench.write_json(result, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    with pytest.raises(InputError, match="cannot be written"):
        bench.write_json(result, str(tmp_path / "out.json" / "x"))


def test_nothing_to_measure(tmp_path):
    with pytest.raises(InputError, match="nothing to measure"):
        bench.measure(Options(tmp_path / "m.onnx", (), ()))


def test_real_workers(tmp_path, monkeypatch):
    """The real worker and ONNX Runtime; smartmem's levels are left out."""
    pytest.importorskip("onnxruntime")
    from tests.support.fake_compiler import write_model

    model = write_model(tmp_path / "tiny.onnx")
    inputs = {"x": np.ones((5, 8), np.float32)}
    monkeypatch.setattr(bench, "_compile_levels", lambda *args: ({}, inputs))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    result = bench.measure(Options(model, ("onnxruntime", "openvino"), (), rounds=1, threads=1))
    row, other = result.rows
    assert isinstance(row, Row)
    assert row.median_ms is not None
    assert row.relative_error == 0.0
    assert other.median_ms is not None or "pip install openvino" in other.error
