"""The runtimes that `smartmem bench` measures, each behind the same three methods.

A runner lives in a process of its own (see `worker`). Imports are inside the methods: only what is measured is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from smartmem.errors import RuntimeFailure

Array = np.ndarray[Any, Any]


class Runner(Protocol):
    """One way to run a model.

    Attributes:
        name: what `--against` calls it.
        package: what pip installs.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    def version(self) -> str:
        """Of the package."""

    def load(self, model: Path, inputs: dict[str, Array]) -> None:
        """Prepare to run `model` on `inputs`, always the same."""

    def run(self) -> dict[str, Array]:
        """Run once; the outputs by name."""


class Smartmem:
    """smartmem itself, at one level."""

    name: ClassVar[str] = "smartmem"
    package: ClassVar[str] = "smartmem"

    def __init__(self, threads: int, level: str = "full", march: str = "native") -> None:
        self._options = {"threads": threads, "level": level, "march": march}

    def version(self) -> str:
        from smartmem.version import __version__

        return __version__

    def load(self, model: Path, inputs: dict[str, Array]) -> None:
        from smartmem import api

        shapes = {name: array.shape for name, array in inputs.items()}
        self._model = api.compile(model, shapes, **self._options)  # type: ignore[arg-type]
        self._inputs = inputs

    def run(self) -> dict[str, Array]:
        return dict(zip(self._model.output_names, self._model.run(self._inputs), strict=True))


class OnnxRuntime:
    """ONNX Runtime on the CPU, with all of its graph optimizations."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def version(self) -> str:
        return str(_import(self.package).__version__)

    def load(self, model: Path, inputs: dict[str, Array]) -> None:
        ort = _import(self.package)

        def session(fixed: dict[str, int]) -> Any:
            options = ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            for name, extent in fixed.items():
                options.add_free_dimension_override_by_name(name, extent)
            return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

        self._session = session({})
        # It optimizes better with static shapes, which we have as well.
        extents: dict[str, set[int]] = {}
        for info in self._session.get_inputs():
            for dim, extent in zip(info.shape, inputs[info.name].shape, strict=True):
                if isinstance(dim, str):
                    extents.setdefault(dim, set()).add(extent)
        # Some exporters give one name to dimensions that differ.
        fixed = {dim: values.pop() for dim, values in extents.items() if len(values) == 1}
        if fixed:
            self._session = session(fixed)
        self._names = [info.name for info in self._session.get_outputs()]
        self._inputs = inputs

    def run(self) -> dict[str, Array]:
        return dict(zip(self._names, self._session.run(self._names, self._inputs), strict=True))


class OpenVino:
    """OpenVINO on the CPU, tuned for latency, in float32 (its default may be bfloat16)."""

    name: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def version(self) -> str:
        return str(_import(self.package).__version__).split("-")[0]

    def load(self, model: Path, inputs: dict[str, Array]) -> None:
        ov = _import(self.package)
        core = ov.Core()
        network = core.read_model(str(model))
        network.reshape({name: list(array.shape) for name, array in inputs.items()})
        config = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = core.compile_model(network, "CPU", config).create_infer_request()
        # Models read from ONNX keep the names of its outputs, among others.
        self._outputs = [(i, sorted(output.get_names())) for i, output in enumerate(network.outputs)]
        self._inputs = inputs

    def run(self) -> dict[str, Array]:
        self._request.infer(self._inputs)
        return {
            name: np.array(self._request.get_output_tensor(index).data)
            for index, names in self._outputs
            for name in names
        }


PEERS: dict[str, type[OnnxRuntime] | type[OpenVino]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeFailure(f"{name} cannot be imported ({error}); run: pip install {name}") from None
