"""LOVE-R1's two kinds of sample from its annotation rows to an update: answers, and windows that are asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.models.load import load_adapter
from closeup.agent.policies.base import Completion, Policy, Request, TokenCallback
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task, load_tasks
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import load_config
from closeup.rl.data.convert import VideoFinder, convert
from closeup.rl.generation import TrainGroup
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.reward_config import build_rewards
from closeup.rl.rollout import Rollouts
from closeup.rl.starts import grounding_preset, is_grounding, opening

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "love_r1" / "stage3.yaml"
LOVE = get_preset("love_r1-grpo")

ROW = {
    "problem": "Which digit is in the red box?",
    "problem_type": "multiple choice",
    "options": ["A. 3", "B. 7"],
    "solution": "<answer>B</answer>",
    "path": "film.mp4",
    "data_type": "video",
    "tgt": None,
    "zoomin_intervals": [[2, 4]],
}
ROWS = [ROW | {"id": "answer"}, ROW | {"id": "where", "tgt": [[12, 14]]}]


def zoom(start: int, end: int) -> str:
    return f"{ZOOM_PREFIX}\\boxed{{[{start}, {end}]}}"


def box(letter: str) -> str:
    return f"{ANSWER_PREFIX}\\boxed{{{letter}}}"


SCRIPTS = {
    "love_r1-answer/0": [zoom(12, 14), box("B")],
    "love_r1-answer/1": [zoom(6, 8), box("A")],
    "love_r1-answer/2": [box("B")],
    "love_r1-answer/3": [zoom(6, 8), zoom(9, 9)],  # a second zoom, and no window: masked
    "love_r1-where/0": [zoom(13, 15)],
    "love_r1-where/1": [zoom(15, 17)],
    "love_r1-where/2": ["There: 13 to 15"],
    "love_r1-where/3": [zoom(2, 3)],
    "love_r1-where-seen/0": [zoom(13, 15)],
    "love_r1-where-seen/1": [zoom(2, 4)],  # what was watched before
    "love_r1-where-seen/2": [zoom(10, 13)],
    "love_r1-where-seen/3": [zoom(6, 8)],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, make_video: Any) -> list[Task]:
    """Three tasks that `closeup data convert` makes of two rows."""
    folder = tmp_path_factory.mktemp("love")
    (folder / "film.mp4").write_bytes(make_video(seconds=20, fps=4).read_bytes())
    (folder / "love.json").write_text(json.dumps(ROWS), encoding="utf-8")
    done = convert(folder / "love.json", folder / "tasks.jsonl", layout="love_r1", videos=VideoFinder([folder]))
    assert done.faults == ()
    return load_tasks(folder / "tasks.jsonl")


def test_which_tasks_begin_with_a_zoom(tasks: list[Task]) -> None:
    answer, where, seen = tasks
    assert [is_grounding(task) for task in tasks] == [False, True, True]
    assert grounding_preset(LOVE) == get_preset("love_r1-grpo-grounding")
    assert opening(answer, LOVE)[0].assistant_prefix == "" and opening(answer, LOVE)[1] == LOVE
    for task in (where, seen):
        start, preset = opening(task, LOVE, rollout=3)
        assert (start.assistant_prefix, start.rollout, preset) == (ZOOM_PREFIX, 3, grounding_preset(LOVE))
        for other in (get_preset("default"), LOVE.model_copy(update={"tools": ("answer",)})):
            assert opening(task, other) == (opening(task, other)[0], other)
            assert opening(task, other)[0].assistant_prefix == ""
    evaluated = grounding_preset(get_preset("love_r1"))  # one that forces its last message does not force this one
    assert (evaluated.budget.max_steps, evaluated.last_message, evaluated.after_fault) == (1, "free", "end")


def test_a_mix_of_samples_is_rolled_out_in_order_each_in_its_way(tasks: list[Task]) -> None:
    rewards = build_rewards("love_r1")
    make = Rollouts(
        ScriptedPolicy(SCRIPTS | {"love_r1-where/4": [zoom(13, 14)], "love_r1-answer/4": [box("B")]}),
        LOVE,
        num_generations=4,
        rewards=rewards.immediate,
        scorers=rewards.scorers,
        greedy=True,
    )
    answer, where, seen = tasks
    groups = make.groups([where, answer], seed=0)
    assert [group.task.id for group in groups] == ["love_r1-where", "love_r1-answer"]
    assert [[t.id for t in group.trajectories] for group in groups] == [
        [f"{task.id}/{i}" for i in range(4)] for task in (where, answer)
    ]
    assert [group.greedy.id for group in groups if group.greedy] == ["love_r1-where/4", "love_r1-answer/4"]
    looked, answered = groups
    assert all(len(t.steps) == 1 and t.start.assistant_prefix == ZOOM_PREFIX for t in looked.trajectories)
    assert [t.steps[0].text.startswith(ZOOM_PREFIX) for t in looked.trajectories] == [True] * 4
    assert {t.settings["preset"]["name"] for t in looked.trajectories} == {"love_r1-grpo-grounding"}
    assert {t.settings["preset"]["name"] for t in answered.trajectories} == {"love_r1-grpo"}
    assert [len(t.steps) for t in answered.trajectories] == [2, 2, 1, 2]
    (before,) = make.groups([seen], seed=0)
    shown = [[clip.start for m in t.context(0) for clip in m.clips] for t in before.trajectories]
    assert shown == [[0, 2]] * 4, "the overview and what was watched before"
    for group in (*groups, before):
        assert all(replay(t, rewards=rewards.immediate).same for t in group.trajectories)
    make.close()


class Told(Policy):
    """Says what the script says, in the tokens of a model, as if the model had sampled them."""

    def __init__(self, model: TransformersPolicy, script: ScriptedPolicy) -> None:
        self.name, self.geometry, self.max_context = "told", model.geometry, None
        self.adapter, self._script = model.adapter, script

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        done = []
        for request, said in zip(requests, self._script.generate(requests), strict=True):
            assert not said.error, said.error
            prefix = request.assistant_prefix
            encoded = self.adapter.encode(request.messages, request.videos, assistant_prefix=prefix)
            done.append(
                Completion(
                    said.text,
                    ids=self.adapter.message_ids(said.text.removeprefix(prefix)),
                    prompt_ids=encoded.ids,
                    clips={item.record.clip.key: item.record for item in encoded.media},
                )
            )
        return done

    def forget(self, episode_id: str) -> None:
        self._script.forget(episode_id)

    def settings(self) -> dict[str, Any]:
        adapter = self.adapter
        return {"policy": "told", "tokenizer": adapter.tokenizer_digest, "timestamps": adapter.timestamps}


@pytest.fixture
def small() -> Preset:
    """LOVE-R1's preset with frames that the bundled model reads in no time."""
    overview = LOVE.overview.model_copy(update={"pixels": 28 * 28, "fps": 1.0})
    return LOVE.model_copy(
        update={"overview": overview, "rules": LOVE.rules.model_copy(update={"zoom_pixels": 4 * 28 * 28})}
    )


def normalised(*rewards: float) -> np.ndarray[Any, Any]:
    found = np.array(rewards)
    return np.asarray((found - found.mean()) / (found.std(ddof=1) + 1e-4))


def test_the_recipe_trains_on_a_mix_of_answer_and_grounding_samples(
    tasks: list[Task], small: Preset, tmp_path: Path
) -> None:
    words = {
        "model": "tiny-half",
        "output_dir": tmp_path / "run",
        "tasks.file": tasks[0].videos[0].parent / "tasks.jsonl",
        "num_generations": 4,
        "max_steps": 1,
        "per_device_train_batch_size": 3,  # one update sees every kind
        "shuffle_dataset": "false",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "attention_core": "segment",
        "bf16": "false",
        "use_cpu": "true",
        "save_steps": 0,
        "vllm_importance_sampling_correction": "false",  # a script has no log-probabilities
    }
    config = load_config(GRPOConfig, RECIPE, [f"--{key}={value}" for key, value in words.items()])
    adapter = load_adapter("tiny-half", device="cpu", timestamps="position")
    policy = Told(TransformersPolicy(adapter), ScriptedPolicy(SCRIPTS))
    trainer = GRPOTrainer(adapter, config, small, load_tasks(Path(str(words["tasks.file"]))), policy=policy)
    before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
    groups: list[TrainGroup] = []
    generate = trainer._generate
    trainer._generate = lambda number: groups.extend(generate(number)) or groups  # type: ignore[func-returns-value]
    trainer.train()
    trainer.rollouts.close()

    assert not [t.outcome.reason for group in groups for t in group.trajectories if t.outcome.failed]
    answer, where, seen = groups
    # an answer sample: accuracy + format of each step, the masked rollout in neither
    right, wrong = 2.0, 1.0
    np.testing.assert_allclose(answer.advantages[:3, 0], normalised(right, wrong, right), atol=1e-9)
    np.testing.assert_allclose(answer.advantages[:2, 1], normalised(right, wrong), atol=1e-9)
    assert not answer.reached[3].any() and not answer.advantages[3].any()
    # grounding samples: 1 for any overlap with [12, 14], nothing for a message that cannot be read or a window again
    np.testing.assert_allclose(where.advantages[:, 0], normalised(2, 1, 0, 1), atol=1e-9)
    np.testing.assert_allclose(seen.advantages[:, 0], normalised(2, 0, 2, 1), atol=1e-9)
    assert where.advantages.shape == seen.advantages.shape == (4, 1)

    for group in (where, seen):  # the sentence that was begun for the model is context, and not learnt
        assert group.tree is not None
        begun = len(adapter.message_ids(ZOOM_PREFIX, closed=False))
        assert begun > 5
        for index, trajectory in enumerate(group.trajectories):
            learnt = int((group.tree.targets.rollout == index).sum())
            assert learnt == len(trajectory.steps[0].ids or ()) < len(adapter.message_ids(trajectory.steps[0].text))
    moved = [name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])]
    assert moved and not any("visual" in name for name in moved)
    logged = trainer.state.log_history
    assert any(np.isfinite(entry.get("loss", np.nan)) and entry["grad_norm"] > 0 for entry in logged if "loss" in entry)
