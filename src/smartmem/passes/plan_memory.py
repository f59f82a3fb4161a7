"""The activation arena: buffers that live at the same time lie apart, others share memory.

In: buffers with sizes and lifetimes (first and last step that touches them). Out: an offset for each. Buffers are
placed largest first at the lowest offset that no overlapping buffer occupies.
"""

from __future__ import annotations

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


def plan_memory(buffers: list[Lifetime]) -> tuple[dict[str, int], int]:
    """Offsets by buffer name, and the size of the arena in bytes."""
    offsets: dict[str, int] = {}
    placed: list[Lifetime] = []
    size = 0
    for buffer in sorted(buffers, key=lambda b: (-b.aligned, b.first)):
        offset = 0
        for other in sorted((p for p in placed if _overlap(p, buffer)), key=lambda p: offsets[p.name]):
            if offset + buffer.aligned <= offsets[other.name]:
                break
            offset = max(offset, offsets[other.name] + other.aligned)
        offsets[buffer.name] = offset
        placed.append(buffer)
        size = max(size, offset + buffer.aligned)
    return offsets, size


def lower_bound(buffers: list[Lifetime]) -> int:
    """The most bytes that are alive at one step: no plan needs less."""
    steps = max((b.last for b in buffers), default=-1) + 1
    return max((sum(b.aligned for b in buffers if b.first <= step <= b.last) for step in range(steps)), default=0)


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last
