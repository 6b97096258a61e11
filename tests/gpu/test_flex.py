"""The `flex` core on a CUDA device: a tree's gradients equal those of the `segment` core."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.rl.forward import TreeForward
from closeup.rl.rows import Row, Span
from closeup.rl.tree import build_tree
from closeup.tools.video.clip import Clip

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_gradients_equal_the_segment_cores(tmp_path, dtype, tolerance):
    video = SyntheticVideo(1)
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256}
    shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
    adapter = load_adapter(str(write_random_checkpoint(tmp_path / "random", **shape)), device="cuda", dtype=dtype)
    overview = Clip(video=video.identity, start=0, end=60, fps=1, pixels=56 * 56)
    rows = []
    for rollout in range(4):
        first = adapter.encode((Message.of("user", overview, "box?"),), {video.identity: video})
        said = adapter.message_ids(f"zoom_clip {rollout // 2}")
        look = Clip(video=video.identity, start=5 * rollout, end=5 * rollout + 4, num_frames=4, pixels=84 * 84)
        more = adapter.encode((Message.of("tool", look),), {video.identity: video}, first=False)
        answer = adapter.message_ids(f"answer {rollout}")
        ids = [*first.ids, *said, *more.ids, *answer]
        media = (*first.media, *more.media)
        start = len(first.ids)
        spans = (Span(0, start, start + len(said)), Span(1, len(ids) - len(answer), len(ids)))
        rows.append(Row(rollout, np.array(ids), media, adapter.positions(ids, media), spans))
    tree = build_tree(rows, adapter)
    with torch.no_grad():
        clips = adapter.encode_clips([adapter.frames(item, {video.identity: video}) for item in tree.media])
    found = {}
    for core in ("segment", "flex"):
        adapter.model.zero_grad(set_to_none=True)
        TreeForward(adapter, core=core).backward(tree, clips, lambda logprobs, _: logprobs.sum())
        found[core] = {n: p.grad.float().clone() for n, p in adapter.model.named_parameters() if p.grad is not None}
    for name, expected in found["segment"].items():
        error = (found["flex"][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= tolerance, name
