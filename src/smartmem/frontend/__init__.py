"""ONNX file → `Graph`: read, inline functions, bind shapes, infer, normalise, fold."""

from smartmem.frontend.load import load_graph

__all__ = ["load_graph"]
