"""`closeup doctor` on whole and on damaged copies of small checkpoints: what will happen, or one sentence why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.models.load import FAMILIES
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.app.doctor import has_tools
from closeup.app.errors import USAGE

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: write_random_checkpoint(place / family, family=family) for family in FAMILIES}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["qwen2_5_vl"], tmp_path / "copy"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A preset that the small checkpoints' contexts can hold."""
    preset = get_preset("default")
    overview = preset.overview.model_copy(update={"max_frames": 16, "pixels": 28 * 28})
    rules = preset.rules.model_copy(update={"zoom_frames": 2, "zoom_pixels": 56 * 56})
    budget = preset.budget.model_copy(update={"max_new_tokens": 64})
    preset = preset.model_copy(update={"overview": overview, "rules": rules, "budget": budget, "name": "small"})
    path = tmp_path / "small.json"
    path.write_text(preset.model_dump_json(), encoding="utf-8")
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_the_bundled_model_will_run(cli: Cli) -> None:
    ran = cli("doctor", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert (report["family"], report["preset"], report["dialect"]) == ("qwen2_5_vl", "tiny", "hermes")
    assert report["timestamps"]["used"] == "text"
    assert report["problems"] == []
    assert report["weights"]["parameters"] == 2_707_632 or report["weights"]["parameters"] > 2_000_000
    assert report["weights"]["dtype"] == "BF16"
    assert report["weights"]["bytes"] >= 2 * report["weights"]["parameters"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_says_of_a_family_is_what_an_episode_does(
    cli: Cli, folders: dict[str, Path], small: Path, make_video: Callable[..., Path], family: str
) -> None:
    ran = cli("doctor", "--model", folders[family], "--preset", small, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["family"] == family
    assert report["weights"] == report["weights"] | {"here": True, "dtype": "F32"}
    wide = report["shapes"]["16:9"]
    assert wide["fits"] and wide["largest_overview_frames"] > 16 and wide["close_looks_beside_overview"] > 0
    preset = get_preset(str(small))
    policy = TransformersPolicy(str(folders[family]), timestamps=preset.timestamps)
    assert report["timestamps"]["used"] == policy.adapter.timestamps
    assert report["context"]["model"] == policy.max_context
    video = make_video(seconds=8.0, fps=10, size=(90, 160))
    one = preset.model_copy(update={"budget": preset.budget.model_copy(update={"max_steps": 1, "max_new_tokens": 4})})
    (trajectory,) = run_episodes([Task(id="one", videos=(video,), question="?")], policy, preset=one)
    (clip,) = trajectory.clips.values()
    assert (len(clip.times), clip.size) == (16, (wide["overview"]["height"], wide["overview"]["width"]))
    assert clip.tokens == wide["overview"]["visual_tokens"]


def test_it_is_printed_for_people(cli: Cli, folders: dict[str, Path], small: Path) -> None:
    ran = cli("doctor", "--model", folders["llava_onevision"], "--preset", small)
    assert ran.code == 0, ran.err
    for words in (
        "family        llava_onevision",
        "(the checkpoint's: without tools)",
        "none: not told",
        "4,096 tokens of the model",
        "overview: 16 frames of 42x42, 4 tokens each, 65 visual tokens",
        "largest overview that fits",
        "set timestamps to 'text' in a .json preset",
        "there is no point in native tool calls with this model",
        "verdict       will run",
    ):
        assert words in ran.out


def test_too_many_frames_for_the_context_are_a_verdict_with_advice(cli: Cli, folders: dict[str, Path]) -> None:
    ran = cli("doctor", "--model", folders["qwen2_5_vl"], "--preset", "default", "--json")
    assert ran.code == USAGE
    report = json.loads(ran.out)
    assert "the model's context is 4096 tokens" in report["problems"][0]
    assert "frames of this size fit: lower overview.max_frames" in report["problems"][0]
    assert ran.err.count("\n") == 1 and report["problems"][0] in ran.err
    assert report["shapes"]["16:9"]["close_looks_beside_overview"] == 0


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_a_file(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def fewer_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[max(weights)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "holds no config.json"),
    "an unknown family": (lambda d: edit(d / "config.json", model_type="gpt9"), "of family 'gpt9'; supported: "),
    "a known family without adapter": (
        lambda d: edit(d / "config.json", model_type="llava_llama", auto_map={"AutoModel": "m.M"}),
        "VILA, NVILA and LongVILA checkpoints",
    ),
    "code of its own": (
        lambda d: edit(d / "config.json", auto_map={"AutoModel": "m.M"}),
        "wants to run code of its own",
    ),
    "no weights": (no_weights, "model.safetensors (or its index and shards) is missing"),
    "half of the weights": (half_a_file, "is no readable weight file"),
    "fewer weights": (fewer_weights, "and its config.json describes a model of"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    "another processor": (lambda d: edit(d / "preprocessor_config.json", patch_size=16), "wrong processor"),
    "another tokenizer": (lambda d: edit(d / "config.json", video_token_id=5), "in the tokenizer and 5 in config.json"),
    "a config that is none": (lambda d: edit(d / "config.json", text_config="x"), "cannot be loaded"),
    "a preset of its own that is none": (lambda d: (d / "closeup.json").write_text('{"preset": "x"}'), "no preset 'x'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("as_json", [False, True])
def test_damage_is_one_sentence(
    cli: Cli, copy: Path, damage: str, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = DAMAGE[damage]
    spoil(copy)
    named = () if "preset" in damage else ("--preset", "love_r1")
    ran = cli("doctor", "--model", copy, *named, *(["--json"] if as_json else []))
    assert ran.code == USAGE
    assert message in ran.err
    assert "Traceback" not in ran.err and "internal error" not in ran.err
    assert len([line for line in ran.err.splitlines() if message in line]) == 1


def test_code_of_its_own_is_looked_past_when_asked_for_and_never_run(cli: Cli, copy: Path, small: Path) -> None:
    (copy / "m.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    edit(copy / "config.json", auto_map={"AutoModel": "m.M", "AutoConfig": "m.C"})
    ran = cli("doctor", "--model", copy, "--preset", small, "--trust-remote-code")
    assert ran.code == 0, ran.err
    assert "its own code (auto_map) is never run" in ran.out


def test_a_preset_that_is_none(cli: Cli) -> None:
    ran = cli("doctor", "--preset", "tinny")
    assert (ran.code, ran.out) == (USAGE, "") and "no preset 'tinny'" in ran.err


def test_quantised_weights_are_mentioned(cli: Cli, copy: Path, small: Path) -> None:
    from closeup.app.doctor import examine

    edit(copy / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    report = examine(str(copy), get_preset(str(small)))
    assert any("quantised (bitsandbytes)" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{%- if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", True),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", False),
        ("You have tools. {{ messages }}", False),
    ],
)
def test_a_template_has_tools_when_it_writes_them(template: str, expected: bool) -> None:
    assert has_tools(template) is expected


@pytest.mark.parametrize("command", ["ask", "eval"])
def test_other_commands_refuse_before_weights_are_read(
    cli: Cli,
    folders: dict[str, Path],
    make_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("closeup.app.setup.open_policy", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(f"closeup.app.{'ask' if command == 'ask' else 'evaluate'}.open_policy", lambda *a, **k: 1 / 0)
    long = make_video(seconds=200.0, fps=4, size=(360, 640))
    words: list[Any] = [long, "Which digit?"]
    if command == "eval":
        words = [tmp_path / "tasks.jsonl", "--out", tmp_path / "out"]
        task = {"id": "one", "videos": [str(long)], "question": "Which digit?", "answer": "1"}
        (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n", encoding="utf-8")
    ran = cli(command, *words, "--model", folders["qwen2_5_vl"], "--preset", "default")
    assert ran.code == USAGE, ran.err
    assert "does not fit (preset default" in ran.err and "See: closeup doctor --model" in ran.err
    assert not (tmp_path / "out").exists()
