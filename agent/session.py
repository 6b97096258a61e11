"""`Session`: the state of one live episode of `VideoQAEnv`: opened videos, what was shown, what was spent, the context.

It puts observations together; what a message does is the environment's business.

Invariants
1. `seen` begins with the overview of every video, in the task's order, whether this episode showed it, its history did,
   or the preset keeps it back.
2. A growing context is only ever added to; a rebuilt one is whole after every step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from closeup import prompts
from closeup.agent.budget import Cost, Meter, clip_cost, text_tokens
from closeup.agent.contract import Observation
from closeup.agent.dialects.base import Dialect, View
from closeup.agent.geometry import VisionGeometry
from closeup.agent.headings import heading
from closeup.agent.messages import Message
from closeup.agent.preset import Preset
from closeup.agent.task import LETTERS, Task
from closeup.tools.base import Tool, ToolContext
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video
from closeup.tools.windows import is_close_look

Shown = tuple[str, Clip]  # a heading and the clip below it


class Session:
    """One live episode. Made by `VideoQAEnv.reset`; it owns `videos` and closes them.

    Attributes:
        videos: opened videos in the task's order.
        overviews: the overview clip of each video, by content identity.
        seen: every clip shown so far; close: those that are close looks. Oldest first.
        forced_by: name of the limit that makes the next message the last one, or "".
        over: the episode has ended.
    """

    def __init__(
        self,
        task: Task,
        episode_id: str,
        *,
        preset: Preset,
        dialect: Dialect,
        tools: Sequence[type[Tool[Any]]],
        specs: Sequence[Mapping[str, Any]],
        geometry: VisionGeometry,
        videos: tuple[Video, ...],
    ) -> None:
        self.task = task
        self.episode_id = episode_id
        self.preset = preset
        self.dialect = dialect
        self.tools = tuple(tools)
        self.geometry = geometry
        self.videos = videos
        self.by_identity = {video.identity: video for video in videos}
        if len(self.by_identity) < len(videos):
            twice = next(v for i, v in enumerate(videos) if v.identity in {other.identity for other in videos[:i]})
            raise ValueError(
                f"two videos of task {task.id} have one content ({twice.path.name} is the second); clips could not be"
                " told apart, so give it once"
            )
        self.overviews = {
            video.identity: preset.overview.clip(video.identity, video.duration, share=len(videos)) for video in videos
        }
        self.meter = Meter(preset.budget)
        self.seen: tuple[Clip, ...] = tuple(self.overviews.values())
        self.close: tuple[Clip, ...] = ()
        self.forced_by = ""
        self.over = False
        self._specs = tuple(specs)
        self._system = self._render_system()
        self._question = self._render_question()
        self._overviews: tuple[Shown, ...] = ()
        self._clips: tuple[Shown, ...] = ()
        self._history: tuple[Message, ...] = ()
        self._context: tuple[Message, ...] = ()

    def open(self, seen_clips: tuple[Clip, ...], history: tuple[Message, ...], assistant_prefix: str) -> Observation:
        """The first observation.

        Raises `ValueError` for a clip of another video, a window of the task's that lies past the end of its video, or
        a start that is over budget.
        """
        given = self._watched_before()
        seen_clips = (*given, *(clip for clip in seen_clips if clip not in given))
        before = tuple(clip for message in history for clip in message.clips)
        for clip in (*before, *seen_clips):
            if clip.video not in self.by_identity:
                known = ", ".join(self.by_identity) or "none"
                raise ValueError(f"a clip to start with shows video {clip.video}, which is not of this task ({known})")
        new = [self._as_shown(clip) for clip in self.overviews.values() if clip not in before]
        new = [] if self.preset.overview.show == "nothing" else new
        self._overviews = tuple((self._heading("overview", clip), clip) for clip in new)
        self._clips = tuple((self._heading("clip", clip), clip) for clip in seen_clips)
        later = [clip for clip in (*before, *seen_clips) if clip not in self.seen]
        self.seen += tuple(later)
        self.close = tuple(clip for clip in later if is_close_look(clip, self.overviews[clip.video]))
        self.meter.show(sum((self.cost(clip) for clip in (*before, *new, *seen_clips)), Cost()))
        if self._system and not any(message.role == "system" for message in history):
            history = (Message.of("system", self._system), *history)
        self._history = history
        limit = self.meter.broken(Cost())
        if limit:
            need = {"max_frames": self.meter.spent.frames, "max_visual_tokens": self.meter.spent.visual_tokens}
            raise ValueError(
                f"the clips to start with need more than {limit} = {getattr(self.preset.budget, limit)} allows"
                f" ({need.get(limit, 'more')}); raise it, or lower the overview's max_frames or pixels"
            )
        self.forced_by = self._must_answer()
        self._context = (*history, *self.dialect.start(self._view()))
        self.meter.report(self._estimate(self._context))
        return self._observation(self._context, rebuilt=True, prefix=assistant_prefix)

    def take(self, text: str, context_tokens: int | None) -> None:
        """Count a step and put the assistant message into the context."""
        self.meter.spent.steps += 1
        message = Message.of("assistant", text)
        self._context = (*self._context, message)
        if context_tokens is None:
            self.meter.grow(self._estimate((message,)))
        else:
            self.meter.report(context_tokens)

    def watch(self, clips: Sequence[Clip]) -> tuple[Clip, ...]:
        """Count clips that a tool gave; returns those that are close looks."""
        close = tuple(clip for clip in clips if is_close_look(clip, self.overviews[clip.video]))
        self.meter.show(sum((self.cost(clip) for clip in clips), Cost()))
        self.seen += tuple(clips)
        self.close += close
        return close

    def news(
        self, text: str, clips: Sequence[Clip], *, failed: bool, last: bool, answer_now: bool = False
    ) -> Observation:
        """What follows the assistant message: `text`, `clips`, and the call for an answer if the next step is the last.

        `last` = the episode is over and nothing is asked for any more; `answer_now` = the next step is the last,
        whatever the budget allows.
        """
        new = tuple((self._heading("clip", clip), clip) for clip in clips)
        self._clips += new
        self.forced_by = "" if last else "after_fault" if answer_now else self._must_answer()
        messages = self.dialect.observe(self._view(text, new, failed=failed))
        rebuilt = self.dialect.rebuilds_context
        self._context = (*self._history, *messages) if rebuilt else (*self._context, *messages)
        if rebuilt:
            messages = self._context
            self.meter.report(self._estimate(messages))
        else:
            self.meter.grow(self._estimate(messages))
        return self._observation(messages, rebuilt=rebuilt)

    def finished(self) -> Observation:
        """The finished conversation, with nothing new in it."""
        return self._observation((), rebuilt=False)

    def whole_look(self) -> tuple[Clip, ...]:
        """The whole first video as closely as a close look shows it; nothing when something was watched closely
        already, or when it does not fit the budget."""
        if self.close or not self.videos:
            return ()
        clip = self._close_look(0.0, self.videos[0].duration)
        return () if self.meter.refusal(self.cost(clip)) else (clip,)

    def tool_context(self) -> ToolContext:
        """What a tool may look at now."""
        return ToolContext(
            videos=self.videos,
            seen=self.seen,
            rules=self.preset.rules,
            options=self.task.options,
            frames_left=self.meter.frames_left,
        )

    def cost(self, clip: Clip) -> Cost:
        """What showing a clip of one of the videos takes."""
        video = self.by_identity[clip.video]
        return clip_cost(clip, width=video.width, height=video.height, geometry=self.geometry)

    def end(self) -> None:
        """Close the videos."""
        self.over = True
        for video in self.videos:
            video.close()

    def _watched_before(self) -> tuple[Clip, ...]:
        """The windows that the task says were watched, as close looks. Raises `ValueError`."""
        clips = []
        for start, end in self.task.seen:
            duration = self.videos[0].duration
            if start >= duration:
                raise ValueError(
                    f"the task's 'seen' names {start:g} s to {end:g} s, and its video is {duration:g} s long; give"
                    " windows inside the video"
                )
            clips.append(self._close_look(start, min(end, duration), seen=len(self.task.seen)))
        return tuple(clips)

    def _close_look(self, start: float, end: float, *, seen: int = 0) -> Clip:
        """A window (seconds) of the first video with as many and as large frames as the rules say.

        `seen`: it is one of so many that the task opens with.
        """
        video, overview = self.videos[0], self.preset.overview
        drawn, window = (overview.overlay, overview.resizer), (start, end)
        return self.preset.rules.close_look(video.identity, video.duration, window, *drawn, seen=seen)

    def _as_shown(self, overview: Clip) -> Clip:
        """What is shown of an overview: itself, or black frames in its place."""
        return overview.model_copy(update={"overlay": "blank"}) if self.preset.overview.show == "blank" else overview

    def _must_answer(self) -> str:
        looks = [
            self.cost(Clip(video=video.identity, start=0, end=0, num_frames=1, pixels=self.preset.rules.skim_pixels))
            for video in self.videos
            if len(self.tools) > 1
        ]
        least = min(looks, key=lambda cost: cost.visual_tokens, default=Cost())
        limit = self.meter.must_answer(least)
        if limit == "max_steps" and self.preset.last_message == "free":
            return self.meter.broken(least, messages=2)  # the last message is free, but not of the other limits
        return limit

    def _view(self, news: str = "", new: tuple[Shown, ...] = (), *, failed: bool = False) -> View:
        return View(
            question=self._question,
            overviews=self._overviews,
            clips=self._clips,
            news=news,
            new_clips=new,
            failed=failed,
            forced=bool(self.forced_by),
            notice=prompts.render(self.preset.prompts, "forced") if self.forced_by else "",
        )

    def _observation(self, messages: tuple[Message, ...], *, rebuilt: bool, prefix: str = "") -> Observation:
        forced = bool(self.forced_by)
        prefixed = forced and self.preset.last_message != "asked"
        return Observation(
            messages=messages,
            context=self._context,
            assistant_prefix=prefix or (self.dialect.forced_prefix(self.tools) if prefixed else ""),
            forced=forced,
            rebuilt=rebuilt,
            tools=tuple(s for s in self._specs if not forced or s["function"]["name"] == "answer"),
            videos=dict(self.by_identity),
            overviews=tuple(clip for _, clip in self._overviews),
        )

    def _estimate(self, messages: Sequence[Message]) -> int:
        return sum(
            text_tokens(message.text) + sum(self.cost(clip).context_tokens for clip in message.clips)
            for message in messages
        )

    def _heading(self, template: str, clip: Clip) -> str:
        index = next(i for i, video in enumerate(self.videos) if video.identity == clip.video)
        return heading(
            template,
            clip,
            preset=self.preset,
            index=index,
            videos=len(self.videos),
            cues=self.task.subtitles if index == 0 else (),
            plain=self.dialect.plain,
        )

    def _render_system(self) -> str:
        return prompts.render(
            self.preset.prompts,
            "system",
            tools=[json.dumps(dict(spec)) for spec in self._specs],
            looks=len(self._specs) > 1,
            timestamps=self.geometry.times or self.preset.timestamps,
            max_steps=self.preset.budget.max_steps,
            max_frames=self.preset.budget.max_frames,
            overlay=self.preset.overview.overlay,
        )

    def _render_question(self) -> str:
        plain = self.dialect.plain
        options = [
            {"letter": letter, "text": plain(text)} for letter, text in zip(LETTERS, self.task.options, strict=False)
        ]
        return prompts.render(
            self.preset.prompts,
            "question",
            question=plain(self.task.question),
            options=options,
            kind=self.task.answer_kind,
            looks=len(self._specs) > 1,
            videos=len(self.videos),
        )
