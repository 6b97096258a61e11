"""Waiting for a run to change, in an event loop: what draws the page and what streams the API's states.

Invariants
1. No thread waits: a run tells the loop of every event, and events that come while a picture is drawn are one change.
2. The last change is told after the run is over, so that its reader sees the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from closeup.app.asking import Run

QUICK = 5.0
"""Seconds in which every event is worth a picture; who watches for longer is served by fewer."""
STEADY = 0.25
"""Seconds between two pictures after that: pages take what is sent in order, and a slow one must not fall behind."""
AT_LEAST_EVERY = 0.5
"""Seconds between two changes when nothing happens: the clock and the place in the line do."""


async def changes(run: Run, shortest: float) -> AsyncIterator[bool]:
    """Yields at once, then after every event, at most every `shortest` seconds (later `STEADY`); True with the last."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    began = loop.time()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the demo ends
            loop.call_soon_threadsafe(changed.set)

    run.listen(tell)
    try:
        while True:
            changed.clear()
            over = run.over
            yield over
            if over:
                return
            await asyncio.sleep(shortest if loop.time() - began < QUICK else max(shortest, STEADY))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), AT_LEAST_EVERY)
    finally:
        run.unlisten(tell)
