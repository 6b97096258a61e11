"""A preset's resizer reaches every frame of an episode, its record and its replay; sizes are the stock processors'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset, PresetError, get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from closeup.rl.rewards import DEFAULT_REWARDS
from closeup.rl.rollout import Rollouts
from closeup.tools.video import Clip, Video, cache_stats, clear_caches

Say = Callable[..., str]


@pytest.fixture
def bicubic(preset: Preset) -> Preset:
    return preset.model_copy(update={"overview": preset.overview.model_copy(update={"resizer": "bicubic"})})


def run(task: Task, preset: Preset, say: Say) -> Trajectory:
    script = [
        say("zoom_clip", start=12, end=13, thought="red at 12s"),
        say("resample_frames", start=2, end=4.5, num_frames=5),
        say("answer", choice="B", evidence=[[12, 13]]),
    ]
    (done,) = run_episodes([task], ScriptedPolicy(script), preset=preset, rewards=DEFAULT_REWARDS)
    return done


def test_every_clip_of_an_episode_is_resized_so_and_the_record_says_it(
    task: Task, bicubic: Preset, say: Say, tmp_path: Path
) -> None:
    done = run(task.model_copy(update={"seen": ((1.0, 2.0),)}), bicubic, say)
    assert {record.clip.resizer for record in done.clips.values()} == {"bicubic"} and len(done.clips) == 4
    write_trajectories(tmp_path / "runs.jsonl", [done])
    (read,) = read_trajectories(tmp_path / "runs.jsonl")
    assert read == done and read.settings["preset"]["overview"]["resizer"] == "bicubic"
    report = replay(read, rewards=DEFAULT_REWARDS)
    assert report.same and report.steps == 3, [str(difference) for difference in report.differences]
    settings = json.loads(json.dumps(read.settings))
    settings["preset"]["overview"]["resizer"] = "swscale-bilinear"
    other = replay(read.model_copy(update={"settings": settings}), rewards=DEFAULT_REWARDS)
    assert "context" in str(other.differences[0]), "another resizer is another observation"


def test_the_whole_look_after_a_fault_is_resized_so(task: Task, say: Say) -> None:
    love = get_preset("love_r1")
    love = love.model_copy(update={"overview": love.overview.model_copy(update={"resizer": "bicubic"})})
    (done,) = run_episodes([task], ScriptedPolicy(["no box at all", r"\boxed{B}"]), preset=love)
    assert len(done.clips) == 2 and {record.clip.resizer for record in done.clips.values()} == {"bicubic"}


def test_records_made_before_there_was_a_choice_replay_the_same(task: Task, preset: Preset, say: Say) -> None:
    done = run(task, preset, say)
    assert '"resizer":"swscale-bilinear"' in json.dumps(done.settings, separators=(",", ":"))
    old = json.loads(done.model_dump_json())
    del old["settings"]["preset"]["overview"]["resizer"], old["settings"]["used"]
    assert '"resizer"' not in json.dumps(old), "clips of the default resizer are written as they were"
    report = replay(Trajectory.model_validate(old), rewards=DEFAULT_REWARDS)
    assert report.same and report.steps == 3, [str(difference) for difference in report.differences]


def test_an_adapter_shows_those_pixels_and_names_them(task: Task, tmp_path: Path) -> None:
    adapter = load_adapter(str(write_random_checkpoint(tmp_path / "random")), device="cpu")
    with Video(task.videos[0]) as video:
        clip = Clip(video=video.identity, start=0, end=8, num_frames=4, pixels=56 * 56)
        shown = {}
        for resizer in ("swscale-bilinear", "bicubic"):
            asked = clip.model_copy(update={"resizer": resizer})
            encoded = adapter.encode([Message.of("user", asked)], {video.identity: video})
            (media,) = encoded.media
            assert media.record.clip.resizer == resizer
            frames = video.frames(clip.times(), media.record.size, resizer=resizer)  # type: ignore[arg-type]
            np.testing.assert_array_equal(encoded.frames[media.key], frames.pixels)
            shown[resizer] = encoded
        one, other = shown.values()
        assert one.ids == other.ids and one.media[0].key != other.media[0].key


def test_what_is_decoded_ahead_is_what_the_episode_asks_for(task: Task, bicubic: Preset) -> None:
    """The trainer's prefetch fills the frame cache with the preset's own frames, and with no others."""
    ahead = Rollouts(ScriptedPolicy([]), bicubic, num_generations=1, rewards={})
    clear_caches()
    ahead.prefetch([task]).result()
    ahead.close()
    stored = cache_stats()["frames"].entries
    assert stored
    with Video(task.videos[0]) as video:
        clip = bicubic.overview.clip(video.identity, video.duration)
        size = ahead.policy.geometry.size(video.width, video.height, clip.pixels)
        video.frames(clip, size)
        assert cache_stats()["frames"].entries == stored
        video.frames(clip.model_copy(update={"resizer": "swscale-bilinear"}), size)
        assert cache_stats()["frames"].entries == 2 * stored


def test_a_preset_file_names_it_and_a_wrong_name_is_refused(tmp_path: Path, bicubic: Preset) -> None:
    path = tmp_path / "mine.json"
    path.write_text(bicubic.model_dump_json())
    assert get_preset(str(path)) == bicubic
    path.write_text(json.dumps({"name": "mine", "overview": {"resizer": "lanczos"}}))
    with pytest.raises(PresetError, match="overview.resizer: Input should be 'swscale-bilinear' or 'bicubic'"):
        get_preset(str(path))
