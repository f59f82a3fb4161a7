"""Silero-VAD, as its wheel ships it: recurrent, with control flow, and a state that is carried from chunk to chunk.

The wheel cannot be in the `test` extra, for it depends on torch; pip fetches the file alone (2 MB of models). Without
an index to fetch it from, the test skips itself.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import smartmem
from smartmem.inputs import relative_error

onnxruntime = pytest.importorskip("onnxruntime")
WHEEL = "silero-vad==6.2.3"
CHUNKS = 8
SHAPES = {"input": (1, 576), "state": (2, 1, 128)}  # 512 samples after 64 of the chunk before


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """The folder with the wheel's models."""
    folder = tmp_path_factory.mktemp("silero")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", WHEEL]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"no {WHEEL}: {(done.stderr.strip().splitlines() or ['pip says nothing'])[-1]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    return folder / "silero_vad" / "data"


def sound(rng: np.random.Generator) -> np.ndarray:
    """Noise, then a hum with overtones as voices have, in chunks of 512 samples at 16 kHz."""
    time = np.arange(CHUNKS * 512) / 16000
    hum = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12)) * np.sin(2 * np.pi * 4 * time) ** 2
    loud = np.where(time < time[-1] / 3, 0.0, 0.2)
    return (loud * hum + 0.01 * rng.standard_normal(time.size)).astype(np.float32).reshape(CHUNKS, 512)


@pytest.mark.parametrize("level", smartmem.LEVELS)
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless", "silero_vad_16k_op15"])
def test_chunks_with_carried_state(models: Path, name: str, level: str) -> None:
    path = str(models / f"{name}.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = smartmem.compile(path, shapes=SHAPES, threads=2, level=level)
    assert compiled.input_names == [spec.name for spec in session.get_inputs()]
    rate = {"sr": np.array(16000, np.int64)} if "sr" in compiled.input_names else {}
    context = np.zeros((1, 64), np.float32)
    ours = theirs = np.zeros(SHAPES["state"], np.float32)
    for chunk in sound(np.random.default_rng(0)):
        samples = np.concatenate([context, chunk[None]], axis=1)
        context = samples[:, -64:]
        wanted, theirs = session.run(None, {"input": samples, "state": theirs, **rate})
        found, ours = compiled(input=samples, state=ours, **rate)
        assert relative_error(found, wanted) < 1e-4
        assert relative_error(ours, theirs) < 1e-4
