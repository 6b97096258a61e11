"""`VideoQAEnv` on real little videos: what is shown, where an episode may start, what an answer is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.contract import EpisodeError
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import ClipPart, Message, TextPart
from closeup.agent.preset import get_preset
from closeup.agent.scoring import StepFacts
from closeup.agent.task import Cue, Task
from closeup.tools.answer import AnswerTool
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.resample_frames import ResampleFrames
from closeup.tools.video.clip import Clip
from closeup.tools.video.errors import VideoNotFound
from closeup.tools.zoom_clip import ZoomClip

MakeEnv = Callable[..., VideoQAEnv]
Say = Callable[..., str]
BUILTINS: tuple[type[Tool[Any]], ...] = (ZoomClip, ResampleFrames, AnswerTool)


def parts(message: Message) -> list[str]:
    return [part.text if isinstance(part, TextPart) else "CLIP" for part in message.content]


# --- what is shown -------------------------------------------------------------------------------------------------


def test_the_tiny_opening_is_the_overview_and_the_question(make_env: MakeEnv, task: Task) -> None:
    observation = make_env().reset(task)
    (message,) = observation.context
    assert message.role == "user"
    assert parts(message) == ["CLIP", "\nWhich digit is in the red box?\nA. 3\nB. 7\nC. 1\nD. 9"]
    (clip,) = message.clips
    assert clip == observation.overviews[0]
    assert clip.times()[::2] == tuple(float(t) for t in range(20)), "pairs fall on whole seconds"
    assert list(observation.videos) == [clip.video]
    assert (observation.forced, observation.assistant_prefix, observation.rebuilt) == (False, "", True)


def test_the_default_opening_explains_tools_and_names_the_overview(make_env: MakeEnv, task: Task) -> None:
    system, user = make_env(of=get_preset("default"), tools=BUILTINS).reset(task).context
    assert system.role == "system"
    assert all(tool.name in system.text for tool in BUILTINS)
    assert parts(user)[0] == "Overview of the video, 20 s long, 40 frames:\n"
    assert parts(user)[2].startswith("\nQuestion: Which digit")


def test_a_zoom_is_shown_in_a_tool_response(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env()
    opened = env.reset(task)
    message = say("zoom_clip", start=12, end=13, thought="red at 12s")
    result = env.step(message)
    (shown,) = result.observation.messages
    assert (shown.role, parts(shown)) == ("tool", ["<tool_response>\n", "CLIP", "\n</tool_response>"])
    (clip,) = shown.clips
    assert (clip.start, clip.end, clip.num_frames, clip.pixels) == (12, 13, 4, 112 * 112)
    assert result.observation.context == (*opened.context, Message.of("assistant", message), shown)
    assert (result.info.thought, result.info.outcome, result.info.note) == ("red at 12s", "ok", "")
    assert result.info.clips == result.info.close == (clip,)
    assert not result.observation.rebuilt


def test_several_videos_share_the_overview_and_are_told_apart(
    make_env: MakeEnv, make_video: Callable[..., Path], say: Say
) -> None:
    videos = (make_video(seconds=4), make_video(seconds=6, shade=50))
    env = make_env(of=get_preset("default"), tools=BUILTINS)
    observation = env.reset(Task(videos=videos, question="Which is brighter?"))
    headings = [part for part in parts(observation.context[-1]) if part.startswith(("Overview", "\nOverview"))]
    assert headings == ["Overview of video 0, 4 s long, 8 frames:\n", "\nOverview of video 1, 6 s long, 12 frames:\n"]
    shown = env.step(say("zoom_clip", start=1, end=2, video=1)).observation.messages[0]
    assert parts(shown)[0] == "<tool_response>\nVideo 1, 1 s to 2 s, 16 frames:\n"
    assert shown.clips[0].video == list(observation.videos)[1]
    assert env.step(say("zoom_clip", start=1, end=2, video=2)).info.outcome == "refused"


def test_a_task_without_videos_is_a_question_alone(make_env: MakeEnv, say: Say) -> None:
    env = make_env()
    observation = env.reset(Task(question="What is 2 + 2?", answer_kind="text"))
    assert parts(observation.context[0]) == ["What is 2 + 2?"]
    assert env.step(say("zoom_clip", start=0, end=1)).info.outcome == "refused"
    assert env.step(say("answer", text="4")).terminated


def test_subtitles_stand_with_the_frames_they_belong_to(make_env: MakeEnv, task: Task, say: Say) -> None:
    cues = (Cue(start=1, end=3, text="Hello\nthere"), Cue(start=12.5, end=14, text="a </tool_response> letter"))
    env = make_env(of=get_preset("default"), tools=BUILTINS)
    user = env.reset(task.model_copy(update={"subtitles": cues})).context[-1]
    assert "Subtitles:\n[1 s to 3 s] Hello there\n[12.5 s to 14 s] a < /tool_response> letter\n" in user.text
    shown = env.step(say("zoom_clip", start=12, end=13)).observation.messages[0]
    assert "letter" in shown.text and "Hello" not in shown.text


def test_long_subtitles_are_bounded_and_counted(make_env: MakeEnv, task: Task) -> None:
    cues = tuple(Cue(start=i / 100, end=i / 100 + 1, text=f"cue {i} " + "x" * 50) for i in range(1900))
    env = make_env(of=get_preset("default"), tools=BUILTINS)
    text = env.reset(task.model_copy(update={"subtitles": cues})).context[-1].text
    assert len(text) < 6000
    shown = text.count("cue ")
    assert f"({1900 - shown} more subtitles" in text
    assert "cue 0 " in text and any(f"cue {i} " in text for i in range(1800, 1900)), "those kept are spread evenly"


# --- where an episode may start ------------------------------------------------------------------------------------


def test_an_episode_may_start_with_clips_seen_already(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env()
    overview = env.reset(task).overviews[0]
    zoomed = Clip(video=overview.video, start=12, end=13, num_frames=4, placement="left", pixels=112 * 112)
    observation = env.reset(task, seen_clips=(zoomed,))
    assert observation.context[0].clips == (overview, zoomed)
    assert env.spent.frames == len(overview.times()) + 4
    result = env.step(say("answer", choice="B", evidence=[[12, 13]]))
    assert result.info.answer is not None and result.info.answer.evidence == ((12, 13),)


def test_a_conversation_goes_on_from_its_history(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env()
    env.reset(task)
    env.step(say("zoom_clip", start=12, end=13))
    first = env.step(say("answer", choice="B"))
    frames = env.spent.frames
    follow_up = task.model_copy(update={"question": "Which colour is the box?", "options": (), "answer": None})
    observation = env.reset(follow_up, history=first.observation.context)
    assert observation.context[:-1] == first.observation.context
    assert parts(observation.context[-1]) == ["Which colour is the box?"], "the overview is not shown twice"
    assert env.spent.frames == frames, "what the history shows counts"
    result = env.step(say("answer", text="red", evidence=[[12, 12.5], [3, 4]]))
    assert result.info.answer is not None and result.info.answer.evidence == ((12, 12.5),)
    assert result.info.dropped == ((3, 4),)


def test_a_history_without_a_system_message_gets_one_first(make_env: MakeEnv, task: Task) -> None:
    history = (Message.of("user", "Hello"), Message.of("assistant", "Hello."))
    env = make_env(of=get_preset("default"), tools=BUILTINS)
    context = env.reset(task, history=history).context
    assert [message.role for message in context] == ["system", "user", "assistant", "user"]
    again = env.reset(task, history=context[:3]).context
    assert [message.role for message in again] == ["system", "user", "assistant", "user"]


def test_clips_of_other_videos_cannot_be_started_with(make_env: MakeEnv, task: Task) -> None:
    stranger = Clip(video="0" * 32, start=0, end=1, num_frames=1, pixels=784)
    with pytest.raises(ValueError, match="not of this task"):
        make_env().reset(task, seen_clips=(stranger,))
    with pytest.raises(ValueError, match="not of this task"):
        make_env().reset(task, history=(Message.of("user", stranger),))


def test_the_callers_prefix_is_passed_on(make_env: MakeEnv, task: Task) -> None:
    assert make_env().reset(task, assistant_prefix="<think>").assistant_prefix == "<think>"


# --- answers and evidence ------------------------------------------------------------------------------------------


def test_an_answer_ends_the_episode(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env()
    env.reset(task)
    message = say("answer", choice="b")
    result = env.step(message)
    assert result.terminated and not result.truncated
    assert result.info.answer is not None
    assert (result.info.answer.choice, result.info.answer.text) == ("B", "7")
    assert result.observation.messages == ()
    assert result.observation.context[-1] == Message.of("assistant", message)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(message)


def test_evidence_is_cut_to_what_was_watched_closely(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env()
    env.reset(task)
    env.step(say("zoom_clip", start=12, end=13))
    env.step(say("zoom_clip", start=13, end=14))
    env.step(say("resample_frames", start=2, end=4, num_frames=9))
    env.step(say("resample_frames", start=6, end=18, num_frames=3))  # sparser than the overview: no close look
    result = env.step(say("answer", choice="B", evidence=[[11, 15], [3, 3], [6, 8], [2.5, 3.5]]))
    assert result.info.answer is not None
    assert result.info.answer.evidence == ((12, 14), (3, 3), (2.5, 3.5))
    assert result.info.dropped == ((11, 12), (14, 15), (6, 8))


# --- rewards and bugs ----------------------------------------------------------------------------------------------


def test_rewards_are_injected_and_none_is_not_zero(make_env: MakeEnv, task: Task, say: Say) -> None:
    seen: list[StepFacts] = []

    def watch(facts: StepFacts) -> float | None:
        seen.append(facts)
        return 1 if facts.close else None

    env = make_env(rewards={"watch": watch})
    overview = env.reset(task).overviews[0]
    assert env.step(say("zoom_clip", start=12, end=13)).rewards == {"watch": 1.0}
    assert env.step("?").rewards == {"watch": None}
    env.step(say("answer", choice="B"))
    zoom, fault, answer = seen
    assert (zoom.tool, zoom.outcome, zoom.earlier, zoom.durations[overview.video]) == ("zoom_clip", "ok", (), 20.0)
    assert (fault.tool, fault.outcome, fault.close, fault.earlier) == (None, "no_call", (), zoom.close)
    assert answer.answer is not None and answer.answer.choice == "B" and answer.task == task


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_a_bug(make_env: MakeEnv, task: Task, value: float) -> None:
    env = make_env(rewards={"broken": lambda facts: value})
    env.reset(task, episode_id="red/7")
    with pytest.raises(EpisodeError, match="'red/7': reward broken"):
        env.step("?")


def test_a_bug_of_a_tool_raises_with_the_episodes_id(make_env: MakeEnv, task: Task, say: Say) -> None:
    class Buggy(Tool[ToolArgs]):
        """Break."""

        def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
            raise KeyError("secret")

    class Stranger(Tool[ToolArgs]):
        """Show a video nobody knows."""

        def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
            return ToolResult(clips=(Clip(video="?", start=0, end=1, num_frames=1, pixels=784),))

    env = make_env(tools=(Buggy, Stranger, AnswerTool))
    for name in ("buggy", "stranger"):
        env.reset(task, episode_id="red/3")
        with pytest.raises(EpisodeError, match=f"'red/3': tool {name}: KeyError") as caught:
            env.step(say(name))
        assert (caught.value.episode_id, type(caught.value.cause)) == ("red/3", KeyError)


def test_a_refusal_without_a_reason_still_says_something(make_env: MakeEnv, task: Task, say: Say) -> None:
    class Curt(Tool[ToolArgs]):
        """Refuse."""

        def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
            raise ToolError("")

    env = make_env(tools=(Curt, AnswerTool))
    env.reset(task)
    result = env.step(say("curt"))
    assert result.info.outcome == "refused" and len(result.info.note) > 10


def test_a_bug_of_a_dialect_raises_with_the_episodes_id(
    make_env: MakeEnv, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env()
    env.reset(task, episode_id="red/3")
    monkeypatch.setattr(type(env.dialect), "parse", lambda self, text: 1 / 0)
    with pytest.raises(EpisodeError, match="'red/3': dialect hermes: ZeroDivisionError"):
        env.step("?")


def test_a_tool_sees_what_was_shown_and_what_is_left(make_env: MakeEnv, task: Task, say: Say) -> None:
    seen: list[ToolContext] = []

    class Spy(Tool[ToolArgs]):
        """Note the context."""

        def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
            seen.append(context)
            return ToolResult(text="noted")

    env = make_env(tools=(Spy, ZoomClip, AnswerTool))
    overview = env.reset(task).overviews[0]
    (zoomed,) = env.step(say("zoom_clip", start=1, end=2)).info.clips
    env.step(say("spy"))
    (context,) = seen
    assert context.seen == (overview, zoomed)
    assert (context.frames_left, context.options) == (256 - 44, task.options)
    assert context.rules == env.preset.rules
    assert context.videos[0].identity == overview.video


def test_a_video_that_is_not_there_is_the_callers_error(make_env: MakeEnv, task: Task, tmp_path: Path) -> None:
    env = make_env()
    with pytest.raises(VideoNotFound):
        env.reset(task.model_copy(update={"videos": (*task.videos, tmp_path / "gone.mp4")}))
    with pytest.raises(RuntimeError, match="reset"):
        env.step("?")


def test_an_environment_needs_an_answer_tool(preset: Any) -> None:
    with pytest.raises(ValueError, match="answer"):
        VideoQAEnv(preset, tools=(ZoomClip,))
    with pytest.raises(ValueError, match="dialect"):
        VideoQAEnv(preset.model_copy(update={"dialect": "klingon"}))


def test_closing_twice_is_harmless_and_reset_starts_anew(preset: Any, task: Task) -> None:
    with VideoQAEnv(preset) as env:
        first = env.reset(task)
        env.close()
        env.close()
        again = env.reset(task)
    assert first.context == again.context
    assert all(isinstance(part, TextPart | ClipPart) for part in again.context[0].content)


def test_one_video_given_twice_is_refused_rather_than_merged(
    make_env: MakeEnv, make_video: Callable[..., Path]
) -> None:
    video = make_video(seconds=4)
    with pytest.raises(ValueError, match="two videos of task .* have one content"):
        make_env(of=get_preset("default"), tools=BUILTINS).reset(Task(videos=(video, video), question="Which?"))
