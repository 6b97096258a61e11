"""LLaVA-OneVision against the stock library: ids, pixels, logits, positions, features; and what is refused.

The stock processor as a whole needs torchvision. Compared are its parts that do not: the checkpoint's tokenizer and
chat template, the processor's own expansion of `<video>` (`replace_video_token`), the stock image processor (its first
tile is what the video processor makes of a frame), and the stock model.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlavaOnevisionProcessor

from closeup.agent.messages import Message
from closeup.agent.models import llava_onevision
from closeup.agent.models.fingerprint import fingerprint
from closeup.agent.models.load import ModelError, empty_adapter, find_checkpoint, load_adapter
from closeup.agent.models.oracles import llava_onevision as assembled
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

VIDEO = SyntheticVideo(7)
VIDEOS = {VIDEO.identity: VIDEO}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llava", family="llava_onevision")


@pytest.fixture(scope="module")
def stock(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def native(folder):
    return load_adapter(str(folder), device="cpu", timestamps="native")


@pytest.fixture(scope="module")
def told(folder):
    return load_adapter(str(folder), device="cpu", timestamps="text")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def clip(start=4.0, frames=5):
    return Clip(video=VIDEO.identity, start=start, end=start + 2, num_frames=frames, pixels=999)


def expanded(text, frames):
    """Stock text with each `<video>` expanded by the stock processor's own rule; `frames`: of each video, in order."""
    processor = SimpleNamespace(num_image_tokens=9, video_token="<video>")
    pieces = text.split("<video>")
    assert len(pieces) == len(frames) + 1
    whole = pieces[0]
    for index, (count, piece) in enumerate(zip(frames, pieces[1:], strict=True)):
        pixels = {"pixel_values_videos": [np.zeros((n, 3, 42, 42)) for n in frames]}
        assert len(pixels["pixel_values_videos"][index]) == count
        whole += LlavaOnevisionProcessor.replace_video_token(processor, pixels, index) + piece
    return whole


# ---- text and clips to ids -----------------------------------------------------------------------------------------


def conversation(*parts):
    return [
        {"role": role, "content": [{"type": kind, kind: value} for kind, value in content]} for role, content in parts
    ]


CASES = {
    "text only": ([Message.of("user", "Which digit?")], conversation(("user", [("text", "Which digit?")])), []),
    "one frame": (
        [Message.of("user", clip(frames=1), "\nWhich digit?")],
        conversation(("user", [("video", ""), ("text", "Which digit?")])),
        [1],
    ),
    "a video after a system message": (
        [Message.of("system", "Look."), Message.of("user", clip(), "\nWhich digit?")],
        conversation(("system", [("text", "Look.")]), ("user", [("video", ""), ("text", "Which digit?")])),
        [5],
    ),
    "several clips in several turns": (
        [
            Message.of("user", clip(), "\n", clip(9, 3), "\nWhich?"),
            Message.of("assistant", "<think>red</think> zoom_clip 3"),
            Message.of("user", clip(20, 2), "\né 你好 🙂"),
        ],
        conversation(
            ("user", [("video", ""), ("video", ""), ("text", "Which?")]),
            ("assistant", [("text", "<think>red</think> zoom_clip 3")]),
            ("user", [("video", ""), ("text", "é 你好 🙂")]),
        ),
        [5, 3, 2],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_equal_the_stock_template_and_expansion(native, stock, case):
    ours, theirs, frames = CASES[case]
    text = stock.apply_chat_template(theirs, tokenize=False, add_generation_prompt=True)
    expected = stock(expanded(text, frames), add_special_tokens=False)["input_ids"]
    assert list(native.encode(ours, VIDEOS).ids) == expected


def test_times_in_text_are_one_stock_video_per_frame(told, stock):
    shown = told.encode([Message.of("user", clip(12, 3), "\n?")], VIDEOS)
    times = shown.media[0].record.times
    text = "".join(f"{told_time}<video>" for told_time in ("12s", "13s", "14s"))
    assert times == (12.0, 13.0, 14.0)
    whole = f"<|im_start|>user\n{text}\n?<|im_end|>\n<|im_start|>assistant\n"
    assert list(shown.ids) == stock(expanded(whole, [1, 1, 1]), add_special_tokens=False)["input_ids"]
    assert shown.media[0].grids == ((1, 3, 3),) * 3 and shown.media[0].record.tokens == 3 * 5


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_tokens_of_a_clip_are_those_of_its_geometry_and_features(native, told, frames):
    for adapter, expected in ((native, 4 * frames + 1), (told, 5 * frames)):
        shown = adapter.encode([Message.of("user", clip(frames=frames))], VIDEOS)
        (item,) = shown.media
        (features,) = adapter.encode_clips([shown.frames[item.key]])
        pads = sum(i in adapter.pad_ids for i in shown.ids)
        assert item.record.tokens == len(features) == pads == expected
        assert item.record.size == (42, 42)


def test_frames_of_the_published_size_take_196_tokens_and_a_clip_one_more(tmp_path):
    folder = write_random_checkpoint(tmp_path / "whole", family="llava_onevision", vision={"image_size": 384})
    plain, timed = (empty_adapter(str(folder), timestamps=how).geometry for how in ("native", "text"))
    assert plain.size(1920, 1080, 28 * 28) == plain.size(100, 700, 1 << 20) == (384, 384)
    assert plain.tokens(8, (384, 384)) == 8 * 196 + 1
    assert timed.tokens(8, (384, 384)) == 8 * 197
    adapter = load_adapter(str(folder), device="cpu")
    (features,) = adapter.encode_clips([VIDEO.frames([1.0, 2.0], (384, 384)).pixels])
    assert len(features) == 2 * 196 + 1


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips_and_forges_nothing(native, stock, text):
    ids = native.encode([Message.of("user", text)], {}, add_generation_prompt=False).ids
    control = {stock.convert_tokens_to_ids(t) for t in ("<video>", "<image>", "<|im_start|>", "<|im_end|>")}
    assert sum(i in control for i in ids) == 2
    if "<" not in text:
        assert list(ids) == stock(f"<|im_start|>user\n{text}<|im_end|>\n", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("token", ["<video>", "<image>", "<|im_end|>"])
def test_text_cannot_spell_a_control_token(native, stock, token):
    ids = native.encode([Message.of("user", f"look {token}")], {}, add_generation_prompt=False).ids
    assert ids.count(stock.convert_tokens_to_ids(token)) == (token == "<|im_end|>")
    assert native.decode(ids) == f"<|im_start|>user\nlook {token}<|im_end|>\n"
    assert stock.convert_tokens_to_ids("<video>") in native.suppressed_ids


# ---- pixels --------------------------------------------------------------------------------------------------------


def stock_pixels(frames, side=42):
    """What the stock (PIL) image processor makes of whole frames: float (T, 3, side, side)."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    processor = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=[[side, side]],
    )
    found = [
        processor(frame, return_tensors="np")["pixel_values"][0][0] for frame in frames
    ]  # the first tile: all of it
    return np.stack(found)


def test_pixel_values_equal_the_stock_processor(native):
    frames = VIDEO.frames([1.0, 2.0, 3.0], (42, 42)).pixels
    assert np.abs(native.pixel_values(frames) - stock_pixels(frames)).max() <= 1e-6


def test_bicubic_frames_of_a_file_equal_the_stock_processor(native, make_video):
    """Other shape than the tower's square: stretched, by the stock filter; a pixel level is 2 / 255 after rescaling."""
    with Video(make_video(size=(56, 84))) as video:
        asked = Clip(video=video.identity, start=0, end=4, num_frames=4, pixels=42 * 42, resizer="bicubic")
        expected = stock_pixels(video.frames(asked, (56, 84)).pixels)
        apart = {
            resizer: np.abs(
                native.pixel_values(video.frames(asked.model_copy(update={"resizer": resizer}), (42, 42)).pixels)
                - expected
            )
            for resizer in ("bicubic", "swscale-bilinear")
        }
    assert apart["bicubic"].max() <= 1e-6
    assert apart["swscale-bilinear"].max() > 10 * 2 / 255  # the cheaper default is not the stock filter, and it shows


# ---- logits, positions, features -----------------------------------------------------------------------------------


def shown(adapter, *frames):
    parts = [part for start, count in zip((0, 20, 40), frames, strict=False) for part in (clip(start, count), "\n?")]
    return adapter.encode([Message.of("user", *parts)], VIDEOS)


def our_logits(adapter, encoded, *, clips=None, positions=None):
    clips = clips or [encoded.frames[m.key] for m in encoded.media]
    where = adapter.positions(encoded.ids, encoded.media) if positions is None else positions
    embeds = adapter.embed(torch.tensor(encoded.ids), adapter.encode_clips(clips))[None]
    return adapter.logits(adapter.hidden(embeds, torch.from_numpy(where)[:, None], mask=None, cache=None))[0]


def stock_logits(adapter, encoded, **how):
    """The stock forward on pixels of videos of one length; its own positions unless given."""
    clips = [encoded.frames[m.key] for m in encoded.media]
    if adapter.timestamps == "text":
        clips = [frame[None] for frames in clips for frame in frames]
    pixels = torch.stack([torch.from_numpy(adapter.pixel_values(frames)) for frames in clips])
    return adapter.model(input_ids=torch.tensor([encoded.ids]), pixel_values_videos=pixels, **how).logits[0]


@torch.inference_mode()
@pytest.mark.parametrize("frames", [(1,), (5,), (3, 3), (2, 2, 2)])
@pytest.mark.parametrize("which", ["native", "told"])
def test_logits_equal_the_stock_model_and_its_own_positions(request, which, frames):
    adapter = request.getfixturevalue(which)
    encoded = shown(adapter, *frames)
    torch.testing.assert_close(our_logits(adapter, encoded), stock_logits(adapter, encoded), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_videos_of_several_lengths_need_the_stock_halves_which_equal_the_whole(native):
    encoded, uneven = shown(native, 3, 3), shown(native, 3, 5)
    where = torch.from_numpy(native.positions(encoded.ids, encoded.media))
    clips = [encoded.frames[m.key] for m in encoded.media]
    halves = assembled(native, torch.tensor(encoded.ids), encoded.media, clips, where, whole=False)
    torch.testing.assert_close(halves, stock_logits(native, encoded), atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError):
        stock_logits(native, uneven)
    clips = [uneven.frames[m.key] for m in uneven.media]
    where = torch.from_numpy(native.positions(uneven.ids, uneven.media))
    theirs = assembled(native, torch.tensor(uneven.ids), uneven.media, clips, where)
    torch.testing.assert_close(our_logits(native, uneven), theirs, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_wrong_positions_and_swapped_clips_fail_that_equality(native):
    encoded = shown(native, 3, 3)
    expected = stock_logits(native, encoded)
    where = native.positions(encoded.ids, encoded.media)
    assert where.shape == (1, len(encoded.ids))
    where[:, 20:] += 1
    assert (our_logits(native, encoded, positions=where) - expected).abs().max() > 1e-2
    clips = [encoded.frames[m.key] for m in encoded.media][::-1]
    assert (our_logits(native, encoded, clips=clips) - expected).abs().max() > 1e-2


def test_pads_that_are_not_the_clips_are_an_error(native):
    encoded = shown(native, 3)
    with pytest.raises(ValueError, match="do not belong together"):
        native.positions(encoded.ids[:6], encoded.media)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["native", "told"])
def test_features_do_not_depend_on_what_is_encoded_together_or_how_it_is_cut(request, which, monkeypatch):
    adapter = request.getfixturevalue(which)
    clips = [VIDEO.frames([1.0 * k for k in range(n)], (42, 42)).pixels for n in (1, 5, 3)]
    alone = [adapter.encode_clips([c])[0] for c in clips]
    together = adapter.encode_clips(clips)
    monkeypatch.setattr(llava_onevision, "PATCHES_PER_FORWARD", 20)  # two frames
    cut = adapter.encode_clips(clips)
    for a, b, c in zip(alone, together, cut, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=0)
    assert adapter.encode_clips([]) == []
    with pytest.raises(ValueError, match="the tower takes 42x42"):
        adapter.encode_clips([np.zeros((1, 28, 42, 3), np.uint8)])


@pytest.mark.parametrize("which", ["image_newline", "vision_tower", "multi_modal_projector"])
def test_every_weight_that_shapes_features_is_in_their_name_and_is_trained(folder, which):
    adapter = load_adapter(str(folder), device="cpu")
    before = fingerprint(adapter)
    (features,) = adapter.encode_clips([VIDEO.frames([1.0, 2.0], (42, 42)).pixels])
    (features * torch.linspace(0.5, 2, features.numel()).view_as(features)).sum().backward()
    name, weight = next((n, p) for n, p in adapter.model.named_parameters() if which in n)
    assert float(weight.grad.abs().max()) > 0
    named = {id(p) for module in adapter.vision_modules for p in module.parameters()}
    assert id(weight) in named
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    assert fingerprint(adapter) != before, name
    assert not any("language_model" in n and id(p) in named for n, p in adapter.model.named_parameters())


# ---- what is refused -----------------------------------------------------------------------------------------------


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "video_preprocessor_config.json",
            {"size": {"height": 384, "width": 384}},
            "wrong processor: its video frames",
        ),
        ("video_preprocessor_config.json", {"size": {"shortest_edge": 42}}, "the model's 42x42 pixels"),
        ("video_preprocessor_config.json", {"do_center_crop": True}, "do_center_crop is set"),
        ("video_preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
        ("config.json", {"video_token_index": 7}, "<video> is [0-9]+ in the tokenizer and 7 in config.json"),
    ],
)
def test_files_of_another_model_are_refused(copy, name, changes, message):
    edit(copy / name, **changes)
    with pytest.raises(ModelError, match=message):
        load_adapter(str(copy))


def test_the_tokenizer_of_another_family_is_refused(copy, tmp_path):
    other = write_random_checkpoint(tmp_path / "qwen")
    shutil.copy(other / "tokenizer.json", copy)
    with pytest.raises(ModelError, match="the tokenizer has no <video>; it is none of llava_onevision"):
        load_adapter(str(copy))


def test_another_text_model_is_refused(tmp_path):
    folder = write_random_checkpoint(tmp_path / "llama", family="llava_onevision", model_type="llama")
    with pytest.raises(ModelError, match="a text model of type llama; LLaVA-OneVision is supported with qwen2"):
        load_adapter(str(folder))


def test_times_it_cannot_tell_are_refused(folder):
    with pytest.raises(ModelError, match="cannot tell times as 'position'; accepted: native, text .native is none"):
        load_adapter(str(folder), timestamps="position")


def test_settings_of_the_video_processor_come_before_those_for_images(copy):
    edit(copy / "video_preprocessor_config.json", image_mean=[0.25] * 3)
    own, black = load_adapter(str(copy), device="cpu"), np.zeros((1, 42, 42, 3), np.uint8)
    assert own.pixel_values(black).max() == -0.5
    nested = {
        "video_processor": json.loads((copy / "video_preprocessor_config.json").read_text()) | {"image_std": [0.1] * 3}
    }
    edit(copy / "processor_config.json", **nested)
    again = load_adapter(str(copy), device="cpu")
    assert again.pixel_values(black).max() == -2.5
    assert again.processor_digest != own.processor_digest


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llava_llama", r"VILA, NVILA and LongVILA .*trust_remote_code.* does not help.*--preset longvila_r1"),
        ("vila", "does not help"),
        ("llava_next_video", "Vicuna's template.*llava-onevision-qwen2-7b-ov-hf"),
        ("video_llava", "Vicuna's template"),
        ("llava_qwen", "own format.*llava-onevision-qwen2-7b-ov-hf"),
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_families_of_the_same_line_say_what_works_instead(copy, family, message, trusted):
    edit(copy / "config.json", model_type=family, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ModelError, match=message):
        find_checkpoint(str(copy), trust_remote_code=trusted)
