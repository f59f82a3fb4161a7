"""The networks of the SmartMem paper, exported to ONNX with seeded random weights.

`registry` names them, `*_networks` and `papers/` build them, `weights` makes their weights depend on no download and
their outputs on the input, `export` writes the files, `count` counts parameters and multiply-accumulates. Importing
this package imports no torch: `smartmem zoo list` works without `pip install 'smartmem[zoo]'`.
"""

from __future__ import annotations

from smartmem.zoo.packages import MissingPackageError
from smartmem.zoo.registry import NETWORKS, Input, Network, UnknownNetworkError, find

__all__ = ["NETWORKS", "Input", "MissingPackageError", "Network", "UnknownNetworkError", "find"]
