"""Expressions as C: scalars of any dtype, or float vectors along a lane axis with masks for bools.

In: an `Expr` over loop axes, a `Context` that knows where tensors lie. Out: lines in a `Writer`, and the name of the
result. Values that do not change along the lane stay scalars and are splatted where they meet a vector.

A chunk is a full vector, or the first `count` lanes of one; loads and stores of the latter touch no memory past
the last lane. Chunks start at multiples of the vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from smartmem.codegen.c_index import Axes, LookupRenderer, along, c_lin, has_division, split_by
from smartmem.codegen.c_operations import C_TYPES, c_const, load_bytes, plus, scalar_alu, vector_alu
from smartmem.codegen.writer import Mark, Writer
from smartmem.index.lin import Lin, Lookup
from smartmem.index.map import Guard
from smartmem.kernel.expr import COMPARE, Alu, Choose, Const, DType, Expr, Iota, Load, loads, operands, walk
from smartmem.layout.storage import Storage


@dataclass(frozen=True)
class Lane:
    """The vector direction: a loop axis, its extent, lanes per vector, and the count of lanes in use (None: all)."""

    axis: int
    extent: int
    width: int
    count: str | None = None

    @property
    def vectors(self) -> int:
        """How many the extent takes."""
        return -(-self.extent // self.width)


def step_along(value: Lin, lane: Lane) -> int | None:
    """By how much a Lin moves from one value of a vector to the next; None: irregularly."""
    return along(value, lane.axis, lane.extent, lane.width).stride


@dataclass(frozen=True)
class Value:
    """A C expression; `vector` tells a vector (f32v, or an i32v mask for bools) from a scalar."""

    text: str
    vector: bool = False


# Renders the entries of an integer tensor for the lanes of a chunk as an i32v; None where they do not lie side by side.
VectorLookup = Callable[[Lookup, Axes, Lane], str | None]

# How a tensor that exists only inside the kernel is read: given its coordinates, the value.
LocalReader = Callable[["Emitter", tuple[Lin, ...]], Value]


@dataclass
class Context:
    """What the names in an expression mean.

    Attributes:
        axes: loop variables.
        storages: where tensors lie in memory.
        pointers: C pointer variables, by tensor.
        local: readers of tensors that live inside the kernel.
        lane: the vector direction, None for scalar code.
        lookup: renders indices of gathers along the lane; without it they are taken lane by lane.
        hoist: where the parts of addresses go that do not depend on the `inner` axes, if they contain divisions.
        inner: axes of the loops between that place and the code.
        once: where loads of tensors of one element go.
        streams: whether the kernel's result is stored past the caches, as none holds it.
        zero: of the kernel's result, if that is stored as bytes (`Storage.zero`).
        rounded: local tensors that come from sums, whose last bits mean nothing.
    """

    axes: Axes
    storages: Mapping[str, Storage]
    pointers: Mapping[str, str]
    local: Mapping[str, LocalReader] = field(default_factory=dict)
    lane: Lane | None = None
    lookup: VectorLookup | None = None
    hoist: Mark | None = None
    inner: frozenset[int] = frozenset()
    once: Mark | None = None
    streams: bool = False
    zero: int | None = None
    rounded: frozenset[str] = frozenset()

    def scalar(self) -> Context:
        return replace(self, lane=None)

    def stored(self, value: str, vector: bool) -> str:
        """What is stored of a value of the kernel's result."""
        return plus(value, self.zero or 0, vector)


def _scalar_type(dtype: DType) -> str:
    """The C type of one value in a variable."""
    return "float" if dtype == np.float16 else C_TYPES[dtype.name]


def vectorizable(body: Expr, dtype: DType) -> bool:
    """Whether vector code exists for an expression: float32 and bool only, and no 64-bit index values along lanes."""
    kinds = {np.dtype(np.float32), np.dtype(bool)}
    if dtype not in kinds:
        return False
    tables = {id(node.args[0]) for node in walk(body) if isinstance(node, Alu) and node.op == "entry"}
    return all(node.dtype in kinds or isinstance(node, Const) or id(node) in tables for node in walk(body))


class Emitter:
    """Writes the statements that compute expressions; equal subexpressions are computed once per scope."""

    divides_by_products = True  # vectors by one number

    def __init__(self, writer: Writer, context: Context, known: dict[int, Value] | None = None) -> None:
        self.writer = writer
        self.context = context
        self.known: dict[int, Value] = dict(known or {})
        self.wanted: list[Expr] = []

    def value(self, expr: Expr) -> Value:
        """Statements for `expr`; its value."""
        stack = [expr]
        while stack:
            node = stack[-1]
            if id(node) in self.known:
                stack.pop()
                continue
            pending = [o for o in _first(node) if id(o) not in self.known]
            if pending:
                stack.extend(reversed(pending))
                continue
            self.known[id(node)] = self._node(node)
            self.wanted.append(node)  # keeps the node alive while its id is a key
            stack.pop()
        return self.known[id(expr)]

    def again(self, context: Context, known: dict[int, Value]) -> Emitter:
        """An emitter of the same kind for a scope inside of this one."""
        return type(self)(self.writer, context, known)

    def holds(self, guards: tuple[Guard, ...]) -> str:
        """The condition that all guards hold."""
        return c_guards(guards, self.context.axes)

    def as_vector(self, value: Value, dtype: DType) -> str:
        """The value in all lanes."""
        if value.vector or self.context.lane is None:
            return value.text
        return f"sm_splat_i(-({value.text} != 0))" if dtype == np.bool_ else f"sm_splat({value.text})"

    def name(self, text: str, dtype: DType, vector: bool) -> Value:
        """Binds a C expression to a fresh constant."""
        kind = ("i32v" if dtype == np.bool_ else "f32v") if vector else _scalar_type(dtype)
        variable = self.writer.fresh()
        self.writer.line(f"const {kind} {variable} = {text};")
        return Value(variable, vector)

    # -------------------------------------------------------------------------------------------------- leaves

    def _node(self, node: Expr) -> Value:
        if isinstance(node, Const):
            return Value(c_const(node.value, node.dtype))
        if isinstance(node, Load):
            return self._load(node)
        if isinstance(node, Iota):
            return self._iota(node)
        if isinstance(node, Choose):
            return self._choose(node)
        return self._alu(node)

    def _iota(self, node: Iota) -> Value:
        lane = self.context.lane
        if lane is None or along(node.lin, lane.axis, lane.extent, lane.width).uniform:
            return self.name(f"({C_TYPES[node.dtype.name]})({c_lin(node.lin, self.context.axes)})", node.dtype, False)
        step = step_along(node.lin, lane)
        if step is None:
            return self._per_lane(node)
        base = f"sm_splat((float)({c_lin(node.lin, self.context.axes)}))"
        return self.name(f"{base} + sm_iota_f() * sm_splat({float(step)}f)", node.dtype, True)

    def _load(self, node: Load) -> Value:
        reader = self.context.local.get(node.tensor)
        if reader is not None:
            return reader(self, node.index)
        storage, pointer = self.context.storages[node.tensor], self.context.pointers[node.tensor]
        address = storage.at(node.index)
        if storage.zero is not None:
            return self._load_bytes(pointer, address, storage.zero)
        if self.context.once is not None and address.is_constant:
            text = f"{pointer}[{c_lin(address, self.context.axes)}]"
            return Value(self.writer.hoist(self.context.once, text, _scalar_type(node.dtype)))
        return self.load_at(pointer, address, node.dtype)

    def load_at(self, pointer: str, address: Lin, dtype: DType) -> Value:
        """The element, or the vector of elements, at an address over the loop axes."""
        lane = self.context.lane
        where = self.address(address)
        if lane is None:
            return self.name(f"{pointer}[{where}]", dtype, False)
        step = step_along(address, lane)
        if step == 0:
            return self.name(f"{pointer}[{where}]", dtype, False)
        if step is None and dtype == np.float32:
            found = self._repeated(pointer, address) or self._gathered(pointer, address)
            if found is not None:
                return found
        if step is None or (step != 1 and dtype == np.bool_):
            return self._load_irregular(pointer, address, dtype)
        if dtype == np.bool_:
            text = f"sm_load_bool({pointer} + {where})"
            if lane.count:
                text = f"sm_load_bool_n({pointer} + {where}, {lane.count})"
        elif step == 1:
            text = f"sm_load({pointer} + {where})"
            if lane.count:
                text = f"sm_load_n({pointer} + {where}, {lane.count}, 0.0f)"
        else:
            text = f"sm_load_strided({pointer} + {where}, {step})"
            if lane.count:
                text = f"sm_load_strided_n({pointer} + {where}, {step}, {lane.count}, 0.0f)"
        return self.name(text, dtype, True)

    def _load_bytes(self, pointer: str, address: Lin, zero: int) -> Value:
        """The float, or the vector of floats, that lies in memory as a byte."""
        lane, where, kind = self.context.lane, self.address(address), np.dtype(np.float32)
        step = 0 if lane is None else step_along(address, lane)
        if lane is None or step == 0:
            return self.name(plus(f"(float){pointer}[{where}]", -zero, False), kind, False)
        if step == 1:
            return self.name(load_bytes(f"{pointer} + {where}", zero, lane.count), kind, True)
        found = self._load_irregular(pointer, address, kind)
        return self.name(plus(found.text, -zero, True), kind, True) if zero else found

    def address(self, value: Lin) -> str:
        """An element address as C; its loop-invariant part is hoisted if it would divide in every iteration."""
        mark, axes = self.context.hoist, self.context.axes
        if mark is None:
            return c_lin(value, axes)
        outer, within = split_by(value, set(self.context.inner))
        if not has_division(outer, axes.extents):
            return c_lin(value, axes)
        name = self.writer.hoist(mark, c_lin(outer, axes))
        return name if within == Lin() else f"{name} + {c_lin(within, axes)}"

    def _repeated(self, pointer: str, address: Lin) -> Value | None:
        """A vector of few elements, each in several lanes one after the other, None where it is something else."""
        lane = self.context.lane
        assert lane is not None
        _, moving = split_by(address, {lane.axis})
        if lane.count or len(moving.terms) != 1:
            return None
        ((stride, digit),) = moving.terms
        times = digit.lo
        if digit.axis != lane.axis or stride != 1 or times == 1 or lane.width % times:
            return None
        count = lane.width // times
        if digit.ext * times != lane.extent and digit.ext % count:
            return None
        each = f"sm_iota() / sm_splat_i({times})"
        return self.name(f"sm_lookup({pointer} + {self.address(address)}, {count}, {each})", np.dtype(np.float32), True)

    def _gathered(self, pointer: str, address: Lin) -> Value | None:
        """A vector of elements at one index each, None where more than an index moves along the lane."""
        lane, lookup = self.context.lane, self.context.lookup
        assert lane is not None
        _, moving = split_by(address, {lane.axis})
        if lookup is None or len(moving.terms) != 1:
            return None
        ((stride, digit),) = moving.terms
        index = digit.axis
        if not isinstance(index, Lookup) or digit.lo != 1 or digit.ext != index.ext:
            return None
        if not 0 < stride * index.ext < 1 << 31:
            return None
        entries = lookup(index, self.context.axes, lane)
        if entries is None:
            return None
        start = f"{pointer} + {self.address(address - moving)}"
        if stride == 1 and index.ext <= 2 * lane.width:
            return self.name(f"sm_lookup({start}, {index.ext}, {entries})", np.dtype(np.float32), True)
        at = entries if stride == 1 else f"{entries} * sm_splat_i({stride})"
        return self.name(f"sm_gather({start}, {at})", np.dtype(np.float32), True)

    def _load_irregular(self, pointer: str, address: Lin, dtype: DType) -> Value:
        """One lane at a time: nothing is known of the addresses."""
        lane = self.context.lane
        assert lane is not None
        lanes, index = self.writer.fresh("lanes"), self.writer.fresh("l")
        kind = "int" if dtype == np.bool_ else "float"
        self.writer.line(f"{kind} {lanes}[SM_W] = {{0}};")
        with self.writer.loop(index, lane.count or "SM_W"):
            names = {**self.context.axes.names, lane.axis: f"({self.context.axes.names[lane.axis]} + {index})"}
            where = c_lin(address, replace(self.context.axes, names=names))
            element = f"-({pointer}[{where}] != 0)" if dtype == np.bool_ else f"{pointer}[{where}]"
            self.writer.line(f"{lanes}[{index}] = {element};")
        return self.name(f"sm_load_i32({lanes})" if dtype == np.bool_ else f"sm_load({lanes})", dtype, True)

    # ---------------------------------------------------------------------------------------------- structure

    def _choose(self, node: Choose) -> Value:
        """A branch where the guards are the same in all lanes, else one lane at a time."""
        lane = self.context.lane
        if lane is not None and not lane_free(node.guards, lane):
            return self._per_lane(node)
        result = self.writer.fresh()
        kind = ("i32v" if node.dtype == np.bool_ else "f32v") if lane else C_TYPES[node.dtype.name]
        self.writer.line(f"{kind} {result};")
        with self.writer.block(f"if ({self.holds(node.guards)})"):
            inner = self.again(self.context, self.known)
            value = inner.value(node.then)
            self.writer.line(f"{result} = {inner.as_vector(value, node.dtype)};")
        with self.writer.block("else"):
            inner = self.again(self.context, self.known)
            value = inner.value(node.otherwise)
            self.writer.line(f"{result} = {inner.as_vector(value, node.dtype)};")
        return Value(result, lane is not None)

    def _per_lane(self, node: Expr) -> Value:
        """A vector of scalar results, one lane after the other; local tensors are read before, as vectors."""
        lane, axes = self.context.lane, self.context.axes
        assert lane is not None
        here = {id(x): self.value(x) for x in loads(node) if x.tensor in self.context.local}
        lanes, index = self.writer.fresh("lanes"), self.writer.fresh("l")
        is_bool = node.dtype == np.bool_
        self.writer.line(f"{'int' if is_bool else 'float'} {lanes}[SM_W] = {{0}};")
        known = {key: value for key, value in self.known.items() if not value.vector}
        known |= {key: Value(f"{value.text}[{index}]") for key, value in here.items() if value.vector}
        with self.writer.loop(index, lane.count or "SM_W"):
            names = {**axes.names, lane.axis: f"({axes.names[lane.axis]} + {index})"}
            inner = Emitter(self.writer, replace(self.context, axes=replace(axes, names=names), lane=None), known)
            value = inner.value(node).text
            self.writer.line(f"{lanes}[{index}] = {f'-({value} != 0)' if is_bool else value};")
        return self.name(f"sm_load_i32({lanes})" if is_bool else f"sm_load({lanes})", node.dtype, True)

    def _is_rounded(self, divisor: Expr) -> bool:
        """Whether a divisor comes from a sum; ``floor(i / 7)`` wants the quotient."""
        return any(access.tensor in self.context.rounded for access in loads(divisor))

    def _alu(self, node: Alu) -> Value:
        args = [self.known[id(a)] for a in _first(node)]
        if node.op == "entry":
            return self._entry(node, args[0])
        if any(a.vector for a in args):
            if node.op == "div" and not args[1].vector and self.divides_by_products:
                divide = "sm_over" if self._is_rounded(node.args[1]) else "sm_divide"
                return self.name(f"{divide}({args[0].text}, {args[1].text})", node.dtype, True)
            texts = [self._in_lanes(a, value) for a, value in zip(node.args, args, strict=True)]
            return self.name(vector_alu(node, texts), node.dtype, True)
        return self.name(scalar_alu(node, [a.text for a in args]), node.dtype, False)

    def _in_lanes(self, node: Expr, value: Value) -> str:
        """The value of a node in all lanes. Floats are compared there: to spread a scalar's flag takes longer."""
        compares = isinstance(node, Alu) and (node.op in COMPARE or node.op == "isnan")
        if value.vector or not compares or any(a.dtype != np.float32 for a in operands(node)):
            return self.as_vector(value, node.dtype)
        assert isinstance(node, Alu)
        return f"({vector_alu(node, [self.as_vector(self.known[id(a)], a.dtype) for a in node.args])})"

    def _entry(self, node: Alu, at: Value) -> Value:
        table = node.args[0]
        assert isinstance(table, Load)
        address = self.context.storages[table.tensor].at(table.index)
        start = f"{self.context.pointers[table.tensor]} + {c_lin(address, self.context.axes)}"
        if not at.vector:
            return self.name(f"({start})[(long){at.text}]", node.dtype, False)
        look = "sm_entry" if table.dtype == np.uint8 else "sm_gather"
        return self.name(f"{look}({start}, sm_to_int({at.text}))", node.dtype, True)


def _first(node: Expr) -> tuple[Expr, ...]:
    """What is computed before a node: not the branches of a choice, nor a table, of which some entry is read."""
    if isinstance(node, Choose):
        return ()
    return operands(node)[1:] if isinstance(node, Alu) and node.op == "entry" else operands(node)


def lane_free(guards: tuple[Guard, ...], lane: Lane) -> bool:
    """Whether guards have one truth value per chunk: they do not move along the lane, or only at chunk borders."""
    for guard in guards:
        step = step_along(guard.lin, lane)
        if step == 0:
            continue
        aligned = all(s % lane.width == 0 for s, d in guard.lin.terms if d.axis != lane.axis or d.lo != 1)
        if step != 1 or not aligned or guard.lin.offset % lane.width:
            return False
        if guard.ext % lane.width and guard.lin.max >= guard.ext:
            return False
    return True


def c_guards(guards: tuple[Guard, ...], axes: Axes) -> str:
    """``0 <= a < n`` for every guard, each as one unsigned comparison."""
    return " && ".join(f"(unsigned long)({c_lin(g.lin, axes)}) < {g.ext}ul" for g in guards)


def lookup_renderer(storages: Mapping[str, Storage], pointers: Mapping[str, str]) -> LookupRenderer:
    """Renders ``tensor[index]`` wrapped (negative counts from the end) and clamped into [0, ext).

    Unsigned entries are in range already (`passes.narrow_indices`).
    """

    def render(lookup: Lookup, axes: Axes) -> str:
        storage = storages[lookup.tensor]
        entry = f"{pointers[lookup.tensor]}[{c_lin(storage.at(lookup.index), axes)}]"
        return entry if storage.dtype.kind == "u" else f"sm_index({entry}, {lookup.ext})"

    return render


def vector_lookup(storages: Mapping[str, Storage], pointers: Mapping[str, str]) -> VectorLookup:
    """Renders the same for the lanes of a chunk."""

    def render(lookup: Lookup, axes: Axes, lane: Lane) -> str | None:
        storage = storages[lookup.tensor]
        address = storage.at(lookup.index)
        kind = {"int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16"}.get(storage.dtype.name)
        if kind is None or step_along(address, lane) != 1:
            return None
        place = f"{pointers[lookup.tensor]} + {c_lin(address, axes)}"
        if storage.dtype.kind == "u":
            return f"sm_load_{kind}_n({place}, {lane.count})" if lane.count else f"sm_load_{kind}({place})"
        loaded = f"sm_load_{kind}_n({place}, {lane.count}, 0)" if lane.count else f"sm_load_{kind}({place})"
        return f"sm_indices({loaded}, {lookup.ext})"

    return render
