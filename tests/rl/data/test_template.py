"""Stage 1 of LOVE-R1: which windows are drawn, how often, in how many frames; and what cannot become an episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.data.template import Fault, template_episodes, template_windows

PRESET = get_preset("love_r1-template")
seconds = st.floats(0, 4000)
spans = st.tuples(seconds, seconds).map(lambda pair: (min(pair), max(pair)))


@given(st.floats(0.1, 4000), st.lists(spans, max_size=6), st.integers(0, 2**32))
def test_windows_are_whole_seconds_inside_the_video(
    duration: float, evidence: list[tuple[float, float]], seed: int
) -> None:
    inside = [(start, end) for start, end in evidence if end <= duration]
    windows = template_windows(duration, inside, np.random.default_rng(seed))
    assert list(windows) == sorted(windows) and len(windows) <= 3
    for start, end in windows:
        assert 0 <= start < end <= max(1, int(duration)) and start % 1 == end % 1 == 0


def drawn(
    duration: float, evidence: list[tuple[float, float]], draws: int = 3000
) -> list[tuple[tuple[float, float], ...]]:
    return [template_windows(duration, evidence, np.random.default_rng(seed)) for seed in range(draws)]


def test_with_gold_windows_six_in_ten_show_them() -> None:
    found = drawn(400, [(100.5, 110.2), (105, 120), (300, 310)])
    whole, none = ((0.0, 400.0),), ()
    shares = Counter("whole" if w == whole else "none" if w == none else "gold" for w in found)
    for name, share in (("gold", 0.6), ("whole", 0.2), ("none", 0.2)):
        assert shares[name] / len(found) == pytest.approx(share, abs=0.03)
    gold = [w for w in found if w not in (whole, none)]
    assert {len(w) for w in gold} == {2}, "windows that overlap are one"
    lefts, rights = {w[0][0] for w in gold}, {w[0][1] for w in gold}
    assert lefts == set(np.arange(95.0, 101.0)) and rights == set(np.arange(120.0, 126.0))


def test_at_most_three_of_many_gold_windows() -> None:
    many = [(50.0 * i, 50.0 * i + 10) for i in range(7)]
    sizes = Counter(len(w) for w in drawn(400, many, 500))
    assert set(sizes) == {0, 1, 3}
    firsts = {w[0][0] // 50 for w in drawn(400, many, 500) if len(w) == 3}
    assert len(firsts) > 2, "which three is drawn"


@pytest.mark.parametrize(("duration", "most"), [(20.0, 1), (29.9, 1), (100.0, 2), (400.0, 3)])
def test_without_gold_windows_one_in_ten_shows_some_of_the_video(duration: float, most: int) -> None:
    found = drawn(duration, [], 4000)
    whole = ((0.0, float(int(duration))),)
    other = [w for w in found if w != whole]
    assert len(other) / len(found) == pytest.approx(0.1, abs=0.02)
    assert {len(w) for w in other} == set(range(most + 1))
    lengths = {end - start for w in other for start, end in w}
    assert min(lengths) == 16 and max(lengths) <= max(16, duration // 8)


def test_a_task_keeps_its_windows_whatever_stands_beside_it(task: Task) -> None:
    tasks = [task.model_copy(update={"id": name}) for name in "abcdef"]
    alone = list(template_episodes(tasks[3:4], PRESET, seed=7))
    beside = list(template_episodes(tasks, PRESET, seed=7))
    other = list(template_episodes(tasks, PRESET, seed=8))
    assert all(isinstance(one, Trajectory) for one in (*alone, *beside, *other))
    seen = [[one.task.seen for one in made if isinstance(one, Trajectory)] for made in (alone, beside, other)]
    assert seen[0][0] == seen[1][3]
    assert len(set(seen[1])) > 1 and seen[1] != seen[2]


def test_an_episode_says_the_answer_beside_its_windows(task: Task) -> None:
    tasks = [task.model_copy(update={"id": str(i)}) for i in range(12)]
    sizes = set()
    for made in template_episodes(tasks, PRESET, seed=1):
        assert isinstance(made, Trajectory)
        (step,) = made.steps
        assert step.text == "I get the answer.\n\n\\boxed{B}" and made.outcome.correct
        overview, *clips = [clip for message in made.context(0) for clip in message.clips]
        assert (overview.start, overview.end) == (0, 20)
        assert [(clip.start, clip.end) for clip in clips] == list(made.task.seen)
        assert all(clip.num_frames == min(32, 2 * clip.seconds) for clip in clips)
        sizes.add(len(clips))
        assert replay(made).same
    assert sizes == {0, 1}


def test_several_windows_have_sixteen_frames_each(make_video: Callable[..., Path]) -> None:
    video = make_video(seconds=130, fps=2)
    task = Task(id="x", videos=(video,), question="?", answer="red", answer_kind="text", evidence=((10, 30), (60, 90)))
    for seed in range(20):
        (made,) = template_episodes([task], PRESET, seed=seed)
        assert isinstance(made, Trajectory)
        if len(made.task.seen) == 2:
            _, *clips = [clip for message in made.context(0) for clip in message.clips]
            assert [clip.num_frames for clip in clips] == [16, 16]
            return
    raise AssertionError("no draw of twenty showed the gold windows")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": None}, "no gold answer"),
        ({"videos": ()}, "no video"),
        ({"videos": (Path("/nowhere/film.mp4"),)}, "film.mp4"),
        ({"options": (), "answer": "a } b", "answer_kind": "text"}, "braces"),
    ],
)
def test_what_is_no_episode_is_a_named_fault(task: Task, changes: dict[str, object], says: str) -> None:
    (made,) = template_episodes([task.model_copy(update=changes)], PRESET, seed=0)
    assert isinstance(made, Fault) and made.task == task.id and says in made.reason
