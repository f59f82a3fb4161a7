"""One peer in its own process, so that thread pools and memory are its own.

Spoken over pipes, one JSON object a line: the parent asks, the worker answers.

    {"do": "version", "peer": …}                     -> {"version": …}
    {"do": "convert", "peer": …, job …}              -> {"facts": {…}}
    {"do": "load", "peer": …, "outputs": …npz or "", job …} -> {"seconds": of the second run, "facts": {…}, "peak": …}
    {"do": "burst", "runs": n, "warm": true, "clock": …} -> {"seconds": [n times], "peak": bytes}
    anything that fails                              -> {"error": one line}

A job is {"model", "inputs": …npz, "threads", "folder", "network", "resolution", "level", "march", "target",
"database"}; `warm` puts an unmeasured run before the measured ones. Between two requests the process waits in read(),
and the parent has it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.bench.peers import peer_class
from smartmem.bench.peers.base import Job, Peer
from smartmem.errors import SmartmemError
from smartmem.inputs import write_npz
from smartmem.runtime.peak import peak_bytes

_LONGEST = 300  # characters of an error


def serve() -> None:
    """Answer requests from standard input until it ends."""
    with contextlib.suppress(OSError):  # where memory runs out, let it be this process that ends
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Libraries print to standard output: answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "burst":
                assert peer is not None
                answer = _burst(peer, request["runs"], request["warm"], request["clock"])
            else:
                peer = peer_class(request["peer"])()
                answer = _DO[request["do"]](peer, request)
        except Exception as error:  # a peer may raise anything, and that is its result
            answer = {"error": _reason(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # libraries that crash or hang in their destructors have nothing left to do


def _version(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    return {"version": peer.version()}


def _convert(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    return {"facts": peer.convert(_job(request)).known()}


def _load(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    facts = peer.load(_job(request)).known()
    outputs = peer.run()
    if request["outputs"]:
        with open(request["outputs"], "wb") as target:
            write_npz(target, outputs)
        facts |= peer.count().known()  # a profiler may stay in the process: not in the one that is timed
    return {"seconds": peer.seconds(), "facts": facts, "peak": peak_bytes()}


_DO = {"version": _version, "convert": _convert, "load": _load}


def _burst(peer: Peer, runs: int, warm: bool, clock: str) -> dict[str, Any]:
    if warm:
        _seconds(peer, clock)  # caches and clocks are the other peers' at first
    return {"seconds": [_seconds(peer, clock) for _ in range(runs)], "peak": peak_bytes()}


def _seconds(peer: Peer, clock: str) -> float:
    """Of one run: elapsed time, or the CPU time of all threads of the process."""
    if clock == "wall":
        return peer.seconds()
    start = time.process_time()
    peer.run()
    return time.process_time() - start


def _job(request: dict[str, Any]) -> Job:
    with np.load(request["inputs"], allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    return Job(
        model=Path(request["model"]),
        inputs=inputs,
        threads=request["threads"],
        folder=Path(request["folder"]),
        network=request["network"],
        resolution=request.get("resolution"),
        level=request["level"] or "full",
        march=request["march"],
        target=request.get("target", {"device": "cpu"}),
        database=Path(request["database"]) if request["database"] else None,
    )


def _reason(error: Exception) -> str:
    """One line: the first of the message, after the kind of error where it is not smartmem's own.

    OpenVINO's messages begin with places in its source: "Exception from src/core/src/model.cpp:758:".
    """
    stripped = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in stripped if not line.startswith("Exception from ")] or stripped or [""]
    text = lines[0] if isinstance(error, SmartmemError) else f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


if __name__ == "__main__":
    serve()
