"""`closeup demo` as a process: it serves until it is interrupted, then ends within seconds.

Invariants
1. Questions are stopped first and their last state goes out, so that no page and no client waits for ever.
2. Ending is bounded: what still holds a connection or a thread after `PATIENCE` seconds is left behind; a second
   interrupt ends at once. Uploads are deleted in every case.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from closeup.app.page import launch

if TYPE_CHECKING:
    from closeup.app.demo import Demo

PATIENCE = 1.0
"""Seconds that questions have to end, and open connections."""
LINGER = 0.5
"""Seconds in which the last states are drawn and go out."""


def serve(demo: Demo) -> None:
    """Serve until SIGINT or SIGTERM, then stop every question, close the server and delete what was uploaded."""
    blocks, address = launch(demo)
    wake = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        wake.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever interrupts twice does not wait

    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager's stop cleans up like Ctrl+C
        signal.signal(number, on_signal)
    _say(f"{address}  (stop with Ctrl+C)")
    if not demo.settings.is_local:
        _say("everyone who can reach this address can ask, upload and watch.")
    try:
        while not wake.wait(3600):
            pass
        _say("closing")
        demo.sessions.stop()
        end = time.monotonic() + PATIENCE
        while len(demo.line) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(LINGER)
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it tells of every page that was still open
        demo.close()
        server = blocks.server
        if server is not None:
            server.config.timeout_graceful_shutdown = 1
            server.should_exit = True
            server.force_exit = True  # an open page holds its connections for ever; uvicorn would wait for them
        blocks.close(verbose=False)


def _say(line: str) -> None:
    sys.stdout.write(f"closeup demo: {line}\n")
    sys.stdout.flush()
