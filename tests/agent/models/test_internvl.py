"""InternVL against the stock library: ids, pixels, tiles, logits, gradients, features; and what is refused.

The stock video processor needs torchvision. All else is the library's own: `InternVLProcessor` with its expansion of
images and videos, the PIL image processor, the tokenizer, the checkpoint's chat template, the model. In the place of
the video processor stands the PIL image processor without tiling, frame by frame: what the video processor does to a
frame (resize, rescale, normalise), by Pillow.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import Message
from closeup.agent.models import internvl
from closeup.agent.models.fingerprint import fingerprint
from closeup.agent.models.load import ModelError, find_checkpoint, load_adapter
from closeup.agent.models.oracles import stock_logits
from closeup.agent.models.positions import plain_positions
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.agent.models.testing_internvl import SPECIAL
from closeup.agent.policies.base import Request, Sampling
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.rl.forward import TreeForward
from closeup.rl.rows import Row, Span
from closeup.rl.tree import build_tree
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

VIDEO = SyntheticVideo(7, size=(112, 168))  # 3 : 2
VIDEOS = {VIDEO.identity: VIDEO}
TILE = 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "internvl", family="internvl")


@pytest.fixture(scope="module")
def native(folder):
    return load_adapter(str(folder), device="cpu", timestamps="native")


@pytest.fixture(scope="module")
def told(folder):
    return load_adapter(str(folder), device="cpu", timestamps="text")


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def either(request, native, tmp_path_factory):
    """InternVL3's and InternVL3.5's text model."""
    if request.param == "qwen2":
        return native
    folder = tmp_path_factory.mktemp("checkpoint") / "internvl3_5"
    write_random_checkpoint(folder, family="internvl", model_type="qwen3")
    return load_adapter(str(folder), device="cpu", timestamps="native")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


class Processor(InternVLProcessor):
    """The stock processor; what stands for the video processor need not be one."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


class Frames:
    """What the stock video processor does to frames, by the stock PIL image processor."""

    def __init__(self, processor):
        self.processor, self.model_input_names = processor, ["pixel_values_videos"]

    def __call__(self, videos, **_):
        each = [self.processor(list(v), crop_to_patches=False, return_tensors="pt")["pixel_values"] for v in videos]
        return {"pixel_values_videos": torch.stack(each)}

    def fetch_videos(self, videos, **_):
        return videos


@pytest.fixture(scope="module")
def stock(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = GotOcr2ImageProcessorPil.from_pretrained(folder)
    return Processor(images, tokenizer, Frames(images), image_seq_length=4, chat_template=tokenizer.chat_template)


def skim(frames=5):
    return Clip(video=VIDEO.identity, start=0, end=20, num_frames=frames, pixels=TILE**2)


def close(start=4.0, frames=3):
    return Clip(video=VIDEO.identity, start=start, end=start + 2, num_frames=frames, pixels=6 * TILE**2)


# ---- text and clips to ids -----------------------------------------------------------------------------------------


def of_stock(stock, messages, videos=()):
    """Ids of a conversation of stock messages by template and processor; `videos`: frames of each."""
    text = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    made = stock(text=[text], videos=list(videos) or None)
    return np.asarray(made["input_ids"])[0].tolist(), made.get("pixel_values")


def said(role, *parts):
    kinds = [{"type": "video"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": kinds}


def test_a_conversation_of_text_has_the_ids_of_template_and_tokenizer(native, stock):
    ours = native.encode(
        [
            Message.of("system", "You look closely."),
            Message.of("user", "Which digit?\nA. 3"),
            Message.of("assistant", '<think>red at 12s</think>\n<tool_call>\n{"name": "zoom_clip"}\n</tool_call>'),
            Message.of("tool", "<tool_response>\nError: 12 > 3, é 你好 🙂\n</tool_response>"),
        ],
        {},
    )
    theirs, _ = of_stock(
        stock,
        [
            said("system", "You look closely."),
            said("user", "Which digit?\nA. 3"),
            said("assistant", '<think>red at 12s</think>\n<tool_call>\n{"name": "zoom_clip"}\n</tool_call>'),
            said("user", "<tool_response>\nError: 12 > 3, é 你好 🙂\n</tool_response>"),
        ],
    )
    assert list(ours.ids) == theirs


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_has_the_ids_and_pixels_of_the_stock_processor(native, stock, frames):
    """The template's newline after a video is the newline that the dialects write after a clip."""
    ours = native.encode([Message.of("user", "Look:\n", skim(frames), "\nWhich digit?")], VIDEOS)
    (shown,) = ours.frames.values()
    theirs, pixels = of_stock(stock, [said("user", "Look:\n", None, "Which digit?")], [shown])
    assert list(ours.ids) == theirs
    np.testing.assert_allclose(native.pixel_values(shown), pixels, atol=1e-6)


def test_several_clips_in_several_turns_have_the_ids_of_the_stock_processor(native, stock):
    # The stock processor takes videos of one length alone: it stacks them.
    clips = [skim(3), close(8).model_copy(update={"pixels": TILE**2}), close(30).model_copy(update={"pixels": TILE**2})]
    asked = Message.of("user", clips[0], "\nWhich digit?")
    shown = Message.of("tool", "<tool_response>\n", clips[1], "\nand\n", clips[2], "\n</tool_response>")
    first = native.encode([asked], VIDEOS)
    answer = native.message_ids("zoom_clip")
    then = native.encode([shown], VIDEOS, first=False)
    media = first.media + then.media
    frames = {**first.frames, **then.frames}
    theirs, _ = of_stock(
        stock,
        [
            said("user", None, "Which digit?"),
            said("assistant", "zoom_clip"),
            said("user", "<tool_response>\n", None, "and\n", None, "</tool_response>"),
        ],
        [frames[item.key] for item in media],
    )
    assert [*first.ids, *answer, *then.ids] == theirs
    assert [item.record.tokens for item in media] == [12, 12, 12]


def test_tiled_frames_have_the_ids_and_pixels_of_the_cards_frames(native, stock):
    """`Frame1: <image>` and a newline for each frame, each an image that the stock processor cuts into tiles."""
    ours = native.encode([Message.of("user", close(), "\nWhich digit?")], VIDEOS)
    (item,), (shown,) = ours.media, ours.frames.values()
    assert item.record.size == (2 * TILE, 3 * TILE) and item.grids == ((7, 4, 4),) * 3 and item.record.tokens == 84
    text = "".join(f"Frame{i + 1}: <IMG_CONTEXT>\n" for i in range(3))
    prompt = f"<|im_start|>user\n{text}Which digit?<|im_end|>\n<|im_start|>assistant\n"
    made = stock(text=[prompt], images=list(shown), max_patches=6)
    assert list(ours.ids) == np.asarray(made["input_ids"])[0].tolist()
    np.testing.assert_allclose(native.pixel_values(shown), np.stack(made["pixel_values"]), atol=1e-6)


def test_times_in_text_stand_before_each_frame(told):
    clip = Clip(video=VIDEO.identity, start=12, end=13, num_frames=3, placement="ends", pixels=TILE**2)
    ids = told.encode([Message.of("tool", clip, "\nx")], VIDEOS, add_generation_prompt=False).ids
    block = "<img>" + 4 * "<IMG_CONTEXT>" + "</img>"
    assert told.decode(ids) == f"<|im_start|>user\n12s{block}12.5s{block}13s{block}\nx<|im_end|>\n"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60).filter(lambda t: "<" not in t))
def test_any_text_round_trips_and_equals_the_stock_tokenizer(native, stock, text):
    ids = native.encode([Message.of("user", text)], {}, add_generation_prompt=False).ids
    whole = stock.tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert list(ids) == whole


@pytest.mark.parametrize("token", SPECIAL)
def test_text_cannot_spell_a_control_token(native, token):
    ids = native.encode([Message.of("user", f"look{token}here")], {}, add_generation_prompt=False).ids
    controls = {native._id[c] for c in ("<|im_start|>", "<|im_end|>", *native.controls)}
    assert [i for i in ids if i in controls] == [native._id["<|im_start|>"], native._id["<|im_end|>"]]
    assert native.decode(ids) == f"<|im_start|>user\nlook{token}here<|im_end|>\n"


def test_vision_tokens_are_never_sampled(native, stock):
    for token in ("<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"):
        assert stock.tokenizer.convert_tokens_to_ids(token) in native.suppressed_ids


# ---- tiles and pixels ----------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    most=st.integers(1, 12),
    tile=st.sampled_from([28, 448]),
)
def test_the_canvas_is_the_stock_ones(width, height, most, tile):
    geometry = VisionGeometry(temporal=1, tile=tile, tile_tokens=256, max_tiles=12)
    columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), 1, most)
    size = geometry.size(width, height, most * tile**2)
    assert size == (rows * tile, columns * tile)
    stock = GotOcr2ImageProcessorPil(size={"height": tile, "width": tile})
    tiles = stock.get_number_of_image_patches(height, width, {"crop_to_patches": True, "max_patches": most})
    assert geometry.tiles(size) == tiles
    assert geometry.tokens(3, size) == 3 * tiles * 256


def test_pixels_say_how_many_tiles_and_the_processor_says_the_most(copy):
    geometry = load_adapter(str(copy), device="cpu").geometry
    assert (geometry.tile, geometry.tile_tokens, geometry.temporal, geometry.max_tiles) == (TILE, 4, 1, 12)
    assert geometry.size(1920, 1080, 1) == (TILE, TILE)  # never less than a tile
    assert geometry.size(1920, 1080, 2 * TILE**2 - 1) == (TILE, TILE)
    assert geometry.size(1920, 1080, 2 * TILE**2) == (TILE, 2 * TILE)
    assert geometry.size(1920, 1080, 10**9) == geometry.size(1920, 1080, 12 * TILE**2) == (2 * TILE, 4 * TILE)
    edit(copy / "preprocessor_config.json", max_patches=2)
    assert load_adapter(str(copy), device="cpu").geometry.size(1920, 1080, 10**9) == (TILE, 2 * TILE)


def scene(size):
    """A picture with edges and smooth parts, uint8."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    rings = 127 * (1 + np.sin(60 * (x * x + y * y)))
    return np.stack([rings, 255 * (x > y), 255 * x], axis=-1).astype(np.uint8)


MEAN_LEVELS, MOST_LEVELS = 0.25, 30  # measured: at most 0.15 and 27


@pytest.mark.parametrize(("size", "most"), [((1080, 1920), 1), ((1080, 1920), 12), ((480, 640), 6), ((1920, 1080), 4)])
def test_tiles_of_an_original_picture_equal_the_stock_processors_and_the_thumbnail_is_near(size, most):
    """At the real size of tiles; the decoder's part (Pillow's bicubic to the canvas) is done as it does it."""
    from closeup.tools.video.pixels import bicubic

    original = scene(size)
    side = 448
    stock = GotOcr2ImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = np.stack(stock([original], crop_to_patches=True, max_patches=most)["pixel_values"])
    adapter = object.__new__(internvl.InternVLAdapter)
    adapter.geometry = VisionGeometry(temporal=1, tile=side, tile_tokens=256, max_tiles=12)
    adapter._table = internvl.pixel_table([0.5] * 3, [0.5] * 3)
    canvas = bicubic(original, adapter.geometry.size(size[1], size[0], most * side**2))
    ours = adapter.pixel_values(canvas[None])
    assert ours.shape == theirs.shape
    tiles = len(ours) - (len(ours) > 1)
    np.testing.assert_allclose(ours[:tiles], theirs[:tiles], atol=1e-6)
    if len(ours) > 1:
        apart = np.abs(ours[-1] - theirs[-1]) / 2 * 255  # in levels of 0 to 255
        assert apart.mean() < MEAN_LEVELS and apart.max() < MOST_LEVELS


@pytest.mark.parametrize(("pixels", "size"), [(TILE**2, (TILE, TILE)), (6 * TILE**2, (2 * TILE, 3 * TILE))])
def test_a_decoded_video_has_the_pixels_of_the_stock_processor(native, make_video, pixels, size):
    """From the file on: whole frames go to the stock processor, which resizes them itself."""
    with Video(make_video(seconds=2.0, size=(120, 180))) as video:
        clip = Clip(video=video.identity, start=0, end=2, num_frames=3, pixels=pixels, resizer="bicubic")
        encoded = native.encode([Message.of("user", clip, "\n?")], {video.identity: video})
        whole = video.frames(clip, (120, 180)).pixels
    (shown,) = encoded.frames.values()
    assert shown.shape == (3, *size, 3)
    stock = GotOcr2ImageProcessorPil.from_pretrained(native.checkpoint.path)
    theirs = stock(list(whole), crop_to_patches=True, max_patches=pixels // TILE**2, return_tensors="np")
    ours, tiles = native.pixel_values(shown), native.geometry.tiles(size)
    cut = np.arange(len(ours)) % tiles < (tiles - (tiles > 1))
    np.testing.assert_allclose(ours[cut], theirs["pixel_values"][cut], atol=1e-6)
    std = np.array(stock.image_std).reshape(3, 1, 1)
    assert ((np.abs(ours - theirs["pixel_values"]) * std * 255).mean(axis=(1, 2, 3)) < MEAN_LEVELS).all()


def test_frames_of_another_size_are_refused(native):
    with pytest.raises(ValueError, match="multiples of 28"):
        native.pixel_values(np.zeros((1, 28, 30, 3), np.uint8))


# ---- the model -----------------------------------------------------------------------------------------------------


def our_logits(adapter, encoded, features=None):
    clips = [encoded.frames[item.key] for item in encoded.media]
    features = adapter.encode_clips(clips) if features is None else features
    where = torch.from_numpy(adapter.positions(encoded.ids, encoded.media))[:, None]
    embeds = adapter.embed(torch.tensor(encoded.ids), features)[None]
    return adapter.logits(adapter.hidden(embeds, where, mask=None, cache=None))[0]


CONVERSATIONS = {
    "text": [Message.of("system", "box"), Message.of("user", "Which digit is it?")],
    "single frame": [Message.of("user", skim(1), "\nWhich digit is it?")],
    "tiled frame": [Message.of("user", close(frames=1), "\nWhich digit is it?")],
    "clips in turns": [
        Message.of("user", skim(), "\nWhich digit is it?"),
        Message.of("assistant", "zoom_clip 3"),
        Message.of("tool", close(3), "\nand ", close(9), "\n", skim(2), "\nanswer"),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_equal_the_stock_models_own_positions_included(either, name):
    """The stock model counts positions itself here: it is given none."""
    encoded = either.encode(CONVERSATIONS[name], VIDEOS)
    with torch.inference_mode():
        tiles = [torch.from_numpy(either.pixel_values(encoded.frames[item.key])) for item in encoded.media]
        theirs = either.model(
            input_ids=torch.tensor([encoded.ids]), pixel_values=torch.cat(tiles) if tiles else None
        ).logits[0]
        ours = our_logits(either, encoded)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        oracle = stock_logits(
            either,
            encoded.ids,
            encoded.media,
            [encoded.frames[item.key] for item in encoded.media],
            either.positions(encoded.ids, encoded.media),
        )
        torch.testing.assert_close(oracle, theirs, atol=1e-5, rtol=0)


def test_controls_swapped_tiles_and_frames_fail_that_equality(either, monkeypatch):
    encoded = either.encode(CONVERSATIONS["clips in turns"], VIDEOS)
    clips = [encoded.frames[item.key] for item in encoded.media]
    with torch.inference_mode():
        ours = our_logits(either, encoded)
        features = either.encode_clips(clips)
        last = clips[1].shape[0] * 7 * 4
        rows = features[1].view(-1, 4, features[1].shape[-1])  # one per tile
        order = torch.arange(len(rows))
        order[[0, 6]] = order[[6, 0]]  # the thumbnail first
        swapped = [features[0], rows[order].reshape(last, -1), *features[2:]]
        assert (our_logits(either, encoded, swapped) - ours).abs().max() > 1e-2
        turned = either.encode_clips([clip[:, :, ::-1].copy() for clip in clips])
        assert (our_logits(either, encoded, turned) - ours).abs().max() > 1e-2


def test_a_tree_of_tiled_clips_equals_its_rows_in_loss_and_gradients(either):
    model = either.model.double()
    try:
        rows = []
        for rollout, (start, answer) in enumerate([(3, "answer 1"), (3, "answer 4"), (9, "answer 5")]):
            asked = either.encode([Message.of("user", skim(), "\nWhich digit?")], VIDEOS)
            call = either.message_ids("zoom_clip")
            shown = either.encode([Message.of("tool", close(start, 2), "\n")], VIDEOS, first=False)
            end = either.message_ids(answer)
            ids = np.array([*asked.ids, *call, *shown.ids, *end])
            media = asked.media + shown.media
            spans = (
                Span(0, len(asked.ids), len(asked.ids) + len(call)),
                Span(1, len(ids) - len(end), len(ids)),
            )
            rows.append(Row(rollout, ids, media, either.positions(ids, media), spans))
        tree = build_tree(rows, either)
        weights = torch.from_numpy(np.random.default_rng(0).normal(size=len(tree.targets)))
        loss, place = 0.0, 0
        for row in rows:
            frames = [either.frames(item, VIDEOS) for item in row.media]
            logits = stock_logits(either, row.ids, row.media, frames, row.positions)
            logits[:, list(either.suppressed_ids)] = -torch.inf
            for span in row.spans:
                where = torch.arange(span.begin - 1, span.end - 1)
                chosen = logits.log_softmax(-1)[where, torch.from_numpy(row.ids[span.begin : span.end])]
                loss = loss + (chosen * weights[place : place + len(chosen)]).sum()
                place += len(chosen)
        loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        features = either.encode_clips([either.frames(item, VIDEOS) for item in tree.media])
        leaves = [rows.detach().requires_grad_() for rows in features]
        ours = TreeForward(either).backward(tree, leaves, lambda found, index: (found * weights[index]).sum())
        torch.autograd.backward(features, [leaf.grad for leaf in leaves])
        assert abs(float(ours - loss.detach())) <= 1e-9 * abs(float(loss.detach()))
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert set(found) == set(expected)
        assert any("vision_tower" in name for name in found) and any("projector" in name for name in found)
        for name, value in expected.items():
            if (largest := float(value.abs().max())) > 1e-9:
                assert float((found[name] - value).abs().max()) <= 1e-6 * largest, name
    finally:
        model.zero_grad(set_to_none=True)
        model.float()


def test_turns_on_kept_keys_and_values_have_the_log_probabilities_of_one_stock_forward(either):
    policy, ids, spans, logprobs, media, frames = TransformersPolicy(either), [], [], [], [], {}
    history = ()
    turns = [
        (Message.of("user", skim(), "\nWhich digit?"),),
        (Message.of("tool", close(3), "\nand ", close(9), "\n"),),
        (Message.of("tool", "again ", skim(2), "\n"),),
    ]
    for turn, new in enumerate(turns):
        history += new
        sampling = Sampling(temperature=1.0, max_new_tokens=9, seed=turn)
        (made,) = policy.generate([Request("episode", history, VIDEOS, sampling=sampling)])
        assert made.error is None and made.extends == (turn > 0)
        history += (Message.of("assistant", made.text),)
        ids += made.prompt_ids
        spans.append((len(ids), len(ids) + len(made.ids)))
        ids += made.ids
        logprobs.append(made.logprobs)
        shown = either.encode(new, VIDEOS)
        media += shown.media
        frames.update(shown.frames)
    with torch.inference_mode():
        where = either.positions(ids, media)
        logits = stock_logits(either, ids, media, [frames[item.key] for item in media], where)
        logits[:, list(either.suppressed_ids)] = -torch.inf
        whole = logits.log_softmax(-1)
    for (begin, end), found in zip(spans, logprobs, strict=True):
        expected = whole[torch.arange(begin - 1, end - 1), torch.tensor(ids[begin:end])]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("patches", [16, 48, 16 * 8, 16 * 15])
def test_features_do_not_depend_on_what_is_encoded_together_or_how_it_is_cut(native, monkeypatch, patches):
    sizes = [(TILE, TILE), (2 * TILE, 3 * TILE), (2 * TILE, TILE)]
    clips = [VIDEO.frames([1.0, 2.0, 3.0, 4.0, 9.0], size).pixels for size in sizes]
    passes = []
    tower = native.model.model.vision_tower
    with torch.inference_mode():
        alone = [native.encode_clips([clip])[0] for clip in clips]
        together = native.encode_clips(clips)
        monkeypatch.setattr(internvl, "PATCHES_PER_FORWARD", patches)
        hook = tower.register_forward_hook(lambda _, __, out: passes.append(len(out.last_hidden_state)))
        cut = native.encode_clips(clips)
        hook.remove()
    assert sum(passes) == 5 * (1 + 7 + 3)
    assert max(passes) <= max(patches // 16, 7)  # a frame's tiles stay together
    for a, b, c, tiles in zip(alone, together, cut, (1, 7, 3), strict=True):
        assert a.shape == (5 * tiles * 4, native.text_config.hidden_size)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


def test_no_clips_have_no_features(native):
    assert native.encode_clips([]) == []


@pytest.mark.parametrize("name", ["vision_tower.encoder.layer.1", "multi_modal_projector.linear_2"])
def test_the_fingerprint_is_of_tower_and_projector(native, name):
    before = fingerprint(native)
    weight = next(native.model.model.get_submodule(name).parameters())
    with torch.no_grad():
        weight.flatten()[0] += 1
        assert fingerprint(native) != before
        weight.flatten()[0] -= 1


def test_positions_count_up_and_pads_must_be_the_clips(native):
    encoded = native.encode(CONVERSATIONS["clips in turns"], VIDEOS)
    assert native.positions(encoded.ids, encoded.media, start=5).tolist() == [[*range(5, 5 + len(encoded.ids))]]
    with pytest.raises(ValueError, match="runs of vision pads"):
        native.positions(encoded.ids, encoded.media[:-1])
    with pytest.raises(ValueError, match="vision block 1 has 2 tokens, but 3 pads"):
        plain_positions([9, 1, 1, 9, 1, 1, 1], [2, 2], [1])


def test_paths_beyond_what_dynamic_frequencies_leave_alone_are_refused(tmp_path):
    """One long path would change the logits of every other in a tree: shown here on the stock model, then refused."""
    folder = write_random_checkpoint(tmp_path / "short", family="internvl", max_position_embeddings=40)
    adapter = load_adapter(str(folder), device="cpu")
    ids = list(adapter.encode([Message.of("user", "Which digit is in the red box? " * 3)], {}).ids)
    assert len(ids) > 40
    with torch.inference_mode():
        short, long = torch.tensor([ids[:20]]), torch.arange(len(ids))
        alone = adapter.model(input_ids=short, position_ids=long[None, :20]).logits
        beside = adapter.model(
            input_ids=torch.tensor([ids]), position_ids=long[None], attention_mask=torch.ones(1, len(ids))
        ).logits[:, :20]
    assert (alone - beside).abs().max() > 1e-2
    assert adapter.positions(ids[:40], ()).shape == (1, 40)
    with pytest.raises(ValueError, match=r"41 tokens are more than the text model's 40.*max_length to 40 at most"):
        adapter.positions(ids[:41], ())


# ---- what is refused -----------------------------------------------------------------------------------------------


def edit(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: edit(d / "preprocessor_config.json", size={"height": 56, "width": 56}), "wrong processor: its til"),
        (lambda d: edit(d / "preprocessor_config.json", size={"shortest_edge": 56}), "wrong processor: its tiles"),
        (lambda d: edit(d / "preprocessor_config.json", do_normalize=False), "wrong processor: do_normalize is False"),
        (lambda d: edit(d / "preprocessor_config.json", min_patches=2), "into 2 to 12 tiles"),
        (lambda d: edit(d / "config.json", image_seq_length=256), "says 256 tokens per tile .* makes 4"),
        (lambda d: edit(d / "config.json", image_token_id=5), "<IMG_CONTEXT> is .* in the tokenizer and 5 in config"),
        (lambda d: edit(d / "config.json", text_config={"model_type": "llama"}), "text model of type 'llama'"),
        (lambda d: edit(d / "config.json", downsample_ratio="half"), "config.json cannot be used: .*downsample_ratio"),
        (lambda d: edit(d / "config.json", downsample_ratio=0.3), "downsampled by 0.3, are not supported"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "no pixel settings"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_in_a_sentence(copy, spoil, message, monkeypatch):
    if "in the tokenizer" not in message:  # all else is known before any weight is read
        monkeypatch.setattr(internvl.InternVLAdapter, "model_class", None)
    if "no pixel" in message:
        (copy / "video_preprocessor_config.json").unlink()
    spoil(copy)
    with pytest.raises(ModelError, match=message):
        load_adapter(str(copy), device="cpu")


def test_a_tokenizer_of_another_family_is_refused(copy, tmp_path):
    other = write_random_checkpoint(tmp_path / "qwen")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, copy)
    with pytest.raises(ModelError, match="the tokenizer has no <img>; it is none of internvl"):
        load_adapter(str(copy), device="cpu")


def test_a_way_of_telling_times_it_cannot_is_refused(folder):
    with pytest.raises(ModelError, match=r"cannot tell times as 'position'; accepted: native, text"):
        load_adapter(str(folder), device="cpu", timestamps="position")


@pytest.mark.parametrize("trust", [False, True])
def test_the_remote_code_format_is_refused_with_the_name_of_the_other(copy, trust):
    edit(copy / "config.json", model_type="internvl_chat", auto_map={"AutoModel": "modeling_internvl_chat.M"})
    with pytest.raises(ModelError, match=r"InternVLChatModel.*OpenGVLab/InternVL3-8B-hf"):
        find_checkpoint(str(copy), trust_remote_code=trust)
