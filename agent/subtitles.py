"""Subtitle files (SubRip `.srt`, WebVTT `.vtt`) as timed cues.

Strict: a file is read whole or refused with the line that is wrong, because a cue that is silently lost or shifted is
a wrong answer later. Tolerated is only what the formats themselves allow and what common players write: a byte-order
mark, any line ending, `.` for `,` before the milliseconds, left-out hours, cue numbers that do not count up, positions
after the times, and mark-up (dropped; the speaker of a WebVTT voice tag is kept as "Name: ").

Invariants
1. Cues come in order of their start; all times are finite seconds with `start <= end`.
2. Nothing larger than `MAX_BYTES` is read, and reading takes time linear in the file's size.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from closeup.agent.task import Cue

MAX_BYTES = 16 * 2**20
"""Largest subtitle file read, in bytes: a hundred hours of speech."""

_TIME = r"(?:(\d{1,4}):)?([0-5]?\d):([0-5]\d)[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^\s<>]{0,200})?\s{1,20}([^<>]{1,200})>")
_TAG = re.compile(
    r"</?(?:b|i|u|s|c|v|lang|ruby|rt|font)(?:[.\s][^<>]{0,200})?>|<\d[\d:.]{0,20}>|\{\\[^{}]{0,200}\}", re.I
)
_BLOCKS = ("NOTE", "STYLE", "REGION")


class SubtitleError(ValueError):
    """A subtitle file that cannot be read; the message names the file, the line, the fault and what is accepted."""


def read_subtitles(path: Path) -> tuple[Cue, ...]:
    """Read a subtitle file; its first line decides whether it is WebVTT ("WEBVTT") or SubRip.

    Raises `SubtitleError` for a file that is missing, too large, not UTF-8, malformed, or without any cue.
    """
    try:
        if not path.is_file():
            what = "is a folder or a device, not a file" if path.exists() else "does not exist"
            raise SubtitleError(f"the subtitle file {path} {what}; accepted: .srt and .vtt files")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SubtitleError(f"cannot read the subtitle file {path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise SubtitleError(f"{path} is larger than {MAX_BYTES // 2**20} MiB, too large for subtitles")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        likely = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "CP1252"
        raise SubtitleError(
            f"{path}, line {line}: not UTF-8; convert it, e.g. with: iconv -f {likely} -t UTF-8"
        ) from None
    return parse_subtitles(text, name=str(path))


def parse_subtitles(text: str, *, name: str = "subtitles") -> tuple[Cue, ...]:
    """The cues of a subtitle file's text, in order of their start. Raises `SubtitleError`, which says `name`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    vtt = lines[0].split(" ")[0].split("\t")[0] == "WEBVTT"
    cues = []
    for number, block in _blocks(lines, skip_first=vtt):
        if vtt and block[0].split(" ")[0].rstrip(":") in _BLOCKS and "-->" not in block[0]:
            continue
        cue = _cue(number, block, name, vtt=vtt)
        if cue.text:
            cues.append(cue)
    if not cues:
        raise SubtitleError(f"{name}: holds no cue; a cue is a line '00:00:01,000 --> 00:00:02,500' with text below it")
    return tuple(sorted(cues, key=lambda cue: cue.start))


def cues_between(cues: Sequence[Cue], start: float, end: float) -> tuple[Cue, ...]:
    """The cues shown at some instant of the window from `start` to `end` (seconds), in their order.

    A cue is shown from its start up to, but not at, its end; a window without length is one instant.
    """
    if end < start:
        raise ValueError(f"a window must not end ({end:g} s) before it starts ({start:g} s)")
    return tuple(cue for cue in cues if cue.start <= start < cue.end or start < cue.start < end)


def _blocks(lines: Sequence[str], *, skip_first: bool) -> Iterator[tuple[int, list[str]]]:
    """Runs of non-empty lines with the number of their first line; `skip_first` leaves out the header's run."""
    block: list[str] = []
    header = skip_first
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            if not header:
                yield number - len(block), block
            block, header = [], False


def _cue(number: int, block: list[str], name: str, *, vtt: bool) -> Cue:
    """One block: an optional number or name, the times, the text. `number` is the line the block begins on."""
    at = 0 if "-->" in block[0] else 1
    if not vtt and at == 1 and not block[0].strip().isdecimal():
        raise SubtitleError(
            f"{name}, line {number}: expected a cue's number or its times, got {block[0].strip()[:60]!r}; "
            "within a cue's text no line may be empty"
        )
    found = _TIMES.fullmatch(block[at]) if at < len(block) else None
    if found is None:
        got = repr(block[at].strip()[:60]) if at < len(block) else "nothing"
        raise SubtitleError(
            f"{name}, line {number + at}: expected times like '00:00:01,000 --> 00:00:02,500', got {got}"
        )
    start, end = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
    if end < start:
        raise SubtitleError(f"{name}, line {number + at}: the cue ends ({end:g} s) before it starts ({start:g} s)")
    if any("-->" in line for line in block[at + 1 :]):
        raise SubtitleError(f"{name}, line {number + at}: an empty line is missing between this cue and the next")
    return Cue(start=start, end=end, text=_plain(block[at + 1 :]))


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _plain(lines: Sequence[str]) -> str:
    """The text without mark-up, on one line."""
    text = " ".join(line.strip() for line in lines)
    return " ".join(html.unescape(_TAG.sub("", _VOICE.sub(r"\1: ", text))).split())
