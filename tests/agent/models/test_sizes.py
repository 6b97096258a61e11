"""Sizes of frames are the stock processors', wherever those keep to the area they were given."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from closeup.agent.geometry import VisionGeometry

SIDES = st.integers(1, 4000)
FACTORS = st.sampled_from([(14, 2), (16, 2), (14, 1)])


def stock(module: str) -> Callable[..., tuple[int, int]]:
    """A stock processor's own `smart_resize`, compiled from its source: the video modules import torchvision."""
    import transformers

    source = Path(transformers.__file__).parent / f"models/{module}.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "smart_resize":
            found: dict[str, Any] = {"math": math}
            exec(compile(ast.Module([node], []), str(source), "exec"), found)  # the installed library's code
            function: Callable[..., tuple[int, int]] = found["smart_resize"]
            return function
    raise AssertionError(f"{source} has no smart_resize any more")


IMAGE = stock("qwen2_vl/image_processing_pil_qwen2_vl")
VIDEO = stock("qwen3_vl/video_processing_qwen3_vl")
ALIKE = [stock(f"qwen2_vl/{name}_qwen2_vl") for name in ("image_processing", "video_processing")]


def geometry(patch: int, merge: int, least: int = 28 * 28) -> VisionGeometry:
    return VisionGeometry(patch=patch, merge=merge, min_pixels=least)


@settings(max_examples=500, deadline=None)
@given(SIDES, SIDES, FACTORS, st.integers(1, 4_000_000), st.integers(1, 400_000))
@example(720, 1280, (14, 2), 32 * 28 * 28, 56 * 56)  # LOVE-R1's overview
@example(360, 640, (14, 2), 28 * 28, 56 * 56)  # the bundled model's, on a tower that wants more
@example(120, 160, (14, 2), 32 * 28 * 28, 128 * 28 * 28)  # the stock video processor's own lower bound, not reached
@example(15, 15, (14, 2), 1, 785)  # a limit below a token, and a tower that wants more than one
@example(42, 70, (14, 2), 10**6, 28 * 28)  # halves: both round to even
def test_sizes_are_smart_resizes(height: int, width: int, factor: tuple[int, int], pixels: int, least: int) -> None:
    side = factor[0] * factor[1]
    ours = geometry(*factor, least).size(width, height, pixels)
    assert ours[0] % side == ours[1] % side == 0 and min(ours) >= side
    assume(max(height, width) / min(height, width) <= 200)  # where the stock function does not raise
    theirs = IMAGE(height, width, side, least, pixels)
    assert all(other(height, width, side, least, pixels) == theirs for other in ALIKE)
    rounded = round(height / side) * side, round(width / side) * side
    if 0 in rounded:  # on purpose: the stock function takes such a frame to have no area, and enlarges it
        assert ours[0] * ours[1] <= max(pixels, side * side) or max(rounded) * side < least
    elif rounded[0] * rounded[1] > pixels < theirs[0] * theirs[1]:  # on purpose: the area is a limit
        assert ours[0] * ours[1] <= max(pixels, side * side) and ours[0] <= theirs[0] and ours[1] <= theirs[1]
    else:
        assert ours == theirs


@settings(max_examples=500, deadline=None)
@given(st.integers(32, 3000), st.integers(32, 3000), FACTORS, st.integers(1, 384), st.integers(1024, 10**6), st.data())
def test_sizes_of_a_video_are_those_of_the_rule_for_all_its_frames(
    height: int, width: int, factor: tuple[int, int], pairs: int, pixels: int, data: st.DataObject
) -> None:
    """Qwen3-VL bounds the area of all frames together; an even number of frames times `pixels` is the same rule."""
    side, frames = factor[0] * factor[1], 2 * pairs
    least = data.draw(st.integers(1, pixels))
    theirs = VIDEO(frames, height, width, 2, side, least * frames, pixels * frames)
    ours = geometry(*factor, least).size(width, height, pixels)
    rounded = round(height / side) * round(width / side) * side * side
    if rounded > pixels < theirs[0] * theirs[1]:
        assert ours[0] * ours[1] <= pixels and ours[0] <= theirs[0] and ours[1] <= theirs[1]
    else:
        assert ours == theirs


def test_a_frames_size_does_not_depend_on_how_many_there_are() -> None:
    """On purpose: a preset says the area of one frame, so that a clip's frames are as large whatever their number."""
    total = 32 * 28 * 28 * 8
    ours = geometry(14, 2).size(1280, 720, 32 * 28 * 28)
    assert ours == VIDEO(8, 720, 1280, 2, 28, 784, total) == (112, 196)
    assert VIDEO(4, 720, 1280, 2, 28, 784, total) == (168, 280), "the stock rule gives fewer frames more pixels"
    assert [VIDEO(n, 84, 100, 2, 28, 1, n * 84 * 112) for n in (6, 7)] == [(84, 112), (84, 84)], "odd is not even"
    assert geometry(14, 2).size(100, 84, 84 * 112) == (84, 112)


def test_what_the_stock_function_refuses_has_a_size_all_the_same() -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        IMAGE(10, 2010, 28, 784, 28 * 28 * 100)
    assert geometry(14, 2).size(2010, 10, 28 * 28 * 100) == (28, 2016)
