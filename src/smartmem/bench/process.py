"""A worker process: started, asked within a time limit, put to sleep, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from smartmem.bench.peers.base import telling_line

_CHUNK = 1 << 16


class WorkerError(Exception):
    """A request failed; the message is one line that says how."""


class Worker:
    """A process that answers JSON lines (see `bench.worker`).

    Between two requests it is stopped (SIGSTOP): threads that spin for more work take no time from the others.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self._log: IO[bytes] = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,  # converters start processes of their own, which must end with it
        )
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait `limit` seconds for its answer.

        Raises:
            WorkerError: it reports an error, ended, or did not answer in time (and was ended then).
        """
        assert self._process.stdin is not None
        self._signal("SIGCONT")
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
            line = self._line(time.monotonic() + limit)
        except OSError:
            line = b""
        if line is None:
            self.kill()
            raise WorkerError(f"no answer within {limit:.0f} s ({request['do']})")
        if not line:
            raise WorkerError(self._ended())
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End it: at the end of its input, or, where that does nothing, by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal("SIGCONT")
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self.kill()  # also what it started
        self._selector.close()
        self._process.stdout.close()
        self._log.close()

    def kill(self) -> None:
        """End its whole group at once."""
        if not self._signal("SIGKILL"):
            self._process.kill()
        self._process.wait()

    def _line(self, deadline: float) -> bytes | None:
        """The next line; None after the deadline, empty at the end of its output."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                return None
            chunk = os.read(self._process.stdout.fileno(), _CHUNK)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        status = self._process.poll()
        self._log.seek(0)
        last = telling_line(self._log.read().decode(errors="replace"))[:200]
        how = f"status {status}"
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        elif status is None:
            how = "no status"
        return f"its process ended with {how}{': ' + last if last else ''}"

    def _signal(self, name: str) -> bool:
        number = getattr(signal, name, None)  # Windows has none of them
        if number is None or not hasattr(os, "killpg"):
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
        return True
