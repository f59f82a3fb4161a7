"""What is measured: an ONNX file with its inputs, and the right outputs where they are known.

of_file(Path("m.onnx"), {}, 0)         random inputs from a seed; the first peer that runs gives the reference
of_zoo("swin_t", folder)               folder/swin_t.onnx and .npz, exported there if they are missing
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.errors import InputError, ModelError, RuntimeFailure
from smartmem.inputs import random_inputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: of the rows.
        model: the ONNX file.
        inputs: arrays by name.
        outputs: torch's, by name; empty where the first peer that runs is the reference.
        network: name in the zoo, or "".
        resolution: of that network, where it is not the default.
        error: why there is no file to measure, else "".
    """

    name: str
    model: Path
    inputs: Mapping[str, Array] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)
    network: str = ""
    resolution: int | None = None
    error: str = ""

    def size(self) -> int:
        """Bytes of the file and of the weights beside it."""
        files = (self.model, self.model.with_name(self.model.name + ".data"))
        return sum(file.stat().st_size for file in files if file.is_file())


def of_file(model: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Case:
    """A user's file, with random inputs.

    Raises:
        ModelError, InputError: it cannot be read, or `shapes` does not fit.
    """
    import onnx

    from smartmem.frontend.bind import bind_shapes
    from smartmem.frontend.read import read
    from smartmem.runtime.artifact import TensorSpec

    graph = read(model).model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    bound = bind_shapes(inputs, shapes)
    kinds = {info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name for info in inputs}
    specs = [TensorSpec(info.name, bound[info.name], kinds[info.name]) for info in inputs]
    return Case(str(model), model, random_inputs(specs, seed))


def of_zoo(name: str, folder: Path, batch: int = 1, resolution: int | None = None) -> Case:
    """A network of the zoo, exported to `folder` unless it is there: NAME.onnx, or NAME-batch2-resolution448.onnx.

    A network that torch cannot export is a case with an error.

    Raises:
        RuntimeFailure: the `zoo` extra is missing.
        InputError: a sample in the folder does not fit its network.
    """
    from smartmem.zoo.registry import find

    network = find(name)
    asked = {"batch": batch if batch > 1 else None, "resolution": resolution if resolution != network.size else None}
    sizes = {option: value for option, value in asked.items() if value is not None}
    model = folder / ("-".join([name, *(f"{option}{value}" for option, value in sizes.items())]) + ".onnx")
    size = sizes.get("resolution")
    if not model.is_file():
        try:
            _export(name, model, sizes)
        except ModelError as error:
            return Case(name, model, network=name, resolution=size, error=str(error))
    sample = model.with_suffix(".npz")
    if not sample.is_file():  # exported by other means
        _check_names(model, name, [spec.name for spec in network.inputs], list(network.outputs))
        return Case(name, model, network.example(batch, size), network=name, resolution=size)
    with np.load(sample, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    inputs = {spec.name: arrays.get(f"input.{spec.name}") for spec in network.inputs}
    outputs = {key: arrays.get(f"output.{key}") for key in network.outputs}
    given = {key: array for key, array in inputs.items() if array is not None}
    wanted = {key: array for key, array in outputs.items() if array is not None}
    if len(given) < len(inputs) or len(wanted) < len(outputs):
        raise InputError(f"{sample}: is no sample of {name}; delete it and {model} to have them exported again")
    return Case(name, model, given, wanted, name, size)


def _check_names(model: Path, name: str, inputs: list[str], outputs: list[str]) -> None:
    """Refuse a file whose inputs and outputs are not the network's: every peer would fail on it.

    Raises:
        InputError: they differ.
    """
    from smartmem.frontend.read import read

    graph = read(model).model.graph
    constants = {tensor.name for tensor in graph.initializer}
    found = [info.name for info in graph.input if info.name not in constants], [info.name for info in graph.output]
    if found != (inputs, outputs):
        raise InputError(
            f"{model}: has inputs {', '.join(found[0])} and outputs {', '.join(found[1])}, and {name} has "
            f"{', '.join(inputs)} and {', '.join(outputs)}; delete it to have it exported again"
        )


def zoo_folder() -> Path:
    """Where exports are kept between runs: they follow from smartmem's version and torch's."""
    from smartmem.runtime.cache import open_cache
    from smartmem.version import __version__
    from smartmem.zoo.packages import TORCH

    cache = open_cache()
    if cache.root is None:
        raise InputError("there is no cache folder to keep the exported networks in; give --zoo-dir DIR")
    folder = cache.folder("zoo") / f"{__version__}-torch{TORCH}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _export(name: str, model: Path, sizes: Mapping[str, int]) -> None:
    """In a process of its own, whose memory is gone afterwards: the largest network has 4 GB of weights."""
    model.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "smartmem", "zoo", "export", name, "-o", str(model)]
    command += [text for option, value in sizes.items() for text in (f"--{option}", str(value))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("smartmem: error: ")
        if "pip install" in last:
            raise RuntimeFailure(last)
        raise ModelError(f"cannot be exported: {last}")
