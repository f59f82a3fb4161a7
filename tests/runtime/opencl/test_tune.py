"""Which placement of a model stays: measured in turns, so that a busy device does not decide."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from smartmem.runtime.opencl import tune


def _fastest(
    monkeypatch, seconds: dict[str, float], busy_until: float, slows: str = ""
) -> tuple[str, dict[str, float], list[str]]:
    """What `tune.fastest` keeps of placements that take `seconds`, at first thrice as long; and what was closed.

    `slows`: the only placement that takes longer at first, "" for all.
    """
    now, closed = 0.0, []

    class Model:
        def __init__(self, program, device, *, cache, progress):
            self.program, self.memory = program, program.sources["memory"]

        def bench(self, repeats, inputs=None):
            nonlocal now
            slowed = seconds[self.memory] * (3 if now < busy_until and slows in ("", self.memory) else 1)
            now += repeats * slowed
            return [slowed] * repeats

        def close(self):
            closed.append(self.memory)

    def build(memory):
        return SimpleNamespace(sources={"memory": memory if memory in seconds else "auto"}, inputs=[], report={})

    monkeypatch.setattr(tune, "DeviceModel", Model)
    best = tune.fastest(build, None, None, None)
    return best.memory, best.program.report["placements"], closed


@pytest.mark.parametrize("winner", ["auto", "buffer", "texture"])
@pytest.mark.parametrize("busy_until", [0.0, 20.0, 45.0, 120.0])
def test_the_fastest_placement_stays(monkeypatch, winner, busy_until):
    seconds = {"auto": 1.2, "buffer": 1.2, "texture": 1.2, winner: 1.0}
    kept, times, closed = _fastest(monkeypatch, seconds, busy_until)
    assert kept == winner
    assert times[winner] < min(times[memory] for memory in seconds if memory != winner)
    assert sorted(closed) == sorted(set(seconds) - {winner})


@pytest.mark.parametrize("winner", ["auto", "buffer", "texture"])
def test_a_small_network_outlasts_what_disturbs_one_placement(monkeypatch, winner):
    seconds = {"auto": 1.2e-3, "buffer": 1.2e-3, "texture": 1.2e-3, winner: 1e-3}
    assert _fastest(monkeypatch, seconds, 0.2, slows=winner)[0] == winner


def test_one_placement_is_not_measured(monkeypatch):
    assert _fastest(monkeypatch, {"auto": 1.0}, 0.0) == ("auto", {}, [])
