"""What a user may write after --model: every mistake is one sentence, before any weight is read."""

import json
import shutil
import subprocess
import sys

import pytest

from closeup.agent.models import load
from closeup.agent.models.load import ModelError, default_preset, find_checkpoint, load_adapter


@pytest.fixture
def copy(tiny_random_checkpoint, tmp_path):
    return shutil.copytree(tiny_random_checkpoint, tmp_path / "copy")


def edit(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def test_a_folder_is_found_with_its_family_and_preset(copy):
    assert find_checkpoint(str(copy)).family == "qwen2_5_vl"
    assert default_preset(str(copy)) == "default"
    (copy / "closeup.json").write_text('{"preset": "tiny"}')
    assert default_preset(str(copy)) == "tiny"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "holds no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
        (
            lambda d: edit(d / "config.json", model_type="gpt9"),
            "of family 'gpt9'; supported: internvl, llava_onevision, qwen2_5_vl",
        ),
        (lambda d: edit(d / "config.json", auto_map={"AutoModel": "m.M"}), "refused unless asked for"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "lacks 1 of 1 weight files",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "no pixel settings"),
        (lambda d: (d / "closeup.json").write_text('{"preset": 3}'), "must hold"),
    ],
)
def test_a_spoilt_folder_is_refused_without_torch(copy, spoil, message):
    spoil(copy)
    with pytest.raises(ModelError, match=message):
        find_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tyny", "did you mean 'tiny'"),
        ("./nowhere", "there is no folder"),
        ("a/b/c", "there is no folder"),
    ],
)
def test_an_unknown_name_is_answered_with_what_is_accepted(name, message):
    with pytest.raises(ModelError, match=message):
        find_checkpoint(name)


def test_a_file_is_not_a_folder(copy):
    with pytest.raises(ModelError, match="is a file"):
        find_checkpoint(str(copy / "config.json"))


def test_a_bundled_model_that_is_not_installed_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "BUNDLED", {"tiny": "no-such-folder"})
    with pytest.raises(ModelError, match="make tiny"):
        find_checkpoint("tiny")


def test_an_offline_hub_id_says_so(tmp_path):
    code = (
        "from closeup.agent.models.load import find_checkpoint, ModelError\n"
        "try: find_checkpoint('closeup-tests/nothing')\n"
        "except ModelError as e: print(e)\n"
    )
    import os

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "neither in the local cache nor is the hub reachable" in done.stdout, done.stderr


def test_looking_at_a_checkpoint_imports_no_torch(copy):
    code = f"import sys; from closeup.agent.models.load import default_preset; default_preset({str(copy)!r});"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_bad_settings_are_refused(copy):
    with pytest.raises(ModelError, match="dtype is auto"):
        load_adapter(str(copy), dtype="int8")
    with pytest.raises(ModelError, match="timestamps is"):
        load_adapter(str(copy), timestamps="burned")
    for device in ("quantum", "mps", "meta", "cpu:3", "cuda:-1", "cuda:x", "cuda:00", ""):
        with pytest.raises(ModelError, match=f"device is auto, cpu, cuda or cuda:N, got '{device}'"):
            load_adapter(str(copy), device=device)


def test_a_gpu_that_is_not_there_is_refused(copy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no CUDA device; use auto or cpu"):
        load_adapter(str(copy), device="cuda:0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in ("cuda:2", "cuda:256", "cuda:99999999999999"):
        with pytest.raises(ModelError, match=f"'{device}' was asked for, but torch sees 2 CUDA .* cuda:0 to cuda:1"):
            load_adapter(str(copy), device=device)


def test_weights_that_do_not_cover_the_model_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight" if "model.layers.0.mlp.up_proj.weight" in weights else max(weights)]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks the weights of 1 tensors"):
        load_adapter(str(copy))


def test_a_processor_or_tokenizer_of_another_model_is_refused(copy, tiny_random_checkpoint):
    edit(copy / "preprocessor_config.json", patch_size=16)
    with pytest.raises(ModelError, match="wrong processor"):
        load_adapter(str(copy))
    shutil.copy(tiny_random_checkpoint / "preprocessor_config.json", copy)
    edit(copy / "config.json", video_token_id=5)
    with pytest.raises(ModelError, match="in the tokenizer and 5 in config.json"):
        load_adapter(str(copy))


def test_sliding_windows_are_refused(tmp_path):
    from closeup.agent.models.testing import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path / "s", layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ModelError, match="sliding-window"):
        load_adapter(str(folder))


def test_dtypes(tiny_random_checkpoint):
    import torch

    assert load_adapter(str(tiny_random_checkpoint), device="cpu").model.dtype == torch.float32
    assert load_adapter(str(tiny_random_checkpoint), dtype="bf16", device="cpu").model.dtype == torch.bfloat16


def test_a_large_checkpoint_keeps_its_own_precision_on_a_cpu(copy, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    from closeup.agent.models import chatml_adapter

    weights = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy / "config.json", dtype="bfloat16")
    assert load_adapter(str(copy), device="cpu").model.dtype == torch.float32
    monkeypatch.setattr(chatml_adapter, "FLOAT32_BYTES", 1000)
    assert load_adapter(str(copy), device="cpu").model.dtype == torch.bfloat16
