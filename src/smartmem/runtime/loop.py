"""The host's Loop: the reference implementation of onnx 1.23 with three faults mended.

Stacked results of scalars or of matrices get the wrong shape there (`vstack`), a Loop without a condition does not run
at all, and one of zero iterations fails. Imported only when a Loop runs, as it needs the onnx package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.ops.op_loop import Loop as ReferenceLoop


class Loop(ReferenceLoop):  # type: ignore[misc]
    """`for i < trip and condition: condition, carried, stacked[i] = body(i, condition, carried)`."""

    op_domain = ""

    def _run(
        self,
        trip: Any,
        condition: Any = None,
        *carried: Any,
        context: dict[str, Any] | None = None,
        attributes: dict[str, Any] | None = None,
        **ignored: Any,
    ) -> tuple[Any, ...]:
        """Carried values, then stacked ones."""
        feeds, values = dict(context or {}), list(carried)
        inputs, outputs = self.body.input_names, self.body.output_names
        stacks: list[list[Any]] = [[] for _ in outputs[1 + len(values) :]]
        # Without a condition the body's own is ignored: the trip count alone decides.
        go, count = condition is None or bool(np.all(condition)), 0
        while go and (trip is None or count < int(np.reshape(trip, -1)[0])):
            feeds.update(zip(inputs, (np.array(count, np.int64), np.array(True), *values), strict=False))
            results = list(self._run_body(feeds, attributes=attributes))
            go = condition is None or bool(np.all(results[0]))
            values = results[1 : 1 + len(values)]
            for stack, result in zip(stacks, results[1 + len(values) :], strict=True):
                stack.append(result)
            count += 1
        return (*values, *(np.stack(stack) if stack else self._nothing(k) for k, stack in enumerate(stacks)))

    def _nothing(self, index: int) -> Any:
        """A stack of no results, in the type and (where known) shape that the body declares."""
        import onnx

        declared = self.body.proto_.graph if hasattr(self.body.proto_, "graph") else self.body.proto_
        kind = declared.output[len(self.body.output_names) - self.K + index].type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else np.float32
        return np.zeros((0, *(d.dim_value for d in kind.shape.dim)), dtype)
