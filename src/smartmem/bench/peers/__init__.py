"""What `smartmem bench` runs: smartmem's levels, the floor and the peers, each one class in one file here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

from smartmem.bench.peers.base import Peer
from smartmem.errors import InputError

SMARTMEM = "smartmem"
FLOOR = "floor"

_CLASSES = {
    SMARTMEM: "smartmem_itself:Smartmem",
    FLOOR: "floor:Floor",
    "onnxruntime": "onnxruntime:OnnxRuntime",
    "openvino": "openvino:OpenVino",
    "mnn": "mnn:Mnn",
    "ncnn": "ncnn:Ncnn",
    "litert": "litert:LiteRt",
    "tvm": "tvm:Tvm",
    "inductor": "inductor:Inductor",
    "executorch": "executorch:ExecuTorch",
    "iree": "iree:Iree",
    "tinygrad": "tinygrad:Tinygrad",
    "torch-cuda": "torch_cuda:TorchCuda",
    "inductor-cuda": "torch_cuda:InductorCuda",
    "ncnn-vulkan": "ncnn:NcnnVulkan",
}

PEERS = tuple(name for name in _CLASSES if name not in (SMARTMEM, FLOOR))
"""What `--against` may name, in the order of the table."""

GPU_PEERS = ("torch-cuda", "inductor-cuda", "ncnn-vulkan")
"""Those that run on a GPU, beside smartmem on a device: in each precision that is asked for."""

BF16_PEERS = ("openvino",)
"""Those on the CPU that take floats for bfloat16 where smartmem is asked to."""

ALL = "all"
"""Stands for every peer that is installed: those for GPUs where smartmem runs on a device, the others on the CPU."""


def peer_class(name: str) -> type[Peer]:
    """The class behind a name, imported when it is asked for."""
    module, _, attribute = _CLASSES[name].partition(":")
    found: type[Peer] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown names, with near ones.

    Raises:
        InputError: a name is not one of `known`.
    """
    choices = tuple(known)
    for name in names:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(choices)}"
            raise InputError(f"no {kind} {name!r}: {hint}")
