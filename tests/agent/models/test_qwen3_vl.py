"""Qwen3-VL against the stock library: ids, pixels, logits, positions, deepstack features; and what is refused.

`AutoProcessor` cannot be loaded without torchvision. Compared is the stock `Qwen3VLProcessor` itself, built from the
checkpoint's files around its tokenizer, the PIL image processor and the stock video processor, and called on whole
conversations: template, expansion, tokenisation, grids, rescaling and patches are its own. Where torchvision is not
installed, the one function of it that is left (`normalize`) is stood in for by its definition.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from closeup.agent.messages import ClipPart, Message
from closeup.agent.models import qwen_vision
from closeup.agent.models.fingerprint import fingerprint
from closeup.agent.models.load import ModelError, find_checkpoint, load_adapter
from closeup.agent.models.media import MediaStore
from closeup.agent.models.oracles import stock_logits
from closeup.agent.models.testing import SPECIAL, SyntheticVideo, write_random_checkpoint
from closeup.tools.video.clip import Clip

VIDEO = SyntheticVideo(7)
VIDEOS = {VIDEO.identity: VIDEO}
BLOCK = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen3", family="qwen3_vl")


@pytest.fixture(scope="module")
def native(folder):
    return load_adapter(str(folder), device="cpu")


@pytest.fixture(scope="module")
def told(folder):
    return load_adapter(str(folder), device="cpu", timestamps="text")


@pytest.fixture(scope="module")
def stock(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def clip(start=4.0, frames=5, pixels=96 * 64, seconds=2.0):
    return Clip(video=VIDEO.identity, start=start, end=start + seconds, num_frames=frames, pixels=pixels)


# ---- the stock processor -------------------------------------------------------------------------------------------


@pytest.fixture
def processor(folder, stock, monkeypatch):
    from transformers import image_processing_backends
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.utils import is_torchvision_available

    def settings_of(name):
        read = json.loads((folder / name).read_text())
        return {key: value for key, value in read.items() if not key.endswith(("_type", "_class"))}

    def normalize(image, mean, std, inplace=False):
        mean, std = (torch.as_tensor(values).to(image).view(-1, 1, 1) for values in (mean, std))
        return (image - mean) / std

    if not is_torchvision_available():
        stand_in = SimpleNamespace(normalize=normalize)
        monkeypatch.setattr(image_processing_backends, "tvF", stand_in, raising=False)
    # It would look the video processor's class up where there is only a dummy without torchvision.
    monkeypatch.setattr(Qwen3VLProcessor, "check_argument_for_proper_class", lambda *_: None)
    image = Qwen2VLImageProcessorPil(**settings_of("preprocessor_config.json"))
    video = Qwen3VLVideoProcessor(**settings_of("video_preprocessor_config.json"))
    return Qwen3VLProcessor(image, stock, video)


@pytest.fixture
def template():
    """The models' own chat template, as TRL ships it."""
    trl = pytest.importorskip("trl", reason="the train extra is not installed")
    return (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text(encoding="utf-8")


def as_stock(messages):
    return [
        {
            "role": message.role,
            "content": [
                {"type": "video"} if isinstance(part, ClipPart) else {"type": "text", "text": part.text}
                for part in message.content
            ],
        }
        for message in messages
    ]


def processed(processor, text, encoded):
    """The stock processor's output for a rendered conversation and the frames that ours was given."""
    from transformers.video_utils import VideoMetadata

    videos = {}
    if encoded.media:
        about = [
            VideoMetadata(total_num_frames=600, fps=10.0, frames_indices=[round(10 * t) for t in item.record.times])
            for item in encoded.media
        ]
        videos = {
            "videos": [encoded.frames[item.key] for item in encoded.media],
            "video_metadata": about,
            "do_sample_frames": False,
            "do_resize": False,
            "do_convert_rgb": False,
        }
    return processor(text=[text], return_tensors="pt", **videos)


CASES = {
    "text only": [Message.of("user", "Which digit is in the red box?\nA. 3\nB. 7")],
    "one frame": [Message.of("user", clip(frames=1), "\nWhich digit? é 你好 🙂")],
    "a video after a system message": [Message.of("system", "Look."), Message.of("user", "Here: ", clip(), "\nWhich?")],
    "several clips in several turns": [
        Message.of("user", clip(0, 8, 32 * 32, 30), "\n", clip(9, 3), "\nWhich?"),
        Message.of("assistant", '<think>red</think>\n<tool_call>\n{"name": "zoom_clip"}\n</tool_call>'),
        Message.of("user", "look ", clip(20, 2), clip(40, 4, 64 * 32)),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_ids_grids_and_pixels_equal_the_stock_processor(native, processor, template, case):
    messages = CASES[case]
    ours = native.encode(messages, VIDEOS)
    text = processor.apply_chat_template(
        as_stock(messages), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    # As the processor of 4.57 did, the template's whole block makes room for the clip's own blocks.
    theirs = processed(processor, text.replace(BLOCK, "<|video_pad|>"), ours)
    assert list(ours.ids) == theirs["input_ids"][0].tolist()
    assert native.decode(ours.ids).count("<|vision_start|>") == sum(len(item.grids) for item in ours.media)
    if not ours.media:
        return
    grids = [(len(item.grids), *item.grids[0][1:]) for item in ours.media]
    assert grids == [tuple(row) for row in theirs["video_grid_thw"].tolist()]
    pixels = np.concatenate([native.pixel_values(ours.frames[item.key]) for item in ours.media])
    np.testing.assert_array_equal(pixels, theirs["pixel_values_videos"].numpy())  # bit for bit


def test_the_known_difference_is_one_outer_pair_per_clip_and_no_other(native, processor, template):
    messages = CASES["several clips in several turns"]
    ours = native.encode(messages, VIDEOS)
    text = processor.apply_chat_template(
        as_stock(messages), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    theirs = processed(processor, text, ours)["input_ids"][0].tolist()
    opening, closing = (native._id[name] for name in ("<|vision_start|>", "<|vision_end|>"))
    assert len(theirs) == len(ours.ids) + 2 * len(ours.media)
    kept, depth = [], 0
    for token in theirs:
        depth += token == opening
        if not (token == opening and depth == 1) and not (token == closing and depth == 1):
            kept.append(token)
        depth -= token == closing
    assert kept == list(ours.ids)


def test_a_frame_equals_the_stock_image_processor(native):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frame = VIDEO.frames([1.0], (64, 96)).pixels
    image = Qwen2VLImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, patch_size=16, do_resize=False)
    theirs = image(images=[frame[0]], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(native.pixel_values(frame), theirs, atol=1e-6)


TOOL = {"type": "function", "function": {"name": "zoom_clip", "parameters": {"type": "object", "properties": {}}}}


def test_a_conversation_with_tools_is_the_stock_templates(native, stock, template):
    """Calls and results coincide. The stock template also lists the tools, which here are in our system prompt."""
    call = '<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 3}}\n</tool_call>'
    system, listed = "You look closely.", f"\n{json.dumps(TOOL)}\n"
    theirs = stock.apply_chat_template(
        [
            {"role": "system", "content": system},
            {"role": "user", "content": "Which digit?"},
            {
                "role": "assistant",
                "content": "<think>red</think>",
                "tool_calls": [{"function": {"name": "zoom_clip", "arguments": {"start": 3}}}],
            },
            {"role": "tool", "content": "Error: 12 > 3"},
        ],
        chat_template=template,
        tools=[TOOL],
        add_generation_prompt=True,
        tokenize=False,
    )
    head = theirs.removeprefix("<|im_start|>system\n").split("<|im_end|>")[0]
    assert head.startswith(system) and listed in head
    ours = native.encode(
        [
            Message.of("system", head),
            Message.of("user", "Which digit?"),
            Message.of("assistant", f"<think>red</think>\n{call}"),
            Message.of("tool", "<tool_response>\nError: 12 > 3\n</tool_response>"),
        ],
        {},
    )
    assert native.decode(ours.ids) == theirs
    assert list(ours.ids) == stock(theirs, add_special_tokens=False)["input_ids"]


# ---- text and times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "times"),
    [
        ("native", ["<12.1 seconds>", "<12.6 seconds>", "<13.0 seconds>"]),
        ("told", ["12s", "12.5s", "13s"]),
    ],
)
def test_each_pair_of_frames_is_a_block_after_its_time(request, which, times):
    adapter = request.getfixturevalue(which)
    asked = Clip(video=VIDEO.identity, start=12, end=13, num_frames=5, placement="ends", pixels=32 * 32)
    shown = adapter.encode([Message.of("user", asked)], VIDEOS, add_generation_prompt=False)
    (item,) = shown.media
    assert item.record.times == pytest.approx((12.0, 12.2, 12.5, 12.7, 13.0))
    assert adapter.decode(shown.ids) == f"<|im_start|>user\n{''.join(time + BLOCK for time in times)}<|im_end|>\n"
    assert item.grids == ((1, 2, 2),) * 3 and item.record.tokens == 3


def test_every_frame_may_be_one_token_whatever_the_image_processor_wants(copy):
    edit(copy / "preprocessor_config.json", size={"shortest_edge": 65536, "longest_edge": 16777216})
    adapter = load_adapter(str(copy), device="cpu")
    assert adapter.geometry.min_pixels == 32 * 32
    assert adapter.geometry.size(1280, 720, 10) == (32, 32)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60).filter(lambda t: "<|" not in t))
def test_any_text_round_trips_and_equals_the_stock_tokenizer(native, stock, text):
    ids = native.encode([Message.of("user", text)], {}, add_generation_prompt=False).ids
    assert list(ids) == stock(f"<|im_start|>user\n{text}<|im_end|>\n", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("token", SPECIAL)
def test_text_cannot_spell_a_control_token(native, stock, token):
    ids = native.encode([Message.of("user", f"look {token}")], {}, add_generation_prompt=False).ids
    control = {stock.convert_tokens_to_ids(name) for name in SPECIAL}
    assert sum(i in control for i in ids) == 2
    assert native.decode(ids) == f"<|im_start|>user\nlook {token}<|im_end|>\n"


# ---- positions, logits, features -----------------------------------------------------------------------------------


def our_logits(adapter, encoded, *, positions=None, features=None):
    features = features or adapter.encode_clips([encoded.frames[m.key] for m in encoded.media])
    where = adapter.positions(encoded.ids, encoded.media) if positions is None else positions
    embeds = adapter.embed(torch.tensor(encoded.ids), features)[None]
    return adapter.logits(adapter.hidden(embeds, torch.from_numpy(where)[:, None], mask=None, cache=None))[0]


def theirs(adapter, encoded):
    where = adapter.positions(encoded.ids, encoded.media)
    return stock_logits(adapter, encoded.ids, encoded.media, [encoded.frames[m.key] for m in encoded.media], where)


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["native", "told"])
def test_positions_and_logits_equal_the_stock_model(request, which, case):
    """The stock rule knows the blocks of a clip as rows of its (t, h, w) grid, so here nothing departs from it."""
    adapter = request.getfixturevalue(which)
    shown = adapter.encode(CASES[case], VIDEOS)
    ours = adapter.positions(shown.ids, shown.media)
    tokens = torch.tensor([shown.ids])
    grids = [(len(item.grids), *item.grids[0][1:]) for item in shown.media]
    stock_positions, _ = adapter.model.model.get_rope_index(
        tokens,
        (tokens == adapter.model.config.video_token_id).int() * 2,
        video_grid_thw=torch.tensor(grids) if grids else None,
    )
    np.testing.assert_array_equal(ours, stock_positions[:, 0].numpy())
    torch.testing.assert_close(our_logits(adapter, shown), theirs(adapter, shown), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_wrong_positions_swapped_clips_and_lost_levels_fail_that_equality(native):
    shown = native.encode([Message.of("user", clip(4, 4), "?", clip(20, 4), "!")], VIDEOS)
    expected = theirs(native, shown)
    where = native.positions(shown.ids, shown.media)
    where[:, 20:] += 1
    assert (our_logits(native, shown, positions=where) - expected).abs().max() > 1e-2
    features = native.encode_clips([shown.frames[m.key] for m in shown.media])
    assert (our_logits(native, shown, features=features[::-1]) - expected).abs().max() > 1e-2
    width = native.text_config.hidden_size
    for level in (1, 2):
        lost = [rows.clone() for rows in features]
        for rows in lost:
            rows[:, level * width : (level + 1) * width] = 0
        assert (our_logits(native, shown, features=lost) - expected).abs().max() > 1e-2


@torch.inference_mode()
def test_levels_lie_side_by_side_and_text_has_zeros(native):
    width = native.text_config.hidden_size
    shown = native.encode([Message.of("user", clip(), "?")], VIDEOS)
    (frames,) = (shown.frames[m.key] for m in shown.media)
    (rows,) = native.encode_clips([frames])
    pixels = torch.from_numpy(native.pixel_values(frames))
    found = native.model.model.get_video_features(pixels, torch.tensor([(3, 4, 4)]))
    assert native.levels == 2 and rows.shape == (12, 3 * width)
    deep = [level if isinstance(level, torch.Tensor) else level[0] for level in found.deepstack_features]  # 5.17: whole
    for level, one in enumerate((found.pooler_output[0], *deep)):
        torch.testing.assert_close(rows[:, level * width : (level + 1) * width], one, atol=0, rtol=0)
    ids = torch.tensor(shown.ids)
    embeds = native.embed(ids, [rows])
    pads = torch.isin(ids, torch.tensor(native.pad_ids))
    torch.testing.assert_close(embeds[pads], rows, atol=0, rtol=0)
    torch.testing.assert_close(embeds[~pads][:, :width], native.model.get_input_embeddings()(ids[~pads]))
    assert embeds[~pads][:, width:].abs().max() == 0
    assert native.embed(ids[~pads], []).shape == (int((~pads).sum()), 3 * width)


@torch.inference_mode()
def test_text_alone_may_be_embedded_narrow(native):
    """A step of a generation embeds one token without asking the adapter."""
    ids = torch.tensor(native.encode([Message.of("user", "Which digit?")], {}).ids)
    where = torch.arange(len(ids)).view(1, 1, -1).expand(3, 1, -1)
    wide = native.hidden(native.embed(ids, [])[None], where, mask=None, cache=None)
    narrow = native.hidden(native.model.get_input_embeddings()(ids)[None], where, mask=None, cache=None)
    torch.testing.assert_close(wide, narrow, atol=0, rtol=0)


@torch.inference_mode()
def test_features_do_not_depend_on_what_is_encoded_together_or_how_it_is_cut(native, monkeypatch):
    sizes = [(32, 32), (96, 64), (64, 128)]
    clips = [VIDEO.frames([1.0, 2.0, 3.0, 4.0, 9.0], size).pixels for size in sizes]
    alone = [native.encode_clips([c])[0] for c in clips]
    together = native.encode_clips(clips)
    monkeypatch.setattr(qwen_vision, "PATCHES_PER_FORWARD", 40)
    cut = native.encode_clips(clips)
    for a, b, c, size in zip(alone, together, cut, sizes, strict=True):
        assert a.shape == (3 * size[0] * size[1] // 32**2, 3 * native.text_config.hidden_size)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["visual.merger", "deepstack_merger_list.0", "deepstack_merger_list.1", "pos_embed"])
def test_every_weight_that_shapes_features_is_in_their_name_and_is_trained(folder, which):
    adapter = load_adapter(str(folder), device="cpu")
    before = fingerprint(adapter)
    (features,) = adapter.encode_clips([VIDEO.frames([1.0, 2.0], (64, 64)).pixels])
    (features * torch.linspace(0.5, 2, features.numel()).view_as(features)).sum().backward()
    name, weight = next((n, p) for n, p in adapter.model.named_parameters() if which in n and n.endswith("weight"))
    assert float(weight.grad.abs().max()) > 0
    assert id(weight) in {id(p) for module in adapter.vision_modules for p in module.parameters()}
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    assert fingerprint(adapter) != before, name


def test_the_cache_of_features_keeps_all_levels(native, tmp_path):
    from closeup.agent.models.featurecache import FeatureCache

    shown = native.encode([Message.of("user", clip(), "?")], VIDEOS)
    (item,) = shown.media

    def store():
        return MediaStore(native, max_bytes=1 << 20, disk=FeatureCache(tmp_path / "cache"))

    with torch.no_grad():
        (made,) = store().features([item], lambda m: shown.frames[m.key])
    again = store()
    with torch.no_grad():
        (read,) = again.features([item], lambda m: pytest.fail("it was kept"))
    assert again.loaded == 1 and made.shape == (12, 3 * native.text_config.hidden_size)
    torch.testing.assert_close(read, made, atol=0, rtol=0)


# ---- mixture of experts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "moe", family="qwen3_vl_moe")


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_the_mixture_of_experts_equals_its_stock_model(experts, case):
    adapter = load_adapter(str(experts), device="cpu")
    assert type(adapter.model).__name__ == "Qwen3VLMoeForConditionalGeneration" and adapter.timestamps == "seconds"
    shown = adapter.encode(CASES[case], VIDEOS)
    torch.testing.assert_close(our_logits(adapter, shown), theirs(adapter, shown), atol=1e-5, rtol=0)


def test_gradients_of_the_mixture_of_experts_equal_its_stock_models(experts):
    adapter = load_adapter(str(experts), device="cpu")
    adapter.model.double()
    adapter.text_config._experts_implementation = "eager"  # the grouped product takes no float64
    shown = adapter.encode(CASES["several clips in several turns"], VIDEOS)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=len(shown.ids)))
    found = []
    for logits in (our_logits(adapter, shown), theirs(adapter, shown)):
        (logits.log_softmax(-1)[:, 5] * weights).sum().backward()
        found.append({n: p.grad.clone() for n, p in adapter.model.named_parameters() if p.grad is not None})
        adapter.model.zero_grad(set_to_none=True)
    ours, stock = found
    assert set(ours) == set(stock) and any("experts" in name for name in ours)
    assert any("deepstack" in name and float(value.abs().max()) > 0 for name, value in ours.items())
    for name, value in stock.items():
        assert (ours[name] - value).abs().max() <= 1e-6 * value.abs().max().clamp(min=1e-9), name


# ---- what is refused -----------------------------------------------------------------------------------------------


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "image processor has patch_size 14 and its video processor"),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}, "image_mean .*they must agree"),
        ("video_preprocessor_config.json", {"image_std": [1, 1, 1]}, r"video processor \[1, 1, 1\]; they must agree"),
        (
            "video_preprocessor_config.json",
            {"temporal_patch_size": 4},
            "temporal_patch_size 2 and its video .* 4;",
        ),
        ("video_preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor 0.0039.* 1.0; they must agree"),
        ("config.json", {"video_token_id": 5}, "in the tokenizer and 5 in config.json"),
    ],
)
def test_files_of_another_model_are_refused(copy, name, changes, message):
    edit(copy / name, **changes)
    with pytest.raises(ModelError, match=message):
        load_adapter(str(copy), device="cpu")


def test_processors_that_agree_but_not_with_the_model_are_refused(copy):
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit(copy / name, patch_size=14)
    with pytest.raises(ModelError, match="wrong processor: its patch_size is 14, the model's 16"):
        load_adapter(str(copy), device="cpu")


def test_both_processors_in_one_file_are_read(copy):
    image, video = (
        json.loads((copy / name).read_text()) for name in ("preprocessor_config.json", "video_preprocessor_config.json")
    )
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (copy / name).unlink()
    both = {"image_processor": image, "video_processor": video}
    (copy / "processor_config.json").write_text(json.dumps(both))
    assert load_adapter(str(copy), device="cpu").geometry.patch == 16
    both["video_processor"] = video | {"image_mean": [0.0] * 3}
    (copy / "processor_config.json").write_text(json.dumps(both))
    with pytest.raises(ModelError, match="they must agree"):
        load_adapter(str(copy), device="cpu")


def test_missing_files_and_another_tokenizer_are_refused(copy, tmp_path):
    (copy / "tokenizer.json").rename(tmp_path / "kept.json")
    with pytest.raises(ModelError, match="has no tokenizer"):
        find_checkpoint(str(copy))
    other = write_random_checkpoint(tmp_path / "llava", family="llava_onevision")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, copy)
    with pytest.raises(ModelError, match="the tokenizer has no <.vision_start.>; it is none of qwen3_vl"):
        load_adapter(str(copy), device="cpu")
    (copy / "preprocessor_config.json").unlink()
    (copy / "video_preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no pixel settings"):
        find_checkpoint(str(copy))


def test_times_it_cannot_tell_are_refused(folder):
    with pytest.raises(ModelError, match="cannot tell times as 'position'; accepted: native, text"):
        load_adapter(str(folder), timestamps="position")
