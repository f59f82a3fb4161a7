"""Quantized activations lie in memory as bytes, although kernels compute with floats.

A tensor that holds integers from 0 to 255 (or from -128 to 127, with 128 added) is stored as uint8: a quarter of the
bytes to write and to read. What follows from such an integer alone (``(q - z) * s`` of a DequantizeLinear that went
into the kernel) is computed where it is read. Stores and element loads convert (`Storage.zero`).

A product of bytes reads four of them in the place of a float, and finds them in memory as they are::

    pack4(q[m, 4*j], q[m, 4*j + 1], q[m, 4*j + 2], q[m, 4*j + 3])     ->     q.words[m, j]

where q.words is another name for the memory of q. A kernel that only packs is gone.

In: kernels and storages. Out: the same with other storages, and loads of words. For targets with products of bytes; a
tensor that a product would read in another way stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smartmem.index.lin import Digit, Lin, lin
from smartmem.kernel.expr import Alu, Const, Expr, Iota, Load, load, loads, operands, rebuild, walk, with_operands
from smartmem.kernel.stage import Kernel, Stage
from smartmem.layout.storage import Storage, dense
from smartmem.passes.byte_products import TOGETHER
from smartmem.passes.exact_casts import Integers
from smartmem.passes.module import Module
from smartmem.passes.select_layout import padding_of, row_major
from smartmem.schedule.roles import expr_axes, is_contraction

BYTE, SIGNED, FLOAT = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float32)
TAIL = frozenset(("add", "sub", "mul", "div"))


def store_bytes(module: Module) -> None:
    """Gives tensors of small integers storages of bytes, and products of bytes the words of these."""
    if not module.has_bytes():
        return
    kernels = [step for step in module.kernels if isinstance(step, Kernel)]
    found = {held.name: held for held in _candidates(module, kernels)}
    for kernel in kernels:
        for stage in kernel.stages:
            product = kernel.rows is not None and is_contraction(stage, kernel.rows)
            for name in {access.tensor for access in stage.loads()} & found.keys():
                if not _serves(found[name], stage, product):
                    del found[name]
    for held in found.values():
        held.store(module)
    gone: dict[str, str] = {}
    for kernel in kernels:
        kernel.stages = [_reading(stage, found) for stage in kernel.stages]
        if kernel.tensor in found:
            output = replace(kernel.output, body=found[kernel.tensor].core)
            kernel.stages = [*kernel.stages[:-1], _reading(output, found)]
        copied = _copied(kernel)
        if copied in module.words and kernel.tensor not in module.pinned():
            gone[kernel.tensor] = copied
    for kernel in kernels:
        kernel.stages = [_renamed(stage, gone) for stage in kernel.stages]
    module.kernels = [k for k in module.kernels if not (isinstance(k, Kernel) and k.tensor in gone)]


@dataclass(frozen=True)
class _Held:
    """A tensor of small integers, or of what follows from each of them.

    Attributes:
        name: of the tensor.
        core: the integers, over the axes of the kernel's last stage.
        body: what that stage computes from them.
        zero: what is added to an integer to make it a byte.
        storage: where the bytes lie.
        words: where each four of them do, None if these do not lie side by side.
        axis: along which they are four.
    """

    name: str
    core: Expr
    body: Expr
    zero: int
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
            module.types[words] = (self.words.shape, FLOAT)
            module.storages[words] = self.words

    def read(self, access: Load) -> Expr:
        """What the tensor was at a coordinate, computed from the integer there."""
        return rebuild(self.body, known={id(self.core): access})

    def word(self, node: Alu) -> Expr | None:
        """The load of four bytes that `node` packs; None if they do not lie side by side in memory as they are."""
        parts = [self._integer(arg) for arg in node.args]
        first = parts[0]
        if self.words is None or self.core is not self.body or first is None:
            return None
        start = first.index[self.axis]
        for number, part in enumerate(parts):
            if part is None or part.index != _with(first.index, self.axis, start + number):
                return None
        if start.offset % TOGETHER or any(stride % TOGETHER for stride, _ in start.terms):
            return None
        step = lin(start.offset // TOGETHER, tuple((stride // TOGETHER, digit) for stride, digit in start.terms))
        return load(f"{self.name}.words", _with(first.index, self.axis, step))

    def _integer(self, arg: Expr) -> Load | None:
        """The load of an integer of this tensor that, with `zero` added, is an operand of `pack4`."""
        if self.zero:
            adds = isinstance(arg, Alu) and arg.op == "add" and isinstance(arg.args[1], Const)
            if not adds or arg.args[1].value != self.zero:  # type: ignore[union-attr]
                return None
            arg = arg.args[0]  # type: ignore[union-attr]
        return arg if isinstance(arg, Load) and arg.tensor == self.name else None


def _candidates(module: Module, kernels: Sequence[Kernel]) -> Iterator[_Held]:
    """The results of kernels that are integers of eight bits, and nobody else's business."""
    fixed = row_major(module) | module.pinned()
    integers = Integers(module)
    for kernel in kernels:
        for stage in kernel.stages:
            integers.add(stage)
        output = kernel.output
        integers.tensors[kernel.tensor] = integers.tensors[output.name]
        if kernel.tensor in fixed or output.dtype != FLOAT or kernel.copies:
            continue
        known = integers.ranges(output.body) | {id(output): integers.tensors[output.name]}
        for core in _cores(output, module):
            held = integers.tensors[output.name] if output.reduce else known[id(core)]
            zero = 0 if held.within(BYTE) else 128 if held.within(SIGNED) else None
            if zero is not None and not held.nan:
                storage, words, axis = _places(module.storages[kernel.tensor])
                yield _Held(kernel.tensor, core, output.body, zero, replace(storage, zero=zero), words, axis)
                break


def _cores(output: Stage, module: Module) -> Iterator[Expr]:
    """The body of a stage, then what it is an affine function of, the same for all elements."""
    body = output.body
    yield body
    while isinstance(body, Alu) and body.op in TAIL and not output.reduce:
        varying = [arg for arg in body.args if expr_axes(arg) or any(x.tensor not in module.constants for x in loads(arg))]
        if len(varying) != 1:
            return
        (body,) = varying
        yield body


def _places(storage: Storage) -> tuple[Storage, Storage | None, int]:
    """Where bytes lie in the order of `storage`, where each four of them lie, and along which axis."""
    digits = [digit for _, digit in storage.address.terms]
    padding = padding_of(digits, 1) if storage.elements > np.prod(storage.shape) else 0
    bytes_ = dense(storage.buffer, storage.shape, BYTE, digits, padding)
    last = digits[-1] if digits else None
    axis = last.axis if last is not None and isinstance(last.axis, int) else 0
    if last is None or last != Digit(axis, 1, storage.shape[axis]) or last.ext % TOGETHER:
        return bytes_, None, 0
    shape = tuple(n // TOGETHER if k == axis else n for k, n in enumerate(storage.shape))
    words = dense(storage.buffer, shape, FLOAT, [*digits[:-1], Digit(axis, 1, shape[axis])], padding // TOGETHER)
    return bytes_, words, axis


def _serves(held: _Held, stage: Stage, product: bool) -> bool:
    """Whether a stage can read a tensor as bytes: four as they are, or one after the other outside of products."""
    taken: set[int] = set()
    for node in walk(stage.body):
        if isinstance(node, Alu) and node.op in ("pack4", "entry") and _reads(node, held.name):
            if node.op == "entry" or held.word(node) is None:
                return False
            taken.add(id(node))
    return not product or not _reads(stage.body, held.name, taken)


def _reads(expr: Expr, name: str, but: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
    """Whether an expression loads a tensor outside of the nodes `but`."""
    stack = [expr]
    while stack:
        node = stack.pop()
        if id(node) not in but:
            if isinstance(node, Load) and node.tensor == name:
                return True
            stack.extend(operands(node))
    return False


def _reading(stage: Stage, found: Mapping[str, _Held]) -> Stage:
    """A stage that loads the bytes, and words, of the tensors `found`."""

    def leaf(node: Load | Iota) -> Expr:
        held = found.get(node.tensor) if isinstance(node, Load) else None
        return node if held is None or not isinstance(node, Load) else held.read(node)

    def operation(node: Alu, args: Sequence[Expr]) -> Expr:
        if node.op == "pack4":
            for name in {access.tensor for access in loads(node)} & found.keys():
                word = found[name].word(node)
                if word is not None:
                    return word
        return with_operands(node, args)

    return replace(stage, body=rebuild(stage.body, leaf, operation=operation))


def _copied(kernel: Kernel) -> str:
    """The tensor that a kernel copies as it is, "" if it does anything else."""
    stage, body = kernel.output, kernel.output.body
    alone = len(kernel.stages) == 1 and kernel.store is None and not stage.reduce
    return body.tensor if alone and isinstance(body, Load) and body.index == stage.space() else ""


def _renamed(stage: Stage, names: Mapping[str, str]) -> Stage:
    def leaf(node: Load | Iota) -> Expr:
        renamed = isinstance(node, Load) and node.tensor in names
        return load(names[node.tensor], node.index, node.dtype) if renamed else node  # type: ignore[union-attr]

    return replace(stage, body=rebuild(stage.body, leaf)) if names else stage


def _with(index: tuple[Lin, ...], at: int, value: Lin) -> tuple[Lin, ...]:
    return (*index[:at], value, *index[at + 1 :])
