"""Attention over rows of different lengths equals attention over each row alone."""

import pytest
import torch

from closeup.agent.policies.episodes import EpisodeBook, EpisodeState
from closeup.agent.policies.rowcache import RowCache, attend


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_equals_the_definition(count, masked, heads):
    generator = torch.Generator().manual_seed(1)
    batch, groups, size = 3, 2, 8
    length = 9 if masked or count == 1 else count
    q = torch.randn(batch, heads, count, size, generator=generator)
    k, v = (torch.randn(batch, groups, length, size, generator=generator) for _ in range(2))
    mask = None
    if masked:
        mask = torch.zeros(batch, 1, count, length)
        for row, end in enumerate((4, 7, 9)):
            for i in range(count):
                mask[row, 0, i, max(1, end - count + i + 1) :] = -torch.inf
    ours, _ = attend(None, q, k, v, mask, scaling=0.3)
    repeat = heads // groups
    scores = 0.3 * q @ k.repeat_interleave(repeat, 1).transpose(2, 3)
    if masked:
        scores = scores + mask
    elif count > 1:
        scores = scores + torch.full((count, length), -torch.inf).triu(1)
    theirs = (scores.softmax(-1) @ v.repeat_interleave(repeat, 1)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_rows_are_written_read_copied_and_dropped():
    cache = RowCache(1, 3, 2, 10, 4, like=torch.zeros(()))
    new = torch.arange(3 * 2 * 2 * 4, dtype=torch.float32).view(3, 2, 2, 4)
    starts = torch.tensor([0, 3, 5])
    cache.aim(None, starts[:, None] + torch.arange(2), 7)
    keys, values = cache.update(new, -new, 0)
    assert keys.shape == (3, 2, 7, 4)
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(keys[row, :, start : start + 2], new[row])
        torch.testing.assert_close(values[row, :, start : start + 2], -new[row])
        assert keys[row, :, :start].eq(0).all() and keys[row, :, start + 2 :].eq(0).all()
    cache.aim(torch.tensor([2, 0]), torch.tensor([[7], [2]]), 8)
    some, _ = cache.update(new[:2, :, :1] + 100, new[:2, :, :1], 0)
    torch.testing.assert_close(some[0, :, 7], new[0, :, 0] + 100)
    torch.testing.assert_close(cache.read(2, 8)[0, 0, :, 7], new[0, :, 0] + 100)
    kept = cache.read(1, 5)
    cache.copy(1, 0, 5)
    torch.testing.assert_close(cache.read(0, 5), kept)
    cache.keep([2, 0])
    torch.testing.assert_close(cache.read(1, 5), kept)
    other = RowCache(1, 1, 2, 6, 4, like=torch.zeros(()))
    other.load(0, kept)
    torch.testing.assert_close(other.read(0, 5), kept)


def state_of_400_bytes():
    return EpisodeState((), [1], [], torch.zeros(100))


def test_an_episode_that_is_forgotten_while_it_writes_leaves_nothing():
    book = EpisodeBook(1000)
    assert book.begin("a") is None
    book.forget("a")
    book.put("a", state_of_400_bytes())
    assert book.get("a") is None and book.bytes == 0


def test_the_book_drops_keys_and_values_of_the_longest_unused_first():
    book = EpisodeBook(1000)
    for name in "abac":  # a is used again
        book.begin(name)
        book.put(name, state_of_400_bytes())
    assert book.get("b").kept is None and book.get("a").kept is not None and book.get("b").ids == [1]
    assert book.bytes == 800 and book.dropped == 1
    book.forget("a")
    book.forget("nobody")
    assert book.bytes == 400 and book.get("a") is None
    book.drop_kept()
    assert book.bytes == 0 and book.get("c").kept is None
