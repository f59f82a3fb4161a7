"""Layout selection by reduction dimension, for linear memory (k = 1).

Every tensor that one kernel writes and others read gets the order of axes that its readers ask for: the axis along
which they reduce becomes the contiguous one, because a reduction reads each element many times. Requests are weighted
by traffic; tensors that no reduction reads follow the tensors they are used with (a depthwise convolution between two
pointwise ones keeps channels last). Weights are free: they are packed at compile time for their reader.

In: fused kernels. Out: `module.storages` for every tensor in memory. Graph inputs and outputs and operands of host
steps stay row-major. On devices `place` goes on from here: `requests` says who asked for what.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from smartmem.index.lin import Digit, Lin, axes_of
from smartmem.kernel.expr import Choose, Expr, Load, loads, walk
from smartmem.kernel.stage import Kernel, Stage
from smartmem.layout.memory import order_digits
from smartmem.layout.storage import Storage, dense
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.choices import count_choices, selects
from smartmem.schedule.code import LINE
from smartmem.schedule.roles import expr_axes, is_contraction

SWEEPS = 4
SCATTER = 2  # what a scattered store costs, in packed elements
ALIASING = 1024  # bytes; rows of a multiple of it share a quarter of the sets of L1 or fewer (64 lines are a round)
FULL_RUN = 16  # elements from which on a contiguous run serves whole vectors


Ask = Callable[[str, int, float], None]  # tensor, axis, weight


@dataclass
class Requests:
    """The axes of a tensor that its consumers want to be contiguous.

    Attributes:
        weights: traffic by axis.
        kernels: who asked, by axis.
    """

    weights: Counter[int] = field(default_factory=Counter)
    kernels: dict[int, list[str]] = field(default_factory=dict)

    def add(self, axis: int, weight: float, kernel: str) -> None:
        self.weights[axis] += weight  # type: ignore[assignment]
        asked = self.kernels.setdefault(axis, [])
        if kernel not in asked:
            asked.append(kernel)

    def axes(self, shape: tuple[int, ...]) -> list[int]:
        """The requested axes, heaviest first; on a tie the later axis."""
        live = [axis for axis, weight in self.weights.items() if shape[axis] > 1 and weight > 0]
        return sorted(live, key=lambda axis: (self.weights[axis], axis), reverse=True)


def select_layout(module: Module, choose: bool, tuned: bool = False) -> None:
    """Fills `module.storages`; with `choose` False every tensor is row-major.

    With `tuned` packed operands and stores ask as schedules for CPUs treat them (`requests`), and rows keep apart
    (`padding_of`).
    """
    wishes = requests(module, squares=tuned) if choose else {}
    fixed = row_major(module)
    for name, (shape, dtype) in module.types.items():
        if shape is None or name in module.windows:
            continue
        digits = order_digits(shape, _choice(wishes.get(name), shape))
        padding = padding_of(digits, dtype.itemsize) if tuned and name not in fixed else 0
        module.storages[name] = dense(name, shape, dtype, digits, padding)
    for name in module.windows:
        _window(name, module)
    for name, wish in wishes.items():
        if _choice(wish, module.shape(name)) not in (None, len(module.shape(name)) - 1):
            storage = module.storages[name]
            asked = [f"axis {a}: {int(w)}" for a, w in wish.weights.most_common(3)]
            module.layouts.append({"tensor": name, "layout": storage.show(), "asked_by": asked})


def padding_of(digits: Sequence[Digit], itemsize: int) -> int:
    """Elements to leave free after each row, so that the same column of successive rows lies in different sets of L1.

    A register tile reads up to 14 rows at a time, a packing of attention's keys 16: rows of a multiple of 4 KiB would
    share one set, which has 8 or 12 ways.
    """
    row, *others = [digit.ext for digit in reversed(digits) if digit.ext > 1] or [1]
    return LINE // itemsize if row * itemsize % ALIASING == 0 and math.prod(others) >= FULL_RUN else 0


def _choice(wish: Requests | None, shape: tuple[int, ...]) -> int | None:
    """The axis to make contiguous: the heaviest request. None without requests."""
    return next(iter(wish.axes(shape)), None) if wish else None


def row_major(module: Module) -> set[str]:
    """Tensors whose layout is not ours to choose: graph inputs and outputs, constants, operands of host steps."""
    fixed = {v.name for v in (*module.inputs, *module.outputs)} | set(module.constants)
    for step in module.kernels:
        if isinstance(step, HostOp):
            fixed |= {*step.reads(), *step.writes()}
    return fixed


def _window(name: str, module: Module) -> Storage:
    """Storage of a tensor that lies inside another one (perhaps inside a third)."""
    if name in module.storages:
        return module.storages[name]
    window = module.windows[name]
    parent = module.storages.get(window.parent) or _window(window.parent, module)
    shape, dtype = module.types[name]
    assert shape is not None
    storage = Storage(parent.buffer, shape, dtype, parent.at(window.map.coords), parent.elements)
    module.storages[name] = storage
    return storage


def requests(module: Module, squares: bool = False) -> dict[str, Requests]:
    """Requests per tensor: first those of reductions, then those that partners pass on.

    With `squares` schedules can pack operands in squares that they turn, so that these may as well lie as they are
    stored best.
    """
    wishes: dict[str, Requests] = {}
    fixed = row_major(module)

    def ask(kernel: str, tensor: str, axis: int, weight: float) -> None:
        window = module.windows.get(tensor)
        if window is not None:  # a request for a piece is one for the whole
            moved = [k for k, c in enumerate(window.map.coords) if axis in set(axes_of(c))]
            if moved:
                ask(kernel, window.parent, moved[-1], weight)
        elif tensor not in fixed and module.types[tensor][0] is not None:
            wishes.setdefault(tensor, Requests()).add(axis, weight, kernel)

    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    for kernel in kernels:
        for stage in kernel.stages:
            _ask_for_reductions(kernel, stage, squares, partial(ask, kernel.tensor))
        if squares:
            _ask_for_stores(kernel, partial(ask, kernel.tensor))
    for kernel in kernels:
        _ask_through(kernel, module, wishes, partial(ask, kernel.tensor))
    for _ in range(SWEEPS):
        before = {name: dict(wish.weights) for name, wish in wishes.items()}
        for kernel in kernels:
            _pass_on(kernel, module, wishes, partial(ask, kernel.tensor))
        if before == {name: dict(wish.weights) for name, wish in wishes.items()}:
            break
    return wishes


def _ask_for_reductions(kernel: Kernel, stage: Stage, squares: bool, ask: Ask) -> None:
    """A reduction asks for the tensor axis that a reduce axis walks along on its own."""
    space = len(stage.shape)
    local = kernel.local()
    windowed = kernel.rows is None  # reductions of a plain nest run inside the lane loop: the lane matters, not they
    if not stage.reduce or windowed:
        if kernel.rows is not None and len(stage.shape) > kernel.rows:  # columns of a row pipeline are its lanes
            for access in stage.loads():
                if access.tensor not in local:
                    _ask_columns(access, set(range(kernel.rows, space)), math.prod(stage.shape), ask)
        return
    reduce_axes = set(range(space, space + len(stage.reduce)))
    contraction = kernel.rows is not None and is_contraction(stage, kernel.rows)
    operands = stage.body.args if contraction else (stage.body,)  # type: ignore[union-attr]
    for position, operand in enumerate(operands):
        wanted, weight = reduce_axes, math.prod(stage.domain)
        if contraction and position == 1:  # B is read along its columns, or packed once
            assert kernel.rows is not None
            wanted = set(range(kernel.rows, space))
        if contraction and squares and (position == 1 or _turns(stage, operand)):
            weight = math.prod(stage.domain[k] for k in expr_axes(operand))
        for access in loads(operand):
            if access.tensor not in local:
                _ask_columns(access, wanted, weight, ask)


def _turns(stage: Stage, a: Expr) -> bool:
    """Whether operand A can be packed in squares, too: its own rows are one axis, along which its tensors lie."""
    _, b = stage.body.args  # type: ignore[union-attr]
    own = expr_axes(a) - expr_axes(b)
    if len(own) != 1 or any(isinstance(node, Choose) for node in walk(a)):
        return False
    (row,) = own
    if min(stage.domain[row], math.prod(stage.reduce)) < FULL_RUN:
        return False
    whole = Digit(row, 1, stage.domain[row])
    return all(any(c.terms[-1:] == ((1, whole),) for c in access.index) for access in loads(a))


def _ask_for_stores(kernel: Kernel, ask: Ask) -> None:
    """The result of a row pipeline has lanes along its columns: along another axis they would be scattered."""
    if kernel.rows is None or len(kernel.output.shape) == kernel.rows:
        return
    columns = set(range(kernel.rows, len(kernel.output.shape)))
    stored = Load(kernel.tensor, tuple(kernel.store_coords()))
    _ask_columns(stored, columns, SCATTER * math.prod(kernel.output.shape), ask)


def _ask_columns(access: Load, wanted: set[int], weight: float, ask: Ask) -> None:
    """A request for the tensor axis whose lowest digit is one of the `wanted` loops; short runs ask for less.

    In a sliding window (row + tap) a row and a tap move the same digit: that axis is not asked for.
    """
    for axis, coordinate in enumerate(access.index):
        lowest = [d for s, d in coordinate.terms if s == 1]
        if lowest and all(d.axis in wanted and d.lo == 1 for d in lowest):
            run = min(d.ext for d in lowest)
            ask(access.tensor, axis, weight * min(run, FULL_RUN) / FULL_RUN)


def _ask_through(kernel: Kernel, module: Module, wishes: dict[str, Requests], ask: Ask) -> None:
    """A nest whose results share loads (a transform of Winograd) asks for what it is asked for, as it stores."""
    body = kernel.output.body
    if kernel.rows is not None or not selects(body):
        return
    coords, axis = kernel.store_coords(), _contiguous(kernel.tensor, module, wishes)
    if axis is None:
        return
    rank, weight = len(kernel.output.shape), kernel.output.size / count_choices(body)
    wanted = set(_loops(coords[axis], rank))
    for access in kernel.output.loads():
        for position, coordinate in enumerate(access.index):
            if wanted & _loops(coordinate, rank) and access.tensor not in kernel.local():
                ask(access.tensor, position, weight)


def _pass_on(kernel: Kernel, module: Module, wishes: dict[str, Requests], ask: Ask) -> None:
    """In a plain nest all tensors want to move along the same loop: the one that most of the traffic asks for."""
    if kernel.rows is not None:
        return
    output = kernel.output
    votes: Counter[int] = Counter()
    accesses: list[tuple[str, tuple[Lin, ...], float]] = [(kernel.tensor, kernel.store_coords(), float(output.size))]
    for stage in kernel.stages:
        accesses += [
            (x.tensor, x.index, math.prod(stage.domain)) for x in stage.loads() if x.tensor not in kernel.local()
        ]
    for name, index, weight in accesses:
        axis = _contiguous(name, module, wishes)
        if axis is not None and index:
            for loop in _loops(index[axis], len(output.shape)):
                votes[loop] += int(weight)
    if not votes:
        return
    lane = votes.most_common(1)[0][0]
    for name, index, weight in accesses:
        if _contiguous(name, module, wishes) is None:
            for axis, coordinate in enumerate(index):
                if lane in _loops(coordinate, len(output.shape)):
                    ask(name, axis, weight / 1024)


def _loops(coordinate: Lin, space: int) -> set[int]:
    """Space loops along which a coordinate moves by one."""
    return {d.axis for s, d in coordinate.terms if s == 1 and isinstance(d.axis, int) and d.axis < space and d.lo == 1}


def _contiguous(name: str, module: Module, wishes: dict[str, Requests]) -> int | None:
    """The axis of a tensor that is contiguous as things stand, None if that is still open."""
    shape = module.types[name][0]
    if not shape:
        return None
    root = name
    if root in module.windows:
        return None
    if root in wishes:
        return _choice(wishes[root], shape)
    fixed = root in module.constants or any(v.name == root for v in (*module.inputs, *module.outputs))
    if fixed and root not in module.constants:
        return max((k for k, n in enumerate(shape) if n > 1), default=None)
    return None
