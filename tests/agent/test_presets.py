"""The published presets: their numbers, held literally, and what an episode under each really shows of real videos.

The numbers of LOVE-R1 and LongVILA-R1 are those of the notes on the seed systems (sections 1.2 to 1.5 and 2.2), the
others those of the sources that `closeup.agent.preset` names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import Message
from closeup.agent.preset import PRESETS, OverviewRule, get_preset
from closeup.agent.task import Task
from closeup.tools.base import ToolContext
from closeup.tools.rules import ToolRules
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

N = 28 * 28
SMALL, DOUBLED, LARGE, HUGE = (112, 196), (168, 280), (336, 588), (364, 644)
"""(height, width) in pixels of a 640 x 360 frame of at most 32, 64, 256 and (the frame is no larger) 512 patches."""


@pytest.fixture(scope="module")
def film(make_video: Callable[..., Path]) -> Callable[..., Task]:
    """`film(400)`: a question about a 16:9 video of so many seconds."""

    def make(seconds: float, **changes: Any) -> Task:
        path = make_video(seconds=seconds, fps=4, size=(360, 640))
        asked = {"question": "Which digit?", "options": ("3", "7"), "answer": "7"}
        return Task(id="film", videos=(path,), **(asked | changes))

    return make


Shown = tuple[float, float, int, tuple[int, int]]
"""From, to (seconds), frames, and their (height, width) in pixels."""


def shown(env: VideoQAEnv, messages: tuple[Message, ...], videos: Any) -> list[Shown]:
    """What the clips of some messages really become: decoded, at the size that the geometry gives."""
    found = []
    for clip in (clip for message in messages for clip in message.clips):
        video: Video = videos[clip.video]
        frames = video.frames(clip, env.geometry.size(video.width, video.height, clip.pixels))
        assert np.all(np.diff(frames.times) >= 0)
        count, height, width, _ = frames.pixels.shape
        found.append((clip.start, clip.end, count, (height, width)))
    return found


def zoom(start: int, end: int) -> str:
    return f"{ZOOM_PREFIX}\\boxed{{[{start}, {end}]}}"


@pytest.mark.parametrize(
    ("name", "seconds", "seen", "zooms", "expected"),
    [
        # eval default: min(2 fps, 768) of N=32; min(2 fps, 32) of N=256; two looks; the area doubled below 60 s, both
        (
            "love_r1",
            400,
            (),
            [(100, 104), (300, 360)],
            [(0, 400, 768, SMALL), (87, 117, 32, LARGE), (295, 365, 32, LARGE)],
        ),
        ("love_r1", 100, (), [(50, 51)], [(0, 100, 200, SMALL), (44, 56, 24, LARGE)]),
        ("love_r1", 50, (), [(20, 22)], [(0, 50, 100, DOUBLED), (15, 27, 24, HUGE)]),
        # eval MLVU: 384 of N=64; eval LongVideoBench: 16 a look, and no second widening
        ("love_r1-mlvu", 400, (), [(100, 104)], [(0, 400, 384, DOUBLED), (87, 117, 32, LARGE)]),
        ("love_r1-longvideobench", 400, (), [(100, 104)], [(0, 400, 768, SMALL), (95, 109, 16, LARGE)]),
        # GRPO: 16 a look, as asked, only the overview doubled
        ("love_r1-grpo", 400, (), [(100, 140)], [(0, 400, 768, SMALL), (100, 140, 16, LARGE)]),
        ("love_r1-grpo", 50, (), [(20, 23)], [(0, 50, 100, DOUBLED), (20, 23, 6, LARGE)]),
        # SFT: 32 for a window, 24 each for two, 16 each for more; the overview doubled below 120 s
        ("love_r1-sft", 400, [(10, 60)], [], [(0, 400, 768, SMALL), (10, 60, 32, LARGE)]),
        (
            "love_r1-sft",
            100,
            [(10, 30), (40, 60)],
            [],
            [(0, 100, 200, DOUBLED), (10, 30, 24, LARGE), (40, 60, 24, LARGE)],
        ),
        (
            "love_r1-sft",
            400,
            [(10, 30), (40, 60), (70, 90)],
            [],
            [(0, 400, 768, SMALL), *((at, at + 20, 16, LARGE) for at in (10, 40, 70))],
        ),
        ("love_r1-template", 400, [(0, 400)], [], [(0, 400, 768, SMALL), (0, 400, 32, LARGE)]),
        (
            "love_r1-template",
            400,
            [(10, 30), (40, 60)],
            [],
            [(0, 400, 768, SMALL), (10, 30, 16, LARGE), (40, 60, 16, LARGE)],
        ),
        # hard-example mining: 620 frames; 8 a look, 16 beside others
        ("love_r1-mining", 400, [(10, 30)], [], [(0, 400, 620, SMALL), (10, 30, 8, LARGE)]),
        (
            "love_r1-mining",
            400,
            [(10, 30), (40, 60)],
            [],
            [(0, 400, 620, SMALL), (10, 30, 16, LARGE), (40, 60, 16, LARGE)],
        ),
    ],
)
def test_what_an_episode_of_love_r1_really_shows(
    film: Callable[..., Task],
    name: str,
    seconds: float,
    seen: list[tuple[float, float]],
    zooms: list[tuple[int, int]],
    expected: list[Shown],
) -> None:
    with VideoQAEnv(get_preset(name)) as env:
        observation = env.reset(film(seconds, seen=tuple(seen)))
        for window in zooms:
            result = env.step(zoom(*window))
            assert result.info.outcome == "ok", result.info.note
            observation = result.observation
        assert shown(env, observation.context, observation.videos) == expected
        tokens = sum(-(-count // 2) * (h // 28) * (w // 28) for _, _, count, (h, w) in expected)
        assert (env.spent.frames, env.spent.visual_tokens) == (sum(count for _, _, count, _ in expected), tokens)


def test_love_r1_draws_seconds_on_frames_except_in_mining(film: Callable[..., Task]) -> None:
    for name in (name for name in PRESETS if name.startswith("love_r1")):
        with VideoQAEnv(get_preset(name)) as env:
            system, user = env.reset(film(50)).context
        drawn = name != "love_r1-mining"
        assert user.clips[0].overlay == ("seconds" if drawn else None)
        assert ("red number" in system.text) is drawn
        assert user.clips[0].resizer == "bicubic"


def test_sixteen_thousand_tokens_are_an_overview_and_one_look(film: Callable[..., Task]) -> None:
    assert 768 // 2 * 32 + 32 // 2 * 256 == get_preset("love_r1-16k").budget.max_visual_tokens == 16_384
    with VideoQAEnv(get_preset("love_r1-16k")) as env:
        env.reset(film(400))
        assert env.step(zoom(100, 140)).info.outcome == "ok"
        refused = env.step(zoom(300, 340))
        assert (refused.info.outcome, refused.info.clips) == ("refused", ())
        assert "visual tokens" in refused.info.note
        assert refused.observation.forced and refused.observation.assistant_prefix == ANSWER_PREFIX
        assert env.spent.visual_tokens <= 16_384


def test_two_free_decisions_and_a_forced_answer_of_2048_tokens() -> None:
    for name in ("love_r1", "love_r1-16k", "love_r1-mlvu", "love_r1-longvideobench"):
        preset = get_preset(name)
        assert (preset.budget.max_steps, preset.last_message, preset.temperature) == (3, "prefixed", 0.0)
        assert (preset.budget.max_new_tokens, preset.after_fault) == (2048, "look_and_answer")
    grpo, mining = get_preset("love_r1-grpo"), get_preset("love_r1-mining")
    assert (grpo.budget.max_steps, grpo.budget.max_new_tokens, grpo.temperature) == (2, 512, 0.9)
    assert (mining.budget.max_steps, mining.budget.max_new_tokens, mining.temperature) == (1, 1536, 1.0)
    assert get_preset("love_r1-sft").budget.max_steps == get_preset("love_r1-template").budget.max_steps == 1


def test_frames_are_spread_from_the_first_to_the_last_and_parts_of_a_frame_do_not_count() -> None:
    clip = get_preset("love_r1").overview.clip("film", 59.9)
    assert (len(clip.times()), clip.times()[0], clip.times()[-1]) == (119, 0.0, 59.9), "int(2 * 59.9) frames"
    whole = get_preset("love_r1").overview.clip("film", 0.3)
    assert len(whole.times()) == 1
    look = ToolRules.love_r1().close_look("film", 100, (10.0, 13.4), None)
    assert (len(look.times()), look.times()[0], look.times()[-1]) == (6, 10.0, 13.4)


# --- one turn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seconds", "frames", "patches", "tokens"),
    [
        ("video_r1", 100, 64, 256, 1024),
        ("video_r1-32", 100, 32, 256, 1024),
        ("video_r1-16", 100, 16, 256, 1024),
        ("video_r1-train", 100, 16, 128, 1024),
        ("video_r1", 10, 20, 256, 1024),
        ("longvila_r1", 100, 512, 128, 2048),
        ("longvila_r1-direct", 100, 512, 128, 2048),
        ("longvila_r1-fps", 100, 200, 128, 2048),
    ],
)
def test_a_single_turn_shows_its_frames_and_wants_an_answer(
    film: Callable[..., Task], name: str, seconds: float, frames: int, patches: int, tokens: int
) -> None:
    preset = get_preset(name)
    with VideoQAEnv(preset) as env:
        observation = env.reset(film(seconds))
        assert observation.forced and observation.assistant_prefix == ""
        ((start, end, count, (height, width)),) = shown(env, observation.context, observation.videos)
        assert (start, end, count) == (0, seconds, frames)
        assert 0.8 * patches * N < height * width <= patches * N
        times = observation.context[0].clips[0].times()
        if preset.overview.placement == "ends" or preset.overview.num_frames:
            assert (times[0], times[-1]) == (0, seconds)
        text = observation.context[-1].text
        assert ("<think>" in text) is not name.endswith("direct") and "<answer>" in text
        result = env.step("<think>It is late.</think><answer>B</answer>")
        assert result.terminated and result.info.answer is not None and result.info.answer.choice == "B"
    assert (preset.budget.max_steps, preset.budget.max_new_tokens) == (1, tokens)


def test_longvila_goes_up_to_8192_frames() -> None:
    rule = get_preset("longvila_r1-fps").overview
    assert len(rule.clip("film", 3600).times()) == 7200
    assert len(rule.clip("film", 7200).times()) == 8192


# --- LongVT ----------------------------------------------------------------------------------------------------------


def test_longvt_crops_at_one_frame_a_second(film: Callable[..., Task]) -> None:
    preset, say = get_preset("longvt"), get_dialect("crop_video").write
    assert (preset.budget.max_steps, preset.budget.max_new_tokens) == (6, 4096)
    with VideoQAEnv(preset) as env:
        opened = env.reset(film(400))
        system, user = opened.context
        assert "crop_video" in system.text and "video_0.mp4" in user.text and str(film(400).videos[0]) not in user.text
        assert shown(env, opened.context, opened.videos) == [(0, 400, 400, (168, 280))]
        for start, end, frames in ((10, 30, 20), (100, 399, 128), (390, 1000, 10)):
            result = env.step(say("Closer.", ToolCall("zoom_clip", {"start": start, "end": end})))
            assert result.info.outcome == "ok", result.info.note
            (look,) = shown(env, result.observation.messages, result.observation.videos)
            assert look == (start, min(end, 400), frames, (168, 280))
        done = env.step(say("Late.", ToolCall("answer", {"choice": "B"})))
        assert done.terminated and done.info.answer is not None and done.info.answer.choice == "B"


# --- InternVL3 -------------------------------------------------------------------------------------------------------


def card_index(bound: tuple[float, float] | None, fps: float, last: int, segments: int) -> list[int]:
    """The frame numbers of InternVL3's model card, in the card's arithmetic."""
    first, end = (0, last) if bound is None else (max(0, round(bound[0] * fps)), min(round(bound[1] * fps), last))
    size = (end - first) / segments
    return [int(first + size / 2 + np.round(size * i)) for i in range(segments)]


@pytest.mark.parametrize("bound", [None, (12.0, 31.5), (90.0, 1000.0)])
@pytest.mark.parametrize("segments", [1, 8, 32])
def test_segment_centres_are_those_of_the_model_card(
    film: Callable[..., Task], bound: tuple[float, float] | None, segments: int
) -> None:
    rule = get_preset("internvl3").overview.model_copy(update={"num_frames": segments, "bound": bound})
    with Video(film(100).videos[0]) as video:
        clip = rule.clip(video.identity, video.duration)
        frames = video.frames(clip, (28, 56))
        card = card_index(bound, video.fps, round(video.duration * video.fps) - 1, segments)
        assert len(frames.times) == segments
        # The card rounds each bin's offset to a frame and measures to the last frame's start: two frames at the most.
        assert np.abs(frames.times * video.fps - np.array(card)).max() <= 2
        size = (clip.end - clip.start) / segments
        assert clip.times() == pytest.approx([clip.start + size * (i + 0.5) for i in range(segments)])


def test_internvl3_answers_in_rounds_that_keep_the_earlier_ones(film: Callable[..., Task]) -> None:
    preset = get_preset("internvl3")
    first = film(100, question="What happens?", options=(), answer=None, answer_kind="text")
    with VideoQAEnv(preset) as env:
        opened = env.reset(first)
        (asked,) = opened.context
        assert len(asked.clips[0].times()) == 8 and asked.clips[0].pixels == 448 * 448
        assert asked.text.endswith("What happens?")
        done = env.step("A square moves over a grey that brightens.")
        assert done.terminated and done.info.answer is not None
        assert done.info.answer.text == "A square moves over a grey that brightens."
        again = env.reset(
            film(100, question="Which way?", options=("left", "right"), answer="right"),
            history=done.observation.context,
        )
        roles = [message.role for message in again.context]
        assert roles == ["user", "assistant", "user"]
        assert again.context[:2] == done.observation.context
        assert again.context[2].clips == (), "the video stands in the first round"
        end = env.step("B")
        assert end.terminated and end.info.answer is not None and end.info.answer.text == "right"


def test_a_bound_is_part_of_a_clip_and_refused_past_the_end(film: Callable[..., Task]) -> None:
    rule = OverviewRule(num_frames=4, placement="centre", bound=(10, 20))
    keys = {
        rule.model_copy(update=change).clip("film", 100).key
        for change in ({}, {"bound": None}, {"bound": (10, 21)}, {"placement": "ends"}, {"placement": "left"})
    }
    assert len(keys) == 5
    with pytest.raises(ValueError, match=r"bound is 120 s to 130 s, and the video lasts 100 s"):
        rule.model_copy(update={"bound": (120, 130)}).clip("film", 100)
    with pytest.raises(ValueError, match="0 <= start < end"):
        OverviewRule(bound=(20, 10))
    with pytest.raises(ValueError, match="whole_seconds.*placement"):
        OverviewRule(whole_seconds=True, placement="centre")
    preset = get_preset("internvl3")
    late = preset.model_copy(update={"overview": preset.overview.model_copy(update={"bound": (200, 300)})})
    with VideoQAEnv(late) as env, pytest.raises(ValueError, match="begins inside it"):
        env.reset(film(100))


# --- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_opens_an_hour_within_its_budget(name: str) -> None:
    """16:9 and square frames; what an episode opens with leaves room for one look where there are looks."""
    preset = get_preset(name)
    with VideoQAEnv(preset) as env:
        clip = preset.overview.clip("film", 3600)
        frames, look = len(clip.times()), preset.rules.close_look("film", 3600, (100, 160), None)
        for width, height in ((1920, 1080), (1000, 1000), (1080, 1920)):
            cost = env.geometry.tokens(frames, env.geometry.size(width, height, clip.pixels))
            if len(env.tools) > 1:
                cost += env.geometry.tokens(len(look.times()), env.geometry.size(width, height, look.pixels))
            assert cost <= preset.budget.max_visual_tokens
        assert frames <= preset.budget.max_frames
        assert preset == type(preset).model_validate_json(preset.model_dump_json())


def test_windows_seen_before_may_have_frames_of_their_own_number() -> None:
    rules = ToolRules(zoom_frames=9, seen_frames=(8, 4, 2))
    assert [rules.frames_of(10, seen=count) for count in (0, 1, 2, 3, 7)] == [9, 8, 4, 2, 2]
    assert ToolRules(zoom_frames=9).frames_of(10, seen=3) == 9
    with pytest.raises(ValueError, match="from 1 on"):
        ToolRules(seen_frames=(8, 0))
    context = ToolContext(rules=rules)
    assert isinstance(context.rules.close_look("film", 50, (1, 2), None, seen=2), Clip)
