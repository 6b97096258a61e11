"""The training's own forward pass equals the stock modules, and the tokenizer and checkpoint load in stock code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from closeup.agent.models.mrope import mrope_positions
from closeup.rl.tiny import vocabulary as v
from closeup.rl.tiny.checkpoint import new_model, save_checkpoint, shape_of
from closeup.rl.tiny.forward import as_pairs, logits, patchify, text, vision, weights_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(new_model(3), path)
    return path


def test_features_and_logits_equal_the_stock_model(folder: Path) -> None:
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    rng = np.random.default_rng(0)
    close, skim = (rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8) for n, side in ((4, 112), (2, 28)))
    patches = [patchify(as_pairs(frames)) for frames in (skim, close)]
    grid = [[1, 2, 2], [1, 8, 8], [1, 8, 8]]
    pads = v.VIDEO_PAD
    ids = [6, 100, 101, 4, pads, 5, 102, 4, *[pads] * 16, 5, 103, 4, *[pads] * 16, 5, 104, 105]
    positions = torch.tensor(mrope_positions(ids, grid, pad_id_video=pads, pad_id_image=v.IMAGE_PAD))[:, None]
    weights, shape = weights_of(new_model(3)), shape_of(stock.config)
    with torch.no_grad():
        features = torch.cat([vision(weights, shape, p).reshape(-1, 192) for p in patches])
        x = weights["text.embed_tokens.weight"][torch.tensor([ids])]
        x = x.masked_scatter((torch.tensor([ids]) == pads)[..., None], features)
        ours = logits(weights, text(weights, shape, x, positions))
        past: list[tuple[torch.Tensor, torch.Tensor]] = []
        halves = [text(weights, shape, x[:, a:b], positions[..., a:b], past=past) for a, b in ((0, 20), (20, None))]
        theirs = stock(
            input_ids=torch.tensor([ids]),
            pixel_values_videos=torch.cat([p.reshape(-1, 1176) for p in patches]),
            video_grid_thw=torch.tensor(grid),
            position_ids=positions,
        ).logits
        wrong = logits(weights, text(weights, shape, x, positions.flip(0) * 2))
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert torch.allclose(logits(weights, torch.cat(halves, dim=1)), theirs, atol=2e-5)
    assert not torch.allclose(wrong, theirs, atol=1e-2)


def test_stock_tokenizer_reads_the_folder_and_agrees(folder: Path) -> None:
    stock, ours = AutoTokenizer.from_pretrained(folder), v.build_tokenizer()
    for said in (
        "<think>I see an orange box: 7 (B).</think>\n<tool_call>\n",
        "112s<|vision_start|>",
        "Ünïcode 3.14?\n",
    ):
        ids = ours.encode(said).ids
        assert stock(said, add_special_tokens=False).input_ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == said
    assert (stock.eos_token_id, stock.pad_token_id) == (v.END, v.PAD)


def test_words_of_the_world_are_single_tokens() -> None:
    tokenizer = v.build_tokenizer()
    for word in (" red", " orange", " green", "0", "9", "64", "120", "A", "D", "<tool_call>", "<|video_pad|>"):
        assert len(tokenizer.encode(word).ids) == 1, word
