"""What runs a device program: memory for its slots, and a way to have its kernels run.

There are two: `queue.QueueExecutor` enqueues kernels on an OpenCL queue, on every device; `cuda.graph.GraphExecutor`
launches a stretch of them as one CUDA graph, on NVIDIA's GPUs.
"""

from __future__ import annotations

import abc
from typing import ClassVar

from smartmem.runtime.arrays import Array


class Executor(abc.ABC):
    """Memory and kernels of one program.

    Steps are counted over the kernel launches of the program; slots are numbers of `DeviceProgram.slots`.

    Attributes:
        how: for people: "command queue", "CUDA graph".
        native: whether a stretch of kernels is launched by one native call.
    """

    how: ClassVar[str]
    native: bool

    @abc.abstractmethod
    def holds(self, at: int) -> bool:
        """Whether a slot is a buffer that `write` and `read` reach; else it is an array of the host, or an image."""

    @abc.abstractmethod
    def write(self, at: int, array: Array) -> None:
        """Put a contiguous array, in the type that is stored, into a buffer.

        Raises:
            RuntimeFailure: the driver refuses, as for all methods here.
        """

    @abc.abstractmethod
    def read(self, at: int, array: Array) -> None:
        """Fill a contiguous array from a buffer, after all kernels before."""

    @abc.abstractmethod
    def enqueue(self, first: int, count: int) -> None:
        """Have steps [first, first + count) run; does not wait for them."""

    @abc.abstractmethod
    def timed(self, first: int, count: int, repeats: int = 1) -> list[float]:
        """The same, waiting; seconds of each step by the device's clock.

        Args:
            repeats: runs of each step before the next one, each of which waits for the one before. Then the time is
                their mean from start to end, with what starting a kernel takes.
        """

    @abc.abstractmethod
    def finish(self) -> None:
        """Wait for everything."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free the memory; nothing may be called afterwards but `close`."""
