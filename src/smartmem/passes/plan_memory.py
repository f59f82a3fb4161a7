"""The activation arena: buffers that live at the same time lie apart, others share memory.

In: buffers with sizes and lifetimes (first and last step that touches them). Out: an offset for each. Buffers are
placed one after the other at the lowest offset that no overlapping buffer occupies. What that needs depends on the
order, and no order is best for all networks (largest first may need 1.16 times what is alive at once where busiest
steps first needs no more than that): several are tried, until one needs no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `nbytes` that steps `first`..`last` (inclusive) touch."""

    name: str
    nbytes: int
    first: int
    last: int

    @property
    def aligned(self) -> int:
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


def plan_memory(buffers: list[Lifetime]) -> tuple[dict[str, int], int]:
    """Offsets by buffer name, and the size of the arena in bytes."""
    bound = lower_bound(buffers)
    best: tuple[dict[str, int], int] | None = None
    for order in _orders(buffers):
        offsets, size = _place(order)
        if best is None or size < best[1]:
            best = (offsets, size)
        if size <= bound:
            break
    assert best is not None
    return best


def lower_bound(buffers: list[Lifetime]) -> int:
    """The most bytes that are alive at one step: no plan needs less."""
    return max(_alive(buffers), default=0)


def _orders(buffers: list[Lifetime]) -> Iterator[list[Lifetime]]:
    yield sorted(buffers, key=lambda b: (-b.aligned, b.first))
    alive = _alive(buffers)
    # Those that live through the step that decides lie at the bottom, the largest for the longest time first.
    yield sorted(buffers, key=lambda b: (-max(alive[b.first : b.last + 1]), -b.aligned * b.steps, b.first))
    yield sorted(buffers, key=lambda b: (-b.steps, -b.aligned))
    yield sorted(buffers, key=lambda b: (b.first, -b.aligned))


def _place(order: list[Lifetime]) -> tuple[dict[str, int], int]:
    offsets: dict[str, int] = {}
    placed: list[Lifetime] = []
    size = 0
    for buffer in order:
        offset = 0
        for other in sorted((p for p in placed if _overlap(p, buffer)), key=lambda p: offsets[p.name]):
            if offset + buffer.aligned <= offsets[other.name]:
                break
            offset = max(offset, offsets[other.name] + other.aligned)
        offsets[buffer.name] = offset
        placed.append(buffer)
        size = max(size, offset + buffer.aligned)
    return offsets, size


def _alive(buffers: list[Lifetime]) -> list[int]:
    """Bytes that are alive at each step."""
    steps = max((b.last for b in buffers), default=-1) + 1
    return [sum(b.aligned for b in buffers if b.first <= step <= b.last) for step in range(steps)]


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last
