"""The bicubic resizer gives the very pixels of the families' stock processors, with every decoder, from every cache."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from closeup.tools import ToolContext, ToolResult, registered_tools, run_tool
from closeup.tools.base import Tool, ToolArgs
from closeup.tools.rules import ToolRules
from closeup.tools.video import Clip, Video, cache_stats, clear_caches
from closeup.tools.video.overlay import draw
from closeup.tools.video.pixels import bicubic

FOLDER = Path(__file__).parents[4] / "shared" / "videos"
REAL = ("bigbuckbunny.mp4", "crystal.mp4", "chaplin.mp4", "flower.mp4", "stream-of-water.webm", "asl_help.mkv")
SIZES = [(28, 56), (112, 112), (168, 280), (364, 644)]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
Pixels = NDArray[np.uint8]


def whole_pictures(path: Path, numbers: list[int]) -> list[Pixels]:
    """Frames as the libraries hand them to a stock processor: PyAV's own RGB of the whole picture."""
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="rgb24")  # type: ignore[misc]
            for number, frame in enumerate(container.decode(video=0))
            if number in numbers
        ]


def through(processor: Any, picture: Pixels) -> Pixels:
    """A picture after a stock processor's own `preprocess`: its resize alone, as H x W x 3."""
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    pixels = processor(images=[picture], **options)["pixel_values"]
    return np.asarray(pixels)[0].transpose(1, 2, 0)


def by_torch(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """What torchvision's resize of a uint8 tensor is on a CPU: torch's own integer filter (no torchvision here)."""
    import torch

    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic", antialias=True, align_corners=False)
    return out[0].permute(1, 2, 0).numpy()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- equality with the stock processors ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(56, 84), (224, 280), (112, 140)])
def test_qwens_image_processor_gives_the_same_patches(barcode_mp4: Path, size: tuple[int, int]) -> None:
    """From the file to the tower's input: our resize and patches against the stock processor's, on the same picture."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

    from closeup.agent.geometry import VisionGeometry
    from closeup.agent.models.patches import patchify, pixel_table

    (whole,) = whole_pictures(barcode_mp4, [60])
    pixels = size[0] * size[1]
    bounds = {"shortest_edge": 28 * 28, "longest_edge": pixels}
    stock = Qwen2VLImageProcessorPil(image_mean=MEAN, image_std=STD, size=bounds)
    theirs = stock(images=[whole], return_tensors="np")
    with Video(barcode_mp4) as video:
        ours_size = VisionGeometry(min_pixels=28 * 28).size(video.width, video.height, pixels)
        frames = video.frames([2.0], ours_size, resizer="bicubic").pixels
    assert ours_size == smart_resize(*whole.shape[:2], 28, 28 * 28, pixels)
    assert theirs["image_grid_thw"][0].tolist() == [1, ours_size[0] // 14, ours_size[1] // 14]
    patches = patchify(frames, pixel_table(MEAN, STD), patch=14, merge=2, temporal=2)
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-6)


@pytest.mark.parametrize("family", ["got_ocr2", "llava_onevision"])
@pytest.mark.parametrize("size", [(28, 56), (96, 96), (300, 200)])
def test_the_other_families_processors_give_the_same_pixels(
    family: str, size: tuple[int, int], barcode_mp4: Path
) -> None:
    """InternVL's image processor is GOT-OCR2's. Bit for bit, shrinking and growing."""
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    name = {"got_ocr2": "GotOcr2ImageProcessorPil", "llava_onevision": "LlavaOnevisionImageProcessorPil"}[family]
    stock = getattr(module, name)(size={"height": size[0], "width": size[1]})
    (whole,) = whole_pictures(barcode_mp4, [60])
    resized = stock.resize(whole.transpose(2, 0, 1), stock.size, stock.resample)
    with Video(barcode_mp4) as video:
        ours = video.frames([2.0], size, resizer="bicubic").pixels[0]
    np.testing.assert_array_equal(ours, np.asarray(resized).transpose(1, 2, 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120), st.integers(1, 120), st.integers(0, 9))
def test_within_two_levels_of_the_torchvision_processors_on_noise(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    """Torch's integer filter, which the torchvision processors use. (20,000 such pictures: 2 levels, mean 0.11.)"""
    picture = noise(height, width, seed)
    apart = np.abs(bicubic(picture, (rows, columns)).astype(int) - by_torch(picture, (rows, columns)))
    assert apart.max() <= 2 and apart.mean() < 0.2


@pytest.mark.shared_clips
@pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/videos is not there")
@pytest.mark.parametrize("name", REAL)
def test_real_frames_equal_pillows_and_nearly_torchvisions(name: str) -> None:
    (whole,) = whole_pictures(FOLDER / name, [30])
    with av.open(str(FOLDER / name)) as container:
        frame = next(frame for number, frame in enumerate(container.decode(video=0)) if number == 30)
    assert frame.pts is not None and frame.time_base is not None
    with Video(FOLDER / name) as video:
        time = float(frame.pts * frame.time_base) - video.start_time + 1e-4
        for size in SIZES:
            ours = video.frames([time], size, resizer="bicubic").pixels[0]
            pillow = Image.fromarray(whole).resize(size[::-1], Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(ours, np.asarray(pillow))
            apart = np.abs(ours.astype(int) - by_torch(whole, size))
            assert apart.max() <= 2 and apart.mean() < 0.02
            other = video.frames([time], size).pixels[0]
            assert np.abs(ours.astype(int) - other).mean() > 0.05, "the default resizer is another one"


def test_size_of_the_source_needs_no_filter(barcode_mp4: Path) -> None:
    (whole,) = whole_pictures(barcode_mp4, [60])
    with Video(barcode_mp4) as video:
        np.testing.assert_array_equal(video.frames([2.0], resizer="bicubic").pixels[0], whole)


# ---- turning, stretching, drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotate-90", "rotate-180", "rotate-270"])
def test_a_picture_is_turned_before_it_is_resized(name: str, make: Any) -> None:
    """Decoders hand turned pictures to the processor; the filter's two passes do not commute with a turn."""
    path = make(name)
    (stored,) = whole_pictures(path, [30])
    with Video(path) as video:
        ours = video.frames([1.0], (45, 37), resizer="bicubic").pixels[0]
        turned = np.ascontiguousarray(np.rot90(stored, video.rotation // 90))
    np.testing.assert_array_equal(ours, bicubic(turned, (45, 37)))


def test_the_sample_aspect_ratio_is_stretched_in_the_same_step(make: Any) -> None:
    path = make("sar-2-1")
    (stored,) = whole_pictures(path, [30])
    with Video(path) as video:
        assert video.width == 2 * stored.shape[1]
        ours = video.frames([1.0], (48, 192), resizer="bicubic").pixels[0]
    np.testing.assert_array_equal(ours, bicubic(stored, (48, 192)))


def test_the_time_is_drawn_before_the_resize(barcode_mp4: Path) -> None:
    """As LOVE-R1's code does; the swscale resizer draws on the small frame."""
    (whole,) = whole_pictures(barcode_mp4, [60])
    with Video(barcode_mp4) as video:
        clip = Clip(
            video=video.identity, start=2, end=2, num_frames=1, pixels=10**6, overlay="seconds", resizer="bicubic"
        )
        ours = video.frames(clip, (48, 96)).pixels[0]
        swscale = clip.model_copy(update={"resizer": "swscale-bilinear"})
        np.testing.assert_array_equal(
            video.frames(swscale, (48, 96)).pixels[0], draw("seconds", video.frames([2.0], (48, 96)).pixels[0], 2.0)
        )
        blank = clip.model_copy(update={"overlay": "blank"})
        assert not video.frames(blank, (48, 96)).pixels.any()
    np.testing.assert_array_equal(ours, bicubic(draw("seconds", whole, 2.0), (48, 96)))
    assert (ours != draw("seconds", bicubic(whole, (48, 96)), 2.0)).any()


# ---- decoders and caches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("overlay", [None, "seconds"])
def test_every_decoder_gives_the_same_pixels(backend: str, overlay: Any, barcode_mp4: Path) -> None:
    """With swscale they differ (docs/video.md); the whole RGB picture is the same everywhere, bit for bit."""
    loads = subprocess.run([sys.executable, "-c", f"import {backend}"], capture_output=True, check=False)
    if loads.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"{backend} does not load here")
    answers = []
    for name in ("pyav", backend):
        with Video(barcode_mp4, backend=name) as video:
            clip = Clip(video=video.identity, start=0, end=5, num_frames=9, pixels=6000, resizer="bicubic")
            answers.append(video.frames(clip.model_copy(update={"overlay": overlay})))
    assert (answers[0].times == answers[1].times).all()
    np.testing.assert_array_equal(answers[0].pixels, answers[1].pixels)


def test_resizers_do_not_share_frames_and_one_resizer_shares_its_own(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        both = {}
        for resizer in ("swscale-bilinear", "bicubic", "swscale-bilinear", "bicubic"):
            before = cache_stats()["frames"]
            got = video.frames([1.0, 2.0], (40, 60), resizer=resizer).pixels  # type: ignore[arg-type]
            after = cache_stats()["frames"]
            if resizer in both:
                np.testing.assert_array_equal(got, both[resizer])
                assert after.hits == before.hits + 2 and after.entries == before.entries == 4
            else:
                assert after.hits == before.hits and after.entries == before.entries + 2
            both[resizer] = got
        assert (both["bicubic"] != both["swscale-bilinear"]).any()
        for mode in ("exact", "keyframe"):
            fresh = video.frames([0.5, 3.1, 3.1001], (30, 50), resizer="bicubic", mode=mode)  # type: ignore[arg-type]
            clear_caches()
            again = video.frames([0.5, 3.1, 3.1001], (30, 50), resizer="bicubic", mode=mode)  # type: ignore[arg-type]
            np.testing.assert_array_equal(fresh.pixels, again.pixels)
            np.testing.assert_array_equal(fresh.pixels[1], fresh.pixels[2])


# ---- clips and tools -------------------------------------------------------------------------------------------------


def test_a_clips_key_tells_the_resizer_and_old_keys_stay() -> None:
    clip = Clip(video="v", start=1, end=2, num_frames=3, pixels=784)
    other = clip.model_copy(update={"resizer": "bicubic"})
    assert clip.resizer == "swscale-bilinear" and clip != other and clip.key != other.key
    assert clip.key == "735ab7b522d24c7d", "keys in records made before there was a choice"
    assert "resizer" not in clip.model_dump() and "resizer" not in clip.model_dump_json()
    assert other.model_dump(mode="json")["resizer"] == "bicubic"
    for made in (clip, other):
        assert Clip.model_validate_json(made.model_dump_json()) == made


def test_an_unknown_resizer_is_refused_with_those_there_are(barcode_mp4: Path) -> None:
    with pytest.raises(ValidationError, match="'swscale-bilinear' or 'bicubic'"):
        Clip(video="v", start=1, end=2, num_frames=3, pixels=784, resizer="lanczos")  # type: ignore[arg-type]
    with (
        Video(barcode_mp4) as video,
        pytest.raises(ValueError, match="resizer must be 'swscale-bilinear' or 'bicubic', got 'lanczos'"),
    ):
        video.frames([1.0], resizer="lanczos")  # type: ignore[arg-type]


class Still(Tool[ToolArgs]):
    """One frame, by a tool that knows nothing of resizers."""

    name = "still"

    def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
        clip = Clip(video=context.seen[0].video, start=1, end=1, num_frames=1, pixels=784)
        chosen = clip.model_copy(update={"resizer": "swscale-bilinear"})
        return ToolResult(clips=(clip, chosen))


@pytest.mark.parametrize("resizer", ["swscale-bilinear", "bicubic"])
def test_every_tools_clips_are_resized_as_the_overview_is(resizer: Any, sample_video: Path) -> None:
    with Video(sample_video) as video:
        overview = Clip(video=video.identity, start=0, end=8, num_frames=4, pixels=784, resizer=resizer)
        context = ToolContext(videos=(video,), seen=(overview,), rules=ToolRules())
        tools = registered_tools()
        zoom = run_tool(tools["zoom_clip"], {"start": 1, "end": 3}, context).clips[0]
        skim = run_tool(tools["resample_frames"], {"num_frames": 9}, context).clips[0]
        left_open, chosen = run_tool(Still, {}, context).clips
    assert [clip.resizer for clip in (zoom, skim, left_open)] == [resizer] * 3
    assert chosen.resizer == "swscale-bilinear", "what a tool chooses itself stays"
