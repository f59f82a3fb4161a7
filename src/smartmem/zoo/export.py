"""Write a network as an ONNX file, and beside it an input with torch's output.

    export("swin_t", "swin_t.onnx")  ->  swin_t.onnx, swin_t.npz ["input.image", "output.logits"]

Weights lie in the ONNX file; above 2 GB, which is more than such a file can hold, in `<name>.onnx.data` beside it. All
is first written to a temporary folder in the same place and then renamed, the ONNX file last.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smartmem.errors import InputError, ModelError
from smartmem.inputs import save_outputs
from smartmem.zoo.count import macs, parameters
from smartmem.zoo.registry import Array, Network, find

if TYPE_CHECKING:
    import torch

EXPORTERS = ("dynamo", "script")
"""torch's exporters: `torch.export` based, and the older one based on TorchScript's tracer."""

LARGEST_FILE = 2_000_000_000
"""Bytes of weights above which they leave the ONNX file; protobuf's limit is 2^31."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path, sample: the ONNX file, and the .npz file with `input.NAME` and `output.NAME` arrays.
        data: the file with the weights, where they are not in the ONNX file.
        params, macs: parameters of the module, multiply-accumulates of the graph.
        size: bytes of all three files.
    """

    path: Path
    sample: Path
    data: Path | None
    params: int
    macs: int
    size: int


def export(
    name: str,
    path: str | Path,
    batch: int = 1,
    resolution: int | None = None,
    exporter: str = "dynamo",
    seed: int = 0,
) -> Exported:
    """Build a network, run it on a seeded input, and write both.

    Args:
        name: of a network in the registry.
        path: the ONNX file; the sample goes to the same name with .npz.
        batch: the graph's batch, a constant.
        resolution: pixels, tokens or latent pixels; None: the network's default.
        exporter: one of `EXPORTERS`.
        seed: of the weights and the input.

    Raises:
        UnknownNetworkError, InputError: the arguments do not fit, or the files cannot be written.
        MissingPackageError: a package of the `zoo` extra is missing.
        ModelError: torch failed to export the network, or its output is not finite.
    """
    network, path = find(name), Path(path)
    if exporter not in EXPORTERS:
        raise InputError(f"--exporter {exporter}: choose one of {', '.join(EXPORTERS)}")
    if batch < 1:
        raise InputError(f"--batch {batch}: give a positive number")
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the file's name must end in .onnx")
    size = network.resolve(resolution)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.stem}-", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            return _export(network, path, Path(folder), batch, size, exporter, seed)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _export(network: Network, path: Path, folder: Path, batch: int, size: int, exporter: str, seed: int) -> Exported:
    with quiet():
        module = network.build(size, seed)
        inputs = network.example(batch, size, seed)
        outputs = reference(network, module, inputs)
        params = parameters(module)
        weights = sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])
        _write(network, module, inputs, folder / path.name, exporter, weights > LARGEST_FILE)
    sample = path.with_suffix(".npz")
    arrays = {f"input.{key}": array for key, array in inputs.items()}
    save_outputs(folder / sample.name, arrays | {f"output.{key}": array for key, array in outputs.items()})
    data = path.with_name(path.name + ".data") if weights > LARGEST_FILE else None
    written = [path.with_name(path.name + ".data")] if data is not None else []
    written += [sample, path]
    total = sum((folder / file.name).stat().st_size for file in written)
    count = macs(folder / path.name)
    for file in written:
        os.replace(folder / file.name, file)
    return Exported(path, sample, data, params, count, total)


def reference(network: Network, module: torch.nn.Module, inputs: dict[str, Array]) -> dict[str, Array]:
    """torch's outputs, by name.

    Raises:
        ModelError: an output is not finite.
    """
    import numpy as np
    import torch

    with torch.no_grad():
        results = module(*(torch.from_numpy(array) for array in inputs.values()))
    tensors = results if isinstance(results, (tuple, list)) else (results,)
    outputs = {name: tensor.numpy() for name, tensor in zip(network.outputs, tensors, strict=True)}
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ModelError(f"{network.name}: output {name} of the seeded weights is not finite")
    return outputs


def _write(
    network: Network, module: torch.nn.Module, inputs: dict[str, Array], path: Path, exporter: str, external: bool
) -> None:
    import torch

    try:
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(network.outputs),
            dynamo=exporter == "dynamo",
            external_data=external,
            verbose=False,
        )
    except OSError:
        raise
    except Exception as error:  # torch's exporters have no common base class of errors
        other = next(each for each in EXPORTERS if each != exporter)
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"{network.name}: torch's {exporter} exporter failed ({type(error).__name__}: {lines[0]}); "
            f"try --exporter {other}"
        ) from error
    if external and exporter == "script":
        _gather(path)


def _gather(path: Path) -> None:
    """Put the weights, which the older exporter writes as one file each, into one file."""
    import onnx

    model = onnx.load(path)
    for file in path.parent.iterdir():
        file.unlink()
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=path.name + ".data")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings and progress lines; they tell a user of `smartmem zoo` nothing to act on."""
    previous = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
