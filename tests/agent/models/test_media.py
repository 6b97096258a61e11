"""Vision features are encoded once, kept by content, and never outlive the weights that made them."""

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.media import MediaStore, fingerprint, weights_digest
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.tools.video.clip import Clip


def media(adapter, video, *starts):
    clips = [Clip(video=video.identity, start=s, end=s + 2, num_frames=4, pixels=56 * 56) for s in starts]
    shown = adapter.encode([Message.of("user", *[x for c in clips for x in (c, "?")])], {video.identity: video})
    return shown.media, shown.frames


def test_a_clip_is_encoded_once_whoever_asks(adapter, video):
    store = MediaStore(adapter, max_bytes=1 << 20)
    items, frames = media(adapter, video, 0, 5, 0)
    with torch.inference_mode():
        first = store.features(items, lambda m: frames[m.key])
        again = store.features(items[::-1], lambda m: pytest.fail("decoded again"))
    assert (store.encoded, store.reused) == (2, 4)
    assert first[0] is first[2] is again[0] and not torch.equal(first[0], first[1])
    torch.testing.assert_close(first[1], adapter.encode_clips([frames[items[1].key]])[0], atol=1e-5, rtol=0)


def test_equal_pixels_share_a_key_and_other_pixels_do_not(adapter, video):
    (a, b), _ = media(adapter, video, 0, 5)
    (c, _), _ = media(adapter, SyntheticVideo(7), 0, 9)
    (d, _), _ = media(adapter, SyntheticVideo(8), 0, 5)
    assert a.key == c.key and len({a.key, b.key, d.key}) == 3


def test_the_bytes_stay_bounded_and_the_least_used_go_first(adapter, video):
    items, frames = media(adapter, video, *range(8))
    with torch.inference_mode():
        size = adapter.encode_clips([frames[items[0].key]])[0].nbytes
        store = MediaStore(adapter, max_bytes=3 * size)
        for item in items:
            store.features([items[0], item], lambda m: frames[m.key])
            assert store.bytes <= 3 * size
        assert store.encoded == 8  # the first one was always in use
        assert len(store.features(items, lambda m: frames[m.key])) == 8  # more at once than fit


def test_other_weights_never_find_old_features(tmp_path, video):
    from closeup.agent.models.load import load_adapter

    own = load_adapter(str(write_random_checkpoint(tmp_path / "own")), device="cpu")
    store = MediaStore(own, max_bytes=1 << 20)
    items, frames = media(own, video, 0)
    with torch.inference_mode():
        before = store.features(items, lambda m: frames[m.key])[0]
    names = fingerprint(own), weights_digest(own.model)
    with torch.no_grad():
        own.model.model.visual.merger.mlp[2].bias[3] += 0.5
    assert fingerprint(own) != names[0]
    store.weights_changed()
    with torch.inference_mode():
        after = store.features(items, lambda m: frames[m.key])[0]
    np.testing.assert_allclose((after - before)[:, 3], 0.5, atol=1e-5)
