"""What the onnx package knows about an operator: (operator, domain, version) → schema, attributes, function body.

Also decides which composite operators stay whole: those in `NATIVE` have a compute definition of their own; any other
operator that ONNX defines by a function body is replaced by that body.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
from onnx import defs

from smartmem.errors import ModelError
from smartmem.frontend.external import ExternalFiles
from smartmem.frontend.order import describe
from smartmem.frontend.read import canonical_domain
from smartmem.frontend.tensors import to_array

#: Composite operators of the ONNX domain that have a compute definition (or that the host does better than their body).
NATIVE = frozenset(
    {
        "CastLike",
        "Celu",
        "Clip",
        "DepthToSpace",
        "Einsum",
        "Elu",
        "Gelu",
        "GreaterOrEqual",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "LessOrEqual",
        "LogSoftmax",
        "Mish",
        "PRelu",
        "RMSNormalization",
        "Range",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSumSquare",
        "Relu",
        "Selu",
        "SequenceMap",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Swish",
        "ThresholdedRelu",
    }
)
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> defs.OpSchema:
    """The schema of a node's operator at its opset.

    Raises:
        ModelError: domain or operator is unknown, was removed, or is newer than the opset.
    """
    domain, op = canonical_domain(node.domain), node.op_type
    version = opsets.get(domain)
    if version is None or not _domain_known(domain):
        raise ModelError(_unknown(node, domain, version))
    schema = _schema(op, domain, version)
    if schema is None:
        raise ModelError(_unknown(node, domain, version))
    if schema.deprecated:
        raise ModelError(
            f"{describe(node)}: operator {op} was removed from ONNX in opset {schema.since_version}, and the model "
            f"uses opset {version}; export the model again"
        )
    _check_arity(node, schema, version)
    return schema


def attributes_of(node: onnx.NodeProto, schema: defs.OpSchema, files: ExternalFiles) -> dict[str, Any]:
    """The node's attributes as plain values, with the schema's defaults filled in; subgraphs are left out.

    Raises:
        ModelError: a required attribute is missing, or one does not belong to the operator.
    """
    defaults, required, known = _attribute_facts(schema.name, schema.domain, schema.since_version)
    attrs = dict(defaults)
    for attribute in node.attribute:
        if attribute.name not in known and not _is_annotation(attribute.name):
            near = difflib.get_close_matches(attribute.name, known, 1)
            raise ModelError(
                f'{describe(node)}: operator {node.op_type} has no attribute "{attribute.name}" in opset version '
                f"{schema.since_version}" + (f'; did you mean "{near[0]}"?' if near else "")
            )
        if attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            attrs[attribute.name] = _plain(attribute, files)
    given = {a.name for a in node.attribute}
    for name in required:
        if name not in given:
            raise ModelError(f'{describe(node)}: required attribute "{name}" is missing; export the model again')
    return {name: list(v) if isinstance(v, list) else v for name, v in attrs.items()}


def body_of(
    node: onnx.NodeProto, schema: defs.OpSchema, version: int, types: list[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function that ONNX defines a composite operator by, for operands of these types; None where there is none."""
    if schema.has_function:
        at = _newest(schema.function_opset_versions, version)
        data = schema.get_function_with_opset_version(at) if at else None
        return _as_function(data)
    if schema.has_context_dependent_function:
        at = _newest(schema.context_dependent_function_opset_versions, version)
        if not at:
            return None
        raw = [t.SerializeToString() for t in types]
        data = schema.get_context_dependent_function_with_opset_version(at, node.SerializeToString(), raw)
        return _as_function(data)
    return None


def is_deterministic(op: str, domain: str) -> bool:
    """Whether equal operands always give equal results (so that the node may be folded)."""
    return not (domain == "" and op in _RANDOM)


def _as_function(data: Any) -> onnx.FunctionProto | None:
    if not data:
        return None
    return data if isinstance(data, onnx.FunctionProto) else onnx.FunctionProto.FromString(data)


def _newest(versions: list[int], limit: int) -> int | None:
    """The newest version not above `limit`, else the oldest: bodies state the opset that they need."""
    fitting = [v for v in versions if v <= limit]
    return max(fitting) if fitting else min(versions, default=None)


@cache
def _schema(op: str, domain: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


@cache
def _domain_known(domain: str) -> bool:
    return any(schema.domain == domain for schema in defs.get_all_schemas())


@cache
def _attribute_facts(op: str, domain: str, version: int) -> tuple[dict[str, Any], tuple[str, ...], frozenset[str]]:
    """(defaults, required names, all names) of a schema."""
    schema = _schema(op, domain, version)
    assert schema is not None
    nothing = ExternalFiles(None)
    defaults = {
        name: _plain(a.default_value, nothing)
        for name, a in schema.attributes.items()
        if a.default_value.type != onnx.AttributeProto.UNDEFINED
    }
    required = tuple(name for name, a in schema.attributes.items() if a.required)
    return defaults, required, frozenset(schema.attributes)


def _plain(attribute: onnx.AttributeProto, files: ExternalFiles) -> Any:
    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return to_array(attribute.t, files)
    if attribute.type == kind.TENSORS:
        return [to_array(t, files) for t in attribute.tensors]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == kind.STRING:
        return value.decode("utf-8", "replace")
    if attribute.type == kind.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    if attribute.type in (kind.INTS, kind.FLOATS):
        return list(value)
    return value


def _is_annotation(name: str) -> bool:
    """Exporters' notes that are no part of an operator's meaning."""
    return name.startswith("_") or name in ("consumed_inputs",)


def _check_arity(node: onnx.NodeProto, schema: defs.OpSchema, version: int) -> None:
    for what, given, low, high in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not low <= given <= high:
            bounds = f"{low}" if low == high else f"at least {low}" if high > 1 << 20 else f"{low} to {high}"
            raise ModelError(
                f"{describe(node)}: has {given} {what}, but {node.op_type} takes {bounds} in opset {version}; "
                "export the model again"
            )


def _unknown(node: onnx.NodeProto, domain: str, version: int | None) -> str:
    """One line on an operator that nobody knows, with the nearest name that somebody does."""
    op, shown = node.op_type, domain or "ai.onnx"
    if not _domain_known(domain):
        return (
            f'{describe(node)}: unknown domain "{shown}" of operator {op} (opset {version or "not stated"}); it is '
            "neither an ONNX domain nor defined by a function in the model: export without custom operators"
        )
    if version is None:
        return (
            f'{describe(node)}: operator {op} is of domain "{shown}", for which the model states no opset; export again'
        )
    names = {s.name for s in defs.get_all_schemas() if s.domain == domain}
    if op in names:
        first = min(s.since_version for s in defs.get_all_schemas_with_history() if (s.name, s.domain) == (op, domain))
        return (
            f'{describe(node)}: operator {op} of domain "{shown}" exists since opset {first}, but the model '
            f"states opset {version}; export the model with a newer opset"
        )
    near = difflib.get_close_matches(op, names, 3, 0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "export the model without custom operators"
    return f'{describe(node)}: unknown operator {op} in domain "{shown}" at opset {version}; {hint}'
