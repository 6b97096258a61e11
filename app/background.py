"""`Workers`: blocking work (decoding, a model) for an event loop that must never wait for it.

Invariants
1. At most `together` pieces of work run and at most `waiting` wait; one more is refused at once (`Busy`).
2. A caller that is cancelled or runs out of time goes on at once; its work is told to stop and keeps its place until it
   really ends, so work that hangs costs a bounded number of threads.
3. The threads are daemons: a program that ends does not wait for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")


class Busy(Exception):
    """Too much work is waiting already."""


class TooSlow(Exception):
    """The work took longer than it may."""


class Workers:
    """A bounded number of threads; used from one event loop or from several."""

    def __init__(self, together: int, waiting: int) -> None:
        if together < 1 or waiting < 0:
            raise ValueError(f"at least 1 runs and at least 0 wait, got {together} and {waiting}")
        self._most = together + waiting
        self._turn = threading.Semaphore(together)
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Pieces of work that run or wait, those nobody waits for any more included."""
        with self._lock:
            return self._taken

    async def run(self, work: Callable[[threading.Event], ResultT], seconds: float, name: str) -> ResultT:
        """The result of `work(stop)`; `stop` is set when nobody waits for the result any more.

        Args:
            seconds: wall time it may take, its turn of waiting included. name: of the thread.

        Raises `Busy`, `TooSlow`, and whatever the work raises.
        """
        with self._lock:
            if self._taken >= self._most:
                raise Busy
            self._taken += 1
        loop = asyncio.get_running_loop()
        result: asyncio.Future[ResultT] = loop.create_future()
        stop = threading.Event()

        def deliver(value: ResultT | None, error: BaseException | None) -> None:
            if result.done():
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)  # type: ignore[arg-type] # None only where the work gave None

        def thread() -> None:
            value, error = None, None
            try:
                if self._my_turn(stop):
                    try:
                        value = work(stop)
                    except BaseException as raised:  # handed to the caller, whatever it is
                        error = RuntimeError("the work ended the thread") if isinstance(raised, SystemExit) else raised
                    finally:
                        self._turn.release()
            finally:
                with self._lock:
                    self._taken -= 1
            try:
                loop.call_soon_threadsafe(deliver, value, error)
            except RuntimeError:  # the loop has ended: nobody is there to be told
                return

        threading.Thread(target=thread, name=name, daemon=True).start()
        try:
            await asyncio.wait([result], timeout=seconds)
            if not result.done():
                raise TooSlow
            return result.result()
        finally:
            stop.set()
            if not result.done():
                result.cancel()

    def _my_turn(self, stop: threading.Event) -> bool:
        while not self._turn.acquire(timeout=0.05):
            if stop.is_set():
                return False
        return True
