"""The assignment of layouts: one option for every tensor, so that all accesses of all kernels together cost least.

In: a `Problem`, tensors with options and factors that say what the options cost together. Out: the number of an option
for each tensor. A factor is a group of accesses that share a walk (`walks`): the schedule takes the best walk for the
layouts that it finds, so the factor costs ``min over walks of (base[walk] + sum of table[walk, option])``.

    greedy   from a start, one tensor after the other takes its best option while the others stand still
    exact    tensors and walks are nodes of a graph, tables its edges; parts of it that are trees are solved by dynamic
             programming, the others by OR-tools' CP-SAT solver, within a time limit

The exact assignment is never worse than the greedy one: that is its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.errors import InputError

Array = np.ndarray[Any, Any]
Assignment = dict[str, int]
SWEEPS = 8
TIME_LIMIT = 20.0  # seconds for all that is left to CP-SAT
RESOLUTION = 10**8  # the greedy cost as an integer, which CP-SAT wants


@dataclass(frozen=True, eq=False)
class Factor:
    """What a group of accesses costs: per walk `base`, and for each tensor in `tables` a row of its options."""

    base: Array
    tables: Mapping[str, Array]

    def cost(self, chosen: Mapping[str, int]) -> float:
        walks = self.base.copy()
        for name, table in self.tables.items():
            walks = walks + table[:, chosen[name]]
        return float(walks.min())


@dataclass(eq=False)
class Problem:
    """Tensors with the number of their options, and the factors."""

    options: Mapping[str, int]
    factors: list[Factor]
    touching: dict[str, list[Factor]] = field(init=False)

    def __post_init__(self) -> None:
        self.touching = {name: [] for name in self.options}
        for factor in self.factors:
            for name in factor.tables:
                self.touching[name].append(factor)

    def cost(self, chosen: Mapping[str, int]) -> float:
        return sum(factor.cost(chosen) for factor in self.factors)

    def restricted(self, keep: Mapping[str, list[int]]) -> Problem:
        """The same problem with some of each tensor's options, renumbered."""
        factors = [Factor(f.base, {name: t[:, keep[name]] for name, t in f.tables.items()}) for f in self.factors]
        return Problem({name: len(keep[name]) for name in self.options}, factors)

    def local(self, name: str, chosen: Mapping[str, int]) -> list[float]:
        """What the factors of a tensor cost with each of its options, the other tensors as they are."""
        return [
            sum(factor.cost({**chosen, name: option}) for factor in self.touching[name])
            for option in range(self.options[name])
        ]


def greedy(problem: Problem, start: Assignment, allowed: Callable[[str, int], bool] = lambda *_: True) -> Assignment:
    """Each tensor's best allowed option in turn, until nothing changes. On a tie what a tensor has stays."""
    chosen = dict(start)
    for _ in range(SWEEPS):
        changed = False
        for name in problem.options:
            costs = problem.local(name, chosen)
            best = min((k for k in range(len(costs)) if allowed(name, k)), key=lambda k: costs[k], default=chosen[name])
            if costs[best] < costs[chosen[name]] * (1 - 1e-9):
                chosen[name], changed = best, True
        if not changed:
            break
    return chosen


@dataclass(frozen=True)
class Exact:
    """The result of `exact`: the assignment, a cost that no assignment is below, and how many tensors were solved by
    dynamic programming and by CP-SAT."""

    chosen: Assignment
    bound: float
    in_trees: int
    in_cycles: int


Node = tuple[str, int]  # ("tensor", position) or ("walk", number of the factor)


@dataclass(eq=False)
class _Graph:
    """Costs of the states of nodes, and of pairs of states along edges [state of the first, state of the second]."""

    nodes: dict[Node, Array] = field(default_factory=dict)
    edges: list[tuple[Node, Node, Array]] = field(default_factory=list)

    def parts(self) -> Iterator[_Graph]:
        """The connected parts."""
        root = {node: node for node in self.nodes}

        def find(node: Node) -> Node:
            while root[node] != node:
                root[node] = root[root[node]]
                node = root[node]
            return node

        for first, second, _ in self.edges:
            root[find(first)] = find(second)
        found: dict[Node, _Graph] = {}
        for node, costs in self.nodes.items():
            found.setdefault(find(node), _Graph()).nodes[node] = costs
        for edge in self.edges:
            found[find(edge[0])].edges.append(edge)
        yield from found.values()


def exact(problem: Problem, start: Assignment, time_limit: float = TIME_LIMIT) -> Exact:
    """The assignment of least cost; of the parts that the solver does not finish, the best one it found.

    Raises:
        InputError: the graph has cycles and OR-tools is not installed.
    """
    names = list(problem.options)
    graph, constant = _graph(problem, names)
    chosen, bound = dict(start), constant
    parts = list(graph.parts())
    cyclic = [part for part in parts if len(part.edges) >= len(part.nodes)]
    for part in parts:
        if part in cyclic:
            continue
        states, cost = _on_tree(part)
        chosen |= {names[k]: state for (kind, k), state in states.items() if kind == "tensor"}
        bound += cost
    in_cycles = 0
    for part in cyclic:
        mine = [k for kind, k in part.nodes if kind == "tensor"]
        in_cycles += len(mine)
        states, cost = _by_cp_sat(part, {k: start[names[k]] for k in mine}, time_limit / len(cyclic))
        trial = chosen | {names[k]: state for (kind, k), state in states.items() if kind == "tensor"}
        chosen = min(chosen, trial, key=problem.cost)
        bound += cost
    chosen = min(start, chosen, key=problem.cost)
    return Exact(chosen, min(bound, problem.cost(chosen)), len(names) - in_cycles, in_cycles)


def _graph(problem: Problem, names: list[str]) -> tuple[_Graph, float]:
    """Tensors with a choice as nodes; a factor with one of them is a cost of its states, else a node with edges."""
    graph, constant = _Graph(), 0.0
    position = {name: k for k, name in enumerate(names)}
    for name, options in problem.options.items():
        if options > 1:
            graph.nodes["tensor", position[name]] = np.zeros(options)
    for number, factor in enumerate(problem.factors):
        open_ = [name for name in factor.tables if problem.options[name] > 1]
        base = factor.base + sum(t[:, 0] for name, t in factor.tables.items() if name not in open_)
        if not open_:
            constant += float(base.min())
        elif len(open_) == 1:
            node: Node = ("tensor", position[open_[0]])
            graph.nodes[node] = graph.nodes[node] + (base[:, None] + factor.tables[open_[0]]).min(axis=0)
        else:
            graph.nodes["walk", number] = base
            graph.edges += [(("walk", number), ("tensor", position[name]), factor.tables[name]) for name in open_]
    return graph, constant


def _on_tree(part: _Graph) -> tuple[dict[Node, int], float]:
    """Dynamic programming from the leaves of a tree to its root and back."""
    near: dict[Node, list[tuple[Node, Array]]] = {node: [] for node in part.nodes}
    for first, second, costs in part.edges:
        near[first].append((second, costs))
        near[second].append((first, costs.T))
    root = next(iter(part.nodes))
    order, above = [root], {root: root}
    for node in order:  # grows while it is read: breadth first
        for other, _ in near[node]:
            if other != above[node]:
                above[other] = node
                order.append(other)
    total = dict(part.nodes)
    best: dict[Node, Array] = {}  # the best state of a node for each state of the one above
    for node in reversed(order[1:]):
        costs = next(costs for other, costs in near[node] if other == above[node])
        joint = total[node][:, None] + costs
        best[node] = joint.argmin(axis=0)
        total[above[node]] = total[above[node]] + joint.min(axis=0)
    states = {root: int(total[root].argmin())}
    for node in order[1:]:
        states[node] = int(best[node][states[above[node]]])
    return states, float(total[root].min())


def _by_cp_sat(part: _Graph, start: Mapping[int, int], time_limit: float) -> tuple[dict[Node, int], float]:
    """A part with cycles as an integer program: a 0-1 variable per state, and per pair of states along an edge."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise InputError(
            f"layout exact: {len(start)} tensors depend on each other in cycles, which OR-tools has to solve; "
            "pip install 'smartmem[exact]', or use --layout greedy"
        ) from None
    finite = [c[np.isfinite(c)].max(initial=0.0) for c in (*part.nodes.values(), *(e[2] for e in part.edges))]
    scale = RESOLUTION / max(1.0, float(sum(finite)))
    model = cp_model.CpModel()
    terms: list[Any] = []
    weights: list[int] = []

    def variable(cost: float) -> Any:
        state = model.new_bool_var("")
        if math.isinf(cost):
            model.add(state == 0)
        elif cost:
            terms.append(state)
            weights.append(round(cost * scale))
        return state

    states = {node: [variable(float(cost)) for cost in costs] for node, costs in part.nodes.items()}
    for variables in states.values():
        model.add_exactly_one(variables)
    for first, second, costs in part.edges:
        pairs = [[variable(float(cost)) for cost in row] for row in costs]
        for state, row in zip(states[first], pairs, strict=True):
            model.add(sum(row) == state)
        for state, column in zip(states[second], zip(*pairs, strict=True), strict=True):
            model.add(sum(column) == state)
    for (kind, k), variables in states.items():
        for number, state in enumerate(variables):
            if kind == "tensor":
                model.add_hint(state, number == start[k])
    model.minimize(cp_model.LinearExpr.weighted_sum(terms, weights))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.random_seed = 1
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return {}, solver.best_objective_bound / scale
    values = {node: next(k for k, s in enumerate(v) if solver.value(s)) for node, v in states.items()}
    return values, solver.best_objective_bound / scale
