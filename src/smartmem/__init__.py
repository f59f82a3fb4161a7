"""smartmem: compile neural networks to C in which no layout transformation is left.

    import smartmem

    model = smartmem.compile("model.onnx", shapes={"x": (1, 3, 224, 224)}, threads=2)
    y = model(x)

Importing this costs little: the compiler, the onnx package and the runtime are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartmem.errors import CompilerError, InputError, ModelError, RuntimeFailure, SmartmemError
from smartmem.levels import LEVELS
from smartmem.version import __version__

if TYPE_CHECKING:
    from smartmem.api import compile, load
    from smartmem.runtime.model import Model

__all__ = [
    "LEVELS",
    "CompilerError",
    "InputError",
    "Model",
    "ModelError",
    "RuntimeFailure",
    "SmartmemError",
    "__version__",
    "compile",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in ("compile", "load"):
        from smartmem import api

        return getattr(api, name)
    if name == "Model":
        from smartmem.runtime.model import Model

        return Model
    raise AttributeError(f"module 'smartmem' has no attribute {name!r}")
