"""ncnn on the CPU (float32 storage and arithmetic) and, through Vulkan, on the GPU; converted by pnnx.

pnnx knows TorchScript best: it gets the traced module of a network of the zoo. Where that leaves operators that ncnn
does not have, and for any other model, it gets the ONNX file.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from smartmem.bench.peers.base import (
    Array,
    Facts,
    Job,
    Peer,
    count_kinds,
    imported,
    narrowed,
    output_names,
    telling_line,
    tool,
    torch_module,
)
from smartmem.errors import RuntimeFailure


class Ncnn(Peer):
    """ncnn has no batch axis: pnnx removes it, and outputs are compared without it."""

    name: ClassVar[str] = "ncnn"
    package: ClassVar[str] = "ncnn pnnx"
    module: ClassVar[str] = "ncnn"
    converts: ClassVar[bool] = True

    def convert(self, job: Job) -> Facts:
        program = Path(sys.executable).with_name("pnnx")
        found = str(program) if program.is_file() else shutil.which("pnnx")
        if found is None:
            raise RuntimeFailure("no pnnx, which converts for it; run: pip install pnnx")
        for source in ("model.pt", "model.onnx") if job.network else ("model.onnx",):
            _write_source(job, source)
            text = tool([found, source, _shapes(job), "fp16=0"], job.folder)
            for file in job.folder.iterdir():  # pnnx leaves the weights in five files
                if not file.name.startswith("model.ncnn."):
                    file.unlink()
            if not (job.folder / "model.ncnn.param").is_file():
                raise RuntimeFailure(f"pnnx wrote nothing: {telling_line(text)}")
            lines = (job.folder / "model.ncnn.param").read_text().splitlines()[2:]
            layers = [line.split()[0] for line in lines if line.strip()]
            unknown = sorted({layer for layer in layers if imported("ncnn", "ncnn").create_layer(layer) is None})
            if not unknown:
                return count_kinds([layer for layer in layers if layer not in ("Input", "MemoryData", "Split", "Noop")])
        raise RuntimeFailure(f"pnnx leaves operators that ncnn does not have: {', '.join(unknown[:3])}")

    def load(self, job: Job) -> Facts:
        ncnn = imported(self.module, self.package)
        net = ncnn.Net()
        net.opt.num_threads = job.threads
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, name, False)
        self.configure(net, job)
        if net.load_param(str(job.folder / "model.ncnn.param")) or net.load_model(str(job.folder / "model.ncnn.bin")):
            raise RuntimeFailure("ncnn cannot load what pnnx wrote")
        self._net, self._names = net, output_names(job)
        inputs = list(net.input_names())
        if len(inputs) != len(job.inputs):
            raise RuntimeFailure(f"pnnx kept {len(inputs)} of {len(job.inputs)} inputs")
        self._arrays = {
            # Without the batch axis, which pnnx drops where there is one.
            name: np.ascontiguousarray(narrowed(array[0] if array.ndim > 1 and len(array) == 1 else array))
            for name, array in zip(inputs, job.inputs.values(), strict=True)
        }
        self._inputs = {name: ncnn.Mat(array) for name, array in self._arrays.items()}
        self._outputs = list(net.output_names())
        return Facts()

    def configure(self, net: Any, job: Job) -> None:
        """Say where it runs."""
        net.opt.use_vulkan_compute = False

    def run(self) -> dict[str, Array]:
        with self._net.create_extractor() as extractor:
            for name, mat in self._inputs.items():
                extractor.input(name, mat)
            found = {}
            for wanted, name in zip(self._names, self._outputs, strict=True):
                status, mat = extractor.extract(name)
                if status:
                    raise RuntimeFailure(f"ncnn's extract fails with status {status}")
                found[wanted] = np.array(mat)[None]
            return found


class NcnnVulkan(Ncnn):
    """On the first Vulkan device, or the one with the number in CUDA_VISIBLE_DEVICES, which that driver does not read.

    Its Python interface takes and gives arrays on the host: runs include the copies.
    """

    name: ClassVar[str] = "ncnn-vulkan"

    def version(self) -> str:
        ncnn = imported(self.module, self.package)
        if not ncnn.get_gpu_count():
            raise RuntimeFailure("ncnn finds no Vulkan device; it wants libvulkan.so.1 and the driver's ICD file")
        return super().version()

    def configure(self, net: Any, job: Job) -> None:
        net.opt.use_vulkan_compute = True
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        if first.isdecimal():
            net.set_vulkan_device(int(first))
        if job.target.get("precision") == "fp16":
            net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = True


def _shapes(job: Job) -> str:
    """The inputs' shapes and types, as pnnx wants them: `inputshape=[1,3,224,224]f32`."""
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32"}
    shapes = (f"[{','.join(map(str, array.shape))}]{kinds[array.dtype.name]}" for array in job.inputs.values())
    return f"inputshape={','.join(shapes)}"


def _write_source(job: Job, name: str) -> None:
    """The file that pnnx reads, in the folder where it writes."""
    if name == "model.pt":
        torch = imported("torch", "torch")
        module, inputs = torch_module(job)
        with torch.no_grad():
            torch.jit.trace(module, inputs, check_trace=False).save(job.folder / name)
        return
    (job.folder / name).symlink_to(job.model.absolute())
    data = job.model.with_name(job.model.name + ".data")
    if data.is_file():
        (job.folder / data.name).symlink_to(data.absolute())
