"""`smartmem profile`: the peak rates, the roofline, the table, the trace, and what it refuses."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from tests.support.programs import tiny, with_host

import smartmem.profile.machine as rates
from smartmem.errors import InputError
from smartmem.profile.machine import Machine, machine, multiply_adds, peak_program
from smartmem.profile.measure import check_kernels, measure
from smartmem.profile.show import renderable
from smartmem.profile.trace import trace
from smartmem.report.tables import console
from smartmem.runtime import march
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import build_library, find_compiler
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source

HOST = Machine("a CPU", 2, 1e9, ((1 << 10, 4e9), (1 << 20, 1e9)))
X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make(cache):
    """Program → Model on two threads."""
    models = []

    def build(program) -> Model:
        sources = {**program.sources, "plan.c": plan_source(program)}
        compiler = find_compiler()
        library = build_library(sources, program.march, cache, compiler)
        models.append(Model(program, library, 2, features=march.features(compiler.macros("native"))))
        return models[-1]

    yield build
    for model in models:
        model.close()


def test_bandwidth_lies_between_what_was_measured() -> None:
    assert HOST.bytes_per_second(1) == 4e9
    assert HOST.bytes_per_second(1 << 10) == pytest.approx(4e9)
    assert HOST.bytes_per_second(1 << 15) == pytest.approx(2e9)
    assert HOST.bytes_per_second(1 << 30) == pytest.approx(1e9)
    assert HOST.floor(5e9, 1) == pytest.approx(5.0)
    assert HOST.floor(1, 1 << 30) == pytest.approx((1 << 30) / 1e9)
    assert Machine.from_json(json.loads(json.dumps(HOST.to_json()))) == HOST


def test_peak_rates_are_measured_once(cache, monkeypatch) -> None:
    monkeypatch.setattr(rates, "REPEATS", 2)
    found = machine(1, cache, find_compiler())
    assert 1e8 < found.flops < 1e13
    assert [size for size, _ in found.bandwidth] == list(rates.FOOTPRINTS)
    assert all(1e7 < rate < 1e13 for _, rate in found.bandwidth)
    monkeypatch.setattr(rates, "Model", None)
    assert machine(1, cache, find_compiler()) == found
    with pytest.raises(TypeError):
        machine(1, cache, find_compiler(), again=True)
    faster = Machine(found.cpu, 1, found.flops * 2, tuple((size, rate / 2) for size, rate in found.bandwidth))
    assert found.better(faster) == Machine(found.cpu, 1, found.flops * 2, found.bandwidth)


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (5_000_000, 2), (313_000_000_000, 3)])
def test_a_loop_of_so_many_multiply_adds(count: int, threads: int) -> None:
    program = multiply_adds(count, threads, "native")
    (step,) = program.steps
    loops = int(re.search(r"i < (\d+); i \+= SM_W", program.sources["peak.c"])[1])
    did = step.tasks * loops * rates.CHAINS
    assert count <= did < count + step.tasks * rates.CHAINS * 64


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_each_loop_stays_in_its_footprint(threads: int) -> None:
    program = peak_program(threads)
    assert len(program.steps) == 1 + 2 * len(rates.FOOTPRINTS)
    for footprint in rates.FOOTPRINTS:
        part = rates._part(footprint, threads)
        assert part % (2 * 4 * 16) == 0  # halves of whole unrolled vectors
        assert 4 * threads * part <= max(footprint, 4 * threads * 512) <= rates.LARGEST


def test_kernels_beside_their_floor(make) -> None:
    found = measure(make(tiny()), {"x": X}, HOST, runs=3)
    assert [step.name for step in found.steps] == ["scale_0", "s"]
    assert [step.family for step in found.kernels] == ["pointwise", "row reduction"]
    first = found.steps[0]
    assert first.floor == HOST.floor(80, 320)
    assert first.share == pytest.approx(first.floor / first.seconds)
    assert first.loss == pytest.approx(first.seconds - first.floor)
    assert 0 < first.fastest <= first.seconds
    assert 0 < first.busy <= 1
    data = json.loads(json.dumps(found.to_json()))
    assert data["steps_ms"] == pytest.approx(1e3 * sum(step.seconds for step in found.steps))
    assert data["fastest_ms"] <= data["steps_ms"]
    losses = [row["loss_ms"] for row in data["kernels"]]
    assert losses == sorted(losses, reverse=True)


def test_the_table_and_its_rest(make, capsys) -> None:
    found = measure(make(tiny()), {"x": X}, HOST, runs=1)
    console().print(renderable(found, top=1))
    text = capsys.readouterr().out
    assert "a CPU, threads: 2" in text
    assert "1 more rows lose" in text
    assert "2 kernels take" in text
    assert "each kernel's fastest run" in text
    assert "peak of this process" in " ".join(text.split())
    assert found.to_json()["memory"]["peak_bytes"] > 1 << 20


def test_host_steps_are_rows_and_events(make, capsys) -> None:
    program = with_host()
    found = measure(make(program), {"x": X}, HOST, runs=2)
    assert [step.family for step in found.steps] == ["pointwise", "host", "host", "row reduction"]
    assert [step.floor for step in found.steps][1:3] == [0.0, 0.0]
    console().print(renderable(found, top=9))
    assert "2 steps on the host" in capsys.readouterr().out
    events = [event for event in trace(found)["traceEvents"] if event["ph"] == "X"]
    assert {event["cat"] for event in events} == {"pointwise", "host", "row reduction"}


def test_trace_has_a_track_per_thread_without_overlaps(make) -> None:
    found = measure(make(tiny(64)), {"x": np.ones((64, 8), np.float32)}, HOST, runs=5)
    events = trace(found)["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"thread 0", "thread 1"}
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["name"] for e in spans} == {"scale_0", "s"}
    assert min(e["ts"] for e in spans) == 0
    for thread in (0, 1):
        track = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e["tid"] == thread)
        assert all(end <= begin + 2e-3 for (_, end), (begin, _) in pairwise(track))


def test_what_cannot_be_profiled(make) -> None:
    program = with_host()
    program.steps = program.steps[1:3]
    model = make(program)
    with pytest.raises(InputError, match=r"m\.onnx has no kernels to profile: its 2 steps run on the host"):
        check_kernels(model, "m.onnx")
    model.program.steps = []
    with pytest.raises(InputError, match="it computes nothing"):
        check_kernels(model, "m.onnx")
    other = tiny()
    other.report = {**other.report, "kernels": []}
    with pytest.raises(InputError, match="compile it again"):
        check_kernels(make(other), "m.smem")
