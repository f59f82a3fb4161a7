"""The exact assignment against trying everything, and against the greedy one."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartmem.errors import InputError
from smartmem.passes.assign_layouts import Factor, Problem, exact, greedy

COSTS = st.integers(0, 20)


@st.composite
def problems(draw: st.DrawFn, trees: bool = False) -> Problem:
    """Tensors with up to three options; factors of up to three tensors. In a tree each factor joins a new tensor."""
    count = draw(st.integers(1, 6))
    options = {f"t{k}": draw(st.integers(1, 3)) for k in range(count)}
    names = list(options)
    joined = [[names[draw(st.integers(0, k - 1))], names[k]] for k in range(1, count)] if trees else []
    singles = draw(st.lists(st.sampled_from(names), max_size=3))
    more = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    joined += [[name] for name in singles] if trees else draw(st.lists(more, max_size=8))
    factors = []
    for each in joined:
        walks = draw(st.integers(1, 3))

        def table(width: int, walks: int = walks) -> np.ndarray:
            values = draw(st.lists(COSTS, min_size=walks * width, max_size=walks * width))
            return np.array(values, float).reshape(walks, width)

        factors.append(Factor(table(1)[:, 0], {name: table(options[name]) for name in each}))
    return Problem(options, factors)


def least(problem: Problem) -> float:
    every = itertools.product(*(range(n) for n in problem.options.values()))
    return min(problem.cost(dict(zip(problem.options, choice, strict=True))) for choice in every)


@given(problems(trees=True))
def test_trees_are_solved_without_a_solver(problem: Problem) -> None:
    start = dict.fromkeys(problem.options, 0)
    found = exact(problem, start)
    assert problem.cost(found.chosen) == pytest.approx(least(problem))
    assert found.bound == pytest.approx(least(problem))
    assert found.in_cycles == 0


@settings(max_examples=40, deadline=None)
@given(problems())
def test_exact_is_the_best_and_never_worse_than_greedy(problem: Problem) -> None:
    pytest.importorskip("ortools")
    start = greedy(problem, dict.fromkeys(problem.options, 0))
    found = exact(problem, start)
    assert problem.cost(found.chosen) <= problem.cost(start)
    assert problem.cost(found.chosen) == pytest.approx(least(problem), abs=1e-3)


@given(problems())
def test_greedy_never_makes_a_start_worse(problem: Problem) -> None:
    start = {name: n - 1 for name, n in problem.options.items()}
    assert problem.cost(greedy(problem, start)) <= problem.cost(start)


def cycle() -> Problem:
    """Two tensors that two groups use together: either both are turned, or none; greedy cannot leave its start."""
    apart = np.array([[0.0, 9.0], [9.0, 0.0]])
    factors = [Factor(np.zeros(2), {"a": apart, "b": apart}) for _ in range(2)]
    return Problem({"a": 2, "b": 2}, [*factors, Factor(np.zeros(1), {"a": np.array([[1.0, 0.0]])})])


def test_exact_leaves_what_holds_greedy() -> None:
    pytest.importorskip("ortools")
    problem = cycle()
    start = greedy(problem, {"a": 0, "b": 0})
    assert start == {"a": 0, "b": 0}
    found = exact(problem, start)
    assert found.chosen == {"a": 1, "b": 1}
    assert found.in_cycles == 2


def test_impossible_states_are_not_chosen() -> None:
    pytest.importorskip("ortools")
    problem = cycle()
    problem.factors.append(Factor(np.zeros(1), {"a": np.array([[0.0, math.inf]]), "b": np.zeros((1, 2))}))
    found = exact(Problem(problem.options, problem.factors), {"a": 0, "b": 0})
    assert found.chosen == {"a": 0, "b": 0}


def test_without_the_solver_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(InputError, match=r"2 tensors depend on each other in cycles.*smartmem\[exact\].*greedy"):
        exact(cycle(), {"a": 0, "b": 0})
