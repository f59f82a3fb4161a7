"""The packages of the `zoo` extra: imported where they are needed, and named where they are missing."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from types import ModuleType
from typing import Any

from smartmem.errors import RuntimeFailure

TORCH = "2.13.0"
"""The version that `smartmem[zoo]` pins; the exporters' graphs change between versions."""

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"

_kept: list[Any] = []
"""What must live as long as the process."""


class MissingPackageError(RuntimeFailure):
    """A package of the `zoo` extra is not installed, or cannot be imported."""


def require(*names: str) -> None:
    """Import packages.

    Raises:
        MissingPackageError: one cannot be imported; the message says what to install.
    """
    for name in names:
        load(name, name)


def load(module: str, package: str) -> ModuleType:
    """Import a module that wants `package`.

    Raises:
        MissingPackageError: it cannot be imported; the message says what to install.
    """
    try:
        _prepare(package)
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # transformers and diffusers wrap the former in the latter
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "is not installed" if absent else f"cannot be imported ({str(error).strip().splitlines()[-1]})"
        raise MissingPackageError(
            f"{package} {why}: pip install 'smartmem[zoo]' (it pins torch=={TORCH}; on Linux add "
            f"--extra-index-url {CPU_WHEELS}, or pip fetches the CUDA build and some gigabytes of its libraries)"
        ) from (None if absent else error)


def other_torch() -> str:
    """A line for the user where torch is not the pinned version, else ""."""
    version = str(load("torch", "torch").__version__).partition("+")[0]
    return "" if version == TORCH else f"note: exported by torch {version}; the zoo's graphs are those of torch {TORCH}"


def _prepare(package: str) -> None:
    """Keep packages from the network and from the home folder, and let them find a torchvision that loads."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if package == "ultralytics" and package not in sys.modules:
        os.environ.setdefault("YOLO_OFFLINE", "true")
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        os.environ.setdefault("YOLO_VERBOSE", "false")
        if "YOLO_CONFIG_DIR" not in os.environ:
            folder = tempfile.TemporaryDirectory(prefix="smartmem-ultralytics-", ignore_cleanup_errors=True)
            _kept.append(folder)  # deleted at exit
            os.environ["YOLO_CONFIG_DIR"] = folder.name
    if package != "torch":
        import_torchvision()


def import_torchvision() -> ModuleType | None:
    """torchvision, or None where there is none.

    Next to a CPU build of torch, torchvision's CUDA wheel cannot load its operators and then fails to import, as it
    registers a shape function for one. None of our networks calls these operators: declaring them is enough.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None
    except RuntimeError:
        for module in [key for key in sys.modules if key.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # the declarations live as long as this object
    return importlib.import_module("torchvision")
