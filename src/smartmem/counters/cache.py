"""Set-associative caches with least-recently-used replacement, many of them at once, in numpy.

In: line numbers in the order of the accesses, and which cache each goes to (one per compute unit). Out: which of them
miss. The sets of all caches run in lockstep: the n-th access of every set is one numpy step. Sets are chosen by a hash
of the line number, as GPUs do, so that power-of-two strides do not fall into one set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smartmem.counters.profiles import Cache

Array = np.ndarray[Any, Any]


class Caches:
    """`count` caches of one kind; they keep their contents from call to call."""

    def __init__(self, cache: Cache, count: int = 1) -> None:
        self.cache = cache
        entries = (cache.sets * count, cache.ways)
        self._tags = np.full(entries, -1, np.int64)
        self._stamps = np.full(entries, -1, np.int64)
        self._clock = 0

    def misses(self, lines: Array, which: Array | int = 0) -> Array:
        """Whether each access misses; `lines` are >= 0, in time order; `which` is the number of the cache."""
        result = np.zeros(len(lines), bool)
        if not len(lines):
            return result
        sets = which * self.cache.sets + _hash(lines) % self.cache.sets
        order = np.argsort(sets, kind="stable")
        by_set, by_line = sets[order], lines[order]
        again = np.zeros(len(lines), bool)  # the same line as the set's last access: a hit that changes nothing
        again[1:] = (by_set[1:] == by_set[:-1]) & (by_line[1:] == by_line[:-1])
        order, by_set, by_line = order[~again], by_set[~again], by_line[~again]
        first = np.flatnonzero(np.r_[True, by_set[1:] != by_set[:-1]])
        counts = np.diff(np.r_[first, len(by_set)])
        longest = np.argsort(-counts, kind="stable")  # sets with many accesses first: those alive are a prefix
        first, counts = first[longest], counts[longest]
        alive = len(first)
        for turn in range(int(counts[0])):
            while counts[alive - 1] <= turn:
                alive -= 1
            at = first[:alive] + turn
            result[order[at]] = self._step(by_set[at], by_line[at])
        return result

    def _step(self, sets: Array, lines: Array) -> Array:
        """One access to each of some distinct sets."""
        self._clock += 1
        tags = self._tags[sets]
        found = tags == lines[:, None]
        hit: Array = found.any(axis=1)
        way = np.where(hit, found.argmax(axis=1), self._stamps[sets].argmin(axis=1))
        self._tags[sets, way] = lines
        self._stamps[sets, way] = self._clock
        return ~hit


def _hash(lines: Array) -> Array:
    """A mix of all bits of a line number, not negative."""
    mixed = (lines ^ (lines >> 13)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    result: Array = (mixed >> np.uint64(33)).astype(np.int64)
    return result
