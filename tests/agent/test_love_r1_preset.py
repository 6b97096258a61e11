"""The love_r1 presets: LOVE-R1's budgets and rules, number by number, and its protocol in the environment.

The numbers are those of its code as read for this project (sections 1.2 and 1.3 of the notes on the seed systems).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.check import check_env
from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.geometry import VisionGeometry
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import PRESETS as ALL
from closeup.agent.preset import OverviewRule, Preset, get_preset
from closeup.agent.replay import replay
from closeup.agent.start import Start
from closeup.agent.task import Task
from closeup.rl.credit import masked_second_zoom
from closeup.rl.reward_config import build_rewards
from closeup.tools.base import ToolContext, ToolError
from closeup.tools.rules import ToolRules
from closeup.tools.video.clip import Clip
from closeup.tools.zoom_clip import ZoomArgs, ZoomClip

N = 28 * 28
PRESETS = tuple(name for name in ALL if name.startswith("love_r1"))


class Film:
    """A video of a given length, for tools that look at nothing else."""

    identity, fps = "film", 25.0

    def __init__(self, duration: float) -> None:
        self.duration = duration


def zoom(preset: Preset, duration: float, start: int, end: int, *earlier: Clip) -> Clip:
    film: Any = Film(duration)
    seen = (preset.overview.clip("film", duration), *earlier)
    result = ZoomClip().run(ZoomArgs(start=start, end=end), ToolContext(videos=(film,), seen=seen, rules=preset.rules))
    return result.clips[0]


@pytest.mark.parametrize(
    ("name", "duration", "frames", "patches"),
    [
        ("love_r1", 3600, 768, 32),
        ("love_r1", 384, 768, 32),
        ("love_r1", 100, 200, 32),
        ("love_r1", 60, 120, 32),
        ("love_r1", 59, 118, 64),
        ("love_r1-mlvu", 3600, 384, 64),
        ("love_r1-mlvu", 59, 118, 128),
        ("love_r1-longvideobench", 3600, 768, 32),
        ("love_r1-grpo", 3600, 768, 32),
        ("love_r1-grpo", 59, 118, 64),
    ],
)
def test_the_overview(name: str, duration: float, frames: int, patches: int) -> None:
    clip = get_preset(name).overview.clip("film", duration)
    assert (len(clip.times()), clip.pixels, clip.overlay) == (frames, patches * N, "seconds")


@pytest.mark.parametrize(
    ("name", "duration", "seconds", "frames", "patches"),
    [
        ("love_r1", 3600, 30, 32, 256),
        ("love_r1", 80, 12, 32, 256),  # 12 s become 22 s: 44 frames at 2 fps, 32 at most
        ("love_r1", 59, 3, 26, 512),  # 13 s
        ("love_r1-longvideobench", 3600, 30, 16, 256),
        ("love_r1-grpo", 3600, 3, 6, 256),
        ("love_r1-grpo", 3600, 60, 16, 256),
        ("love_r1-grpo", 59, 8, 16, 256),  # the doubled resolution is for the overview alone
    ],
)
def test_a_close_look(name: str, duration: float, seconds: int, frames: int, patches: int) -> None:
    clip = zoom(get_preset(name), duration, 10, 10 + seconds)
    assert (len(clip.times()), clip.pixels, clip.overlay) == (frames, patches * N, "seconds")


def test_the_token_arithmetic_of_its_table() -> None:
    geometry = VisionGeometry()
    assert 768 // 2 * 32 == 12_288 and 12_288 + 32 // 2 * 256 == 16_384
    assert get_preset("love_r1").budget.max_visual_tokens == 12_288 + 2 * 4_096, "the overview and two looks"
    assert geometry.size(1920, 1080, 32 * N) == (112, 196)
    assert geometry.size(1920, 1080, 256 * N) == (336, 588)
    assert geometry.tokens(2, (112, 196)) == 28 and geometry.tokens(2, (336, 588)) == 252


@pytest.mark.parametrize(
    ("name", "duration", "asked", "shown"),
    [
        ("love_r1", 3600, (100, 104), (87, 117)),  # 5 s on either side, then to 30 s
        ("love_r1", 3600, (100, 140), (95, 145)),
        ("love_r1", 160, (100, 104), (92, 112)),  # T/8 is 20 s
        ("love_r1", 80, (40, 41), (35, 46)),
        ("love_r1", 3600, (0, 4), (0, 19)),  # around the middle of what the first step left, cut at the edge
        ("love_r1", 3600, (3598, 3601), (3581, 3600)),
        ("love_r1", 3600, (3590, 9999), (3577, 3600)),  # an end past the video's is its end
        ("love_r1", 3599.9, (3000, 3601), (2995, 3599.9)),
        ("love_r1", 180, (100, 101), (89, 111)),  # T/8 is 22.5 s: 89.25 to 111.75, on whole seconds
        ("love_r1-longvideobench", 3600, (100, 104), (95, 109)),
        ("love_r1-mlvu", 3600, (100, 104), (87, 117)),
        ("love_r1-grpo", 3600, (100, 104), (100, 104)),
    ],
)
def test_windows_are_widened_at_evaluation(
    name: str, duration: float, asked: tuple[int, int], shown: tuple[float, float]
) -> None:
    clip = zoom(get_preset(name), duration, *asked)
    assert (clip.start, clip.end) == pytest.approx(shown)


@pytest.mark.parametrize("start", [0.0, 1.0, 50.0, 99.0])
@pytest.mark.parametrize("length", [0.5, 10.0, 60.0, 100.0])
def test_a_widened_window_holds_the_asked_one_and_stays_inside(start: float, length: float) -> None:
    end = min(100.0, start + length)
    left, right = ToolRules.love_r1_evaluation().widened(start, end, 100.0)
    inside = start >= 12.5 and end <= 87.5
    assert 0 <= left <= start and end <= right <= 100 and right - left >= (11.5 if inside else 5.5)


@pytest.mark.parametrize(
    ("name", "asked", "earlier", "allowed"),
    [
        ("love_r1", (100, 130), (105, 130), False),
        ("love_r1", (100, 120), (115, 145), True),  # 95-125 and 115-145: IoU .2
        ("love_r1", (100, 120), (110, 140), False),  # 95-125 and 110-140: IoU .33
        ("love_r1-grpo", (100, 120), (103, 120), False),  # .85
        ("love_r1-grpo", (100, 120), (106, 120), True),  # .7
        ("love_r1-grpo", (100, 101), (200, 201), True),
        ("love_r1-grpo", (100, 161), (200, 201), False),  # longer than 60 s
        ("love_r1-grpo", (3590, 3601), (200, 201), True),  # one second past the end
        ("love_r1-grpo", (3590, 3602), (200, 201), False),
    ],
)
def test_which_windows_are_allowed(name: str, asked: tuple[int, int], earlier: tuple[int, int], allowed: bool) -> None:
    preset = get_preset(name)
    seen = Clip(video="film", start=earlier[0], end=earlier[1], num_frames=32, pixels=preset.rules.zoom_pixels)
    if allowed:
        assert zoom(preset, 3600, *asked, seen)
        return
    with pytest.raises(ToolError):
        zoom(preset, 3600, *asked, seen)


def test_half_of_a_short_video_is_the_longest_window_in_reinforcement() -> None:
    assert zoom(get_preset("love_r1-grpo"), 40, 0, 20)
    with pytest.raises(ToolError, match="1 to 20 s"):
        zoom(get_preset("love_r1-grpo"), 40, 0, 21)


def test_overview_rules_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="whole_seconds.*num_frames"):
        OverviewRule(num_frames=4, whole_seconds=True)
    with pytest.raises(ValueError, match="above max_frames"):
        OverviewRule(num_frames=10, max_frames=4)


# --- the protocol ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(make_video: Callable[..., Path]) -> Task:
    """A question about a video of 70 s; the gold answer is B, its evidence 40 s to 44 s."""
    return Task(
        id="film",
        videos=(make_video(seconds=70, fps=2, size=(112, 112)),),
        question="Which digit is in the red box?",
        options=("3", "7"),
        answer="7",
        evidence=((40, 44),),
    )


def test_two_free_decisions_then_a_forced_answer(film: Task) -> None:
    with VideoQAEnv(get_preset("love_r1")) as env:
        opened = env.reset(film)
        system, user = opened.context
        assert system.role == "system" and "red number" in system.text
        assert user.text.startswith("Full video [0, 70]:\n")
        assert "A. 3\nB. 7\n" in user.text and "\\boxed{[start_time, end_time]}" in user.text
        first = env.step(f"{ZOOM_PREFIX}There.\n\\boxed{{[50, 51]}}").observation
        assert not first.forced and first.rebuilt
        second = env.step(f"{ZOOM_PREFIX}\\boxed{{[12, 13]}}").observation
        assert second.forced and second.assistant_prefix == ANSWER_PREFIX
        _, user = second.context
        assert [clip.start for clip in user.clips] == [0.0, 7.0, 45.0], "the whole video, then the clips by time"
        assert "Subset zoom-in video clip [7, 18]:" in user.text and "There." not in user.text
        result = env.step(f"{ANSWER_PREFIX}\\boxed{{B}}")
        assert result.terminated and result.info.answer is not None and result.info.answer.choice == "B"


@pytest.mark.parametrize(
    "message",
    [
        "I think so",
        f"{ZOOM_PREFIX}\\boxed{{[1.5, 3]}}",
        f"{ZOOM_PREFIX}\\boxed{{[90, 95]}}",
        f"{ANSWER_PREFIX}\\boxed{{Q}}",
    ],
)
def test_a_fault_at_evaluation_shows_the_whole_video_closely_and_forces_an_answer(film: Task, message: str) -> None:
    with VideoQAEnv(get_preset("love_r1"), rewards=build_rewards("love_r1").immediate) as env:
        env.reset(film)
        result = env.step(message)
        (whole,) = result.info.clips
        assert (whole.start, whole.end, len(whole.times()), whole.pixels) == (0.0, 70.0, 32, 256 * N)
        assert result.observation.forced and result.observation.assistant_prefix == ANSWER_PREFIX
        assert result.rewards == {"format": 0.0, "answer": 0.0}
        assert env.spent.frames == 140 + 32
        bad = env.step(f"{ANSWER_PREFIX}no box")
        assert bad.truncated and bad.info.limit == "after_fault"


def test_a_fault_after_a_look_forces_an_answer_from_what_was_seen(film: Task) -> None:
    with VideoQAEnv(get_preset("love_r1")) as env:
        env.reset(film)
        env.step(f"{ZOOM_PREFIX}\\boxed{{[50, 51]}}")
        result = env.step(f"{ZOOM_PREFIX}\\boxed{{[50, 51]}}")
        assert (result.info.outcome, result.info.clips) == ("refused", ())
        assert result.observation.forced and len(result.observation.context[1].clips) == 2
        assert "Error" not in result.observation.context[1].text


def test_after_fault_answer_shows_nothing_more(film: Task) -> None:
    preset = get_preset("love_r1").model_copy(update={"after_fault": "answer"})
    with VideoQAEnv(preset) as env:
        env.reset(film)
        result = env.step("?")
        assert result.info.clips == () and result.observation.forced


def test_the_whole_look_is_left_out_where_the_budget_is_too_small(film: Task) -> None:
    preset = get_preset("love_r1")
    small = preset.model_copy(update={"budget": preset.budget.model_copy(update={"max_frames": 150})})
    with VideoQAEnv(small) as env:
        env.reset(film)
        result = env.step("?")
        assert result.info.clips == () and result.observation.forced


def test_a_fault_in_reinforcement_ends_the_episode(film: Task) -> None:
    with VideoQAEnv(get_preset("love_r1-grpo"), rewards=build_rewards("love_r1").immediate) as env:
        env.reset(film)
        result = env.step(f"{ZOOM_PREFIX}\\boxed{{[0, 69]}}")
        assert result.truncated and result.info.limit == "after_fault" and "refused" in result.info.reason
        assert result.rewards == {"format": 0.0, "answer": 0.0}


def test_the_last_step_in_reinforcement_is_free_and_a_second_zoom_is_masked(film: Task) -> None:
    script = [f"{ZOOM_PREFIX}\\boxed{{[40, 44]}}", f"{ZOOM_PREFIX}\\boxed{{[10, 14]}}"]
    (trajectory,) = run_episodes(
        [film], ScriptedPolicy(script), preset=get_preset("love_r1-grpo"), rewards=build_rewards("love_r1").immediate
    )
    assert [step.outcome for step in trajectory.steps] == ["ok", "ok"]
    assert not trajectory.steps[1].forced and trajectory.steps[1].assistant_prefix == ""
    assert trajectory.outcome.truncated and trajectory.outcome.reason.startswith("max_steps")
    assert masked_second_zoom(trajectory) == {0, 1}
    assert replay(trajectory, rewards=build_rewards("love_r1").immediate).same


def test_a_grounding_sample_is_one_zoom_that_is_begun_for_the_model(film: Task) -> None:
    task = film.model_copy(update={"answer": None})
    preset = get_preset("love_r1-grpo-grounding")
    seen = Clip(video="", start=10, end=14, num_frames=8, placement="left", pixels=256 * N, overlay="seconds")
    with VideoQAEnv(preset) as env:
        seen = seen.model_copy(update={"video": next(iter(env.reset(task).videos))})
    rewards = build_rewards("love_r1").immediate
    for window, reward in (("[43, 50]", 1.0), ("[44, 50]", 0.0), ("[10, 14]", 0.0)):
        start = Start(task, seen_clips=(seen,), assistant_prefix=ZOOM_PREFIX)
        policy = ScriptedPolicy([f"There.\n\\boxed{{{window}}}"])
        (trajectory,) = run_episodes([start], policy, preset=preset, rewards=rewards)
        (step,) = trajectory.steps
        assert step.text.startswith(ZOOM_PREFIX) and step.rewards["answer"] == reward
        assert step.rewards["format"] == (0.0 if window == "[10, 14]" else 1.0), "IoU 1 with a clip that was seen"
        assert masked_second_zoom(trajectory) == frozenset()


@pytest.mark.parametrize("name", PRESETS)
def test_the_environment_keeps_its_promises(name: str, film: Task) -> None:
    good = [f"{ANSWER_PREFIX}\\boxed{{B}}"]
    check_env(lambda: VideoQAEnv(get_preset(name), rewards=build_rewards("love_r1").immediate), film, messages=good)


def test_an_episode_at_evaluation_can_be_replayed(film: Task) -> None:
    script = ["?", f"{ANSWER_PREFIX}\\boxed{{B}}"]
    rewards = build_rewards("love_r1").immediate
    (trajectory,) = run_episodes([film], ScriptedPolicy(script), preset=get_preset("love_r1"), rewards=rewards)
    assert trajectory.outcome.correct and len(trajectory.steps[0].clips) == 1
    assert set(trajectory.steps[0].clips) <= set(trajectory.clips), "what was shown is in the record"
    assert replay(trajectory, rewards=rewards).same


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer_kind": "numeric", "options": (), "answer": "3"}, "one number."),
        ({"answer_kind": "regression", "options": (), "answer": "3"}, "as close as you can"),
        ({"answer_kind": "ocr", "options": (), "answer": "EXIT"}, "written as it is there"),
        ({"answer_kind": "grounding", "options": (), "answer": None}, "[start_time, end_time] in seconds"),
        ({"answer_kind": "text", "options": (), "answer": "red"}, "a few words"),
        ({}, "the letter of one option"),
    ],
)
@pytest.mark.parametrize("preset", ["love_r1", "longvila_r1", "longvila_r1-direct"])
def test_the_question_says_what_kind_of_answer_is_wanted(
    film: Task, changes: dict[str, Any], says: str, preset: str
) -> None:
    with VideoQAEnv(get_preset(preset)) as env:
        assert says in env.reset(film.model_copy(update=changes)).context[-1].text
