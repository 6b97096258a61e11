"""What the model is trained on is what the environment shows, token for token; and the expert is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from closeup.agent.environment import VideoQAEnv
from closeup.agent.models.load import load_adapter
from closeup.agent.models.qwen2_5_vl import Qwen25VLAdapter
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.rl.data.needles import EVALUATION_SEEDS, plan, write
from closeup.rl.tiny.checkpoint import new_model, save_checkpoint
from closeup.rl.tiny.experts import expert_messages, expert_sample
from closeup.rl.tiny.vocabulary import END, build_tokenizer

SEED = EVALUATION_SEEDS + 78
LENGTHS = [(16, 30), (40, 60), (70, 90), (100, 120)]  # one per spacing of the overview


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Qwen25VLAdapter:
    folder = tmp_path_factory.mktemp("untrained")
    save_checkpoint(new_model(), folder)
    loaded = load_adapter(str(folder))
    assert isinstance(loaded, Qwen25VLAdapter)
    return loaded


@pytest.mark.parametrize("seconds", LENGTHS, ids=lambda s: f"{s[0]}s")
def test_replayed_expert_answers_right_and_saw_the_very_tokens_of_training(
    seconds: tuple[int, int], adapter: Qwen25VLAdapter, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer()
    for index, task in enumerate(load_tasks(write(4, SEED, tmp_path, seconds))):
        scene, needle, _ = plan(SEED, index, seconds)
        sample = expert_sample(scene, needle, tokenizer)
        with VideoQAEnv(get_preset("tiny"), geometry=adapter.geometry) as env:
            observation = env.reset(task)
            encoded = adapter.encode(observation.messages, observation.videos)
            ids, media = list(encoded.ids), list(encoded.media)
            for message in expert_messages(scene, needle, tokenizer):
                result = env.step(message)
                assert result.info.outcome == "ok", result.info.note
                ids += [*tokenizer.encode(message).ids, END]
                if not result.terminated:
                    more = adapter.encode(result.observation.messages, observation.videos, first=False)
                    ids, media = ids + list(more.ids), media + list(more.media)
        assert result.info.answer is not None
        assert result.info.answer.text == needle.answer
        assert result.info.answer.evidence and not result.info.dropped
        assert ids == sample.ids.tolist()
        assert np.array_equal(adapter.positions(ids, media), sample.positions)
