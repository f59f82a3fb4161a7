"""Spell ONNX Runtime's contrib operators in ONNX: a `com.microsoft` node → nodes of the ONNX domain.

ONNX Runtime's graph optimizer and transformer optimizer write these operators. A rule writes one as a formula of ONNX
operators (see `body.Body`), which the compiler then fuses as it likes: `BiasGelu(x, b)` becomes `Gelu(Add(x, b))`.
"""

from __future__ import annotations

from smartmem.errors import ModelError
from smartmem.frontend.inline import Work
from smartmem.frontend.microsoft import attention, decoder, normalization, products, quantized
from smartmem.frontend.microsoft.body import OPSET, Body, Rule, Scope
from smartmem.frontend.order import describe

__all__ = ["Scope", "from_microsoft"]

_RULES: dict[str, Rule] = {}
for _family in (products, normalization, attention, decoder, quantized):
    _RULES |= _family.RULES


def from_microsoft(work: Work, scope: Scope) -> list[Work] | None:
    """The nodes that `work.node` stands for, or None where it is no operator of ONNX Runtime.

    Raises:
        ModelError: the operator has no spelling in ONNX, or none for its inputs and attributes.
    """
    node, version = work.node, work.opsets.get("", 0)
    if node.domain in ("", "ai.onnx") and node.op_type == "LayerNormalization" and version < 17:
        return [Work(node, {**work.opsets, "": 17}, work.calls)]  # onnxruntime wrote it before ONNX had it
    simplified = node.domain in ("", "ai.onnx") and node.op_type == "SimplifiedLayerNormalization"
    if not simplified and not node.domain.startswith("com.microsoft"):
        return None
    rule = _RULES.get(node.op_type) if simplified or node.domain == "com.microsoft" else None
    nodes = Body(node, scope).spell(rule) if rule else None
    if nodes is None:
        raise ModelError(
            f'{describe(node)}: operator {node.op_type} of ONNX Runtime\'s domain "{node.domain}" is not supported'
            f"{' with these inputs, outputs and attributes' if rule else ''}; export the model without ONNX Runtime's "
            "optimizations"
        )
    return [Work(made, {**work.opsets, "": OPSET}, work.calls) for made in nodes]
