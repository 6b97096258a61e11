"""Vision features are encoded once, kept by content, and never outlive the weights that made them."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.featurecache import CacheError, FeatureCache
from closeup.agent.models.load import load_adapter
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


def held(store):
    """Bytes of memory that the kept features really hold: those of all storages they are views of."""
    storages = {rows.untyped_storage().data_ptr(): rows.untyped_storage() for rows in store._kept.values()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("warm", [False, True], ids=["tower", "disk"])
def test_a_kept_clip_does_not_hold_the_batch_it_was_encoded_in(adapter, video, tmp_path, warm):
    items, frames = media(adapter, video, *range(9))
    disk = FeatureCache(tmp_path / "cache")
    with torch.no_grad():
        size = adapter.encode_clips([frames[items[0].key]])[0].nbytes
        if warm:
            MediaStore(adapter, max_bytes=0, disk=disk).features(items, lambda m: frames[m.key])
        store = MediaStore(adapter, max_bytes=4 * size, disk=disk)
        for batch in (items[:3], items[3:6], items[6:]):
            first = store.features(batch, lambda m: frames[m.key])
            again = store.features([batch[0]], lambda m: pytest.fail("not kept"))  # it stays longer than the others
            assert again[0] is first[0] and held(store) == store.bytes <= 4 * size
    assert store.loaded == (9 if warm else 0)


def test_other_weights_never_find_old_features(tmp_path, video):
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


# ---- gradients, threads, disk --------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """An adapter whose weights a test may change."""
    return load_adapter(str(write_random_checkpoint(tmp_path / "own")), device="cpu")


def test_kept_features_may_enter_a_graph_even_if_first_asked_for_in_inference_mode(adapter, video):
    store = MediaStore(adapter, max_bytes=1 << 20)
    items, frames = media(adapter, video, 0)
    with torch.inference_mode():
        (found,) = store.features(items, lambda m: frames[m.key])
    assert not found.is_inference() and not found.requires_grad
    weight = torch.ones(found.shape[1], requires_grad=True)
    (found * weight).sum().backward()  # saves the features for its backward pass
    torch.testing.assert_close(weight.grad, found.sum(0))


def test_a_trained_tower_gives_gradients_once_per_distinct_clip(own, video):
    store = MediaStore(own, max_bytes=1 << 20)
    items, frames = media(own, video, 0, 5, 0)
    calls = []
    encode = own.encode_clips
    own.encode_clips = lambda clips: calls.append(len(clips)) or encode(clips)
    found = store.features(items, lambda m: frames[m.key], trainable=True)
    assert calls == [2] and found[0] is found[2] and all(rows.requires_grad for rows in found)
    sum(rows.square().sum() for rows in found).backward()
    got = {name: p.grad.clone() for name, p in own.model.model.visual.named_parameters() if p.grad is not None}
    own.model.zero_grad()
    first, second = encode([frames[items[0].key], frames[items[1].key]])
    (2 * first.square().sum() + second.square().sum()).backward()
    assert len(got) > 10
    for name, p in own.model.model.visual.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-4)
    assert store.bytes == 0
    store.features(items, lambda m: frames[m.key], trainable=True)
    assert calls == [2, 2]  # nothing is kept: the weights may be other ones by now
    with torch.no_grad():
        assert not store.features(items, lambda m: frames[m.key], trainable=True)[0].requires_grad


def test_gradients_are_never_lost_silently(own, video):
    store = MediaStore(own, max_bytes=1 << 20)
    items, frames = media(own, video, 0)
    assert not store.frozen
    with pytest.raises(ValueError, match="trainable=True"):
        store.features(items, lambda m: frames[m.key])
    own.model.model.visual.requires_grad_(False)
    assert store.frozen
    assert not store.features(items, lambda m: frames[m.key])[0].requires_grad


def test_an_optimizers_step_is_noticed_without_being_told(own, video):
    store = MediaStore(own, max_bytes=1 << 20)
    items, frames = media(own, video, 0)
    with torch.no_grad():
        before = store.features(items, lambda m: frames[m.key])[0]
    named = store.weights
    optimizer = torch.optim.AdamW(own.model.model.visual.parameters(), lr=0.1)
    store.features(items, lambda m: frames[m.key], trainable=True)[0].sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = store.features(items, lambda m: frames[m.key])[0]
    assert store.weights != named and not torch.allclose(before, after)
    torch.testing.assert_close(after, own.encode_clips([frames[items[0].key]])[0], atol=1e-5, rtol=1e-5)


def test_weights_that_are_trained_are_written_to_the_disk_only_as_they_were_found(own, video, tmp_path):
    """Otherwise every update would leave entries that nobody can ever ask for again."""
    disk = FeatureCache(tmp_path / "cache")
    store = MediaStore(own, max_bytes=1 << 20, disk=disk)
    items, frames = media(own, video, 0, 5)
    optimizer = torch.optim.SGD(own.model.model.visual.parameters(), lr=0.1)
    named = [store.weights]
    with torch.no_grad():
        store.features(items, lambda m: frames[m.key])
    for _ in range(3):
        store.features(items, lambda m: frames[m.key], trainable=True)[0].sum().backward()
        optimizer.step()
        named.append(store.weights)
        with torch.no_grad():
            store.features(items, lambda m: frames[m.key])
            store.features(items, lambda m: pytest.fail("within an update they are kept in memory"))
        assert not store.holds(media(own, video, 9)[0][0])
    (group,) = disk.summary()
    assert len(set(named)) == 4 and (group.maker.weights, group.entries) == (named[0], 2)
    own.model.model.visual.requires_grad_(False)  # what was trained is used now: its features are worth keeping
    with torch.no_grad():
        MediaStore(own, max_bytes=0, disk=disk).features(items, lambda m: frames[m.key])
        items, frames = media(own, video, 12)
        store.features(items, lambda m: frames[m.key])
    assert {group.maker.weights: group.entries for group in disk.summary()} == {named[0]: 2, named[-1]: 3}


def test_an_adapter_on_the_vision_side_switches_the_cache_off(own, video, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `train` is not installed")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    layers = peft.inject_adapter_in_model(config, own.model.model.visual)
    store = MediaStore(own, max_bytes=1 << 20, disk=FeatureCache(tmp_path / "cache"))
    items, frames = media(own, video, 0)
    named = store.weights
    with torch.no_grad():
        on = store.features(items, lambda m: frames[m.key])[0]
        for layer in layers.modules():
            if hasattr(layer, "adapter_layer_names"):
                layer.enable_adapters(False)
        off = store.features(items, lambda m: frames[m.key])[0]
    assert store.weights == named, "no weight shows whether the adapter is on"
    assert not torch.allclose(on, off) and (store.encoded, store.bytes) == (2, 0)
    assert not store.frozen and not store.holds(items[0]) and store.disk.summary() == []


def test_what_makes_features_is_named_by_settings_and_pixels_too(tmp_path):
    folder = write_random_checkpoint(tmp_path / "a")
    names = set()
    for change in ({}, {"image_mean": [0.5, 0.5, 0.5]}, {"fullatt_block_indexes": [0]}):
        for file in ("preprocessor_config.json", "config.json"):
            settings = json.loads((folder / file).read_text())
            (tmp_path / file).write_text(json.dumps(settings))
            place = settings if file == "preprocessor_config.json" else settings["vision_config"]
            place.update({key: value for key, value in change.items() if key in place})
            (folder / file).write_text(json.dumps(settings))
        store = MediaStore(load_adapter(str(folder), device="cpu"), max_bytes=1)
        names.add(store.maker().key)
        for file in ("preprocessor_config.json", "config.json"):
            (folder / file).write_text((tmp_path / file).read_text())
    assert len(names) == 3


def test_autocast_has_features_of_its_own(adapter, video):
    store = MediaStore(adapter, max_bytes=1 << 20)
    items, frames = media(adapter, video, 0)
    with torch.no_grad():
        full = store.features(items, lambda m: frames[m.key])[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = store.features(items, lambda m: frames[m.key])[0]
        assert store.features(items, lambda m: frames[m.key])[0] is full
    assert store.encoded == 2 and not torch.equal(full, half.to(full.dtype))


def test_threads_share_one_encoding(adapter, video):
    items, frames = media(adapter, video, *range(6))
    store = MediaStore(adapter, max_bytes=1 << 20)
    decoded, together = [], threading.Barrier(4)

    def pixels(item):
        decoded.append(item.key)
        time.sleep(0.01)
        return frames[item.key]

    def ask(order):
        together.wait()
        with torch.no_grad():
            return store.features([items[i] for i in order], pixels)

    orders = [range(6), range(5, -1, -1), [3, 1, 3], [0, 5]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, orders))
    assert sorted(decoded) == sorted(item.key for item in items) and store.encoded == 6
    for order, got in zip(orders, found, strict=True):
        assert all(rows is found[0][i] for rows, i in zip(got, order, strict=True))
    assert store.encoded + store.reused == sum(len(list(order)) for order in orders)


def test_a_failed_caller_leaves_the_others_their_turn(adapter, video):
    (item,), frames = media(adapter, video, 0)
    store = MediaStore(adapter, max_bytes=1 << 20)
    begun = threading.Event()

    def fails(_):
        begun.set()
        time.sleep(0.1)
        raise OSError("the disk went away")

    def ask(source):
        with torch.no_grad():
            return store.features([item], source)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, fails)
        begun.wait()
        second = pool.submit(ask, lambda m: frames[m.key])
        with pytest.raises(OSError, match="went away"):
            first.result()
        assert len(second.result(timeout=20)[0]) == item.record.tokens


def test_frames_of_another_length_than_the_record_are_an_error(adapter, video):
    (item,), frames = media(adapter, video, 0)
    for trainable in (False, True):
        with torch.no_grad(), pytest.raises(ValueError, match="has 8 tokens but 4 features"):
            MediaStore(adapter, max_bytes=1 << 20).features([item], lambda m: frames[m.key][:2], trainable=trainable)


def test_a_warm_disk_needs_neither_frames_nor_tower(adapter, video, tmp_path):
    items, frames = media(adapter, video, 0, 5)
    cold = MediaStore(adapter, max_bytes=1 << 20, disk=FeatureCache(tmp_path))
    with torch.no_grad():
        made = cold.features(items, lambda m: frames[m.key])
    warm = MediaStore(adapter, max_bytes=1 << 20, disk=FeatureCache(tmp_path))
    assert warm.holds(items[0]) and warm.maker() == cold.maker()
    with torch.inference_mode():
        found = warm.features(items, lambda m: pytest.fail("decoded"))
    assert all(torch.equal(a, b) and not a.is_inference() for a, b in zip(found, made, strict=True))
    assert (warm.encoded, warm.loaded, warm.reused) == (0, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(found[0], adapter.encode_clips([frames[items[0].key]])[0], atol=1e-5, rtol=0)


def test_the_disk_holds_what_memory_had_no_room_for(adapter, video, tmp_path):
    items, frames = media(adapter, video, *range(5))
    store = MediaStore(adapter, max_bytes=0, disk=FeatureCache(tmp_path))
    with torch.no_grad():
        first = store.features(items, lambda m: frames[m.key])
        again = store.features(items, lambda m: pytest.fail("decoded again"))
    assert store.bytes == 0 and (store.encoded, store.loaded) == (5, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_other_weights_on_the_same_disk_never_meet(own, adapter, video, tmp_path):
    with torch.no_grad():
        own.model.model.visual.merger.mlp[2].bias[3] += 0.5
    items, frames = media(own, video, 0)
    with torch.no_grad():
        theirs = MediaStore(own, max_bytes=0, disk=FeatureCache(tmp_path / "cache")).features(
            items, lambda m: frames[m.key]
        )[0]
        store = MediaStore(adapter, max_bytes=0, disk=FeatureCache(tmp_path / "cache"))
        ours = store.features(items, lambda m: frames[m.key])[0]
    assert store.loaded == 0
    np.testing.assert_allclose((theirs - ours)[:, 3], 0.5, atol=1e-5)
    assert len(FeatureCache(tmp_path / "cache").summary()) == 2


def test_a_damaged_entry_stops_the_run(adapter, video, tmp_path):
    items, frames = media(adapter, video, 0)
    with torch.no_grad():
        MediaStore(adapter, max_bytes=0, disk=FeatureCache(tmp_path)).features(items, lambda m: frames[m.key])
        (file,) = tmp_path.rglob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1])
        store = MediaStore(adapter, max_bytes=0, disk=FeatureCache(tmp_path))
        with pytest.raises(CacheError, match=f"{file}.*closeup cache clear"):
            store.features(items, lambda m: frames[m.key])
        FeatureCache(tmp_path).clear()
        store.features(items, lambda m: frames[m.key])  # nothing is left waiting
