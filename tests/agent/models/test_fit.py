"""What a first prompt takes is counted without frames or weights, and is what the episode then really reads."""

import pytest

from closeup.agent.budget import SHORTEST_ANSWER
from closeup.agent.episode import run_episodes
from closeup.agent.models import fit
from closeup.agent.models.fit import Film, FitError
from closeup.agent.models.load import FAMILIES, ModelError, empty_adapter, load_adapter
from closeup.agent.models.testing import WRITERS, write_random_checkpoint
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.video import Video

FILM = Film(600, 640, 360)


def brief(**overview):
    """The default preset, with a budget that the small checkpoints' contexts can hold."""
    preset = get_preset("default")
    budget = preset.budget.model_copy(update={"max_steps": 1, "max_new_tokens": 4})
    small = preset.overview.model_copy(update={"pixels": 28 * 28, "max_frames": 20, **overview})
    return preset.model_copy(update={"budget": budget, "overview": small})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("families")
    return {family: str(write_random_checkpoint(place / family, family=family)) for family in WRITERS}


def task_of(path, question="Which digit is shown? é 你好"):
    return Task(id="one", videos=(path,), question=question)


def test_every_family_has_small_checkpoints():
    assert set(WRITERS) == set(FAMILIES)


@pytest.mark.parametrize("family", WRITERS)
def test_the_count_is_that_of_the_episode(folders, family, make_video):
    path = make_video(seconds=8.0, fps=8, size=(64, 96))  # frames begin at the very times that are asked for
    preset, task = brief(), task_of(path)
    with Video(path) as video:
        counted = fit.first_prompt(empty_adapter(folders[family]), preset, task, [video])
    (trajectory,) = run_episodes([task], TransformersPolicy(folders[family]), preset=preset)
    assert not trajectory.outcome.failed, trajectory.outcome.reason
    assert counted.tokens == len(trajectory.steps[0].prompt_ids)
    (clip,) = trajectory.clips.values()
    assert (counted.frames, counted.visual_tokens, counted.sizes) == (len(clip.times), clip.tokens, (clip.size,))


@pytest.mark.parametrize("family", WRITERS)
def test_an_empty_adapter_writes_what_the_loaded_one_writes_and_holds_nothing(folders, family):
    empty, loaded = empty_adapter(folders[family]), load_adapter(folders[family], device="cpu")
    assert {p.device.type for p in empty.model.parameters()} == {"meta"}
    for name in ("geometry", "suppressed_ids", "stop_ids", "pad_ids", "max_context", "timestamps", "processor_digest"):
        assert getattr(empty, name) == getattr(loaded, name), name
    assert sum(p.numel() for p in empty.model.parameters()) == sum(p.numel() for p in loaded.model.parameters())


@pytest.mark.parametrize("family", WRITERS)
def test_the_largest_overview_fits_and_a_larger_one_does_not(folders, family):
    adapter, preset, task = empty_adapter(folders[family]), brief(), task_of("film.mp4")
    preset = preset.model_copy(update={"budget": preset.budget.model_copy(update={"max_frames": 9999})})
    most = fit.largest_overview(adapter, preset, task, FILM)
    step = adapter.geometry.temporal

    def breaks(frames):
        return fit.what_breaks(
            adapter, preset, fit.first_prompt(adapter, fit.with_overview(preset, frames), task, [FILM])
        )

    assert 0 < most < 9999
    assert not breaks(most)
    assert "the model's context is" in breaks(most + max(2 * step, most // 50))


def test_the_largest_overview_is_that_of_the_limit_that_is_met_first(folders):
    adapter, task = empty_adapter(folders["qwen2_5_vl"]), task_of("film.mp4")
    for changes, expected in (
        ({"max_frames": 30}, 30),
        ({"max_visual_tokens": 40}, 80),
        ({"max_context_tokens": 1}, 0),
    ):
        preset = brief()
        preset = preset.model_copy(update={"budget": preset.budget.model_copy(update=changes)})
        assert fit.largest_overview(adapter, preset, task, FILM) == expected


def test_what_breaks_names_the_limit(folders):
    adapter, preset = empty_adapter(folders["qwen2_5_vl"]), brief()

    def said(frames=1, visual=1, tokens=1, **budget):
        changed = preset.model_copy(update={"budget": preset.budget.model_copy(update=budget)})
        return fit.what_breaks(adapter, changed, fit.FirstPrompt(frames, visual, tokens, ()))

    assert said() == ""
    assert "budget.max_frames is 3" in said(frames=4, max_frames=3)
    assert "budget.max_visual_tokens is 3" in said(visual=4, max_visual_tokens=3)
    assert "budget.max_context_tokens is 100" in said(tokens=100 - SHORTEST_ANSWER + 1, max_context_tokens=100)
    assert said(tokens=100 - SHORTEST_ANSWER, max_context_tokens=100) == ""
    assert "the model's context is 4096 tokens" in said(tokens=4096 - SHORTEST_ANSWER + 1)
    assert said(tokens=4096 - SHORTEST_ANSWER) == ""


def test_tasks_are_refused_by_name_with_what_would_fit(folders, make_video):
    adapter = empty_adapter(folders["qwen2_5_vl"])
    short, long = make_video(seconds=2.0), make_video(seconds=30.0, fps=10)
    large = brief(pixels=2000 * 28 * 28, max_frames=768)  # two frames of the small videos' own size are one token
    fit.check_tasks(adapter, large, [task_of(short)])
    many = brief(fps=8, max_frames=4096, pixels=4 * 28 * 28)
    many = many.model_copy(
        update={"budget": many.budget.model_copy(update={"max_visual_tokens": 200, "max_frames": 9999})}
    )
    fit.check_tasks(adapter, many, [task_of(short)])
    with pytest.raises(FitError) as refused:
        fit.check_tasks(adapter, many, [task_of(short), Task(id="two", videos=(long,), question="?")])
    assert "the overview of 'two' does not fit (preset default" in str(refused.value)
    assert "budget.max_visual_tokens is 200; at most 100 frames of this size fit" in str(refused.value)


def test_no_video_is_opened_where_an_hour_fits(folders, monkeypatch):
    monkeypatch.setattr(fit, "Video", lambda *a, **k: pytest.fail("opened"))
    fit.check_tasks(empty_adapter(folders["qwen2_5_vl"]), brief(), [task_of("nowhere.mp4")])


def test_a_video_that_is_not_there_is_left_to_its_episode(folders):
    fit.check_tasks(empty_adapter(folders["qwen2_5_vl"]), brief(max_frames=4096), [task_of("nowhere.mp4")])


def test_a_question_that_fills_the_context_is_refused(folders):
    task = Task(id="long", question="word " * 6000)
    with pytest.raises(FitError, match="the prompt of 'long' does not fit .* shorten the question"):
        fit.check_tasks(empty_adapter(folders["qwen2_5_vl"]), brief(), [task])


def test_an_empty_adapter_refuses_what_loading_refuses(folders, tmp_path):
    with pytest.raises(ModelError, match="cannot tell times as 'position'"):
        empty_adapter(folders["llava_onevision"], timestamps="position")
    with pytest.raises(ModelError, match="no model 'tyny'"):
        empty_adapter("tyny")


def test_looks_beside_the_overview_are_counted_from_above(folders):
    adapter, preset = empty_adapter(folders["qwen2_5_vl"]), brief()
    steps = preset.budget.model_copy(update={"max_steps": 9, "max_new_tokens": 64})
    rules = preset.rules.model_copy(update={"zoom_frames": 8, "zoom_pixels": 56 * 56})
    preset = preset.model_copy(update={"budget": steps, "rules": rules})
    prompt = fit.first_prompt(adapter, preset, task_of("film.mp4"), [FILM])
    looks = fit.close_looks(adapter, preset, prompt, FILM)
    assert looks == min(8, (4096 - prompt.tokens - SHORTEST_ANSWER) // (4 * 2 + 4 * 8 + 64)) > 0
