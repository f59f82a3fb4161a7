"""Elimination by index comprehension: no view remains as a stage of its own.

    y = x (another index)                     ->  y's consumers load x at the composed index
    Concat of two slices that meet in a ring  ->  x at (i + s) mod n (a roll), a view again: of x or of what x views
    Concat whose pieces kernels compute       ->  the pieces are stored into one buffer (`Window`), no stage is left
    any other Concat                          ->  a choice of loads in the consumers

In: a module whose stages are one per definition step. Out: the same module without view stages, except those that
write a graph output or feed a host operator.
"""

from __future__ import annotations

from dataclasses import replace

from smartmem.index.divide import divide
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import IndexMap
from smartmem.kernel.expr import Choose, Expr, Load, choose, walk
from smartmem.kernel.stage import Stage, inline, tensors_read
from smartmem.passes.classify import Output, classify
from smartmem.passes.module import HostOp, Module, Window


def eliminate(module: Module) -> None:
    """Removes view stages."""
    needed = module.pinned()
    views: dict[str, Stage] = {}
    result: list[Stage | HostOp] = []
    for step in module.steps:
        if isinstance(step, HostOp):
            result.append(step)
            continue
        single = _rolled(step, module) or step
        stage = _resolved(single, views, module)
        if classify(stage).output is Output.FIXED:
            if not stage.is_view and _store_pieces(stage, module, result):
                continue
            # kept one step deep: composition from the consumer backwards lets more digits cancel
            views[stage.name] = stage if stage.is_view and not single.is_view else single
            if stage.name not in needed:
                continue
        result.append(stage)
    module.steps = result
    module.drop_dead()
    module.eliminated = True


def _resolved(stage: Stage, views: dict[str, Stage], module: Module) -> Stage:
    """`stage` with the views it reads replaced by what they read, again and again."""
    while True:
        names = [name for name in tensors_read(stage.body) if name in views]
        if not names:
            return replace(stage, body=fold_rolls(stage.body, module))
        for name in names:
            stage = inline(stage, views[name])


def _rolled(stage: Stage, module: Module) -> Stage | None:
    """A Concat of two slices of one tensor as a view of that tensor, whatever that is a view of; None for others.

    This comes before the slices are composed with the views beneath them, which would hide that they meet in a ring.
    """
    if not isinstance(stage.body, Choose) or not stage.is_movement:
        return None
    definitions = [module.definitions.get(access.tensor) for access in stage.loads()]
    for definition in definitions:
        if definition is None or not definition.is_view:
            return None
        stage = inline(stage, definition)
    stage = replace(stage, body=fold_rolls(stage.body, module))
    return stage if stage.is_view else None


def fold_rolls(body: Expr, module: Module) -> Expr:
    """choose(L < n: x[L], x[L - n]) -> x[L mod n], wherever the guard says exactly L < n."""
    if not any(isinstance(node, Choose) for node in walk(body)):
        return body
    done: dict[int, Expr] = {}
    for node in walk(body):
        if isinstance(node, Choose):
            then, otherwise = done.get(id(node.then), node.then), done.get(id(node.otherwise), node.otherwise)
            done[id(node)] = _as_roll(node, then, otherwise, module) or choose(node.guards, then, otherwise)
    if isinstance(body, Choose):
        return done[id(body)]
    return body


def _as_roll(node: Choose, then: Expr, otherwise: Expr, module: Module) -> Expr | None:
    from smartmem.kernel.expr import load

    if not isinstance(then, Load) or not isinstance(otherwise, Load) or then.tensor != otherwise.tensor:
        return None
    differing = [k for k, (a, b) in enumerate(zip(then.index, otherwise.index, strict=True)) if a != b]
    if len(differing) != 1 or len(node.guards) != 1:
        return None
    (axis,), (guard,) = differing, node.guards
    extent = module.shape(then.tensor)[axis]
    first, second = then.index[axis], otherwise.index[axis]
    shift = first - guard.lin
    if second + extent != first or not shift.is_constant or guard.ext + shift.offset != extent:
        return None
    if not first.within(0, 2 * extent) or guard.lin.min < 0:
        return None
    index = (*then.index[:axis], divide(first, extent)[1], *then.index[axis + 1 :])
    return load(then.tensor, index, then.dtype)


def _pieces(stage: Stage) -> list[tuple[Load, int, int, int]] | None:
    """The pieces of a Concat as (load, axis, start, end), or None if the stage is something else."""
    pieces: list[tuple[Load, int, int, int]] = []
    node, axis, start = stage.body, -1, 0
    while isinstance(node, Choose):
        if len(node.guards) != 1 or not isinstance(node.then, Load):
            return None
        guard = node.guards[0]
        if axis < 0:
            candidates = [k for k, lin in enumerate(stage.space()) if lin == guard.lin]
            if not candidates:
                return None
            axis = candidates[0]
        if guard.lin + start != stage.space()[axis]:
            return None
        pieces.append((node.then, axis, start, start + guard.ext))
        start += guard.ext
        node = node.otherwise
    if not isinstance(node, Load) or not pieces:
        return None
    return [*pieces, (node, axis, start, stage.shape[axis])]


def _store_pieces(stage: Stage, module: Module, produced: list[Stage | HostOp]) -> bool:
    """Lets the producers of a Concat's pieces store into its result; False if some piece cannot be stored there."""
    pieces = _pieces(stage)
    if pieces is None:
        return False
    owners = {s.name for s in produced if isinstance(s, Stage)} | {w.parent for w in module.windows.values()}
    outputs = {v.name for v in module.outputs}
    windows: dict[str, Window] = {}
    for access, axis, start, end in pieces:
        name = access.tensor
        if name not in owners or name in outputs or name in module.windows or name in windows:
            return False
        shape = tuple(end - start if k == axis else n for k, n in enumerate(stage.shape))
        inside = tuple(axis_digit(k, n) + (start if k == axis else 0) for k, n in enumerate(shape))
        local = IndexMap(shape, tuple(_at(i, inside, stage.shape) for i in access.index))
        inverse = local.inverse(module.shape(name))
        if inverse is None:
            return False
        coords = tuple(c + start if k == axis else c for k, c in enumerate(inverse.coords))
        windows[name] = Window(stage.name, IndexMap(module.shape(name), coords))
    module.windows.update(windows)
    return True


def _at(value: Lin, axes: tuple[Lin, ...], extents: tuple[int, ...]) -> Lin:
    from smartmem.index.substitute import substitute

    return substitute(value, axes, extents)
