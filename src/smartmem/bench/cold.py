"""Cold start and memory: new processes that load a model and run it once.

    python -m smartmem.bench.cold MODEL.onnx --threads 2

In: a model. Out: for each way to load it a line with the time from the start of the process to its first output (the
interpreter's start and all imports included, its end not), and the memory that the process had at most. smartmem's
cache is filled before, and all files have been read: what is measured is the second start, not the first compilation.

Ways take turns, so what else the machine does meets all of them. Inputs are zeros.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import smartmem
from smartmem.bench.peers.base import telling_line
from smartmem.errors import InputError, RuntimeFailure, SmartmemError
from smartmem.inputs import parse_shapes

_SETTLE_SECONDS = 2.5  # files that changed a moment ago are read again (`runtime.remember`)

# Each defines run(); `path`, `threads`, `shapes`, `folder` and `inputs` are set before.
_WAYS = {
    "smartmem, .onnx": """
import smartmem
run = lambda: smartmem.compile(path, shapes, threads).run(inputs)
""",
    "smartmem, .smem": """
import smartmem
run = lambda: smartmem.load(folder + "/model.smem", threads).run(inputs)
""",
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
run = lambda: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)
""",
    "openvino": """
import openvino
options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
def run():
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    return core.compile_model(model, "CPU", options)(inputs)
""",
}
_WAYS["openvino, its cache"] = _WAYS["openvino"].replace("{", '{"CACHE_DIR": folder, ', 1)

_CHILD = """
import json, sys, time
way, path, threads, shapes, folder, specs = json.loads(sys.argv[1])
import numpy
inputs = {name: numpy.zeros(shape, dtype) for name, shape, dtype in specs}
exec(way)
outputs = run()
end = time.monotonic()
from smartmem.runtime.peak import peak_bytes
print(json.dumps([end, peak_bytes()]))
"""


@dataclass(frozen=True)
class Start:
    """One process: seconds from its start to its first output, and the most memory it had."""

    seconds: float
    peak: int


def start(
    way: str, model: Path, threads: int, shapes: dict[str, tuple[int, ...]], folder: Path, specs: object
) -> Start:
    """Run `model` once in a new process.

    Raises:
        RuntimeFailure: the process fails.
    """
    asked = json.dumps([_WAYS[way], str(model), threads, shapes, str(folder), specs])
    begin = time.monotonic()  # one clock for all processes
    result = subprocess.run([sys.executable, "-c", _CHILD, asked], capture_output=True, text=True, errors="replace")
    if result.returncode:
        raise RuntimeFailure(f"{way}: {telling_line(result.stderr) or f'exit status {result.returncode}'}")
    end, peak = json.loads(result.stdout.splitlines()[-1])
    return Start(end - begin, peak)


def measure(
    model: Path, threads: int | None, shapes: dict[str, tuple[int, ...]], processes: int
) -> dict[str, list[Start]]:
    """`processes` starts of each way whose package is installed."""
    with tempfile.TemporaryDirectory(prefix="cold-") as name, smartmem.compile(model, shapes, threads) as compiled:
        folder = Path(name)
        compiled.save(folder / "model.smem")
        specs = [(spec.name, spec.shape, spec.dtype) for spec in compiled.program.inputs]
        counted = compiled.threads
        time.sleep(_SETTLE_SECONDS)
        ways = [way for way in _WAYS if find_spec(way.split(",")[0]) is not None]
        starts: dict[str, list[Start]] = {way: [] for way in ways}
        for number in range(processes + 1):
            for way in ways:
                measured = start(way, model, counted, shapes, folder, specs)
                if number:  # the first fills caches
                    starts[way].append(measured)
    return starts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m smartmem.bench.cold", description="Time from process to first output.")
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=1,3,224,224")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=11, help="for each way; the median is told")
    options = parser.parse_args(arguments)
    try:
        if options.processes < 1:
            raise InputError(f"--processes {options.processes}: give a positive number")
        starts = measure(options.model, options.threads, parse_shapes(options.shape), options.processes)
    except SmartmemError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{'':22}{'median ms':>10}{'fastest':>10}{'slowest':>10}{'peak MiB':>10}")
    for way, all_starts in starts.items():
        seconds = sorted(1e3 * one.seconds for one in all_starts)
        peak = statistics.median(one.peak for one in all_starts) / (1 << 20)
        print(f"{way:22}{statistics.median(seconds):10.0f}{seconds[0]:10.0f}{seconds[-1]:10.0f}{peak:10.0f}")


if __name__ == "__main__":
    main()
