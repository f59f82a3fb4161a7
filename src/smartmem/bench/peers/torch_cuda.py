"""PyTorch on an NVIDIA GPU: the zoo's torch module as it is (eager), and compiled by TorchInductor with CUDA graphs.

What is timed is a run with the inputs on the GPU already and the outputs left there, up to the end of the GPU's work.
In fp32 all sums and products are fp32: TF32, which cuDNN's convolutions would use, is off. The first CUDA device runs
(CUDA_VISIBLE_DEVICES says which that is).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported, torch_module, torch_outputs
from smartmem.errors import RuntimeFailure

COPIES = ("copy_kernel", "CatArray", "nchwToNhwc", "nhwcToNchw")
"""Parts of the names of torch's and cuDNN's kernels that only move data."""


class TorchCuda(Peer):
    """`convert` writes the module in its precision: building it again takes longer than all that is measured."""

    name: ClassVar[str] = "torch-cuda"
    package: ClassVar[str] = "torch"
    module: ClassVar[str] = "torch"
    converts: ClassVar[bool] = True

    def version(self) -> str:
        torch = imported("torch", "torch")
        if not torch.cuda.is_available():
            raise RuntimeFailure(f"torch {torch.__version__} finds no CUDA device; `nvidia-smi` should show one")
        return str(torch.__version__)

    def convert(self, job: Job) -> Facts:
        module, _ = torch_module(job)
        imported("torch", "torch").save(module.half() if _half(job) else module, job.folder / "module.pt")
        return Facts()

    def load(self, job: Job) -> Facts:
        from smartmem.zoo.packages import require
        from smartmem.zoo.registry import find

        torch = imported("torch", "torch")
        torch.set_num_threads(job.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # all shapes are fixed: let it measure its algorithms
        require(*find(job.network).needs)
        self._torch, self._job = torch, job
        module = torch.load(job.folder / "module.pt", map_location=self.device(), weights_only=False)
        self._call = self.compiled(module, job)
        tensors = [torch.from_numpy(array.copy()) for array in job.inputs.values()]
        self._inputs = [
            (tensor.half() if _half(job) and tensor.is_floating_point() else tensor).to(self.device())
            for tensor in tensors
        ]
        for _ in range(3):  # the second run records CUDA graphs, the third is the first that replays them
            self._execute()
        return Facts()

    def run(self) -> dict[str, Array]:
        results = self._execute()
        tensors = results if isinstance(results, (tuple, list)) else (results,)
        return torch_outputs(self._job, [tensor.cpu() for tensor in tensors])

    def seconds(self) -> float:
        start = time.perf_counter()
        self._execute()
        return time.perf_counter() - start

    def count(self) -> Facts:
        profiler = self._torch.profiler
        if profiler.ProfilerActivity.CUDA not in profiler.supported_activities():
            return Facts()
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            self._execute()
        on_gpu = self._torch.autograd.DeviceType.CUDA
        return self.counted([event.name for event in profile.events() if event.device_type == on_gpu])

    def counted(self, names: Sequence[str]) -> Facts:
        """The facts of what ran on the GPU; nothing where its profiler tells nothing."""
        kernels = _kernels(names)
        if not kernels:
            return Facts()
        return Facts(kernels=len(kernels), layouts=sum(any(part in name for part in COPIES) for name in kernels))

    def compiled(self, module: Any, job: Job) -> Callable[..., Any]:
        """What is called: the module itself."""
        found: Callable[..., Any] = module
        return found

    def device(self) -> str:
        """Where torch puts tensors."""
        return "cuda"

    def _execute(self) -> Any:
        with self._torch.no_grad():
            results = self._call(*self._inputs)
        self._torch.cuda.synchronize()
        return results


class InductorCuda(TorchCuda):
    """`torch.compile` in the mode "reduce-overhead", which replays CUDA graphs; its cache stays in the job's folder."""

    name: ClassVar[str] = "inductor-cuda"

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return Peer.environment(threads) | {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}

    def compiled(self, module: Any, job: Job) -> Callable[..., Any]:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder.absolute() / "inductor")
        found: Callable[..., Any] = self._torch.compile(module, mode="reduce-overhead")
        return found

    def counted(self, names: Sequence[str]) -> Facts:
        # Its kernels are fused: no name says that one only copies.
        return Facts(kernels=len(_kernels(names)) or None)


def _half(job: Job) -> bool:
    return job.target.get("precision") == "fp16"


def _kernels(names: Sequence[str]) -> list[str]:
    """Without what the driver copies and fills."""
    return [name for name in names if not name.startswith(("Memcpy", "Memset"))]
