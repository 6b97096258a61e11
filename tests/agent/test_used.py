"""What an episode really used is in its record: frames, sizes, rates, tokens, and digests that follow the templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from closeup import prompts
from closeup.agent.agent import Agent
from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import PRESETS, get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories

LOVE = [f"{ZOOM_PREFIX}\\boxed{{[50, 51]}}", f"{ANSWER_PREFIX}\\boxed{{B}}"]


@pytest.fixture
def film(make_video: Callable[..., Path]) -> Task:
    video = make_video(seconds=70, fps=2, size=(112, 112))
    return Task(id="film", videos=(video,), question="Which digit?", options=("3", "7"), answer="7")


def run(task: Task, preset: str, script: list[str]) -> Trajectory:
    (done,) = run_episodes([task], ScriptedPolicy(script), preset=get_preset(preset))
    assert not done.outcome.failed, done.outcome.reason
    return done


def test_frames_sizes_rates_and_tokens(film: Task) -> None:
    done = run(film, "love_r1", LOVE)
    used = done.settings["used"]
    overview, look = used["clips"].values()
    assert (overview["role"], overview["frames"], overview["fps"]) == ("overview", 140, round(139 / 70, 4))
    assert (overview["height"], overview["width"], overview["pixels"]) == (112, 112, 112 * 112)
    assert (overview["overlay"], overview["resizer"]) == ("seconds", "bicubic")
    assert (look["role"], look["frames"]) == ("look", 22)
    assert used["frames"] == done.outcome.frames == 162
    assert used["visual_tokens"] == done.outcome.visual_tokens == overview["tokens"] + look["tokens"]
    assert not overview["shown"], "a scripted policy looks at no frame"
    assert used["context_tokens"] is None
    assert replay(done).same


def test_what_a_model_saw_is_told_by_the_model(task: Task, tmp_path: Path) -> None:
    agent = Agent.from_pretrained("tiny-half", device="cpu")
    done = agent.run(task)
    used = done.settings["used"]
    assert set(used["clips"]) == set(done.clips)
    for key, clip in used["clips"].items():
        record = done.clips[key]
        if record.times:
            assert clip["shown"] and (clip["height"], clip["width"]) == record.size
            assert clip["frames"] == len(record.times) and clip["tokens"] == record.tokens
            assert clip["different_frames"] == len(set(record.times))
    assert used["context_tokens"] == max(step.context_tokens or 0 for step in done.steps) > 0
    write_trajectories(tmp_path / "t.jsonl", [done])
    (again,) = read_trajectories(tmp_path / "t.jsonl")
    assert again.settings["used"] == used


def test_a_video_with_fewer_frames_than_asked_for_shows_some_twice(make_video: Callable[..., Path]) -> None:
    video = make_video(seconds=20, fps=1, size=(112, 112))
    task = Task(id="slow", videos=(video,), question="Which digit?", options=("3", "7"))
    done = Agent.from_pretrained("tiny-half", device="cpu").run(task)
    overview = next(clip for clip in done.settings["used"]["clips"].values() if clip["role"] == "overview")
    assert (overview["frames"], overview["different_frames"]) == (40, 20)


def changed(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """One template of the set love_r1 says one word more."""
    real = prompts._environment()
    assert real.loader is not None
    loader = real.loader

    def load(name: str) -> str | None:
        try:
            source = loader.get_source(real, name)[0]
        except jinja2.TemplateNotFound:
            return None
        return source + "indeed" if name == f"love_r1/{template}.jinja" else source

    other = jinja2.Environment(
        loader=jinja2.FunctionLoader(load), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = real.list_templates(["jinja"])
    monkeypatch.setattr(other, "list_templates", lambda *_: names)
    monkeypatch.setattr(prompts, "_environment", lambda: other)
    prompts._load.cache_clear()


@pytest.mark.parametrize("template", prompts.TEMPLATES)
def test_a_changed_template_changes_the_record(
    film: Task, template: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(prompts._load.cache_clear)
    before = run(film, "love_r1", LOVE)
    changed(monkeypatch, template)
    after = run(film, "love_r1", LOVE)
    old, new = before.settings["used"], after.settings["used"]
    differing = {name for name in prompts.TEMPLATES if old["templates"][name] != new["templates"][name]}
    assert differing == {template}
    assert before.settings["prompts"]["fingerprint"] != after.settings["prompts"]["fingerprint"]
    assert (old["system"] != new["system"]) is (template == "system")
    assert len(old["system"]) == 16


def test_the_system_message_follows_what_is_rendered_into_it(film: Task) -> None:
    """The same templates, and other words: mining draws no seconds."""
    shown, hidden = run(film, "love_r1", LOVE), run(film, "love_r1-mining", LOVE[:1])
    assert shown.settings["used"]["templates"] == hidden.settings["used"]["templates"]
    assert shown.settings["used"]["system"] != hidden.settings["used"]["system"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_records_what_it_used(film: Task, name: str) -> None:
    preset = get_preset(name)
    dialect: Any = get_dialect(preset.dialect)
    done = run(film, name, [dialect.write("", ToolCall("answer", {"choice": "B"}))])
    used = done.settings["used"]
    assert set(used["templates"]) == set(prompts.TEMPLATES)
    assert used["frames"] == done.outcome.frames > 0 and used["visual_tokens"] == done.outcome.visual_tokens
    assert all(clip["fps"] and clip["pixels"] for clip in used["clips"].values())


def test_an_episode_that_could_not_begin_has_used_nothing(tmp_path: Path) -> None:
    task = Task(id="gone", videos=(tmp_path / "gone.mp4",), question="?")
    (done,) = run_episodes([task], ScriptedPolicy(["B"]), preset=get_preset("internvl3"))
    assert done.outcome.failed
    used = done.settings["used"]
    assert (used["frames"], used["visual_tokens"], used["system"], used["clips"]) == (0, 0, "", {})
