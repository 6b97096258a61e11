"""What `closeup mcp` serves, without the protocol: which tools there are, and what a call of one gives.

Every tool of the registry is served with the schema its class gives; only the index of a video, which means something
within a task alone, becomes the path of a file. `video_info` and `ask_video` are tools too, served here only.

Invariants
1. A file is opened only after `Allowed.path` let it pass, and looked at only if it still does once it is open.
2. Nothing is decoded before its frames and pixels are known to be within the limits.
3. `Refused` is for the client; any other exception is a bug, whose text no client sees.
4. A call keeps nothing: two clients never see each other's looks.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from closeup.app.allow import Allowed, NotAllowed
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.call import run_tool
from closeup.tools.registry import DuplicateTool, UnknownTool, registered_tools
from closeup.tools.rules import ToolRules
from closeup.tools.video import Clip, Video, VideoError
from closeup.tools.video.reader import fit
from closeup.tools.windows import seconds_text

if TYPE_CHECKING:
    from closeup.app.mcp_ask import Asker

PATH = "video"
JPEG_QUALITY = 88
DEFAULT_FRAMES = 128
ENDS_A_TASK = ("answer",)
"""Tools that end a task; a client has none to end, so they are served only when they are named."""

Tell = Callable[[str], None]


class Refused(Exception):
    """What a client is told instead of a result; a sentence."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take.

    Attributes:
        frames: most frames of one reply. pixels: most decoded pixels (frames x height x width).
        bytes: most bytes of pictures (JPEG, before base64).
        seconds: wall time of one call, its waiting included. ask_seconds: the same of `ask_video`.
        together, waiting: calls that run at the same time, and that may wait for their turn.
        asks_waiting: questions that may wait; one is answered at a time.
    """

    frames: int = DEFAULT_FRAMES
    pixels: int = 64_000_000
    bytes: int = 8_000_000
    seconds: float = 120.0
    ask_seconds: float = 900.0
    together: int = 4
    waiting: int = 32
    asks_waiting: int = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame: JPEG bytes, and the seconds at which it is really shown."""

    jpeg: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gives: texts and pictures in reading order, and for some tools the same as one object."""

    parts: tuple[str | Picture, ...]
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One tool as a client sees it: `parameters` is a JSON schema, `path` the argument that names the file."""

    tool: type[Tool[Any]]
    path: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """What a client calls."""
        return self.tool.name

    @property
    def description(self) -> str:
        """One paragraph, on one line."""
        return self.tool.description()


class VideoArgs(ToolArgs):
    """Arguments of `video_info`."""

    video: int = Field(default=0, ge=0, description="which video, counted from 0")


class VideoInfo(Tool[VideoArgs]):
    """Tell how long a video is (seconds), its size (pixels), frame rate and codec, and which looks are allowed."""

    name = "video_info"

    def run(self, args: VideoArgs, context: ToolContext) -> ToolResult:
        """The facts as one JSON object."""
        video, rules = context.video(args.video), context.rules
        shortest, longest = rules.window_seconds(video.duration)
        facts = {
            "name": video.path.name,
            "duration": round(video.duration, 3),
            "width": video.width,
            "height": video.height,
            "fps": round(video.fps, 3),
            "codec": video.codec,
            "close_look_seconds": [round(shortest, 3), round(longest, 3)],
            "close_look_frames": rules.zoom_frames,
            "resample_max_frames": rules.resample_max_frames,
        }
        return ToolResult(text=json.dumps(facts))


class AskArgs(ToolArgs):
    """Arguments of `ask_video`."""

    question: str = Field(min_length=1, max_length=4000, description="what you want to know about the video")
    options: list[str] | None = Field(
        default=None, max_length=26, description="two or more possible answers; leave out for a free answer"
    )


class AskVideo(Tool[AskArgs]):
    """Ask a video agent: it skims the whole video, looks closely where it matters, and answers with its evidence."""

    name = "ask_video"

    def __init__(self, asker: Asker | None = None, stop: threading.Event | None = None, tell: Tell | None = None):
        self._asker, self._stop, self._tell = asker, stop or threading.Event(), tell

    def run(self, args: AskArgs, context: ToolContext) -> ToolResult:
        """The answer, its evidence and its cost as one JSON object. Raises `ToolError` when there is none."""
        if self._asker is None:
            raise ToolError("no model is loaded; start the server with --model")
        answer = self._asker.ask(
            context.video().path, args.question, tuple(args.options or ()), stop=self._stop, tell=self._tell
        )
        return ToolResult(text=json.dumps(answer))


def served(tool: type[Tool[Any]]) -> Served:
    """A tool's schema for clients: the path of a file instead of a video's index.

    A tool whose own `video` is no index keeps it, and takes the path as `video_file`.
    """
    parameters = dict(tool.spec()["function"]["parameters"])
    properties = dict(parameters.get("properties", {}))
    own = properties.get(PATH, {})
    path = PATH if PATH not in properties or own.get("type") == "integer" else "video_file"
    properties.pop(path, None)
    text = "path of the video file: absolute, or relative to an allowed folder"
    parameters["properties"] = {path: {"type": "string", "description": text}, **properties}
    parameters["required"] = [path, *(name for name in parameters.get("required", ()) if name != path)]
    return Served(tool, path, parameters)


@dataclass(frozen=True, slots=True)
class Calls:
    """The tools that are served, and the rules their calls are held to.

    Attributes:
        allowed: which files may be read. limits: what a call may take.
        rules: limits on windows and frames; frames of a resample are bounded by `limits` too.
        names: tools to serve; None: every registered one that ends no task.
        asker: answers questions; None: `ask_video` is not served.
    """

    allowed: Allowed
    limits: Limits = field(default_factory=Limits)
    rules: ToolRules = field(default_factory=ToolRules)
    names: tuple[str, ...] | None = None
    asker: Asker | None = None

    def tools(self) -> dict[str, Served]:
        """The tools by name, as they are registered now: a plugin that was added since is there.

        Raises `UnknownTool` for a name that is not registered and `DuplicateTool` when two tools share a name.
        """
        registered = registered_tools(self.names)
        if self.names is None:
            registered = {name: tool for name, tool in registered.items() if name not in ENDS_A_TASK}
        own: list[type[Tool[Any]]] = [VideoInfo]
        if self.asker is not None:
            own.append(AskVideo)
        for tool in own:
            if tool.name in registered:
                raise DuplicateTool(
                    f"the tool {tool.name!r} of {registered[tool.name].__module__} has the name of one that `closeup "
                    "mcp` serves itself; rename it, or leave it out with --tools"
                )
        return {tool.name: served(tool) for tool in (*own, *registered.values())}

    def call(self, name: str, arguments: Mapping[str, Any], *, stop: threading.Event, tell: Tell) -> Reply:
        """Carry out one call; blocks. `stop` ends it early, `tell` is told what happens meanwhile.

        Raises `Refused` for what the client should be told; anything else is a bug.
        """
        try:
            tools = self.tools()
            if name not in tools:
                raise Refused(f"there is no tool {name[:60]!r}. Accepted: {', '.join(tools)}.")
            return self._call(tools[name], arguments, stop, tell)
        except (ToolError, VideoError, NotAllowed, UnknownTool, DuplicateTool) as error:
            raise Refused(str(error)) from None

    def _call(self, found: Served, arguments: Mapping[str, Any], stop: threading.Event, tell: Tell) -> Reply:
        rest = {name: value for name, value in arguments.items() if name != found.path}
        text = arguments.get(found.path)
        if not isinstance(text, str):
            fault = "is missing" if text is None else f"is the path of a file as text, got {type(text).__name__}"
            accepted = ", ".join(found.parameters["properties"])
            raise Refused(f"wrong arguments for {found.name}: {found.path} {fault}. Accepted: {accepted}.")
        args = found.tool.parse_args(rest)
        with self._open(text) as video:
            context = ToolContext(videos=(video,), rules=self._rules(), frames_left=self.limits.frames)
            if issubclass(found.tool, AskVideo) and isinstance(args, AskArgs):
                result = AskVideo(self.asker, stop, tell).run(args, context)  # has its own limit, and hears `stop`
            else:
                result = run_tool(found.tool, args, context)
            return self._reply(found, result, video, stop)

    def _open(self, text: str) -> Video:
        path = self.allowed.path(text)
        video = Video(path)
        if self.allowed.path(str(path)) != path:  # raises by itself when the place is no longer allowed
            video.close()
            raise Refused(f"{text[:60]!r} was exchanged while it was opened; ask again")
        return video

    def _rules(self) -> ToolRules:
        most, seconds = self.limits.frames, self.limits.seconds
        return self.rules.model_copy(
            update={
                "zoom_frames": min(self.rules.zoom_frames, most),
                "resample_max_frames": min(self.rules.resample_max_frames, most),
                "tool_seconds": min(self.rules.tool_seconds, seconds),
            }
        )

    def _reply(self, found: Served, result: ToolResult, video: Video, stop: threading.Event) -> Reply:
        self._check(result.clips, video)
        parts: list[str | Picture] = [result.text] if result.text else []
        if result.answer is not None:
            parts.append(result.answer.text)
        room = self.limits.bytes
        for clip in result.clips:
            frames = video.frames(clip)
            height, width = frames.pixels.shape[1:3]
            parts.append(
                f"{len(frames)} frames of {width}x{height} pixels from {seconds_text(clip.start)} to "
                f"{seconds_text(clip.end)} s of {video.path.name}, which lasts {seconds_text(video.duration)} s"
            )
            for pixels, shown in zip(frames.pixels, frames.times, strict=True):
                if stop.is_set():
                    raise Refused("the call was cancelled")
                picture = Picture(_jpeg(pixels), float(shown))
                room -= len(picture.jpeg)
                if room < 0:
                    raise Refused(
                        f"these frames take more than the {self.limits.bytes / 1e6:g} MB that a reply may have; ask "
                        "for fewer frames"
                    )
                parts += [f"{seconds_text(picture.seconds)} s", picture]
        if not parts:
            parts.append(f"{found.name} is done and has nothing to show.")
        data = json.loads(result.text) if found.tool in (VideoInfo, AskVideo) else None
        return Reply(tuple(parts), data)

    def _check(self, clips: tuple[Clip, ...], video: Video) -> None:
        """Refuse clips that are too much, before anything is decoded."""
        frames = [len(clip.times()) for clip in clips]
        areas = [height * width for height, width in (fit((video.height, video.width), clip.pixels) for clip in clips)]
        if sum(frames) > self.limits.frames:
            raise Refused(
                f"this is {sum(frames)} frames, more than the {self.limits.frames} of one reply; ask for fewer"
            )
        pixels = sum(count * area for count, area in zip(frames, areas, strict=True))
        if pixels > self.limits.pixels:
            raise Refused(
                f"these frames have {pixels / 1e6:.3g} million pixels together, more than the "
                f"{self.limits.pixels / 1e6:g} million of one reply; ask for fewer frames"
            )


def _jpeg(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
