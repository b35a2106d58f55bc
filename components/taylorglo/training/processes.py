"""Processes of which each does one call at a time, and can be ended alone.

The pool of Python's library breaks as a whole if one of its processes dies, and none of its calls
can be ended. A training by a function of a user may do anything, and must not take others with it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from taylorglo.errors import TaylorgloError

_hiding = threading.Lock()  # held while the main module of this process is hidden


class SeparateProcesses(Executor):
    """An executor of a fixed number of processes, which are started when they are first needed.

    A call whose process dies, or that takes too long, ends with a ``TaylorgloError``. Its process
    is replaced; all others go on. What ``prepare`` raises is the end of the call that needed it.

    Args:
        number: of processes.
        context: that starts them.
        prepare: called once in each process, before its first call.
        arguments: of ``prepare``.
        timeout: seconds that a call may take; 0: as long as it takes.
    """

    def __init__(
        self,
        number: int,
        context: ForkServerContext,
        prepare: Callable[..., None],
        arguments: tuple[Any, ...],
        timeout: int,
    ) -> None:
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="taylorglo")
        self._context = context
        self._prepare = prepare
        self._arguments = arguments
        self._timeout = timeout
        self._free: SimpleQueue[_Process | None] = SimpleQueue()
        self._number = number
        for _ in range(number):
            self._free.put(None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function, which ``pickle`` can name, in a process that is free."""
        return self._threads.submit(self._call, fn, args)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        process = self._free.get()
        try:
            if process is None:
                process = _Process(self._context, self._prepare, self._arguments)
            outcome = process.call(fn, args, self._timeout)
        except _LostError as error:
            process = None
            raise TaylorgloError(str(error)) from None
        finally:
            self._free.put(process)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the calls that are going on, then end the processes."""
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures)
        for process in [self._free.get() for _ in range(self._number)]:
            if process is not None:
                process.end()
            self._free.put(None)


class _LostError(Exception):
    """A process is gone, and its call with it."""


class _Process:
    """A process, and our end of the pipe to it."""

    def __init__(
        self, context: ForkServerContext, prepare: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        self._pipe, other = context.Pipe()
        # The server that forks it has the variables of the time at which it was started itself.
        environment = dict(os.environ)
        # Not daemonic: such a process could have no processes that load data.
        self._process = context.Process(
            target=_serve, args=(other, environment, prepare, arguments)
        )
        with _hidden_main():
            self._process.start()
        other.close()
        # The start is no part of a training, and its time does not count. What it raised is raised
        # here, so that bad data are one line for the user.
        if (error := self._receive(None)) is not None:
            self.end()
            raise error

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], timeout: int) -> Any:
        """Return what a call returned or raised.

        Raises:
            _LostError: the process died, or was ended because it took too long.
        """
        try:
            self._pipe.send((fn, args))
        except OSError:
            raise self._killed() from None
        return self._receive(timeout or None)

    def _receive(self, timeout: int | None) -> Any:
        try:
            # A process of its own that a training left behind would keep the pipe open.
            if not wait([self._pipe, self._process.sentinel], timeout):
                self.end()
                raise _LostError(f"took longer than training.timeout ({timeout} s), and was ended")
            if not self._pipe.poll():
                raise EOFError
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._killed() from None

    def _killed(self) -> _LostError:
        self.end()
        status = self._process.exitcode or 0
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return _LostError(f"the process that trained it {how}")

    def end(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        # Its own end, if it has one already, says more than our signal.
        self._process.join(timeout=0.2)
        # With the processes that a training started, which may be at work without it.
        if self._process.pid is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _serve(
    pipe: Connection,
    environment: Mapping[str, str],
    prepare: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Do the calls that come through a pipe, until its other end is closed."""
    # A group of its own, which can be ended as a whole.
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    try:
        prepare(*arguments)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        try:
            fn, args = pipe.recv()
        except EOFError:
            return
        try:
            outcome = fn(*args)
        except Exception as error:
            outcome = error
        pipe.send(outcome)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Let a process that is started not run the program of this one again, which it needs not.

    A script without ``if __name__ == "__main__"`` would start a search in each of its processes.
    """
    with _hiding:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
