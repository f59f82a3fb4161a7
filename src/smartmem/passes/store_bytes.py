"""Quantized activations lie in memory as bytes, although kernels compute with floats.

A tensor that holds integers from 0 to 255 (or from -128 to 127, with 128 added) is stored as uint8: a quarter of the
bytes to write and to read. What follows from such an integer alone (``(q - z) * s`` of a DequantizeLinear that went
into the kernel) is computed where it is read. Stores and element loads convert (`Storage.zero`).

A product of bytes reads four of them in the place of a float, and finds them in memory as they are::

    pack4(q[m, 4*j], q[m, 4*j + 1], q[m, 4*j + 2], q[m, 4*j + 3])     ->     q.words[m, j]

where q.words is another name for the memory of q. A kernel that only packs is gone, and one that packs what it has
computed stores bytes instead, from registers.

In: kernels and storages. Out: the same with other storages, and loads of words. For targets with products of bytes; a
tensor that a product would read in another way stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smartmem.index.lin import Digit, axes_of, axis_digit, lin
from smartmem.index.map import IndexMap
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Alu, Const, Expr, Iota, Load, load, loads, rebuild, walk, with_operands
from smartmem.kernel.stage import Kernel, Stage, inline, tensors_read
from smartmem.layout.storage import Storage, dense
from smartmem.passes.byte_products import TOGETHER, with_entry
from smartmem.passes.exact_casts import Integers, Range
from smartmem.passes.module import Module
from smartmem.passes.select_layout import padding_of, row_major
from smartmem.schedule.roles import expr_axes, is_contraction

BYTE, FLOAT = np.dtype(np.uint8), np.dtype(np.float32)
TAIL = frozenset(("add", "sub", "mul", "div"))


def store_bytes(module: Module) -> None:
    """Gives tensors of small integers storages of bytes, and products of bytes the words of these."""
    if not module.has_bytes():
        return
    kernels = [step for step in module.kernels if isinstance(step, Kernel)]
    fixed = row_major(module) | module.pinned()
    found = {held.name: held for held in _candidates(module, kernels, fixed)}
    for kernel in kernels:
        for stage in kernel.stages:
            product = kernel.rows is not None and is_contraction(stage, kernel.rows)
            for name in {access.tensor for access in stage.loads()} & found.keys():
                if not _serves(found[name], stage.body, product):
                    del found[name]
    for held in found.values():
        held.store(module)
    for kernel in kernels:
        if kernel.tensor in found:
            kernel.stages = [*kernel.stages[:-1], replace(kernel.output, body=found[kernel.tensor].core)]
        kernel.stages = [replace(s, body=_elements(_words(s.body, found), found)) for s in kernel.stages]
    gone = {k.tensor: k.output for k in kernels if k.tensor not in fixed and _takes_words(k, module)}
    for kernel in kernels:
        kernel.stages = [_without_copies(stage, gone) for stage in kernel.stages]
    module.kernels = [k for k in module.kernels if not (isinstance(k, Kernel) and k.tensor in gone)]
    pairs = [
        pair | {end: module.words.get(pair[end], pair[end]) for end in ("first", "second")} for pair in module.apart
    ]
    module.apart = [pair for pair in pairs if not gone.keys() & {pair["first"], pair["second"]}]


@dataclass(frozen=True)
class _Held:
    """A tensor of small integers, or of what follows from each of them.

    Attributes:
        name: of the tensor.
        core: the integers, over the axes of the kernel's last stage.
        body: what that stage computes from them.
        storage: where the bytes lie; its `zero` is what is added to an integer to make it one.
        words: where each four of them do, None if these do not lie side by side.
        axis: along which they are four.
    """

    name: str
    core: Expr
    body: Expr
    storage: Storage
    words: Storage | None
    axis: int

    def store(self, module: Module) -> None:
        """Tells the module where it lies."""
        module.types[self.name] = (self.storage.shape, BYTE)
        module.storages[self.name] = self.storage
        if self.words is not None:
            words = f"{self.name}.words"
            module.words[words] = self.name
            module.types[words], module.storages[words] = (self.words.shape, FLOAT), self.words

    def element(self, access: Load) -> Expr:
        """What the tensor was at a coordinate, computed from the integer there."""
        return rebuild(self.body, known={id(self.core): access})

    def word(self, node: Alu) -> Expr | None:
        """The load of four bytes that `node` packs; None if they do not lie side by side in memory as they are."""
        parts = [_integer(arg, self.name, self.storage.zero) for arg in node.args]
        first = parts[0]
        if self.words is None or self.core is not self.body or first is None:
            return None
        start = first.index[self.axis]
        for number, part in enumerate(parts):
            if part is None or part.index != with_entry(first.index, self.axis, start + number):
                return None
        if start.offset % TOGETHER or any(stride % TOGETHER for stride, _ in start.terms):
            return None
        step = lin(start.offset // TOGETHER, tuple((stride // TOGETHER, digit) for stride, digit in start.terms))
        return load(f"{self.name}.words", with_entry(first.index, self.axis, step))


# ------------------------------------------------------------------------------------------------- which tensors


def _candidates(module: Module, kernels: Sequence[Kernel], fixed: set[str]) -> Iterator[_Held]:
    """The results of kernels that are integers of eight bits, and nobody else's business."""
    integers = Integers(module)
    for kernel in kernels:
        for stage in kernel.stages:
            integers.add(stage)
        output = kernel.output
        integers.tensors[kernel.tensor] = integers.tensors[output.name]
        if kernel.tensor in fixed or output.dtype != FLOAT or _unpack(kernel, module, integers):
            continue
        known = integers.ranges(output.body)
        for core in _cores(output, module):
            zero = _zero(integers.tensors[output.name] if output.reduce else known[id(core)])
            if zero is not None:
                storage, words, axis = _places(module.storages[kernel.tensor])
                yield _Held(kernel.tensor, core, output.body, replace(storage, zero=zero), words, axis)
                break


def _cores(output: Stage, module: Module) -> Iterator[Expr]:
    """The body of a stage, then what it is an affine function of, the same for all elements."""
    body = output.body
    yield body
    while isinstance(body, Alu) and body.op in TAIL and not output.reduce:
        varying = [
            arg for arg in body.args if expr_axes(arg) or {x.tensor for x in loads(arg)} - module.constants.keys()
        ]
        if len(varying) != 1:
            return
        (body,) = varying
        yield body


def _zero(held: Range) -> int | None:
    """What is added to such numbers to make them bytes, None if they are others."""
    return None if not held.is_byte else 0 if held.within(BYTE) else 128


def _integer(arg: Expr, name: str, zero: int | None) -> Load | None:
    """The load of an integer of a tensor that, with `zero` added, is an operand of `pack4`."""
    if zero:
        if not isinstance(arg, Alu) or arg.op != "add" or not isinstance(arg.args[1], Const):
            return None
        if arg.args[1].value != zero:
            return None
        arg = arg.args[0]
    return arg if isinstance(arg, Load) and arg.tensor == name else None


def _places(storage: Storage) -> tuple[Storage, Storage | None, int]:
    """Where bytes lie in the order of `storage`, where each four of them lie, and along which axis."""
    digits = [digit for _, digit in storage.address.terms]
    padding = padding_of(digits, BYTE.itemsize)
    bytes_ = dense(storage.buffer, storage.shape, BYTE, digits, padding)
    axis = _inner(storage)
    if axis is None or storage.shape[axis] % TOGETHER:
        return bytes_, None, 0
    shape = with_entry(storage.shape, axis, storage.shape[axis] // TOGETHER)
    words = dense(storage.buffer, shape, FLOAT, [*digits[:-1], Digit(axis, 1, shape[axis])], padding // TOGETHER)
    return bytes_, words, axis


def _inner(storage: Storage) -> int | None:
    """The axis of which all elements lie side by side."""
    stride, digit = storage.address.terms[-1] if storage.address.terms else (0, None)
    if digit is None or not isinstance(digit.axis, int) or stride != 1:
        return None
    return digit.axis if digit == Digit(digit.axis, 1, storage.shape[digit.axis]) else None


def _serves(held: _Held, body: Expr, product: bool) -> bool:
    """Whether a stage can read a tensor as bytes: four as they are, or one after the other outside of products."""
    left = _words(body, {held.name: held})
    users = [left] if product else [node for node in walk(left) if isinstance(node, Alu) and node.op == "pack4"]
    return all(access.tensor != held.name for user in users for access in loads(user))


# --------------------------------------------------------------------------------------------------- rewriting


def _unpack(kernel: Kernel, module: Module, integers: Integers) -> bool:
    """Makes a kernel whose last stage packs what the one before it computed store that, as bytes.

    What it stored, and others read, is another name for the memory of these.
    """
    words, last = module.storages[kernel.tensor], kernel.output
    inner = _inner(words)
    if len(kernel.stages) < 2 or not isinstance(last.body, Alu) or last.body.op != "pack4" or inner is None:
        return False
    before = kernel.stages[-2]
    zero = _zero(integers.tensors[before.name])
    if len(before.shape) != len(last.shape):
        return False
    axes = [k for k, (n, m) in enumerate(zip(before.shape, last.shape, strict=True)) if n != m]
    coords = kernel.store_coords()
    moving = [k for k, value in enumerate(coords) if axes and axes[0] in axes_of(value)]
    if zero is None or len(axes) != 1 or moving != [inner]:
        return False
    (axis,) = axes
    for number, arg in enumerate(last.body.args):
        access = _integer(arg, before.name, zero)
        at = axis_digit(axis, last.shape[axis]) * TOGETHER + number
        if access is None or access.index != with_entry(last.space(), axis, at):
            return False
    word = lin(0, ((1, Digit(axis, TOGETHER, last.shape[axis])),))
    byte = lin(0, ((1, Digit(axis, 1, TOGETHER)),))
    moved = [substitute(value, with_entry(before.space(), axis, word), last.shape) for value in coords]
    moved[inner] = moved[inner] * TOGETHER + byte
    storage = _bytes_of(words, inner, zero)
    module.words[kernel.tensor] = before.name
    module.types[before.name], module.storages[before.name] = (storage.shape, BYTE), storage
    kernel.stages, kernel.tensor, kernel.shape = kernel.stages[:-1], before.name, storage.shape
    kernel.store = IndexMap(before.shape, tuple(moved))
    return True


def _bytes_of(words: Storage, axis: int, zero: int) -> Storage:
    """Where the bytes of words lie, four of them along an axis."""
    shape = with_entry(words.shape, axis, words.shape[axis] * TOGETHER)
    others = tuple((stride * TOGETHER, digit) for stride, digit in words.address.terms[:-1])
    address = lin(words.address.offset * TOGETHER, (*others, (1, Digit(axis, 1, shape[axis]))))
    return Storage(words.buffer, shape, BYTE, address, words.elements * TOGETHER, zero=zero)


def _words(body: Expr, found: Mapping[str, _Held]) -> Expr:
    """An expression that loads four bytes as they lie where it packed them."""

    def operation(node: Alu, args: Sequence[Expr]) -> Expr:
        names = {access.tensor for access in loads(node)} & found.keys() if node.op == "pack4" else ()
        words = (found[name].word(node) for name in names)
        return next((word for word in words if word is not None), None) or with_operands(node, args)

    return rebuild(body, operation=operation)


def _elements(body: Expr, found: Mapping[str, _Held]) -> Expr:
    """An expression that computes what follows from the integers that it loads."""

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Load) and node.tensor in found:
            return found[node.tensor].element(node)
        return node

    return rebuild(body, leaf)


def _takes_words(kernel: Kernel, module: Module) -> bool:
    """Whether a kernel does nothing but copy words, perhaps some of a tensor's, that lie side by side there, too."""
    stage, body = kernel.output, kernel.output.body
    if len(kernel.stages) > 1 or kernel.store is not None or not stage.is_view or not isinstance(body, Load):
        return False
    inner = _inner(module.storages[body.tensor]) if body.tensor in module.words else None
    if inner is None:
        return False
    moving = body.index[inner] + -body.index[inner].offset
    return moving in stage.space() or moving.is_constant


def _without_copies(stage: Stage, gone: Mapping[str, Stage]) -> Stage:
    """A stage that reads what others copied where these did."""
    for name in tensors_read(stage.body):
        stage = inline(stage, gone[name]) if name in gone else stage
    return stage
