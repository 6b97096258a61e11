"""Trees of made-up rows: what merges, what does not, and what is kept of each row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from closeup.agent.models.adapter import Media
from closeup.agent.trajectory import ClipRecord
from closeup.rl.rows import Row, Span
from closeup.rl.tree import TreeBatch, build_tree
from closeup.tools.video.clip import Clip

PAD = 0
ADAPTER: Any = SimpleNamespace(pad_ids=(PAD,))


def clip(name: str, tokens: int) -> Media:
    record = ClipRecord(
        clip=Clip(video=name, start=0, end=1, num_frames=2, pixels=784),
        times=(0.0, 0.5),
        size=(28, 28),
        tokens=tokens,
        digest=name,
    )
    return Media(record, name, ((1, 2, 2 * tokens),))


def row(rollout: int, *parts: int | tuple[str, int], learn: tuple[int, int] | None = None, at: int = 0) -> Row:
    """A row of ids and (clip name, tokens); positions count from `at`."""
    ids: list[int] = []
    media: list[Media] = []
    for part in parts:
        if isinstance(part, tuple):
            media.append(clip(*part))
            ids += [PAD] * part[1]
        else:
            ids.append(part)
    begin, end = learn or (len(ids) - 1, len(ids))
    logprobs = np.arange(begin, end, dtype=np.float32)
    positions = np.broadcast_to(np.arange(len(ids)) + at, (3, len(ids)))
    return Row(rollout, np.array(ids), tuple(media), positions, (Span(0, begin, end, logprobs),))


def check(tree: TreeBatch, rows: list[Row]) -> None:
    """Every invariant of the module, against the rows."""
    rows_of_media = {}
    total = 0
    for item in tree.media:
        rows_of_media[item.key] = np.arange(total, total + item.record.tokens)
        total += item.record.tokens
    stands = np.full(len(tree), -1)
    stands[tree.pads] = tree.feature
    for given_row, path in zip(rows, tree.paths, strict=True):
        assert (tree.ids[path] == given_row.ids).all()
        assert (tree.positions[:, path] == given_row.positions).all()
        wanted = [rows_of_media[m.key] for m in given_row.media]
        assert (stands[path[given_row.ids == PAD]] == np.concatenate([*wanted, []])).all()
        seen = np.arange(len(tree))
        for place, i in enumerate(path):
            visible = (seen <= i) & (i < tree.last)
            assert set(np.flatnonzero(visible)) == set(path[: place + 1]), "a token sees its own path, and no other"
    assert tree.segments[0].start == 0 and tree.segments[-1].end == len(tree)
    for index, segment in enumerate(tree.segments):
        assert segment.start < segment.end <= segment.last and segment.parent < index
        assert index == 0 or segment.start == tree.segments[index - 1].end
    place = 0
    for number, (given_row, path) in enumerate(zip(rows, tree.paths, strict=True)):
        for span in given_row.spans:
            count = span.end - span.begin
            t = tree.targets.take(np.arange(place, place + count))
            assert (t.source == path[span.begin - 1 : span.end - 1]).all()
            assert (t.token == given_row.ids[span.begin : span.end]).all()
            assert (t.row == number).all() and (t.rollout == given_row.rollout).all() and (t.step == span.step).all()
            assert span.logprobs is None or (t.logprob == span.logprobs).all()
            place += count
    assert place == len(tree.targets)


def test_shared_beginnings_are_one() -> None:
    rows = [row(0, 1, 2, 3, 4), row(1, 1, 2, 3, 5), row(2, 1, 2, 6)]
    tree = build_tree(rows, ADAPTER)
    check(tree, rows)
    assert tree.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert (len(tree), tree.row_tokens, tree.rows) == (6, 11, 3)
    assert tree.last.tolist() == [6, 6, 5, 4, 5, 6]


def test_targets_are_never_merged() -> None:
    rows = [row(0, 1, 2, 3), row(1, 1, 2, 3), row(2, 1, 2, 4)]
    tree = build_tree(rows, ADAPTER)
    check(tree, rows)
    assert len(tree) == 4
    assert tree.targets.source.tolist() == [1, 1, 1] and tree.targets.token.tolist() == [3, 3, 4]


def test_other_clips_other_places_and_other_lengths_fork() -> None:
    same = build_tree([row(0, 1, ("a", 3), 2, 9), row(1, 1, ("a", 3), 2, 8)], ADAPTER)
    assert len(same) == 7 and len(same.media) == 1
    other = build_tree([row(0, 1, ("a", 3), 2, 9), row(1, 1, ("b", 3), 2, 8)], ADAPTER)
    assert len(other) == 11 and len(other.media) == 2
    moved = build_tree([row(0, 1, 2, 9), row(1, 1, 2, 9, at=5)], ADAPTER)
    assert len(moved) == 6, "equal ids at other positions are other tokens"


def test_one_clip_shown_twice_is_encoded_once() -> None:
    rows = [row(0, 1, ("a", 2), 5, ("a", 2), 9), row(1, 1, ("a", 2), 7, ("a", 2), 9)]
    tree = build_tree(rows, ADAPTER)
    check(tree, rows)
    assert len(tree.media) == 1 and tree.feature.tolist() == [0, 1] * 3


def test_a_row_that_is_the_beginning_of_another() -> None:
    rows = [row(0, 1, 2), row(1, 1, 2, 3, 4), row(2, 1, 2)]
    tree = build_tree(rows, ADAPTER)
    check(tree, rows)
    assert len(tree) == 4 and len(tree.segments) == 2


PARTS = st.lists(st.one_of(st.integers(1, 3), st.tuples(st.sampled_from("ab"), st.just(2))), min_size=2, max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PARTS, st.integers(0, 1)), min_size=1, max_size=6))
def test_any_rows_keep_their_paths(drawn: list[tuple[list[Any], int]]) -> None:
    rows = [row(i, 1, *parts, 2, at=at) for i, (parts, at) in enumerate(drawn)]
    tree = build_tree(rows, ADAPTER)
    check(tree, rows)
    assert len(tree) <= sum(len(r.ids) for r in rows)
    distinct = len({prefix for r in rows for prefix in _prefixes(r)})
    assert len(tree) == distinct


def _prefixes(given_row: Row) -> list[tuple[Any, ...]]:
    """What makes each token of a row one: everything up to it."""
    clips = iter([m.key for m in given_row.media for _ in range(m.record.tokens)])
    trail = tuple(
        (int(i), next(clips) if i == PAD else "", int(p))
        for i, p in zip(given_row.ids, given_row.positions[0], strict=True)
    )
    return [trail[: n + 1] for n in range(len(trail))]


def test_no_rows_and_no_agreement_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        build_tree([], ADAPTER)
    with pytest.raises(ValueError, match="different numbers of tokens"):
        build_tree([row(0, 1, ("a", 2), 3), row(1, 1, ("a", 3), 3)], ADAPTER)
    missing = row(0, 1, ("a", 2), 3)
    with pytest.raises(ValueError, match="2 pads and its clips have 0"):
        build_tree([Row(0, missing.ids, (), missing.positions, missing.spans)], ADAPTER)
