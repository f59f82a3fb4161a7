"""Build a program's OpenCL C for a device, or take the binaries from the cache.

In: a `DeviceProgram`. Out: one built pyopencl program per source file. A binary is kept under the device, its driver,
the build options and the whole source, so a second start compiles nothing and a new driver compiles again.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from smartmem.device import Device
from smartmem.errors import CompilerError, RuntimeFailure
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.runtime.opencl.program import DeviceProgram

Progress = Callable[[str, int, int], None]
Made = TypeVar("Made")
_LOG_LINES = 3  # of a driver's log, in an error
UNKNOWN_CPU = "unknown target CPU"  # PoCL 3.0, which PyPI has, on CPUs that its LLVM 14 has not heard of
TOO_OLD = (
    "does not know this CPU, which is newer: install a newer one (Debian and Ubuntu: apt install pocl-opencl-icd), "
    "or use --device cpu"
)


class Builder:
    """Builds sources for one device.

    Attributes:
        context, handle: of the device, as pyopencl has them.
        compiled: how many sources the driver's compiler has seen (the others came from the cache).
    """

    def __init__(self, context: Any, handle: Any, device: Device, options: str, cache: Cache) -> None:
        self.context = context
        self.handle = handle
        self._device = device
        self._options = options
        self._cache = cache
        self.compiled = 0

    def build_all(self, program: DeviceProgram, progress: Progress | None = None) -> dict[str, Any]:
        """A built pyopencl program for each of `program.sources`.

        Raises:
            CompilerError: the driver refuses a source; the message names a copy of it.
            RuntimeFailure: the driver compiles nothing for this CPU.
        """
        return self._each(self.build, program, progress)

    def binaries(self, program: DeviceProgram, progress: Progress | None = None) -> dict[str, bytes]:
        """What the driver's compiler makes of each of `program.sources`.

        Raises:
            CompilerError: the driver refuses a source; the message names a copy of it.
        """
        return self._each(self.binary, program, progress)

    def _each(
        self, make: Callable[[str, str], Made], program: DeviceProgram, progress: Progress | None
    ) -> dict[str, Made]:
        built: dict[str, Made] = {}
        total = len(program.sources)
        with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            warnings.simplefilter("ignore")  # compilers' remarks are no news for the user
            futures = {pool.submit(make, name, text): name for name, text in program.sources.items()}
            try:
                for future in as_completed(futures):
                    built[futures[future]] = future.result()
                    if progress is not None:
                        progress("compile", len(built), total)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return built

    def build(self, name: str, text: str) -> Any:
        """One source, built."""
        key = self._key(text)
        if (found := self._cache.find("opencl", key, ".bin")) and (program := self._from_binary(found.read_bytes())):
            return program
        return self._compile(name, text, key)[0]

    def binary(self, name: str, text: str) -> bytes:
        """What the driver's compiler makes of one source."""
        key = self._key(text)
        if found := self._cache.find("opencl", key, ".bin"):
            return found.read_bytes()
        return self._compile(name, text, key)[1]

    def _key(self, text: str) -> str:
        return json.dumps([self._device.name, self._device.driver, self._device.version, self._options, text])

    def _compile(self, name: str, text: str, key: str) -> tuple[Any, bytes]:
        self.compiled += 1
        program = self._from_source(name, text, key)
        binary = bytes(program.get_info(pyopencl().program_info.BINARIES)[0] or b"")
        if binary:
            self._cache.add("opencl", key, ".bin", binary)
        return program, binary

    def _from_binary(self, binary: bytes) -> Any:
        """A built program, or None if the driver does not take the binary (any more)."""
        cl = pyopencl()
        try:
            return cl.Program(self.context, [self.handle], [binary]).build(self._options, [self.handle])
        except cl.Error:
            return None

    def _from_source(self, name: str, text: str, key: str) -> Any:
        cl = pyopencl()
        program = cl.Program(self.context, text)
        _ = program.int_ptr  # made now, so that pyopencl does not look into a cache of its own
        try:
            return program.build(self._options, [self.handle])
        except cl.Error as error:
            log = program.get_build_info(self.handle, cl.program_build_info.LOG) or str(error)
        if UNKNOWN_CPU in log:
            raise RuntimeFailure(f"{self._device.name}: {self._device.platform} {self._device.driver} {TOO_OLD}")
        kept = self._cache.add("failed", key, ".cl", text.encode())
        raise CompilerError(f"{self._device.name} refuses {name}, kept as {kept}: {_first_lines(log)}")


def _first_lines(log: str) -> str:
    """The errors of a build log, in one line."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return " | ".join(errors[:_LOG_LINES]) or "no log"
