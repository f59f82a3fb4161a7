"""Walk a model's nodes once, in order: parsed model → `Graph`.

Each node is, in this order: replaced by a body (function call, composite operator without a definition, If with a
constant condition) and its body walked instead; or typed, brought to canonical form, and then folded to constants or
appended. Constants are known before their readers are typed, so shape arithmetic becomes static shapes on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from smartmem.errors import ModelError
from smartmem.frontend import fold as folding
from smartmem.frontend.bind import bind_shapes
from smartmem.frontend.infer import Inference, static_shape
from smartmem.frontend.inline import Work, inline_branch, inline_function, inline_nested_calls, key_of
from smartmem.frontend.memory import check_fits
from smartmem.frontend.microsoft import Scope, from_microsoft
from smartmem.frontend.normalise import Context, normalise
from smartmem.frontend.order import captures, describe, sort_nodes, subgraphs
from smartmem.frontend.read import Source, canonical_domain
from smartmem.frontend.schemas import attributes_of, body_of, schema_of
from smartmem.frontend.tensors import dtype_of, sparse_to_array, to_array
from smartmem.graph.ir import Graph, Node, Operator, Value
from smartmem.runtime.host import pack

Array = np.ndarray[Any, Any]
_OBJECT = np.dtype(object)


def import_graph(source: Source, shapes: Mapping[str, tuple[int, ...]], fold: bool, keep: frozenset[str]) -> Graph:
    """The graph of `source`; see `load.load_graph` for the arguments and errors."""
    return _Importer(source, fold, keep).run(shapes)


class _Importer:
    """The state of one import.

    `_scope` maps names to values (inlined names are made unique, so one flat scope serves), `_known` holds the contents
    of constants: with folding on, exactly the values whose `data` is set.
    """

    def __init__(self, source: Source, fold: bool, keep: frozenset[str]) -> None:
        self._source, self._files, self._fold, self._keep = source, source.files, fold, keep
        self._functions = {key_of(f): f for f in source.model.functions}
        graph = source.model.graph
        self._initializers: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {
            t.name: t for t in graph.initializer
        }
        self._initializers.update({t.values.name: t for t in graph.sparse_initializer})
        self._inference = Inference(source.model.ir_version)
        self._scope: dict[str, Value] = {}
        self._known: dict[Value, Array] = {}
        self._around = Scope(self._fresh, self._find, self._known.get)
        self._nodes: list[Node] = []
        self._operators: list[Operator] = []
        self._names: set[str] = set()
        self._node_names: set[str] = set()

    def run(self, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
        graph = self._source.model.graph
        # Up to IR 3 initializers had to be listed as inputs too; they are constants here in any case.
        infos = [info for info in graph.input if info.name not in self._initializers]
        inputs = self._import_inputs(infos, shapes)
        ordered = sort_nodes(graph.node, [*self._scope, *self._initializers])
        self._names.update(self._scope, self._initializers, (o for n in ordered for o in n.output))
        queue = deque(Work(node, self._source.opsets) for node in ordered)
        while queue:
            work = self._normalised_call(queue.popleft())
            body = self._body(work)
            if body is None:
                self._import_node(work)
            else:
                queue.extendleft(reversed(body))
        outputs = [self._output(info.name) for info in graph.output]
        return Graph(graph.name or "model", inputs, outputs, self._nodes, self._operators)

    def _import_inputs(self, infos: list[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> list[Value]:
        names = [info.name for info in infos]
        for name in names:
            if names.count(name) > 1:
                raise ModelError(f'two graph inputs are named "{name}"; each name may be defined only once')
        for info in infos:
            if info.type.WhichOneof("value") != "tensor_type":
                kind = info.type.WhichOneof("value") or "nothing"
                raise ModelError(f'input "{info.name}" is a {kind}, and only tensors are supported as model inputs')
        bound = bind_shapes(infos, shapes)
        values = []
        for info in infos:
            dtype = dtype_of(info.type.tensor_type.elem_type, info.name)
            value = Value(info.name, bound[info.name], dtype)
            check_fits(value, f'input "{info.name}"')
            self._scope[info.name] = value
            values.append(value)
        return values

    def _output(self, name: str) -> Value:
        value = self._find(name)
        if value is None:
            raise ModelError(f'graph output "{name}" is produced by no node; the model is incomplete, export it again')
        return value

    # Names

    def _find(self, name: str) -> Value | None:
        """The value called `name`; initializers become values when they are first asked for."""
        if name not in self._scope and name in self._initializers:
            tensor = self._initializers[name]
            sparse = isinstance(tensor, onnx.SparseTensorProto)
            data = sparse_to_array(tensor, self._files) if sparse else to_array(tensor, self._files)
            self._scope[name] = self._constant(name, data)
        return self._scope.get(name)

    def _read(self, node: onnx.NodeProto, name: str) -> Value:
        value = self._find(name)
        if value is None:
            raise ModelError(
                f'{describe(node)} reads "{name}", which nothing before it defines; export the model again'
            )
        return value

    def _fresh(self, name: str) -> str:
        """`name`, or the first of name_1, name_2 … that is free; taken from now on."""
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def _node_name(self, node: onnx.NodeProto) -> str:
        base = str(node.name or next((o for o in node.output if o), node.op_type))
        unique, count = base, 0
        while unique in self._node_names:
            count += 1
            unique = f"{base}_{count}"
        self._node_names.add(unique)
        return unique

    def _constant(self, name: str, data: Array) -> Value:
        value = Value(name, tuple(data.shape), data.dtype, data)
        self._known[value] = data
        return value

    # Bodies

    def _normalised_call(self, work: Work) -> Work:
        return inline_nested_calls(work, self._functions, self._fresh) if self._functions else work

    def _body(self, work: Work) -> list[Work] | None:
        """What to walk instead of this node, None to import the node itself."""
        node, domain = work.node, canonical_domain(work.node.domain)
        function = self._functions.get(key_of(node))
        if function is not None:
            return inline_function(work, function, self._fresh)
        contrib = from_microsoft(work, self._around)
        if contrib is not None and (len(contrib) != 1 or contrib[0].node is not node):
            return contrib
        if contrib:
            work = contrib[0]
        if domain == "" and node.op_type == "If":
            return self._chosen_branch(work)
        if domain == "" and node.op_type in self._keep:
            return None
        return self._composite(work)

    def _chosen_branch(self, work: Work) -> list[Work] | None:
        condition = self._known.get(self._read(work.node, work.node.input[0])) if work.node.input else None
        if condition is None or condition.size != 1:
            return None
        wanted = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
        branch = next((a.g for a in work.node.attribute if a.name == wanted), None)
        if branch is None:
            raise ModelError(f"{describe(work.node)}: has no {wanted}; export the model again")
        body, initializers = inline_branch(work, branch, self._fresh)
        for tensor in branch.initializer:
            self._initializers[initializers[tensor.name]] = tensor
        return body

    def _composite(self, work: Work) -> list[Work] | None:
        """The ONNX function body of a composite operator."""
        schema = schema_of(work.node, work.opsets)
        if not (schema.has_function or schema.has_context_dependent_function):
            return None
        types = [
            self._inference.type_of(self._read(work.node, name)) if name else onnx.TypeProto()
            for name in work.node.input
        ]
        body = body_of(work.node, schema, work.opsets[canonical_domain(work.node.domain)], types)
        if body is None:
            return None
        # Attributes left out at the call have the schema's defaults in the body.
        call = onnx.NodeProto()
        call.CopyFrom(work.node)
        given = {a.name for a in call.attribute}
        for name, attribute in schema.attributes.items():
            if name not in given and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                call.attribute.append(attribute.default_value)
        return inline_function(Work(call, work.opsets, work.calls), body, self._fresh)

    # Nodes

    def _import_node(self, work: Work) -> None:
        contrib = from_microsoft(work, self._around)
        work = contrib[0] if contrib else work
        proto, domain = work.node, canonical_domain(work.node.domain)
        schema = schema_of(proto, work.opsets)
        attrs = attributes_of(proto, schema, self._files)
        if domain == "" and proto.op_type == "Constant":
            self._bind_constant(proto, attrs)
            return
        captured = captures(proto)
        names = [name for name in (*proto.input, *captured) if name]
        operands = {name: self._read(proto, name) for name in names}
        types = self._inference.run(proto, schema, work.opsets, operands, self._known)
        if captured or any(True for _ in subgraphs(proto)):
            attrs |= {"captures": captured, "opsets": dict(work.opsets)}
        elif domain:
            attrs["opsets"] = dict(work.opsets)
        node = Node(
            op=proto.op_type,
            domain=domain,
            name=self._node_name(proto),
            inputs=[operands[name] if name else None for name in (*proto.input, *captured)],
            outputs=[self._result(proto, name, types.get(name)) if name else None for name in proto.output],
            attrs=attrs,
            version=work.opsets[domain],
            proto=pack(proto),
        )
        normalise(node, Context(self._known, self._extra_constant))
        self._finish(node)
        removed = "" if self._nodes and self._nodes[-1] is node else "its inputs are constant"
        self._operators.append(Operator(node.name, proto.op_type, _first_shape(node), removed))

    def _result(self, proto: onnx.NodeProto, name: str, kind: onnx.TypeProto | None) -> Value:
        """A new value for the result `name` of type `kind`."""
        if kind is None or kind.WhichOneof("value") is None:
            kind = self._declared(name)
        tensor = kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type != 0
        if kind.WhichOneof("value") is None or (kind.HasField("tensor_type") and not tensor):
            raise ModelError(
                f'{describe(proto)}: the type of its result "{name}" cannot be inferred; add a value_info for it '
                "(onnx.shape_inference.infer_shapes), or export the model again"
            )
        # Sequences and optionals live on the host as Python objects.
        dtype = dtype_of(kind.tensor_type.elem_type, name) if tensor else _OBJECT
        value = Value(name, static_shape(kind) if tensor else None, dtype)
        check_fits(value, f'result "{name}" of {describe(proto)}')
        self._inference.remember(value, kind)
        return value

    def _declared(self, name: str) -> onnx.TypeProto:
        """The element type that the model declares for a value, without its shape: that may hold for other inputs."""
        graph = self._source.model.graph
        for info in (*graph.value_info, *graph.output):
            if info.name == name and info.type.HasField("tensor_type"):
                kind = onnx.TypeProto()
                kind.tensor_type.elem_type = info.type.tensor_type.elem_type
                return kind
        return onnx.TypeProto()

    def _extra_constant(self, name: str, data: Array) -> Value:
        return self._constant(self._fresh(name), data)

    def _bind_constant(self, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
        given = {name: value for name, value in attrs.items() if name.startswith(("value", "sparse_value"))}
        if len(given) != 1:
            raise ModelError(f"{describe(proto)}: should have one value, and has {sorted(given) or 'none'}")
        name, value = next(iter(given.items()))
        if name == "sparse_value":
            value = sparse_to_array(value, self._files)
        elif name.startswith("value_string"):
            value = np.asarray(value, dtype=object)
        elif name != "value":
            value = np.asarray(value, np.float32 if name.startswith("value_float") else np.int64)
        self._scope[proto.output[0]] = self._constant(proto.output[0], value)

    def _finish(self, node: Node) -> None:
        """Fold the node to constants, or append it."""
        results = self._evaluate(node)
        for index, value in enumerate(node.outputs):
            if value is None:
                continue
            self._scope[value.name] = value
            if results is None or index >= len(results):
                continue
            data = results[index]
            value.shape, value.dtype = tuple(data.shape), data.dtype
            self._known[value] = data
            self._inference.forget(value)
            if self._fold:
                value.data = data
        if results is None or not self._fold:
            self._nodes.append(node)

    def _evaluate(self, node: Node) -> list[Array] | None:
        fixed = folding.static_result(node)
        if fixed is not None:
            return [fixed]
        operands = [None if v is None else self._known.get(v) for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(operands, node.inputs, strict=True)):
            return None
        return folding.evaluate(node, operands)


def _first_shape(node: Node) -> tuple[int, ...] | None:
    return next((v.shape for v in node.outputs if v is not None), None)
