"""LiteRT (TensorFlow Lite) with its XNNPACK delegate, converted by litert-torch from the zoo's torch module."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from smartmem.bench.peers.base import (
    Array,
    Facts,
    Job,
    Peer,
    count_kinds,
    imported,
    narrowed,
    torch_module,
    torch_outputs,
)


class LiteRt(Peer):
    """The module's inputs and outputs are in the order of the file's."""

    name: ClassVar[str] = "litert"
    package: ClassVar[str] = "ai-edge-litert litert-torch"
    module: ClassVar[str] = "ai_edge_litert.interpreter"
    converts: ClassVar[bool] = True

    def convert(self, job: Job) -> Facts:
        litert_torch = imported("litert_torch", "litert-torch")
        module, inputs = torch_module(job)
        litert_torch.convert(module, inputs).export(str(job.folder / "model.tflite"))
        return Facts()

    def load(self, job: Job) -> Facts:
        interpreter = imported(self.module, self.package).Interpreter(
            model_path=str(job.folder / "model.tflite"), num_threads=job.threads
        )
        interpreter.allocate_tensors()
        wanted = sorted(interpreter.get_input_details(), key=lambda each: each["name"])
        for detail, array in zip(wanted, job.inputs.values(), strict=True):
            interpreter.set_tensor(detail["index"], array if detail["dtype"] == array.dtype else narrowed(array))
        self._job, self._interpreter = job, interpreter
        self._outputs = sorted(interpreter.get_output_details(), key=lambda each: each["name"])
        kinds = [str(each["op_name"]).replace("_", "") for each in interpreter._get_ops_details()]
        return count_kinds([kind for kind in kinds if kind != "DELEGATE"])

    def run(self) -> dict[str, Array]:
        self._interpreter.invoke()
        return torch_outputs(
            self._job, [np.array(self._interpreter.get_tensor(each["index"])) for each in self._outputs]
        )
