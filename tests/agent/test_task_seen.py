"""Tasks that begin with windows watched before: they are shown as close looks, counted, replayed, and no news."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task, TaskError, load_tasks
from closeup.rl.sufficiency import SufficiencyScorer

LOVE = get_preset("love_r1-grpo")
N = 28 * 28


@pytest.fixture
def watched(task: Task) -> Task:
    """A question about a video of 20 s of which 12 s to 14 s and 2 s to 5 s were watched."""
    return task.model_copy(update={"seen": ((12.0, 14.0), (2.0, 5.0))})


def test_what_was_watched_is_shown_as_a_close_look_shows_it(watched: Task) -> None:
    with VideoQAEnv(LOVE) as env:
        user = env.reset(watched).context[-1]
        assert "Subset zoom-in video clip [2, 5]:" in user.text and "Subset zoom-in video clip [12, 14]:" in user.text
        overview, *clips = user.clips
        assert [(c.start, c.end, len(c.times()), c.pixels, c.overlay) for c in clips] == [
            (2, 5, 6, 256 * N, "seconds"),
            (12, 14, 4, 256 * N, "seconds"),
        ]
        assert env.spent.frames == len(overview.times()) + 10
        asked = env.step(f"{ZOOM_PREFIX}\\boxed{{[12, 14]}}")
        assert asked.info.outcome == "refused" and "already looked closely at 12 to 14 s" in asked.info.note
    with VideoQAEnv(LOVE) as env:
        env.reset(watched)
        own = env.step(f"{ZOOM_PREFIX}\\boxed{{[12, 13]}}").observation.context[-1]
        assert [clip.start for clip in own.clips] == [0, 2, 12, 12]


def test_a_dialect_whose_context_grows_shows_them_too(watched: Task) -> None:
    with VideoQAEnv(get_preset("tiny")) as env:
        clips = env.reset(watched).context[-1].clips
    assert [(clip.start, clip.end) for clip in clips[1:]] == [(12, 14), (2, 5)]


def test_an_episode_that_begins_so_is_replayed(watched: Task) -> None:
    (done,) = run_episodes([watched], ScriptedPolicy([f"{ANSWER_PREFIX}\\boxed{{B}}"]), preset=LOVE)
    assert done.outcome.correct and len(done.clips) == 3
    assert replay(done).same


def test_sufficiency_asks_from_the_agents_own_looks_alone(watched: Task) -> None:
    script = [f"{ZOOM_PREFIX}\\boxed{{[8, 10]}}", f"{ANSWER_PREFIX}\\boxed{{B}}"]
    (done,) = run_episodes([watched], ScriptedPolicy(script), preset=LOVE)
    shown: list[list[float]] = []

    def answer(request) -> str:  # type: ignore[no-untyped-def]
        shown.append([clip.start for message in request.messages for clip in message.clips])
        return f"{ANSWER_PREFIX}\\boxed{{B}}"

    scores = SufficiencyScorer(ScriptedPolicy(answer), LOVE, overview="nothing").score(done)
    assert scores[0] == {"sufficiency": 1.0}
    assert shown == [[8]]


def test_a_window_is_cut_at_the_end_of_the_video_and_cannot_lie_behind_it(task: Task) -> None:
    with VideoQAEnv(LOVE) as env:
        clip = env.reset(task.model_copy(update={"seen": ((18.0, 30.0),)})).context[-1].clips[-1]
        assert (clip.start, clip.end) == (18, 20)
        with pytest.raises(ValueError, match="names 20 s to 30 s, and its video is 20 s long"):
            env.reset(task.model_copy(update={"seen": ((20.0, 30.0),)}))


@pytest.mark.parametrize(
    ("seen", "says"),
    [([[5, 5]], "no seconds that could be shown"), ([[-1, 2]], "no seconds"), ([[1]], "seen.0"), ("1-2", "seen")],
)
def test_windows_that_are_none_are_refused(tmp_path: Path, seen: object, says: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps({"video": "a.mp4", "question": "?", "seen": seen}) + "\n")
    with pytest.raises(TaskError, match=says):
        load_tasks(file)
    file.write_text(json.dumps({"question": "?", "seen": [[1, 2]]}) + "\n")
    with pytest.raises(TaskError, match="the task has no video"):
        load_tasks(file)
