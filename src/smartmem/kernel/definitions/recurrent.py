"""Recurrent networks: LSTM, GRU and RNN, unrolled over the steps of a sequence.

What the inputs contribute to the gates is one contraction over all steps and batch entries. Each step then is a
contraction of the state, and pointwise stages for the gates; directions are apart. Worked example, an LSTM with one
direction (gates i, o, f, c in ONNX's order; s is the logistic function)::

    y.x[t, b, g]     = sum over i of x[t, b, i] * w[0, g, i]  +  bias[0, g] + bias[0, 4*H + g]
    y.gates1[b, g]   = sum over k of y.h0[b, k] * r[0, g, k]  +  y.x[1, b, g]
    y.c1[b, j]       = s(gates1[b, 2*H + j]) * y.c0[b, j]  +  s(gates1[b, j]) * tanh(gates1[b, 3*H + j])
    y.h1[b, j]       = s(gates1[b, H + j]) * tanh(y.c1[b, j])
    y[t, 0, b, j]    = y.ht[b, j]                               a Concat, whose pieces are stored where they belong
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.access import product
from smartmem.kernel.definitions.build import Stages, apply, coordinates, is_float, operand, present, raw, read
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, choose, const, load, one_of
from smartmem.kernel.stage import Stage

LONGEST = 128  # steps, each of which has kernels of its own
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}  # f, g, h

Activation = Callable[[Expr], Expr]
Gate = Callable[[int], Expr]  # the sum of a gate by its number, at coordinate (b, j)
State = tuple[Value, "Value | None"]  # [batch, size] each; an LSTM has cells, too

_FUNCTIONS: dict[str, Activation] = {
    "sigmoid": lambda x: apply("sigmoid", x),
    "tanh": lambda x: apply("tanh", x),
    "relu": lambda x: apply("max", x, 0.0),
}


@defines("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> list[Stage] | None:
    """The steps one after the other; None for what is not covered: long or ragged sequences, peepholes, clipping."""
    network = _network(node)
    if network is None:
        return None
    stages = Stages(node)
    ways = [_Way(network, stages, number).run() for number in range(len(network.reverse))]
    for position, value in enumerate(node.outputs):
        if value is not None and position == 0:
            _all_steps(network, stages, value, [[hidden for hidden, _ in states] for states in ways])
        elif value is not None:
            _last_step(network, stages, value, [states[-1][position - 1] for states in ways])
    return stages.list


@dataclass(frozen=True)
class _Network:
    """A node's sizes and options.

    Attributes:
        steps, batch, size: of the sequence, the batch, the state.
        reverse: of each direction, whether it goes through the sequence backwards.
        batch_first: whether the batch is the first axis of inputs and outputs (layout 1).
        functions: the activations f, g, h of each direction, as many as the operator has.
    """

    node: Node
    steps: int
    batch: int
    size: int
    reverse: tuple[bool, ...]
    batch_first: bool
    functions: tuple[tuple[Activation, ...], ...]

    @property
    def state(self) -> tuple[int, int]:
        """The shape of one direction's state: the axes b and j."""
        return self.batch, self.size

    @property
    def resets_after(self) -> bool:
        """Whether a GRU applies its reset gate after the product with the state."""
        return self.node.op == "GRU" and bool(self.node.attrs.get("linear_before_reset"))


def _network(node: Node) -> _Network | None:
    x, count, attrs = present(node, 0), GATES[node.op], node.attrs
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    reverse = directions.get(attrs["direction"])
    batch_first = bool(attrs.get("layout"))
    batch, steps = x.dims[:2] if batch_first else (x.dims[1], x.dims[0])
    if reverse is None or not is_float(x.dtype) or steps > LONGEST:
        return None
    if attrs.get("input_forget") or attrs.get("clip") is not None:
        return None
    per = len(ACTIVATIONS[node.op])
    names = [name.lower() for name in attrs.get("activations") or ACTIVATIONS[node.op] * len(reverse)]
    names = names[: per * len(reverse)]  # ONNX's default for RNN has those of two directions
    if len(names) != per * len(reverse) or not set(names) <= set(_FUNCTIONS):
        return None
    lengths, peepholes = operand(node, 4), operand(node, 7)
    if lengths is not None and (lengths.data is None or (lengths.data != steps).any()):
        return None
    if node.op == "LSTM" and peepholes is not None and (peepholes.data is None or peepholes.data.any()):
        return None
    functions = tuple(tuple(_FUNCTIONS[n] for n in names[k * per : (k + 1) * per]) for k in range(len(reverse)))
    return _Network(node, steps, batch, present(node, 2).dims[1] // count, reverse, batch_first, functions)


@dataclass(frozen=True)
class _Way:
    """One direction of a network, and the stages that it adds to."""

    network: _Network
    stages: Stages
    number: int

    def run(self) -> list[State]:
        """The states after each step, in the order of the steps taken."""
        network, steps = self.network, range(self.network.steps)
        inputs = self.inputs()
        step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[network.node.op]
        hidden, cells = self.initial(5, "h"), self.initial(6, "c") if network.node.op == "LSTM" else None
        states: list[State] = []
        for taken, at in enumerate(reversed(steps) if network.reverse[self.number] else steps):
            hidden, cells = step(_Step(self, f"{self.number}.{taken}", inputs, at), hidden, cells)
            states.append((hidden, cells))
        return states

    def inputs(self) -> Value:
        """What the inputs contribute to all gates, biases included: [steps, batch, gates * size]."""
        network, node = self.network, self.network.node
        x, w, bias = present(node, 0), present(node, 1), operand(node, 3)
        shape, depth = (network.steps, network.batch, w.dims[1]), x.dims[2]
        t, b, g = coordinates(shape)
        k = axis_digit(3, depth)
        body = product(
            load(x.name, (b, t, k) if network.batch_first else (t, b, k), x.dtype),
            load(w.name, (Lin(self.number), g, k), w.dtype),
        )
        total = self.stages.add(f"x{self.number}.sum", shape, body, (depth,), "sum")
        if bias is None:
            return total
        own, recurrent = (read(bias, (Lin(self.number), g + k * w.dims[1])) for k in (0, 1))
        if network.resets_after:  # the state's bias of the last gate is added there
            last = Guard(g - 2 * network.size, network.size)
            recurrent = choose((last,), const(0, recurrent.dtype), recurrent)
        body = apply("add", raw(total, (t, b, g)), apply("add", own, recurrent))
        return self.stages.add(f"x{self.number}", shape, body)

    def initial(self, position: int, name: str) -> Value | None:
        """The given state before the first step; None: zeros."""
        given = operand(self.network.node, position)
        if given is None:
            return None
        b, j = coordinates(self.network.state)
        at = (b, Lin(self.number), j) if self.network.batch_first else (Lin(self.number), b, j)
        return self.stages.add(f"{name}{self.number}", self.network.state, read(given, at))


@dataclass(frozen=True)
class _Step:
    """A step of a direction: `name` is part of its stages' names, `at` its place in the sequence."""

    way: _Way
    name: str
    inputs: Value
    at: int

    @property
    def network(self) -> _Network:
        return self.way.network

    @property
    def functions(self) -> tuple[Activation, ...]:
        return self.network.functions[self.way.number]

    def add(self, kind: str, body: Expr) -> Value:
        """A stage [batch, size] of this step."""
        return self.way.stages.add(f"{kind}{self.name}", self.network.state, body)

    def input(self, gate: int) -> Expr:
        """What the inputs contribute to a gate, at (b, j)."""
        b, j = coordinates(self.network.state)
        return raw(self.inputs, (Lin(self.at), b, j + gate * self.network.size))

    def sums(self, kind: str, state: Value, first: int, count: int) -> Value:
        """What a state contributes to `count` gates from `first` on: [batch, count * size]."""
        r, size = present(self.network.node, 2), self.network.size
        shape = (self.network.batch, count * size)
        b, g = coordinates(shape)
        k = axis_digit(2, size)
        weight = load(r.name, (Lin(self.way.number), g + first * size, k), r.dtype)
        body = product(raw(state, (b, k)), weight)
        return self.way.stages.add(f"{kind}{self.name}", shape, body, (size,), "sum")

    def gates(self, state: Value | None, count: int) -> Gate:
        """Sums of the first `count` gates, in a stage of their own if the state contributes."""
        if state is None:
            return self.input
        total = self.sums("sums", state, 0, count)
        b, g = coordinates(total.dims)
        body = apply("add", raw(total, (b, g)), raw(self.inputs, (Lin(self.at), b, g)))
        gates = self.way.stages.add(f"gates{self.name}", total.dims, body)
        b, j = coordinates(self.network.state)
        return lambda gate: raw(gates, (b, j + gate * self.network.size))


def _lstm(step: _Step, hidden: Value | None, cells: Value | None) -> State:
    f, g, h = step.functions
    space = coordinates(step.network.state)
    gate = step.gates(hidden, 4)
    body = apply("mul", f(gate(0)), g(gate(3)))
    if cells is not None:
        body = apply("add", apply("mul", f(gate(2)), raw(cells, space)), body)
    cells = step.add("c", body)
    return step.add("h", apply("mul", f(gate(1)), h(raw(cells, space)))), cells


def _gru(step: _Step, hidden: Value | None, cells: Value | None) -> State:
    f, g = step.functions
    network = step.network
    space = coordinates(network.state)
    gate, new = step.gates(hidden, 2), step.input(2)
    update, reset = f(gate(0)), f(gate(1))
    if network.resets_after:
        part = None if hidden is None else raw(step.sums("new", hidden, 2, 1), space)
        if (bias := operand(network.node, 3)) is not None:
            own = read(bias, (Lin(step.way.number), space[1] + 5 * network.size))
            part = own if part is None else apply("add", part, own)
        if part is not None:
            new = apply("add", new, apply("mul", reset, part))
    elif hidden is not None:
        kept = step.add("kept", apply("mul", reset, raw(hidden, space)))
        new = apply("add", new, raw(step.sums("new", kept, 2, 1), space))
    new = g(new)
    body = apply("mul", apply("sub", const(1, new.dtype), update), new)
    if hidden is not None:
        body = apply("add", body, apply("mul", update, raw(hidden, space)))
    return step.add("h", body), None


def _rnn(step: _Step, hidden: Value | None, cells: Value | None) -> State:
    (f,) = step.functions
    return step.add("h", f(step.gates(hidden, 1)(0))), None


def _all_steps(network: _Network, stages: Stages, result: Value, ways: Sequence[Sequence[Value]]) -> None:
    """Output Y: the states of all steps and directions."""
    axes = coordinates(result.dims)
    b, t, d = axes[:3] if network.batch_first else (axes[2], axes[0], axes[1])
    in_time = [list(reversed(taken)) if back else taken for taken, back in zip(ways, network.reverse, strict=True)]
    if len(in_time) == 1:
        stages.output(one_of(t, [raw(state, (b, axes[3])) for state in in_time[0]]))
        return
    shape = (network.steps, *network.state)
    step, *rest = coordinates(shape)
    joined = [
        stages.add(f"y{number}", shape, one_of(step, [raw(state, rest) for state in states]))
        for number, states in enumerate(in_time)
    ]
    stages.output(one_of(d, [raw(states, (t, b, axes[3])) for states in joined]))


def _last_step(network: _Network, stages: Stages, result: Value, values: Sequence[Value | None]) -> None:
    """Outputs Y_h and Y_c: the last state of each direction."""
    axes = coordinates(result.dims)
    b, d = axes[:2] if network.batch_first else (axes[1], axes[0])
    body = one_of(d, [raw(value, (b, axes[2])) for value in values if value is not None])
    stages.output(body, position=network.node.outputs.index(result))
