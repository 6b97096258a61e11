"""The late stream `sufficiency`: the question again, with the close looks alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.hermes import Hermes
from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.policies.base import Completion, Policy, Request
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.rewards import DEFAULT_REWARDS, is_correct
from closeup.rl.scorers import Asking, GroupScorer, score_group
from closeup.rl.sufficiency import SufficiencyScorer, alone_preset
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

TINY = get_preset("tiny")


def say(name: str, thought: str = "", **arguments: Any) -> str:
    return Hermes().write(thought, ToolCall(name, arguments))


ZOOM = say("zoom_clip", "it is a 7", start=12, end=13)
BARE = say("zoom_clip", start=12, end=13)
AGAIN, SKIM = say("zoom_clip", start=2, end=4), say("resample_frames", num_frames=7)
RIGHT, WRONG = say("answer", choice="B"), say("answer", choice="A")


def played(task: Task, *scripts: Sequence[str], preset: Any = TINY) -> list[Trajectory]:
    """A group: one rollout per script."""
    policy = ScriptedPolicy({f"{task.id}/{i}": script for i, script in enumerate(scripts)})
    return run_episodes([task], policy, preset=preset, rewards=DEFAULT_REWARDS, judge=is_correct, rollouts=len(scripts))


def stream(trajectory: Trajectory, name: str = "sufficiency") -> list[float | None]:
    return [step.rewards[name] for step in trajectory.steps]


class Watcher(Policy):
    """Answers right when the pictures it is shown include the gold seconds; keeps every request."""

    name = "watcher"

    def __init__(self, answer: Callable[[Request], str] | None = None) -> None:
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.forgotten: list[str] = []
        self._answer = answer or self.by_what_is_shown

    def generate(self, requests: Sequence[Request], **_: Any) -> list[Completion]:
        self.requests += requests
        self.batches.append(len(requests))
        return [Completion(self._answer(request)) for request in requests]

    def forget(self, episode_id: str) -> None:
        self.forgotten.append(episode_id)

    @staticmethod
    def by_what_is_shown(request: Request) -> str:
        clips = [clip for message in request.messages for clip in message.clips if clip.overlay != "blank"]
        return RIGHT if any(clip.start < 13 and clip.end > 12 for clip in clips) else WRONG


def test_the_question_is_asked_again_with_the_close_looks_alone(task: Task) -> None:
    (trajectory,) = played(task, [ZOOM, SKIM, "?", AGAIN, RIGHT])
    watcher = Watcher()
    (scores,) = SufficiencyScorer(watcher, TINY).score_many([trajectory])
    assert [score["sufficiency"] for score in scores] == [None, None, None, 1.0, None]
    (request,) = watcher.requests
    opening, first, look, second, again = request.messages
    original = trajectory.context(0)[0]
    (blank,) = opening.clips
    assert blank.overlay == "blank" and blank == original.clips[0].model_copy(update={"overlay": "blank"})
    assert opening.text == original.text, "the same words at the same places"
    assert (first, second) == (Message.of("assistant", BARE), Message.of("assistant", AGAIN)), (
        "what it thought is left out"
    )
    assert [clip.start for clip in (*look.clips, *again.clips)] == [12.0, 2.0], "no sparse resample"
    assert request.assistant_prefix == "" and request.sampling.temperature == 0
    assert [tool["function"]["name"] for tool in request.tools] == ["answer"]
    assert watcher.forgotten and trajectory.id not in watcher.forgotten, "the live episode's state is not touched"


def test_the_overview_may_be_left_out_and_thoughts_kept(task: Task) -> None:
    (trajectory,) = played(task, [ZOOM, RIGHT])
    watcher = Watcher()
    scorer = SufficiencyScorer(watcher, TINY, overview="nothing", thoughts=True)
    assert scorer.score(trajectory)[0] == {"sufficiency": 1.0}
    opening, said, _ = watcher.requests[0].messages
    assert opening.clips == () and said == Message.of("assistant", ZOOM)


def test_a_black_overview_is_black_and_needs_no_decoding(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    overview = TINY.overview.model_copy(update={"show": "blank"})
    with VideoQAEnv(TINY.model_copy(update={"overview": overview})) as env:
        (clip,) = env.reset(task).overviews
        shown = env.step(BARE).info.clips[0]
        assert (clip.overlay, shown.overlay) == ("blank", None), "what is looked at is not blank"
    with Video(task.videos[0]) as video:
        real = video.frames(clip.model_copy(update={"overlay": None}), (28, 28))

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("black frames are being decoded")

        monkeypatch.setattr(type(video._decoder), "shots", never)
        black = video.frames(clip, (28, 28))
    assert real.pixels.any() and not black.pixels.any()
    assert black.pixels.shape == real.pixels.shape and (black.times == real.times).all()


def test_whether_the_answer_itself_was_right_does_not_matter(task: Task) -> None:
    found, missed = played(task, [ZOOM, WRONG], [AGAIN, RIGHT])
    scorer = SufficiencyScorer(Watcher(), TINY)
    assert scorer.score(found) == [{"sufficiency": 1.0}, {"sufficiency": None}]
    assert scorer.score(missed) == [{"sufficiency": 0.0}, {"sufficiency": None}]


def test_each_look_may_be_asked_about_on_its_own(task: Task) -> None:
    (trajectory,) = played(task, [AGAIN, ZOOM, RIGHT])
    scores = SufficiencyScorer(Watcher(), TINY, name="enough", credit="each").score(trajectory)
    assert scores == [{"enough": 0.0}, {"enough": 1.0}, {"enough": None}]


def test_a_group_costs_one_batch(task: Task) -> None:
    group = played(task, [ZOOM, RIGHT], [AGAIN, RIGHT], [RIGHT], [ZOOM, AGAIN, WRONG])
    watcher = Watcher()
    scorer = SufficiencyScorer(watcher, TINY)
    assert isinstance(scorer, GroupScorer)
    scored = score_group(group, [scorer])
    assert watcher.batches == [2, 1], "one for each number of looks; the rollout without a look is not asked about"
    assert [stream(t, "sufficiency") for t in scored] == [[1.0, None], [0.0, None], [None], [None, 1.0, None]]
    alone = [SufficiencyScorer(Watcher(), TINY).score(trajectory) for trajectory in group]
    assert [[step["sufficiency"] for step in scores] for scores in alone] == [
        stream(trajectory, "sufficiency") for trajectory in scored
    ]


def test_nothing_is_asked_where_the_answer_cannot_be_judged(task: Task) -> None:
    (trajectory,) = played(task.model_copy(update={"answer": None}), [ZOOM, RIGHT])
    watcher = Watcher()
    assert SufficiencyScorer(watcher, TINY).score(trajectory) == [{"sufficiency": None}] * 2
    assert watcher.requests == []


def test_an_answer_that_is_none_is_wrong_and_one_that_could_not_be_asked_for_is_not_scored(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    (trajectory,) = played(task, [ZOOM, RIGHT])
    for said in ("oh", AGAIN):
        assert SufficiencyScorer(Watcher(lambda _, said=said: said), TINY).score(trajectory)[0] == {"sufficiency": 0.0}

    def broken(_: Request) -> str:
        raise RuntimeError("out of memory")

    scorer = SufficiencyScorer(Watcher(broken), TINY)
    with caplog.at_level(logging.WARNING):
        assert scorer.score(trajectory)[0] == {"sufficiency": None}
    assert scorer.asked == 1 and scorer.failures == {"failed": 1} and "out of memory" in caplog.text
    assert isinstance(scorer, Asking)


def test_a_look_that_cannot_be_repeated_is_not_scored(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    (trajectory,) = played(task, [ZOOM, RIGHT])
    stricter = TINY.model_copy(update={"rules": TINY.rules.model_copy(update={"min_seconds": 5.0})})
    watcher = Watcher()
    scorer = SufficiencyScorer(watcher, stricter)
    with caplog.at_level(logging.WARNING):
        assert scorer.score(trajectory)[0] == {"sufficiency": None}
    assert scorer.failures == {"not repeated": 1}
    assert "look 0 could not be repeated (refused: a window of 1 s is too short" in caplog.text


def test_where_the_context_is_rebuilt_the_prompt_shows_the_clips(task: Task) -> None:
    preset = get_preset("love_r1")
    script = [f"{ZOOM_PREFIX}\\boxed{{[12, 13]}}", f"{ANSWER_PREFIX}\\boxed{{B}}"]
    (trajectory,) = played(task, script, preset=preset)
    watcher = Watcher(lambda _: f"{ANSWER_PREFIX}\\boxed{{B}}")
    assert SufficiencyScorer(watcher, preset).score(trajectory)[0] == {"sufficiency": 1.0}
    (request,) = watcher.requests
    assert request.assistant_prefix == ANSWER_PREFIX
    text = "".join(message.text for message in request.messages)
    assert "Subset zoom-in video clip [7, 18]" in text and "zoom in on" not in text
    overview, look = request.messages[-1].clips
    assert (overview.overlay, look.overlay, look.start) == ("blank", "seconds", 7.0)
    with pytest.raises(ValueError, match="'love_r1' rebuilds its context, and no thought"):
        SufficiencyScorer(watcher, preset, thoughts=True)


def test_the_preset_of_the_second_look_changes_what_it_must() -> None:
    default = alone_preset(get_preset("default"), 2, overview="nothing")
    assert (default.budget.max_steps, default.last_message, default.overview.show) == (3, "asked", "nothing")
    love = alone_preset(get_preset("love_r1-grpo"), 0, overview="blank")
    assert (love.budget.max_steps, love.last_message, love.tools) == (1, "prefixed", ("answer",))
    for alone, of in ((default, "default"), (love, "love_r1-grpo")):
        preset = get_preset(of)
        assert (alone.dialect, alone.prompts, alone.rules) == (preset.dialect, preset.prompts, preset.rules)
        assert alone.name == f"{of}-alone"


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"credit": "all"}, "'last' or 'each', got 'all'"), ({"overview": "half"}, "'blank' or 'nothing'")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SufficiencyScorer(Watcher(), TINY, **settings)


def test_black_frames_of_a_video_that_was_never_decoded(make_video: Callable[..., Path]) -> None:
    with Video(make_video(seconds=3, shade=41)) as video:
        clip = Clip(video=video.identity, start=0, end=3, num_frames=3, pixels=56 * 56)
        black = video.frames(clip.model_copy(update={"overlay": "blank"}))
        real = video.frames(clip)
    assert not black.pixels.any() and real.pixels.all(axis=-1).any()
    assert (black.times == real.times).all()
