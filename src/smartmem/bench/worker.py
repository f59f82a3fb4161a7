"""One runner in its own process, so that thread pools do not disturb each other.

Spoken over pipes, one JSON object a line: the parent asks, the worker answers.

    {"do": "load", "runner": …, "threads": …, "level": …, "march": …, "model": …, "inputs": …npz, "outputs": …npz}
        -> {"version": …, "seconds": time of the first run}
    {"do": "burst", "runs": n} -> {"seconds": [n times]}      one more run goes before them, unmeasured
    anything that fails -> {"error": one line}

Between two requests the process waits in read() and burns no CPU time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.bench.runners import PEERS, Runner, Smartmem
from smartmem.errors import SmartmemError
from smartmem.inputs import write_npz


def serve() -> None:
    """Answer requests from standard input until it ends."""
    # Libraries print to standard output: answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner: Runner | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                runner, answer = _load(request)
            else:
                assert runner is not None
                answer = {"seconds": _burst(runner, request["runs"])}
        except Exception as error:  # a peer may raise anything, and that is its result
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": first if isinstance(error, SmartmemError) else f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _load(request: dict[str, Any]) -> tuple[Runner, dict[str, Any]]:
    runner: Runner
    if request["runner"] == Smartmem.name:
        runner = Smartmem(request["threads"], request["level"], request["march"])
    else:
        runner = PEERS[request["runner"]](request["threads"])
    version = runner.version()
    with np.load(request["inputs"], allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    runner.load(Path(request["model"]), inputs)
    outputs = runner.run()
    with open(request["outputs"], "wb") as target:
        write_npz(target, outputs)
    start = time.perf_counter()
    runner.run()
    return runner, {"version": version, "seconds": time.perf_counter() - start}


def _burst(runner: Runner, runs: int) -> list[float]:
    runner.run()  # caches and clocks are the other runners' at first
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        runner.run()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    serve()
