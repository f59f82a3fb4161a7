"""Put a body in place of its call: function calls and chosen If branches → plain nodes.

In: a call node and the body it stands for (a model-local function, the function body that ONNX defines a composite
operator by, or a branch). Out: copies of the body's nodes that read and write the call's own names. Names inside of the
body get the call's name as a prefix: `f(x) { t = Abs(x); y = Neg(t) }` called as `b = "blk/f"(a)` becomes
`"blk/f/t" = Abs(a); b = Neg("blk/f/t")`.

Opset versions are never converted: a function states the version it was written for, and its nodes keep that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from smartmem.errors import ModelError
from smartmem.frontend.order import defined_in, describe, subgraphs
from smartmem.frontend.read import canonical_domain, read_opsets

FunctionKey = tuple[str, str, str]


@dataclass(frozen=True)
class Work:
    """A node still to be imported.

    Attributes:
        node: the node, with names of the flat outer scope.
        opsets: domain → version that gives the node its meaning.
        calls: functions whose inlining produced the node (to catch recursion).
    """

    node: onnx.NodeProto
    opsets: Mapping[str, int]
    calls: tuple[FunctionKey, ...] = ()


def key_of(message: onnx.NodeProto | onnx.FunctionProto) -> FunctionKey:
    """What a call and the function it calls have in common: (domain, name, overload)."""
    name = message.op_type if isinstance(message, onnx.NodeProto) else message.name
    return canonical_domain(message.domain), name, getattr(message, "overload", "")


def inline_function(work: Work, function: onnx.FunctionProto, fresh: Callable[[str], str]) -> list[Work]:
    """The body of `function` in place of the call `work.node`.

    Args:
        work: the call.
        function: what it calls.
        fresh: makes a name unique in the outer scope.

    Raises:
        ModelError: recursion, or a call with more operands than the function takes.
    """
    call, key = work.node, key_of(function)
    if key in work.calls:
        raise ModelError(f"{describe(call)}: function {function.name} calls itself, which ONNX does not allow")
    if len(call.input) > len(function.input) or len(call.output) > len(function.output):
        raise ModelError(
            f"{describe(call)}: called with {len(call.input)} inputs and {len(call.output)} outputs, but function "
            f"{function.name} has {len(function.input)} and {len(function.output)}"
        )
    names = dict.fromkeys(function.input, "")
    names.update(zip(function.input, call.input, strict=False))
    attributes = {a.name: a for a in function.attribute_proto}
    attributes.update({a.name: a for a in call.attribute})
    opsets = read_opsets(function.opset_import) or dict(work.opsets)
    outputs = zip(function.output, call.output, strict=False)
    nodes = _instantiate(call, function.node, names, outputs, attributes, fresh)
    return [Work(n, {**work.opsets, **opsets}, (*work.calls, key)) for n in nodes]


def inline_branch(
    work: Work, branch: onnx.GraphProto, fresh: Callable[[str], str]
) -> tuple[list[Work], dict[str, str]]:
    """The nodes of the If branch that a constant condition chose, and the new names of its initializers."""
    names = {t.name: fresh(f"{work.node.name}/{t.name}") for t in branch.initializer}
    initializers = dict(names)
    outputs = zip((o.name for o in branch.output), work.node.output, strict=False)
    nodes = _instantiate(work.node, branch.node, names, outputs, {}, fresh)
    return [Work(n, work.opsets, work.calls) for n in nodes], initializers


def _instantiate(
    call: onnx.NodeProto,
    body: Sequence[onnx.NodeProto],
    names: dict[str, str],
    outputs: Iterable[tuple[str, str]],
    attributes: Mapping[str, onnx.AttributeProto],
    fresh: Callable[[str], str],
) -> list[onnx.NodeProto]:
    """Copies of `body` with names and attribute references resolved.

    `names` (body → outer) holds the operands; results and local names are added to it.
    """
    produced = {o for node in body for o in node.output if o}
    copied: list[tuple[str, str]] = []
    for inner, outer in outputs:
        if not outer:
            continue
        if inner in produced and inner not in names:
            names[inner] = outer
        else:  # the result is an operand (or the same result twice): a value has one name, so copy
            copied.append((inner, outer))
    for name in produced:
        if name not in names:
            names[name] = fresh(f"{call.name}/{name}" if call.name else name)
    result = []
    for node in body:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = "/".join(part for part in (call.name, node.name or node.op_type) if part)
        rename(copy, names)
        resolve_attributes(copy, attributes)
        result.append(copy)
    for inner, outer in copied:
        result.append(
            onnx.helper.make_node("Identity", [names.get(inner, inner)], [outer], name=f"{call.name}/{inner}")
        )
    return result


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Apply `names` to a node's operands and results, and to what its subgraphs read from outside."""
    node.input[:] = [names.get(n, n) for n in node.input]
    node.output[:] = [names.get(n, n) for n in node.output]
    for graph in subgraphs(node):
        local = defined_in(graph)
        outer = {k: v for k, v in names.items() if k not in local}
        for inner in graph.node:
            rename(inner, outer)
        for output in graph.output:
            output.name = outer.get(output.name, output.name)


def resolve_attributes(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> None:
    """Replace references to the function's attributes by the call's values; absent ones disappear."""
    kept = []
    changed = False
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            kept.append(attribute)
            continue
        changed = True
        given = attributes.get(attribute.ref_attr_name)
        if given is not None:
            copy = onnx.AttributeProto()
            copy.CopyFrom(given)
            copy.name = attribute.name
            kept.append(copy)
    if changed:
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(copies)
    for graph in subgraphs(node):
        for inner in graph.node:
            resolve_attributes(inner, attributes)


def inline_nested_calls(
    work: Work, functions: Mapping[FunctionKey, onnx.FunctionProto], fresh: Callable[[str], str]
) -> Work:
    """Inline model-local functions that are called inside of the node's subgraphs (the host runs those as one message).

    Raises:
        ModelError: the function was written for another opset than the subgraph around it.
    """
    if not any(_calls(graph, functions) for graph in subgraphs(work.node)):
        return work
    node = onnx.NodeProto()
    node.CopyFrom(work.node)
    for graph in subgraphs(node):
        _inline_in_graph(graph, Work(node, work.opsets, work.calls), functions, fresh)
    return Work(node, work.opsets, work.calls)


def _calls(graph: onnx.GraphProto, functions: Mapping[FunctionKey, onnx.FunctionProto]) -> bool:
    return any(key_of(n) in functions or any(_calls(g, functions) for g in subgraphs(n)) for n in graph.node)


def _inline_in_graph(
    graph: onnx.GraphProto,
    outer: Work,
    functions: Mapping[FunctionKey, onnx.FunctionProto],
    fresh: Callable[[str], str],
) -> None:
    todo = [Work(node, outer.opsets, outer.calls) for node in graph.node]
    done: list[onnx.NodeProto] = []
    while todo:
        work = todo.pop(0)
        function = functions.get(key_of(work.node))
        if function is None:
            for inner in subgraphs(work.node):
                _inline_in_graph(inner, work, functions, fresh)
            done.append(work.node)
            continue
        body = inline_function(work, function, fresh)
        if body and dict(body[0].opsets).get("") != outer.opsets.get(""):
            raise ModelError(
                f"{describe(work.node)}: function {function.name} uses ONNX opset {body[0].opsets.get('')} inside of a "
                f"subgraph of opset {outer.opsets.get('')}; inline it with onnx.inliner before the import"
            )
        todo = body + todo
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in done]
    del graph.node[:]
    graph.node.extend(copies)
