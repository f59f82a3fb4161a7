"""Two kernels as one row pipeline: LayerNorm -> matmul, scores -> softmax -> weighted sum.

The producer's stages become local stages of the consumer, at the consumer's rows. That is possible where the rows that
the consumer reads of the producer's result depend on its own rows only (*aligned rows*); whether a schedule takes the
result is for the caller to ask.
"""

from __future__ import annotations

import math
from dataclasses import replace

from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import IndexMap
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Expr, Iota, Load, load, rebuild
from smartmem.kernel.stage import Kernel, Stage, reindex
from smartmem.schedule import nest
from smartmem.schedule.roles import align_pointwise

FEW_ROWS = 16  # a row pipeline with fewer rows keeps threads waiting


def join_rows(producer: Kernel, consumer: Kernel) -> Kernel | str:
    """Both kernels as one row pipeline, or the reason why that is impossible."""
    name = producer.tensor
    target = _with_rows(producer, consumer)
    if isinstance(target, str):
        return target
    count = target.rows
    assert count is not None
    inverse = None
    if producer.store is not None:
        inverse = producer.store.inverse(producer.shape)
        if inverse is None:
            return "the view in its store has no inverse"
    lead = target.output.shape[:count]
    size = target.output.size
    if consumer.rows is None and not consumer.output.reduce:
        work = max(math.prod(s.domain) for s in producer.stages)
        if work * 8 < size:
            return "the first is small: sharing rows with it would only constrain the loops of the second"
    if consumer.rows is None and math.prod(lead) < FEW_ROWS and size > FEW_ROWS * math.prod(lead) * 1024:
        return "the first has too few rows to share the work of the second"
    split = _split(producer, target, inverse)
    if isinstance(split, str):
        return split
    row_axes, row_values = split
    if math.prod(lead) > math.prod(producer.output.shape[a] for a in row_axes):
        return "it would be computed again for rows that share it"
    order = [*row_axes, *(a for a in range(len(producer.output.shape)) if a not in row_axes)]
    stages = _at_rows(producer, order, len(row_axes), row_values, lead)
    if isinstance(stages, str):
        return stages

    def leaf(node: Load | Iota) -> Expr:
        if not isinstance(node, Load) or node.tensor != name:
            return node
        index = _aligned_index(node, producer, inverse)
        rest = tuple(index[a] for a in order[len(row_axes) :])
        return load(producer.output.name, (*(axis_digit(k, n) for k, n in enumerate(lead)), *rest), node.dtype)

    users = [replace(s, body=rebuild(s.body, leaf)) for s in target.stages]
    return Kernel([*stages, *users], target.tensor, target.shape, target.store, count)


def _aligned_index(access: Load, producer: Kernel, inverse: IndexMap | None) -> tuple[Lin, ...]:
    """The coordinate over the producer's last stage that an access of its tensor reads."""
    if inverse is None:
        return access.index
    return tuple(substitute(c, access.index, producer.shape) for c in inverse.coords)


def _with_rows(producer: Kernel, consumer: Kernel) -> Kernel | str:
    """The consumer with row axes: its own, or those that the producer's rows suggest."""
    if consumer.rows is not None:
        return consumer
    if len(consumer.stages) != 1:
        return "the second computes no rows"
    stage = consumer.output
    if stage.reduce:
        if stage.combine not in ("sum", "prod", "max", "min"):
            return f"the second reduces by {stage.combine}, which no row pipeline does"
        return Kernel(consumer.stages, consumer.tensor, consumer.shape, consumer.store, len(stage.shape))
    inverse = producer.store.inverse(producer.shape) if producer.store else None
    if producer.store and inverse is None:
        return "the view in its store has no inverse"
    row_count = producer.rows if producer.rows is not None else len(producer.output.shape)
    if producer.rows is None and not nest.accepts(producer):
        return "the first computes no rows"
    values = [
        v
        for x in stage.loads()
        if x.tensor == producer.tensor
        for v in _aligned_index(x, producer, inverse)[:row_count]
    ]
    aligned = align_pointwise(stage, tuple(values))
    store = aligned.store.then(consumer.store) if consumer.store else aligned.store
    return Kernel([aligned.stage], consumer.tensor, consumer.shape, store, aligned.rows)


def _split(producer: Kernel, consumer: Kernel, inverse: IndexMap | None) -> tuple[list[int], list[Lin]] | str:
    """Which axes of the producer are rows of the consumer, and their values over the consumer's row axes."""
    count = consumer.rows
    assert count is not None
    accesses = [(s, x) for s in consumer.stages for x in s.loads() if x.tensor == producer.tensor]
    rank = len(producer.output.shape)
    fixed = producer.rows
    if fixed is None and (len(producer.stages) > 1 or producer.output.reduce):
        fixed = rank if nest.accepts(producer) else None
        if fixed is None:
            return "the first computes no rows"
    row_axes: list[int] = []
    values: list[Lin] = []
    for axis in range(rank):
        seen = {_aligned_index(x, producer, inverse)[axis] for _, x in accesses}
        used = {a for value in seen for a in axes_of(value)}
        is_row = axis < fixed if fixed is not None else bool(used) and max(used) < count
        if is_row:
            if len(seen) != 1 or (used and max(used) >= count):
                return "the rows of the first are not rows of the second"
            row_axes.append(axis)
            values.append(next(iter(seen)))
        elif used and min(used) < count:
            return "a column of the first depends on the rows of the second"
    return row_axes, values


def _at_rows(
    producer: Kernel, order: list[int], row_count: int, row_values: list[Lin], lead: tuple[int, ...]
) -> list[Stage] | str:
    """The producer's stages with their row axes replaced by the consumer's."""
    result: list[Stage] = []
    local = producer.local()
    rank = len(producer.output.shape)
    for stage in producer.stages:
        whole = len(stage.shape) == rank or stage is producer.output
        axes_order = order if whole else list(range(len(stage.shape)))
        own_rows = row_count if whole or producer.rows is not None else len(stage.shape)
        if not whole and producer.rows is None:
            return "the stages of the first have different axes"
        if producer.rows is not None and not whole and axes_order[:row_count] != order[:row_count]:
            return "the stages of the first have different rows"
        columns = axes_order[own_rows:]
        shape = (*lead, *(stage.shape[a] for a in columns))
        axes: list[Lin] = [Lin()] * len(stage.domain)
        for position, axis in enumerate(axes_order[:own_rows]):
            axes[axis] = row_values[position]
        for position, axis in enumerate(columns):
            axes[axis] = axis_digit(len(lead) + position, stage.shape[axis])
        for k, extent in enumerate(stage.reduce):
            axes[len(stage.shape) + k] = axis_digit(len(shape) + k, extent)
        moved = reindex(stage.body, tuple(axes), stage.domain)

        def leaf(node: Load | Iota, rows_here: int = own_rows) -> Expr:
            if isinstance(node, Load) and node.tensor in local:
                identity = tuple(axis_digit(k, n) for k, n in enumerate(lead))
                return load(node.tensor, (*identity, *node.index[rows_here:]), node.dtype)
            return node

        result.append(replace(stage, shape=shape, body=rebuild(moved, leaf)))
    return result
