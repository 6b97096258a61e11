"""Episodes of a real (random) model: their ids are exact, they do not depend on company, and they replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from closeup.agent.episode import Start, run_episodes
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.base import Sampling
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from closeup.rl.rewards import DEFAULT_REWARDS
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

WARM = Sampling(temperature=1.0, max_new_tokens=10)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TransformersPolicy:
    folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random")
    return TransformersPolicy(load_adapter(str(folder), device="cpu", timestamps="text"))


@pytest.fixture(scope="module")
def short() -> Preset:
    tiny = get_preset("tiny")
    return tiny.model_copy(update={"budget": tiny.budget.model_copy(update={"max_steps": 3})})


@pytest.fixture(scope="module")
def starts(make_video: Callable[..., Path]) -> list[Start]:
    """Three episodes of different lengths: two videos, and one that starts with a close look behind it."""
    tasks = [
        Task(id=f"t{i}", videos=(make_video(seconds=s, shade=40 * i),), question=f"Which digit {'is it ' * i}?")
        for i, s in enumerate((4.0, 8.0))
    ]
    with Video(tasks[1].videos[0]) as video:
        seen = Clip(video=video.identity, start=1, end=2, num_frames=5, pixels=56 * 56)
    return [Start(tasks[0]), Start(tasks[1]), Start(tasks[1], seen_clips=(seen,), rollout=1)]


def run(policy: TransformersPolicy, starts: list[Start], preset: Preset, **rest: int) -> list[Trajectory]:
    return run_episodes(starts, policy, preset=preset, rewards=DEFAULT_REWARDS, sampling=WARM, seed=11, **rest)


@pytest.fixture(scope="module")
def together(policy: TransformersPolicy, starts: list[Start], short: Preset) -> list[Trajectory]:
    return run(policy, starts, short)


def test_recorded_ids_are_the_rendering_with_the_sampled_ids_in_it(
    policy: TransformersPolicy, together: list[Trajectory]
) -> None:
    for trajectory in together:
        assert [step.parent for step in trajectory.steps] == [None, 0, 1]
        videos = {identity: Video(record.path) for identity, record in trajectory.videos.items()}
        ids: list[int] = []
        for index, step in enumerate(trajectory.steps):
            closed = not ids or ids[-1] == policy.adapter.stop_ids[0]
            shown = policy.adapter.encode(
                step.messages, videos, first=not index, closed=closed, assistant_prefix=step.assistant_prefix
            )
            assert step.prompt_ids == shown.ids and step.ids is not None and step.logprobs is not None
            assert [m.record.clip.key for m in shown.media] == [c.key for m in step.messages for c in m.clips]
            ids += shown.ids
            assert trajectory.full_prompt_ids(index) == tuple(ids)
            ids += step.ids
            assert step.context_tokens == len(ids) and len(step.logprobs) == len(step.ids)
            assert not set(step.ids) & set(policy.adapter.suppressed_ids)
            said = [i for i in step.ids if i not in policy.adapter.stop_ids]
            assert step.text == step.assistant_prefix + policy.adapter.decode(said)
        for video in videos.values():
            video.close()


def test_every_clip_is_recorded_with_its_real_times(together: list[Trajectory]) -> None:
    for trajectory in together:
        shown = {clip.key for step in trajectory.steps for message in step.messages for clip in message.clips}
        assert shown == set(trajectory.clips)
        for record in trajectory.clips.values():
            assert len(record.times) == len(record.clip.times())
            assert all(real <= asked + 1e-9 for real, asked in zip(record.times, record.clip.times(), strict=True))
        assert trajectory.outcome.visual_tokens == sum(record.tokens for record in trajectory.clips.values())


def test_an_episode_does_not_depend_on_its_company(
    policy: TransformersPolicy, starts: list[Start], short: Preset, together: list[Trajectory]
) -> None:
    alone = [run(policy, [start], short)[0] for start in starts]
    in_turn = run(policy, starts[::-1], short, max_live=2)[::-1]
    for one, other, third in zip(together, alone, in_turn, strict=True):
        assert [step.ids for step in one.steps] == [step.ids for step in other.steps]
        assert [step.ids for step in one.steps] == [step.ids for step in third.steps]
    assert len({trajectory.steps[0].ids for trajectory in together}) == 3


def test_a_models_episode_replays_the_same(together: list[Trajectory], tmp_path: Path) -> None:
    write_trajectories(tmp_path / "runs.jsonl", together)
    for trajectory in read_trajectories(tmp_path / "runs.jsonl"):
        report = replay(trajectory, rewards=DEFAULT_REWARDS)
        assert report.same and report.steps == 3, [str(difference) for difference in report.differences]
        assert trajectory.outcome.truncated and trajectory.steps[-1].forced
        assert trajectory.steps[-1].rewards["format"] is not None
