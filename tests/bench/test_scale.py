"""`smartmem bench --scale`: what is measured, what the table says, and one line for what it cannot do."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from tests.bench import fakes

from smartmem.bench import networks, run, runner, scale
from smartmem.bench.networks import Case
from smartmem.bench.options import Options
from smartmem.bench.result import Result, Row
from smartmem.bench.scale import Scale, Scaling, growth, measure_scale, parse_scale, show_scale, write_scale
from smartmem.errors import InputError

X = np.arange(3.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("batch=1,2,4", (1, 2, 4)), ("threads=2,1", (2, 1)), ("resolution=224,448", (224, 448))],
)
def test_axes(text: str, wanted: tuple[int, ...]) -> None:
    assert parse_scale(text) == Scale(text.partition("=")[0], wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth=1,2", "one of the axes batch, resolution, threads"),
        ("batch", "give AXIS=VALUE"),
        ("batch=", "whole numbers"),
        ("batch=1,x", "whole numbers"),
        ("batch=1,1.5", "whole numbers"),
        ("batch=4", "at least two different"),
        ("batch=2,2", "at least two different"),
        ("threads=0,1", "at least two different positive"),
    ],
)
def test_bad_axes(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_scale(text)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Fake peers; the work of a network grows as its batch and with the square of its resolution."""
    monkeypatch.setattr(runner, "worker_command", fakes.command)
    monkeypatch.setattr(runner, "peer_class", fakes.peer_class)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("BENCH_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(runner, "BURST_SECONDS", 0.0)
    asked = []

    def of_zoo(name, folder, batch, resolution):
        asked.append((name, batch, resolution))
        return Case(name, folder / f"{name}-{batch}-{resolution}.onnx", {"x": X}, {"y": 2 * X}, name, resolution)

    monkeypatch.setattr(run, "of_zoo", of_zoo)
    monkeypatch.setattr(scale, "_macs", lambda case: int(case.model.stem.split("-")[1]) * 10)
    return tmp_path, asked


def options(folder, **more) -> Options:
    given = {"networks": ("vit_b16",), "zoo_dir": folder, "rounds": 1, "threads": 1, "limit": 20.0, "levels": ("full",)}
    return Options(**(given | more))


def test_every_value_is_measured(fake, capsys):
    folder, asked = fake
    seen: list[int] = []
    scaling = measure_scale(options(folder), parse_scale("batch=1,2"), lambda found: seen.append(len(found.results)))
    assert asked == [("vit_b16", 1, None), ("vit_b16", 2, None)]
    assert seen == [1, 2]
    assert scaling.macs == [{"vit_b16": 10}, {"vit_b16": 20}]
    assert all(row.median_ms is not None for result in scaling.results for row in result.rows)
    show_scale(scaling)
    text = " ".join(capsys.readouterr().out.split())
    for part in ("vit_b16", "smartmem full 1", "onnxruntime 1.2 2", "ms / GMAC", "2.00", "1 threads"):
        assert part in text
    write_scale(scaling, "-")
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["value"] for point in points] == [1, 2]
    assert points[1]["result"]["rows"][0]["median_ms"] is not None


def test_other_axes(fake, capsys):
    folder, asked = fake
    measure_scale(options(folder), parse_scale("resolution=224,448"))
    assert asked == [("vit_b16", 1, 224), ("vit_b16", 1, 448)]
    scaling = measure_scale(options(folder), parse_scale("threads=1,9999"))
    assert [result.threads for result in scaling.results] == [1, 9999]
    show_scale(scaling)
    lines = [line for line in capsys.readouterr().out.splitlines() if "more than the" in line]
    assert len(lines) == 2 and all("9999" in line for line in lines)


def test_growth_beyond_the_work() -> None:
    def result(ms: float | None, threads: int) -> Result:
        return Result([Row("m", "smartmem", "full", median_ms=ms)], threads, 1, machine={"cpus": "4"})

    batches = Scaling(Scale("batch", (1, 4)), [result(10, 2), result(50, 2)], [{"m": 100}, {"m": 400}])
    grown = growth(batches, "m", "smartmem", "full", 1)
    assert grown is not None and (grown.time, grown.ideal, grown.beyond) == (5.0, 4.0, 1.25)
    threads = Scaling(Scale("threads", (1, 2)), [result(10, 1), result(6, 2)], [{"m": 100}, {"m": 100}])
    grown = growth(threads, "m", "smartmem", "full", 1)
    assert grown is not None and (grown.time, grown.ideal, grown.beyond) == (0.6, 0.5, 1.2)
    failed = Scaling(Scale("batch", (1, 4)), [result(None, 2), result(50, 2)], [{"m": 100}, {"m": 400}])
    assert growth(failed, "m", "smartmem", "full", 1) is None
    assert growth(batches, "m", "openvino", None, 1) is None


def test_what_cannot_grow_is_said_before_anything_is_measured(fake):
    folder, asked = fake
    with pytest.raises(InputError, match="vit_b16: --resolution 225: give a multiple of 32"):
        measure_scale(options(folder), parse_scale("resolution=224,225"))
    with pytest.raises(InputError, match="--scale batch goes with --zoo"):
        measure_scale(options(folder, model=folder / "m.onnx"), parse_scale("batch=1,2"))
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "batch=1"], "at least two different"),
        (["--scale", "batch=1,2", "--html", "page.html"], "--scale goes without"),
    ],
)
def test_the_command_says_one_line(smartmem_cli, arguments, message):
    code, _, error = smartmem_cli("bench", "--zoo", "--models", "swin_t", *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_files_of_other_sizes(tmp_path, monkeypatch):
    """Each size has a file of its own, exported with its options; the default size keeps its name."""
    commands = []

    def export(command, **more):
        commands.append(command[6:])
        raise InputError("enough")

    monkeypatch.setattr(networks.subprocess, "run", export)
    for sizes in ((1, None), (1, 224), (2, None), (2, 448)):
        with pytest.raises(InputError, match="enough"):
            networks.of_zoo("swin_t", tmp_path, *sizes)
    names = ["swin_t", "swin_t", "swin_t-batch2", "swin_t-batch2-resolution448"]
    more = [[], [], ["--batch", "2"], ["--batch", "2", "--resolution", "448"]]
    assert commands == [["-o", str(tmp_path / f"{n}.onnx"), *m] for n, m in zip(names, more, strict=True)]
