"""`View`: an episode in the terminal, as it happens: the film, each thought while it is written, each look, the answer.

In a colour terminal frames are drawn as half blocks and thoughts stream; elsewhere (a pipe, a log) the same story is
told in plain lines. Whatever a model, a file name or a plugin says is shown as text: control characters never reach
the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from closeup.agent.events import Answered, Called, Event, Failed, Finished, Opened, Returned, Thought, Token
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, VideoRecord
from closeup.app.pictures import thinned
from closeup.app.thumbnails import strip
from closeup.app.timeline import clock, span, timeline
from closeup.app.writing import visible_thought
from closeup.tools.video import Clip, Video, VideoError

SMALL, LARGE = (14, 6), (24, 11)
"""Columns and rows of a picture: of a skim, and of a close look."""
INDENT = "   "


class _Console(Console):
    """A console whose reader may go away (`closeup ask … | head`), which is no failure of this program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class View:
    """Draws the events of one episode; call it with each of them, in order."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(file=sys.stdout, highlight=False, soft_wrap=False)
        self._pictures = self.console.is_terminal and self.console.color_system is not None
        self._videos: Mapping[str, VideoRecord] = {}
        self._task: Task | None = None
        self._raw = ""
        self._shown = 0

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Opened():
                self._opened(event)
            case Token():
                self._token(event)
            case Thought():
                self._thought(event)
            case Called():
                self._called(event)
            case Returned():
                self._returned(event)
            case Answered() | Failed():
                self._end_line()
            case Finished():
                self._finished(event.trajectory)

    def _opened(self, event: Opened) -> None:
        self._videos, self._task = event.videos, event.task
        for video in event.videos.values():
            name = video.path.replace("\\", "/").rsplit("/", 1)[-1]
            facts = f"{clock(video.duration)}, {video.width}x{video.height}, {video.fps:.4g} fps, {video.codec}"
            self._line(Text(printable(name), style="bold"), Text(f"  {facts}", style="dim"))
        self._line(Text(printable(event.task.question)))
        for letter, option in zip(event.task.letters, event.task.options, strict=True):
            self._line(Text(f"{INDENT}{letter}. {printable(option)}"))
        for clip in event.overviews:
            times = clip.times()
            every = f"s, one every {(times[-1] - times[0]) / (len(times) - 1):.3g} s" if len(times) > 1 else ""
            self._line(Text(f"overview: {len(times)} frame{every}", style="dim"))
            self._draw(clip, SMALL)

    def _token(self, event: Token) -> None:
        if not self.console.is_terminal:
            return
        if self._raw == "":
            self.console.print(Text(f"{event.step + 1}  ", style="bold cyan"), end="")
        self._raw += event.text
        thought = visible_thought(self._raw)
        if len(thought) > self._shown:
            self.console.print(Text(printable(thought[self._shown :]), style="italic"), end="", soft_wrap=True)
            self._shown = len(thought)

    def _thought(self, event: Thought) -> None:
        if not self.console.is_terminal:
            self._line(Text(f"{event.step + 1}  {printable(event.text)}"))

    def _called(self, event: Called) -> None:
        self._end_line()
        if event.call.name == "answer":
            return
        arguments = ", ".join(f"{name}={value!r}" for name, value in event.call.arguments.items())
        call = printable(f"{event.call.name}({arguments})")
        self._line(Text(INDENT), Text(call if len(call) <= 200 else call[:197] + "...", style="yellow"))

    def _returned(self, event: Returned) -> None:
        self._end_line()
        if event.note:
            self._line(Text(f"{INDENT}{event.outcome}: {printable(event.note)}", style="red"))
        for clip in event.clips:
            duration = self._videos[clip.video].duration if clip.video in self._videos else clip.end
            width = max(10, min(60, self.console.width - 40))
            bar = timeline(duration, [(clip.start, clip.end)], width)
            window = f"{span(clip.start, clip.end)}, {len(clip.times())} frames"
            self._line(Text(f"{INDENT}0:00 "), Text(bar, style="green"), Text(f" {clock(duration)}  {window}"))
            self._draw(clip, LARGE if len(clip.times()) <= 4 else SMALL)

    def _finished(self, trajectory: Trajectory) -> None:
        self._end_line()
        outcome = trajectory.outcome
        if outcome.answer is None:
            reason = outcome.reason or "the agent gave none"
            self._line(Text("No answer: ", style="bold red"), Text(printable(reason)))
        else:
            letter = f"{outcome.choice}. " if outcome.choice else ""
            self._line(Text("Answer  ", style="bold green"), Text(letter + printable(outcome.answer), style="bold"))
            if outcome.evidence:
                seen = ", ".join(span(start, end) for start, end in outcome.evidence)
                self._line(Text(f"evidence  {seen}"))
        steps = f"{outcome.steps} step{'s' if outcome.steps != 1 else ''}"
        self._line(Text(f"{steps}, {outcome.visual_tokens} visual tokens, {outcome.seconds:.1f} s", style="dim"))

    def _draw(self, clip: Clip, picture: tuple[int, int]) -> None:
        if not self._pictures or clip.video not in self._videos:
            return
        columns, rows = picture
        fitting = max(1, (self.console.width - len(INDENT)) // (columns + 1))
        times = thinned(clip.times(), fitting)
        try:
            with Video(self._videos[clip.video].path) as video:
                height = max(1, round(56 * video.height / video.width)) if video.width >= video.height else 56
                width = max(1, round(56 * video.width / video.height)) if video.height > video.width else 56
                frames = video.frames(times, (height, width), mode=clip.mode)
        except VideoError:
            return  # the pictures are decoration here; the episode itself reports a video that went away
        captions = [clock(time) for time in frames.times]
        for line in strip(list(frames.pixels), captions, columns=columns, rows=rows):
            self.console.print(Segments([Segment(INDENT), *line, Segment.line()]), end="")

    def _end_line(self) -> None:
        if self._raw:
            self.console.print()
        self._raw, self._shown = "", 0

    def _line(self, *parts: Text) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=not self.console.is_terminal)


def printable(text: str) -> str:
    """Text with every control character (escape sequences included) made visible, so it cannot steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
