"""Generation in turns and batches, with frames at any turn, equals one full forward of the stock model."""

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.load import load_adapter
from closeup.agent.models.oracles import FORMS, stock_logits
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.agent.policies import rows as rows_module
from closeup.agent.policies.base import Request, Sampling
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.tools.video.clip import Clip

VIDEO = SyntheticVideo(3)
VIDEOS = {VIDEO.identity: VIDEO}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random"))


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def adapter(request, tmp_path_factory):
    family, timestamps = request.param
    folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / family, family=family)
    return load_adapter(str(folder), device="cpu", timestamps=timestamps)


def skim(end, start=0.0):
    return Clip(video=VIDEO.identity, start=start, end=end, fps=1, pixels=28 * 28)


def close(start):
    return Clip(video=VIDEO.identity, start=start, end=start + 2, num_frames=5, pixels=56 * 84)


def talk(index):
    """Three turns of an episode: what is new at each of them. Lengths differ from episode to episode."""
    return [
        (Message.of("user", skim(20 + 7 * index), f"\nWhich digit is in box {index}?"),),
        (Message.of("tool", "<tool_response>\n", close(3 + index), "\n</tool_response>"),),
        (Message.of("tool", "again: ", skim(50, 40), close(9 + index), " and now" + " answer" * index),),
    ]


def play(policy, episodes, *, together=True, temperature=1.0, tokens=12, prefix=""):
    """Run some episodes for three turns; per episode the list of (completion, new messages)."""
    history = dict.fromkeys(episodes, ())
    told = {i: [] for i in episodes}
    for turn in range(3):
        requests = []
        for i in episodes:
            history[i] += talk(i)[turn]
            requests.append(
                Request(
                    f"episode {i}",
                    history[i],
                    VIDEOS,
                    assistant_prefix=prefix if turn == 2 else "",
                    sampling=Sampling(temperature=temperature, max_new_tokens=tokens + i, seed=100 * i + turn),
                )
            )
        batches = [requests] if together else [[r] for r in requests]
        done = [c for batch in batches for c in policy.generate(batch)]
        for i, completion in zip(episodes, done, strict=True):
            assert completion.error is None
            history[i] += (Message.of("assistant", completion.text),)
            told[i].append(completion)
    return told


def full_forward(adapter, told, index, upto=3):
    """The stock model on all ids of an episode at once: logits (N, vocabulary) and, per turn, where its samples lie."""
    ids, spans, media, frames = [], [], [], {}
    for turn, completion in enumerate(told[index][:upto]):
        ids += completion.prompt_ids
        spans.append((len(ids), len(ids) + len(completion.ids)))
        ids += completion.ids
        shown = adapter.encode(talk(index)[turn], VIDEOS)
        media += shown.media
        frames.update(shown.frames)
    with torch.inference_mode():
        logits = stock_logits(adapter, ids, media, [frames[m.key] for m in media], adapter.positions(ids, media))
    logits = logits.clone()  # out of inference mode
    return logits, spans, ids


def recorded_against_full(adapter, told, index):
    """Largest difference between recorded log-probabilities and those of the full forward."""
    logits, spans, ids = full_forward(adapter, told, index)
    logits = logits.float()
    logits[:, list(adapter.suppressed_ids)] = -torch.inf
    expected = logits.log_softmax(-1)
    worst = 0.0
    for completion, (begin, end) in zip(told[index], spans, strict=True):
        ours = torch.tensor(completion.logprobs)
        theirs = expected[torch.arange(begin - 1, end - 1), torch.tensor(ids[begin:end])]
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def same_but_for_ties(adapter, told, other, index):
    """Two records of an episode agree until a draw that fell on the border of two tokens, if there is one.

    A draw is a number in the distribution's sum over the ids in order, so rounding can put it on either side of a
    border; from then on the episodes say different things. Both are the full forward's all the same.
    """
    assert recorded_against_full(adapter, other, index) <= 1e-4
    for turn, (a, b) in enumerate(zip(told[index], other[index], strict=True)):
        assert a.prompt_ids == b.prompt_ids and a.extends == b.extends
        fork = next((k for k, pair in enumerate(zip(a.ids, b.ids, strict=False)) if pair[0] != pair[1]), None)
        np.testing.assert_allclose(a.logprobs[:fork], b.logprobs[:fork], atol=1e-4)
        if fork is None:
            assert a.ids == b.ids and a.text == b.text
            continue
        logits, spans, _ = full_forward(adapter, told, index)
        logits[:, list(adapter.suppressed_ids)] = -torch.inf
        low, high = sorted((a.ids[fork], b.ids[fork]))
        between = logits[spans[turn][0] - 1 + fork].float().softmax(-1)[low + 1 : high]
        assert between.sum() <= 1e-5, f"token {fork} of turn {turn} is {a.ids[fork]} and {b.ids[fork]}, no neighbours"
        return


def test_cached_turns_with_new_frames_equal_one_full_forward(adapter, monkeypatch):
    policy = TransformersPolicy(adapter)
    seen = []
    original = adapter.logits
    monkeypatch.setattr(adapter, "logits", lambda hidden: seen.append(original(hidden)) or seen[-1])
    told = play(policy, [1])
    logits, spans, _ = full_forward(adapter, told, 1)
    ours = torch.cat(seen)
    theirs = torch.cat([logits[begin - 1 : end - 1] for begin, end in spans])
    assert [c.extends for c in told[1]] == [False, True, True]
    assert (ours - theirs).abs().max() <= 1e-4
    assert recorded_against_full(adapter, told, 1) <= 1e-4


def test_greedy_ids_are_the_argmax_of_the_full_forward(adapter):
    told = play(TransformersPolicy(adapter), [2], temperature=0.0)
    logits, spans, ids = full_forward(adapter, told, 2)
    logits[:, list(adapter.suppressed_ids)] = -torch.inf
    for begin, end in spans:
        assert logits[begin - 1 : end - 1].argmax(-1).tolist() == ids[begin:end]


def test_a_batch_gives_what_each_request_gives_alone(adapter):
    episodes = [0, 1, 2, 3, 4]
    together = play(TransformersPolicy(adapter), episodes)
    small = play(TransformersPolicy(adapter, max_batch=2), episodes)
    alone = play(TransformersPolicy(adapter), episodes, together=False)
    for i in episodes:
        assert recorded_against_full(adapter, together, i) <= 1e-4
        same_but_for_ties(adapter, together, alone, i)
        same_but_for_ties(adapter, together, small, i)


def test_long_prefills_in_pieces_change_nothing(adapter, monkeypatch):
    whole = play(TransformersPolicy(adapter), [0, 3])
    monkeypatch.setattr(rows_module, "TOKENS_PER_FORWARD", 30)
    monkeypatch.setattr(rows_module, "MASK_NUMBERS", 700)
    pieces = play(TransformersPolicy(adapter), [0, 3])
    for i in (0, 3):
        same_but_for_ties(adapter, whole, pieces, i)


def test_dropped_keys_and_values_are_recomputed_to_the_same_message(adapter):
    roomy, none = TransformersPolicy(adapter), TransformersPolicy(adapter, kv_cache_bytes=0, feature_cache_bytes=0)
    one_fits = TransformersPolicy(adapter, kv_cache_bytes=200_000)
    expected = play(roomy, [0, 1, 2])
    for tight in (none, one_fits):
        again = play(tight, [0, 1, 2])
        for i in expected:
            same_but_for_ties(adapter, expected, again, i)
        assert tight._book.dropped > 0
        assert tight._book.bytes <= tight._book._max_bytes


def test_a_forced_prefix_is_part_of_the_prompt_and_of_the_text(adapter):
    told = play(TransformersPolicy(adapter), [1], prefix='<tool_call>\n{"name"')
    assert told[1][2].text.startswith('<tool_call>\n{"name"')
    assert recorded_against_full(adapter, told, 1) <= 1e-4


def test_bfloat16_generates_with_the_log_probabilities_of_its_own_full_forward(folder):
    adapter = load_adapter(folder, device="cpu", dtype="bfloat16")
    told = play(TransformersPolicy(adapter), [1])
    assert recorded_against_full(adapter, told, 1) <= 0.2  # bfloat16 keeps 8 bits; the random weights are sharp


@pytest.mark.parametrize("adapter", [("qwen2_5_vl", "position")], indirect=True)
def test_control_positions_of_transformers_fail_the_equality(adapter, monkeypatch):
    """The rule of transformers 5.19 to 5.23 (text after a video by height and width alone) must be told apart."""

    def stock(ids, media, *, start=0):
        tokens = torch.tensor([list(ids)])
        kinds = (tokens == adapter.model.config.video_token_id).int() * 2
        found, _ = adapter.model.model.get_rope_index(
            tokens,
            kinds,
            video_grid_thw=torch.tensor([g for m in media for g in m.grids]),
            second_per_grid_ts=torch.tensor([m.seconds_per_grid for m in media for _ in m.grids]),
        )
        return start + found[:, 0].numpy()

    policy = TransformersPolicy(adapter)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "positions", stock)
        told = play(policy, [1])
    assert recorded_against_full(adapter, told, 1) > 1e-2


def test_control_frames_out_of_order_fail_the_equality(adapter, monkeypatch):
    policy = TransformersPolicy(adapter)
    original = adapter.encode_clips
    with monkeypatch.context() as patch:
        # The features of each clip with its frames in reverse order.
        patch.setattr(adapter, "encode_clips", lambda clips: original([c[::-1].copy() for c in clips]))
        told = play(policy, [1])
    assert recorded_against_full(adapter, told, 1) > 1e-2
