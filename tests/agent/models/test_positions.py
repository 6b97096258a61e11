"""Three-axis positions: equal to transformers where it keeps the original rule, and told apart where it does not."""

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.mrope import mrope_positions
from closeup.tools.video.clip import Clip


def stock_positions(adapter, ids, media):
    model = adapter.model.model
    grids = torch.tensor([g for m in media for g in m.grids])
    spacing = torch.tensor([m.seconds_per_grid for m in media for _ in m.grids], dtype=torch.float64)
    tokens = torch.tensor([ids])
    kinds = (tokens == adapter.model.config.video_token_id).int() * 2
    positions, _ = model.get_rope_index(tokens, kinds, video_grid_thw=grids, second_per_grid_ts=spacing)
    return positions[:, 0].numpy()


def conversation(video, clip, *more):
    return [Message.of("user", "seen before: ", clip, "\nand what now?", *more)]


def test_text_timestamps_agree_with_transformers(adapter, video, videos):
    clips = [
        Clip(video=video.identity, start=0, end=20, fps=1, pixels=28 * 28),
        Clip(video=video.identity, start=3, end=5, num_frames=4, pixels=112 * 84),
    ]
    shown = adapter.encode(conversation(video, clips[0], clips[1], "end"), videos)
    ours = adapter.positions(shown.ids, shown.media)
    np.testing.assert_array_equal(ours, stock_positions(adapter, shown.ids, shown.media))
    assert len(np.unique(ours[:, np.array(shown.ids) == adapter.model.config.video_token_id], axis=1).T) > 20


def test_a_short_wide_clip_in_positions_agrees_with_transformers(position_adapter, video, videos):
    clip = Clip(video=video.identity, start=0, end=2, num_frames=4, placement="left", pixels=112 * 112)
    shown = position_adapter.encode(conversation(video, clip), videos)
    ours = position_adapter.positions(shown.ids, shown.media)
    np.testing.assert_array_equal(ours, stock_positions(position_adapter, shown.ids, shown.media))


def test_after_a_long_clip_text_starts_one_after_the_largest_position(position_adapter, video, videos):
    """transformers 5.19 to 5.23 starts it after height and width alone; decision 9 of the design keeps the old rule."""
    clip = Clip(video=video.identity, start=0, end=40, fps=1, pixels=28 * 28)
    shown = position_adapter.encode(conversation(video, clip), videos)
    ours = position_adapter.positions(shown.ids, shown.media)
    pads = np.flatnonzero(np.array(shown.ids) == position_adapter.model.config.video_token_id)
    first = pads[0]
    assert ours[0, pads].tolist() == [first + 4 * k for k in range(20)]  # 2 s per row, 2 positions per second
    assert (ours[:, pads[-1] + 1] == first + 4 * 19 + 1).all()
    theirs = stock_positions(position_adapter, shown.ids, shown.media)
    np.testing.assert_array_equal(ours[:, : pads[-1] + 1], theirs[:, : pads[-1] + 1])
    assert (ours[:, pads[-1] + 1 :] - theirs[:, pads[-1] + 1 :]).min() == 4 * 19  # the known difference, not another


def test_positions_of_a_continuation_are_those_of_the_whole(adapter, position_adapter, video, videos):
    clip = Clip(video=video.identity, start=0, end=40, fps=1, pixels=56 * 28)
    for one in (adapter, position_adapter):
        shown = one.encode(conversation(video, clip), videos)
        later = one.encode(conversation(video, clip), videos, first=False)
        whole = one.positions(shown.ids + later.ids, shown.media + later.media)
        head = one.positions(shown.ids, shown.media)
        tail = one.positions(later.ids, later.media, start=int(head.max()) + 1)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([1, 9, 2], [], "all 0 grids are used up"),
        ([1, 9, 2], [(1, 2, 2), (1, 2, 2)], "hold only 1 vision blocks"),
        ([1, 9, 9, 2], [(1, 2, 6)], "fewer are there"),
        ([1, 9, 2], [(1, 3, 2)], "multiples of 2"),
    ],
)
def test_pads_and_grids_that_do_not_fit_are_refused(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(ids, grids, pad_id_video=9, pad_id_image=8)
