"""Our embeddings, positions and hidden states equal the stock model's on the same pixels."""

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models import qwen_vision
from closeup.tools.video.clip import Clip


def shown(adapter, video):
    clips = [
        Clip(video=video.identity, start=0, end=30, fps=1, pixels=28 * 28),
        Clip(video=video.identity, start=4, end=6, num_frames=5, pixels=112 * 112),
    ]
    return adapter.encode([Message.of("user", clips[0], "\nwhich?", clips[1], "\nend")], {video.identity: video})


def our_logits(adapter, encoded, *, positions=None, order=None):
    ids = torch.tensor(encoded.ids)
    clips = [encoded.frames[m.key] for m in encoded.media]
    features = adapter.encode_clips(clips if order is None else [clips[i] for i in order])
    where = adapter.positions(encoded.ids, encoded.media) if positions is None else positions
    with torch.inference_mode():
        embeds = adapter.embed(ids, features)[None]
        return adapter.logits(adapter.hidden(embeds, torch.from_numpy(where)[:, None], mask=None, cache=None))[0]


def stock_logits(adapter, encoded):
    pixels = np.concatenate([adapter.pixel_values(encoded.frames[m.key]) for m in encoded.media])
    with torch.inference_mode():
        return adapter.model(
            input_ids=torch.tensor([encoded.ids]),
            pixel_values_videos=torch.from_numpy(pixels),
            video_grid_thw=torch.tensor([g for m in encoded.media for g in m.grids]),
            position_ids=torch.from_numpy(adapter.positions(encoded.ids, encoded.media))[:, None],
        ).logits[0]


@pytest.mark.parametrize("which", ["adapter", "position_adapter"])
def test_logits_equal_the_stock_model_with_explicit_positions(request, which, video):
    adapter = request.getfixturevalue(which)
    with torch.inference_mode():
        encoded = shown(adapter, video)
        torch.testing.assert_close(our_logits(adapter, encoded), stock_logits(adapter, encoded), atol=1e-4, rtol=0)


def test_wrong_positions_and_swapped_clips_fail_that_equality(adapter, position_adapter, video):
    with torch.inference_mode():
        encoded = shown(adapter, video)
        stock = stock_logits(adapter, encoded)
        where = adapter.positions(encoded.ids, encoded.media)
        where[:, 40:] += 1  # shifted from one point on: a shift of everything changes nothing in rotary attention
        assert (our_logits(adapter, encoded, positions=where) - stock).abs().max() > 1e-2
        two = Clip(video=video.identity, start=40, end=44, num_frames=4, pixels=28 * 28)
        one = two.model_copy(update={"start": 50.0, "end": 54.0})
        pair = adapter.encode([Message.of("user", one, "?", two)], {video.identity: video})
        assert (our_logits(adapter, pair, order=[1, 0]) - stock_logits(adapter, pair)).abs().max() > 1e-2


def test_features_do_not_depend_on_what_is_encoded_together_or_how_it_is_cut(adapter, video, monkeypatch):
    sizes = [(28, 28), (112, 56), (56, 112)]
    clips = [video.frames([1.0, 2.0, 3.0, 4.0, 9.0], size).pixels for size in sizes]
    with torch.inference_mode():
        alone = [adapter.encode_clips([c])[0] for c in clips]
        together = adapter.encode_clips(clips)
        monkeypatch.setattr(qwen_vision, "PATCHES_PER_FORWARD", 40)
        cut = adapter.encode_clips(clips)
    for a, b, c, size in zip(alone, together, cut, sizes, strict=True):
        assert a.shape == (3 * size[0] * size[1] // 28**2, adapter.text_config.hidden_size)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


def test_features_that_do_not_fit_the_pads_are_an_error(adapter, video):
    encoded = shown(adapter, video)
    with torch.inference_mode():
        features = adapter.encode_clips([encoded.frames[m.key] for m in encoded.media])
        with pytest.raises(ValueError, match="do not belong together"):
            adapter.embed(torch.tensor(encoded.ids), features[:1])
