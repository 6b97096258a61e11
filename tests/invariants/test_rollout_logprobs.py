"""What the policy recorded while sampling equals what the trainer's tree forward says of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from closeup.agent.episode import run_episodes
from closeup.agent.policies.base import Sampling
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.agent.trajectory import Trajectory
from closeup.rl.data.needles import write
from closeup.rl.forward import TreeForward
from closeup.rl.render import with_ids
from closeup.rl.rows import RowError, rows_of
from closeup.rl.tree import build_tree

TEMPERATURE = 1.3


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[TransformersPolicy, list[Trajectory]]:
    """Six sampled episodes of one task by the half-trained model."""
    folder: Path = tmp_path_factory.mktemp("needles")
    write(1, 7, folder, seconds=(30, 40))
    (task,) = load_tasks(folder / "tasks.jsonl")
    policy = TransformersPolicy("tiny-half")
    preset = get_preset("tiny")
    found = run_episodes(
        [task],
        policy,
        preset=preset,
        rollouts=6,
        sampling=Sampling(temperature=TEMPERATURE, max_new_tokens=preset.budget.max_new_tokens),
        seed=5,
    )
    assert all(not t.outcome.failed for t in found)
    return policy, found


def scores(policy: TransformersPolicy, trajectories: list[Trajectory], temperature: float = TEMPERATURE) -> Any:
    adapter = policy.adapter
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, adapter, rollout=i)]
    tree = build_tree(rows, adapter)

    def frames(item: Any) -> Any:
        raise AssertionError("every clip was encoded while the episodes ran")

    with torch.no_grad():
        features = policy.media.features(tree.media, frames)
        return tree, TreeForward(adapter, temperature=temperature).scores(tree, features)


def test_recorded_log_probabilities_are_the_trainers(group: Any) -> None:
    policy, trajectories = group
    assert sum(len(t.steps) for t in trajectories) > len(trajectories), "some episodes look before they answer"
    tree, found = scores(policy, trajectories)
    assert len(tree.targets) == sum(len(s.ids or ()) for t in trajectories for s in t.steps)
    overview = len(trajectories[0].steps[0].prompt_ids or ())
    assert len(tree) <= tree.row_tokens - 5 * overview, "six episodes share their overview"
    np.testing.assert_allclose(found.logprobs.numpy(), tree.targets.logprob, atol=1e-4)
    assert (found.entropy >= 0).all()


def test_control_another_temperature_is_another_distribution(group: Any) -> None:
    tree, found = scores(*group, temperature=1.0)
    assert np.abs(found.logprobs.numpy() - tree.targets.logprob).max() > 1e-2


def test_a_record_without_ids_is_rendered_as_it_was_shown(group: Any) -> None:
    policy, trajectories = group
    for trajectory in trajectories:
        bare = trajectory.model_copy(
            update={
                "steps": tuple(
                    s.model_copy(update={"prompt_ids": None, "ids": None, "logprobs": None}) for s in trajectory.steps
                )
            }
        )
        with pytest.raises(RowError, match="with_ids"):
            rows_of(bare, policy.adapter)
        again = with_ids(bare, policy.adapter)
        assert [s.prompt_ids for s in again.steps] == [s.prompt_ids for s in trajectory.steps]
        assert {k: c.digest for k, c in again.clips.items()} == {k: c.digest for k, c in trajectory.clips.items()}
        spoken = [policy.adapter.decode(s.ids or ()) for s in again.steps]
        assert spoken == [policy.adapter.decode(s.ids or ()) for s in trajectory.steps]
        assert with_ids(trajectory, policy.adapter) is trajectory


def test_long_rows_are_cut_after_whole_messages(group: Any) -> None:
    policy, trajectories = group
    longest = max(trajectories, key=lambda t: len(t.steps))
    (whole,) = rows_of(longest, policy.adapter)
    for limit in range(len(whole.ids) + 1, whole.spans[0].begin, -7):
        cut = rows_of(longest, policy.adapter, max_tokens=limit)
        if not cut:
            assert limit < whole.spans[0].end
            continue
        (row,) = cut
        assert len(row.ids) <= limit and len(row.ids) == row.spans[-1].end
        assert (row.ids == whole.ids[: len(row.ids)]).all()
        assert (row.positions == whole.positions[:, : len(row.ids)]).all()
        pads = int(np.isin(row.ids, policy.adapter.pad_ids).sum())
        assert pads == sum(m.record.tokens for m in row.media)


def test_an_empty_last_message_takes_its_clips_along(group: Any) -> None:
    """A policy may end at once (text "", finish "length"): no ids to learn, and what was shown before them is cut."""
    policy, trajectories = group
    looked = next(
        t for t in trajectories if any(message.clips for message in t.steps[-1].messages) and len(t.steps) > 1
    )
    nothing = {"text": "", "ids": (), "logprobs": (), "finish": "length"}
    ended = looked.model_copy(update={"steps": (*looked.steps[:-1], looked.steps[-1].model_copy(update=nothing))})
    shorter = looked.model_copy(update={"steps": looked.steps[:-1]})
    (row,), (wanted,) = rows_of(ended, policy.adapter), rows_of(shorter, policy.adapter)
    assert [span.step for span in row.spans] == list(range(len(shorter.steps)))
    assert (row.ids == wanted.ids).all() and (row.positions == wanted.positions).all()
    assert row.media == wanted.media and len(row.media) < len(rows_of(looked, policy.adapter)[0].media)
    bare = {"prompt_ids": None, "ids": None, "logprobs": None}
    untold = ended.model_copy(update={"steps": tuple(s.model_copy(update=bare) for s in ended.steps)})
    (rendered,) = rows_of(with_ids(untold, policy.adapter), policy.adapter)
    assert len(rendered.media) == len(wanted.media)


def test_a_clip_without_a_record_is_named(group: Any) -> None:
    policy, trajectories = group
    with pytest.raises(RowError, match="no record"):
        rows_of(trajectories[0].model_copy(update={"clips": {}}), policy.adapter)
