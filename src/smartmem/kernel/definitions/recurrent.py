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
from functools import partial

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.access import product
from smartmem.kernel.definitions.build import Stages, apply, coordinates, is_float, operand, present, raw, read
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, choose, const, load
from smartmem.kernel.stage import Stage

LONGEST = 128  # steps, each of which has kernels of its own
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}

Gate = Callable[[int], Expr]  # the sums of a gate by its number, at coordinate (b, j)
Activation = Callable[[Expr], Expr]

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
    states = [_run(network, stages, direction) for direction in range(len(network.reverse))]
    for position, value in enumerate(node.outputs):
        if value is not None and position == 0:
            _all_steps(network, stages, value, [state for state, _ in states])
        elif value is not None:
            last = [state[-1] if position == 1 else cell for state, cell in states]
            _last_step(network, stages, value, last)
    return stages.list


@dataclass(frozen=True)
class _Network:
    """A node's sizes and options.

    Attributes:
        steps, batch, size: of the sequence, the batch, the state.
        reverse: of each direction, whether it goes through the sequence backwards.
        batch_first: whether the batch is the first axis of inputs and outputs (layout 1).
        functions: of each direction.
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


def _network(node: Node) -> _Network | None:
    x, count, attrs = present(node, 0), GATES[node.op], node.attrs
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    reverse = directions.get(_text(attrs.get("direction") or "forward"))
    names = [_text(name).lower() for name in attrs.get("activations") or ()]
    batch_first = bool(attrs.get("layout"))
    batch, steps = x.dims[:2] if batch_first else (x.dims[1], x.dims[0])
    if reverse is None or not is_float(x.dtype) or steps > LONGEST or attrs.get("clip") or attrs.get("input_forget"):
        return None
    per = len(ACTIVATIONS[node.op])
    names = names or [name.lower() for name in ACTIVATIONS[node.op]] * len(reverse)
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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _run(network: _Network, stages: Stages, direction: int) -> tuple[list[Value], Value | None]:
    """The states after each step of a direction, in the order of the steps taken, and an LSTM's last cells."""
    steps = range(network.steps)
    inputs = _inputs(network, stages, direction)
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[network.node.op]
    before, cell = _initial(network, stages, direction, 5, "h"), None
    if network.node.op == "LSTM":
        cell = _initial(network, stages, direction, 6, "c")
    states: list[Value] = []
    for number, at in enumerate(reversed(steps) if network.reverse[direction] else steps):
        here = partial(_at_step, inputs, at)
        before, cell = step(network, stages, direction, f"{direction}.{number}", here, before, cell)
        states.append(before)
    return states, cell


def _at_step(inputs: Value, step: int, space: tuple[Lin, ...]) -> Expr:
    """The inputs' part of the gates at (b, g)."""
    return raw(inputs, (Lin(step), *space))


def _inputs(network: _Network, stages: Stages, direction: int) -> Value:
    """What the inputs contribute to all gates, biases included: [steps, batch, gates * size]."""
    node = network.node
    x, w, bias = present(node, 0), present(node, 1), operand(node, 3)
    shape, depth = (network.steps, network.batch, w.dims[1]), x.dims[2]
    t, b, g = coordinates(shape)
    k = axis_digit(3, depth)
    body = product(
        load(x.name, (b, t, k) if network.batch_first else (t, b, k), x.dtype),
        load(w.name, (Lin(direction), g, k), w.dtype),
    )
    total = stages.add(f"x{direction}.sum", shape, body, (depth,), "sum")
    if bias is None:
        return total
    own, recurrent = (read(bias, (Lin(direction), g + k * w.dims[1])) for k in (0, 1))
    if _resets_after(node):  # the state's bias of the last gate is added there
        last = Guard(g - 2 * network.size, network.size)
        recurrent = choose((last,), const(0, recurrent.dtype), recurrent)
    return stages.add(f"x{direction}", shape, apply("add", raw(total, (t, b, g)), apply("add", own, recurrent)))


def _resets_after(node: Node) -> bool:
    return node.op == "GRU" and bool(node.attrs.get("linear_before_reset"))


def _initial(network: _Network, stages: Stages, direction: int, position: int, name: str) -> Value | None:
    """The given state before the first step, as [batch, size]; None: zeros."""
    given = operand(network.node, position)
    if given is None:
        return None
    b, j = coordinates(network.state)
    at = (b, Lin(direction), j) if network.batch_first else (Lin(direction), b, j)
    return stages.add(f"{name}{direction}", network.state, read(given, at))


def _sums(
    network: _Network, stages: Stages, direction: int, name: str, state: Value | None, first: int, count: int
) -> Callable[[int], Expr | None]:
    """What a state contributes to `count` gates from `first` on, at (b, j), by gate; None for a state of zeros."""
    if state is None:
        return lambda gate: None
    r, size = present(network.node, 2), network.size
    b, g = coordinates((network.batch, count * size))
    k = axis_digit(2, size)
    weight = load(r.name, (Lin(direction), g + first * size, k), r.dtype)
    total = stages.add(name, (network.batch, count * size), product(raw(state, (b, k)), weight), (size,), "sum")
    row, column = coordinates(network.state)
    return lambda gate: raw(total, (row, column + (gate - first) * size))


def _added(a: Expr, b: Expr | None) -> Expr:
    return a if b is None else apply("add", a, b)


def _gates(
    network: _Network, stages: Stages, direction: int, name: str, inputs: Callable[[tuple[Lin, ...]], Expr],
    state: Value | None, count: int,
) -> Gate:  # fmt: skip
    """Sums of the first `count` gates of a step, in a stage of their own if the state contributes."""
    b, j = coordinates(network.state)
    if state is None:
        return lambda gate: inputs((b, j + gate * network.size))
    width = count * network.size
    _sums(network, stages, direction, f"sums{name}", state, 0, count)
    total = stages.list[-1]
    space = coordinates((network.batch, width))
    body = apply("add", load(total.name, space, total.dtype), inputs(space))
    gates = stages.add(f"gates{name}", (network.batch, width), body)
    return lambda gate: raw(gates, (b, j + gate * network.size))


Step = tuple[Value, "Value | None"]
Inputs = Callable[[tuple[Lin, ...]], Expr]


def _lstm(
    network: _Network, stages: Stages, direction: int, name: str, inputs: Inputs, state: Value | None,
    cell: Value | None,
) -> Step:  # fmt: skip
    f, g, h = network.functions[direction]
    space = coordinates(network.state)
    gate = _gates(network, stages, direction, name, inputs, state, 4)
    body = apply("mul", f(gate(0)), g(gate(3)))
    if cell is not None:
        body = apply("add", apply("mul", f(gate(2)), raw(cell, space)), body)
    cell = stages.add(f"c{name}", network.state, body)
    return stages.add(f"h{name}", network.state, apply("mul", f(gate(1)), h(raw(cell, space)))), cell


def _gru(
    network: _Network, stages: Stages, direction: int, name: str, inputs: Inputs, state: Value | None,
    cell: Value | None,
) -> Step:  # fmt: skip
    f, g = network.functions[direction]
    b, j = space = coordinates(network.state)
    gate = _gates(network, stages, direction, name, inputs, state, 2)
    update, reset = f(gate(0)), f(gate(1))
    if _resets_after(network.node):
        part = _sums(network, stages, direction, f"new{name}", state, 2, 1)(2)
        bias = operand(network.node, 3)
        if bias is not None:
            own = read(bias, (Lin(direction), j + 5 * network.size))
            part = _added(own, part)
        part = None if part is None else apply("mul", reset, part)
    else:
        kept = (
            None if state is None else stages.add(f"kept{name}", network.state, apply("mul", reset, raw(state, space)))
        )
        part = _sums(network, stages, direction, f"new{name}", kept, 2, 1)(2)
    new = g(_added(inputs((b, j + 2 * network.size)), part))
    body = apply("mul", apply("sub", const(1, new.dtype), update), new)
    if state is not None:
        body = apply("add", body, apply("mul", update, raw(state, space)))
    return stages.add(f"h{name}", network.state, body), cell


def _rnn(
    network: _Network, stages: Stages, direction: int, name: str, inputs: Inputs, state: Value | None,
    cell: Value | None,
) -> Step:  # fmt: skip
    (f,) = network.functions[direction]
    gate = _gates(network, stages, direction, name, inputs, state, 1)
    return stages.add(f"h{name}", network.state, f(gate(0))), cell


def _all_steps(network: _Network, stages: Stages, result: Value, states: Sequence[Sequence[Value]]) -> None:
    """Output Y: the states of all steps and directions."""
    axes = coordinates(result.dims)
    b, t, d = axes[:3] if network.batch_first else (axes[2], axes[0], axes[1])
    in_time = [list(reversed(taken)) if back else taken for taken, back in zip(states, network.reverse, strict=True)]
    if len(in_time) == 1:
        stages.output(_along(t, [raw(state, (b, axes[3])) for state in in_time[0]]))
        return
    shape = (network.steps, *network.state)
    step, *rest = coordinates(shape)
    ways = [
        stages.add(f"y{direction}", shape, _along(step, [raw(state, rest) for state in taken]))
        for direction, taken in enumerate(in_time)
    ]
    stages.output(_along(d, [raw(way, (t, b, axes[3])) for way in ways]))


def _last_step(network: _Network, stages: Stages, result: Value, values: Sequence[Value | None]) -> None:
    """Outputs Y_h and Y_c: the last state of each direction."""
    axes = coordinates(result.dims)
    b, d = axes[:2] if network.batch_first else (axes[1], axes[0])
    present_values = [value for value in values if value is not None]
    body = _along(d, [raw(value, (b, axes[2])) for value in present_values])
    stages.output(body, position=network.node.outputs.index(result))


def _along(axis: Lin, pieces: Sequence[Expr]) -> Expr:
    """A Concat of pieces of one coordinate each along an axis."""
    body = pieces[-1]
    for number in reversed(range(len(pieces) - 1)):
        body = choose((Guard(axis - number, 1),), pieces[number], body)
    return body
