"""The peers for GPUs, as far as they can be tested without one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from smartmem.bench.peers import ncnn, smartmem_itself, torch_cuda
from smartmem.bench.peers.base import Facts, Job
from smartmem.errors import RuntimeFailure

KERNELS = [
    "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl<at::native::direct_copy_kernel_cuda",
    "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 4, 64, 64>",
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x64x8",
    "Memcpy HtoD (Pageable -> Device)",
    "Memset (Device)",
]


def job(folder, precision: str) -> Job:
    inputs = {"mel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return Job(folder / "m.onnx", inputs, 1, folder, "conformer_m", target={"device": "opencl", "precision": precision})


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_torch_module_in_its_precision(tmp_path, monkeypatch, precision, dtype):
    """With torch's CPU in place of the GPU: written, read back, run; integers stay integers."""
    torch = pytest.importorskip("torch")
    synchronized = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(1))
    monkeypatch.setattr(torch_cuda.TorchCuda, "device", lambda self: "cpu")
    module = torch.nn.Linear(3, 2).eval()
    given = job(tmp_path, precision)
    wanted = module(torch.from_numpy(given.inputs["mel"])).detach().numpy()
    monkeypatch.setattr(torch_cuda, "torch_module", lambda job: (module, ()))
    torch_cuda.TorchCuda().convert(given)
    peer = torch_cuda.TorchCuda()
    peer.load(given)
    found = peer.run()["logits"]
    assert found.dtype == dtype
    tolerance = 1e-2 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    count = len(synchronized)
    assert peer.seconds() > 0 and len(synchronized) == count + 1
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_integer_inputs_stay(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch_cuda.TorchCuda, "device", lambda self: "cpu")
    monkeypatch.setattr(torch_cuda, "torch_module", lambda job: (torch.nn.Embedding(5, 2), ()))
    given = Job(tmp_path, {"ids": np.array([[0, 4]])}, 1, tmp_path, "conformer_m", target={"precision": "fp16"})
    torch_cuda.TorchCuda().convert(given)
    peer = torch_cuda.TorchCuda()
    peer.load(given)
    assert peer.run()["logits"].dtype == "float16"


def test_kernels_are_counted():
    """Without what the driver copies and fills; a fused kernel's name does not say that it only copies."""
    assert torch_cuda.TorchCuda().counted(KERNELS) == Facts(kernels=4, layouts=3)
    assert torch_cuda.InductorCuda().counted(KERNELS) == Facts(kernels=4)
    assert torch_cuda.TorchCuda().counted([]) == Facts()
    environment = torch_cuda.InductorCuda.environment(3)
    assert (environment["TORCHINDUCTOR_COMPILE_THREADS"], environment["OMP_NUM_THREADS"]) == ("3", "3")


def test_no_gpu(monkeypatch):
    def fake(module, package):
        no_cuda = SimpleNamespace(is_available=lambda: False)
        return SimpleNamespace(__version__="2.13.0", cuda=no_cuda, get_gpu_count=lambda: 0)

    for module, peer in ((torch_cuda, torch_cuda.InductorCuda()), (ncnn, ncnn.NcnnVulkan())):
        monkeypatch.setattr(module, "imported", fake)
        with pytest.raises(RuntimeFailure, match=r"finds no (CUDA|Vulkan) device"):
            peer.version()


def test_ncnn_on_vulkan(tmp_path, monkeypatch):
    kinds = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
    for precision, half, visible, devices in (("fp32", False, "", []), ("fp16", True, "2,3", [2])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        asked = []
        options = SimpleNamespace(**dict.fromkeys(kinds, False), use_vulkan_compute=False)
        ncnn.NcnnVulkan().configure(
            SimpleNamespace(opt=options, set_vulkan_device=asked.append), job(tmp_path, precision)
        )
        assert options.use_vulkan_compute and all(getattr(options, kind) == half for kind in kinds)
        assert asked == devices


def test_smartmem_on_a_device_is_timed_there():
    peer = smartmem_itself.Smartmem()
    peer._model = SimpleNamespace(bench=lambda repeats: [0.25] * repeats)
    assert peer.seconds() == 0.25
