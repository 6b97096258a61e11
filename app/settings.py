"""`DemoSettings`: every limit and choice of the web demo, in one place; `closeup demo`'s flags set them.

The defaults suit one machine and a room of people: three questions at once, a dozen waiting, films of up to two hours.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

from closeup.app.errors import BadInput

GB, MB = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What `closeup demo` was told.

    Attributes:
        models: "tiny", checkpoint folders or hub ids; the first is loaded at the start, others when first chosen.
        preset: name or .json file; None: each model's own.
        host, port: where the page is served. share: also through Gradio's public tunnel.
        allow: folders whose videos may be picked.
        at_once: questions answered at the same time. waiting: questions that may wait for their turn; more are refused.
        max_upload_mb: size of one upload, in MB (10^6 bytes).
        max_disk_mb: what all uploads together may take; the oldest that nobody has taken make room.
        max_minutes: longest video, in minutes.
        max_seconds: wall time of one question, in seconds, its wait for a turn not counted.
        keep_minutes: how long an upload and a conversation are kept after their last use.
        max_sessions: conversations kept at a time.
        max_turns: questions of one conversation; the oldest leave the page.
        refresh_seconds: shortest time between two pictures of a running question, which is drawn as its events come.
    """

    models: tuple[str, ...] = ("tiny",)
    preset: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    allow: tuple[Path, ...] = ()
    at_once: int = 3
    waiting: int = 12
    max_upload_mb: float = 1000.0
    max_disk_mb: float = 4000.0
    max_minutes: float = 120.0
    max_seconds: float = 600.0
    keep_minutes: float = 60.0
    max_sessions: int = 100
    max_turns: int = 8
    refresh_seconds: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot work, as a sentence (`BadInput`)."""
        if not self.models:
            raise BadInput("no model is given; use --model tiny for the bundled one")
        for flag, value in (("--at-once", self.at_once), ("--sessions", self.max_sessions), ("turns", self.max_turns)):
            if value < 1:
                raise BadInput(f"{flag} is at least 1, got {value}")
        if self.waiting < 0:
            raise BadInput(f"--waiting is at least 0, got {self.waiting}")
        for flag, amount in (
            ("--max-upload-mb", self.max_upload_mb),
            ("--max-disk-mb", self.max_disk_mb),
            ("--max-minutes", self.max_minutes),
            ("--max-seconds", self.max_seconds),
            ("--keep-minutes", self.keep_minutes),
        ):
            if not (math.isfinite(amount) and amount > 0):
                raise BadInput(f"{flag} is a number above 0, got {amount:g}")
        if self.max_disk_mb < self.max_upload_mb:
            raise BadInput(
                f"--max-disk-mb ({self.max_disk_mb:g}) is below --max-upload-mb ({self.max_upload_mb:g}): not even one"
                " upload would fit; raise it, or lower --max-upload-mb"
            )
        if not 0 <= self.port <= 65535:
            raise BadInput(f"--port is 0 to 65535 (0: any free one), got {self.port}")

    @property
    def is_local(self) -> bool:
        """Only this machine can reach the page."""
        if self.host == "localhost":
            return not self.share
        try:
            return ipaddress.ip_address(self.host).is_loopback and not self.share
        except ValueError:
            return False
