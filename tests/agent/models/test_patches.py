"""Patches equal the stock processors' on the same, already resized frames."""

import ast
from pathlib import Path

import numpy as np
import pytest

from closeup.agent.models.patches import patchify, pixel_table

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def ours(frames):
    return patchify(frames, pixel_table(MEAN, STD), patch=14, merge=2, temporal=2)


@pytest.mark.parametrize("size", [(28, 28), (56, 112), (84, 28)])
def test_an_image_equals_the_stock_image_processor(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = noise(*size, 3)
    processor = Qwen2VLImageProcessorPil(image_mean=MEAN, image_std=STD, do_resize=False)
    theirs = processor(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours(image[None]), theirs, atol=1e-6)


def stock_video_patchify():
    """The stock video processor's own `patchify`, compiled from its source: its module imports torchvision (for the
    resizing that comes before), which is no dependency of ours."""
    import torch
    import transformers

    source = Path(transformers.__file__).parent / "models/qwen2_vl/video_processing_qwen2_vl.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "patchify":
            found: dict = {"torch": torch}
            exec(compile(ast.Module([node], []), str(source), "exec"), found)  # the installed library's code
            return found["patchify"]
    raise AssertionError(f"{source} has no patchify any more")


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_video_equals_the_stock_video_processor(count):
    import torch

    frames = noise(count, 56, 84, 3)
    scaled = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    theirs, *grid = stock_video_patchify()(None, ((scaled - mean) / std)[None], 14, 2, 2)
    np.testing.assert_allclose(ours(frames), theirs[0].numpy(), atol=1e-6)
    assert grid == [-(-count // 2), 4, 6]


def test_the_order_of_a_video_follows_the_definition():
    """Independent of any processor: patch (t, h, w) of the merged order holds exactly its pixels."""
    frames = noise(4, 56, 56, 3)
    identity = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    rows = patchify(frames, identity, patch=14, merge=2, temporal=2).reshape(2, 2, 2, 2, 2, 3, 2, 14, 14)
    for t, bh, bw, mh, mw in np.ndindex(2, 2, 2, 2, 2):
        top, left = (bh * 2 + mh) * 14, (bw * 2 + mw) * 14
        expected = frames[t * 2 : t * 2 + 2, top : top + 14, left : left + 14].transpose(3, 0, 1, 2)
        np.testing.assert_array_equal(rows[t, bh, bw, mh, mw], expected)


def test_a_last_odd_frame_is_repeated_and_odd_sizes_are_refused():
    frames = noise(3, 28, 28, 3)
    np.testing.assert_array_equal(ours(frames), ours(np.concatenate([frames, frames[-1:]])))
    with pytest.raises(ValueError, match="multiples of 28"):
        ours(noise(2, 30, 28, 3))
