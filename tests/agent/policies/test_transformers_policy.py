"""What the policy promises its callers: isolation of faults, seeds, streaming, cancelling, caches."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import SPECIAL, SyntheticVideo, write_random_checkpoint
from closeup.agent.policies.base import Request, Sampling
from closeup.agent.policies.stream import TextStream
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return load_adapter(str(write_random_checkpoint(tmp_path_factory.mktemp("c") / "random")), device="cpu")


@pytest.fixture
def policy(adapter):
    return TransformersPolicy(adapter)


@pytest.fixture
def video():
    return SyntheticVideo(5)


def ask(video, name="e", *, end=10.0, text="\nWhich digit?", seed=0, temperature=1.0, tokens=16, **more):
    clip = Clip(video=video.identity, start=0, end=end, fps=1, pixels=28 * 28)
    sampling = Sampling(temperature=temperature, max_new_tokens=tokens, seed=seed, **more.pop("cuts", {}))
    return Request(name, (Message.of("user", clip, text),), {video.identity: video}, sampling=sampling, **more)


def test_the_rollouts_of_one_task_encode_its_overview_once_and_read_it_once(policy, adapter, video, monkeypatch):
    read = []
    original = adapter.hidden
    monkeypatch.setattr(
        adapter, "hidden", lambda e, p, **k: read.append(e.shape[0] * e.shape[1]) or original(e, p, **k)
    )
    done = policy.generate([ask(video, f"rollout {i}", seed=i, tokens=3) for i in range(8)])
    assert policy.media.encoded == 1
    assert len({c.ids for c in done}) > 1  # different seeds
    assert read[0] == len(done[0].prompt_ids)  # one row, not eight
    policy.generate([ask(video, "another episode", seed=9)])
    assert policy.media.encoded == 1 and policy.media.reused >= 1


def test_seeds_are_the_requests_own(policy, video):
    first = policy.generate([ask(video, "a", seed=1), ask(video, "b", seed=2), ask(video, "c", seed=1)])
    assert first[0].ids == first[2].ids != first[1].ids
    policy.forget("a")
    assert policy.generate([ask(video, "a", seed=1)])[0].ids == first[0].ids


def test_a_broken_request_ends_alone(policy, video):
    gone = SyntheticVideo(99)
    missing = Request("missing", (Message.of("user", ask(gone).messages[0].clips[0], "?"),), {})
    early = Request("early", (Message.of("assistant", "I speak first"),), {})
    hot = ask(video, "hot", temperature=float("nan"))
    good = policy.generate([ask(video, "alone", seed=3)])[0]
    done = policy.generate([missing, ask(video, "good", seed=3), early, hot])
    assert [c.finish == "error" for c in done] == [True, False, True, True]
    assert "which is not open" in done[0].error and "user or tool message" in done[2].error
    assert "temperature must be" in done[3].error
    assert done[1].ids == good.ids


def test_a_context_that_is_too_long_is_refused_in_a_sentence(adapter, video):
    policy = TransformersPolicy(adapter, max_context=200)
    long = ask(video, "long", text=" box" * 300)
    done = policy.generate([long, ask(video, "short", tokens=500)])
    assert done[0].finish == "error" and "the model takes 200" in done[0].error
    assert done[1].finish == "length" or done[1].finish == "stop"
    assert done[1].context_tokens <= 200


def test_two_turns_of_one_episode_in_a_call_are_a_mistake(policy, video):
    with pytest.raises(ValueError, match="same episode_id"):
        policy.generate([ask(video, "e"), ask(video, "e")])


def test_a_changed_history_is_a_new_path(policy, video):
    request = ask(video, "e", tokens=4)
    said = policy.generate([request])[0]
    more = (Message.of("assistant", said.text), Message.of("tool", "go on"))
    grown = Request("e", request.messages + more, request.videos)
    other = Request("e", (Message.of("user", "another question"), *more), request.videos)
    assert policy.generate([grown])[0].extends
    rebuilt = policy.generate([other])[0]
    assert not rebuilt.extends and rebuilt.prompt_ids[0] == policy.adapter.encode(other.messages, {}).ids[0]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_next_turn_closes_a_message_that_was_cut(policy, adapter, video, finish, monkeypatch):
    end = adapter.stop_ids[0]
    if finish == "stop":
        original = adapter.logits
        bias = torch.zeros(adapter.text_config.vocab_size)
        bias[end] = 1e4
        monkeypatch.setattr(adapter, "logits", lambda hidden: original(hidden) + bias)
    request = ask(video, "e", tokens=5)
    said = policy.generate([request])[0]
    assert said.finish == finish and (said.ids[-1] == end) == (finish == "stop")
    assert said.text == adapter.decode([i for i in said.ids if i != end])
    later = Request("e", (*request.messages, Message.of("assistant", said.text), Message.of("tool", "ok")))
    done = policy.generate([later])[0]
    opening = adapter.decode(done.prompt_ids)
    tail = "\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"
    assert opening == (tail if finish == "stop" else "<|im_end|>" + tail)


def test_control_tokens_are_never_sampled_and_take_no_probability(policy, adapter, video, monkeypatch):
    original = adapter.logits
    bias = torch.zeros(adapter.text_config.vocab_size)
    bias[list(adapter.suppressed_ids)] = 50.0  # a model that wants nothing else
    monkeypatch.setattr(adapter, "logits", lambda hidden: original(hidden) + bias)
    done = policy.generate([ask(video, f"e{i}", seed=i, temperature=t) for i, t in enumerate((0.0, 0.7, 1.0))])
    for completion in done:
        assert not set(completion.ids) & set(adapter.suppressed_ids)
        assert min(completion.logprobs) > -20 and not any(token in completion.text for token in SPECIAL[:1])


def test_pieces_join_to_the_text_and_never_cut_a_character(policy, video):
    heard = {}
    requests = [ask(video, f"e{i}", seed=i, tokens=60) for i in range(3)]
    requests.append(ask(video, "prefixed", assistant_prefix="<think>é"))
    done = policy.generate(requests, on_token=lambda e, piece: heard.setdefault(e, []).append(piece))
    for request, completion in zip(requests, done, strict=True):
        assert request.assistant_prefix + "".join(heard[request.episode_id]) == completion.text
        assert len(heard[request.episode_id]) > 1
    assert done[-1].text.startswith("<think>é")


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_a_stream_of_bytes_gives_whole_characters(adapter, text):
    ids = adapter._encoder.plain(text)
    stream = TextStream(adapter.decode)
    pieces = [stream.push(i) for i in ids]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in adapter.decode(ids)
    assert "".join([*pieces, stream.finish()]) == adapter.decode(ids)


def test_cancelling_ends_within_a_token_and_keeps_what_was_written(policy, video):
    cancel = threading.Event()
    heard = []

    def listen(episode, piece):
        heard.append(piece)
        if len(heard) == 6:
            cancel.set()

    done = policy.generate(
        [ask(video, "a", tokens=400), ask(video, "b", seed=1, tokens=400)], on_token=listen, cancel=cancel
    )
    assert {c.finish for c in done} == {"cancelled"}
    assert all(0 < len(c.ids) == len(c.logprobs) < 40 for c in done)
    again = policy.generate([ask(video, "c")], cancel=cancel)
    assert again[0].finish == "cancelled" and again[0].ids is None


def test_a_cancelled_message_can_be_followed_by_another_turn(policy, adapter, video):
    cancel, heard = threading.Event(), []
    request = ask(video, "a", tokens=400)
    part = policy.generate([request], on_token=lambda e, p: (heard.append(p), cancel.set()), cancel=cancel)[0]
    later = (*request.messages, Message.of("assistant", part.text), Message.of("user", "go on"))
    resumed = policy.generate([Request("a", later, sampling=Sampling(temperature=1, max_new_tokens=8, seed=4))])[0]
    fresh = TransformersPolicy(adapter, kv_cache_bytes=0)
    part_again = []
    cancel.clear()
    fresh.generate([request], on_token=lambda e, p: (part_again.append(p), cancel.set()), cancel=cancel)
    expected = fresh.generate(
        [Request("a", later, request.videos, sampling=Sampling(temperature=1, max_new_tokens=8, seed=4))]
    )[0]
    assert resumed.extends and expected.extends and resumed.ids == expected.ids


def test_asynchronous_episodes_are_cancelled_one_by_one_and_forgotten_at_once(policy, video):
    async def run():
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        slow = asyncio.create_task(
            policy.agenerate(
                [ask(video, "slow", tokens=3000)], on_token=lambda e, p: loop.call_soon_threadsafe(begun.set)
            )
        )
        await begun.wait()
        policy.forget("slow")  # returns although a generation is running
        waiting = asyncio.create_task(policy.agenerate([ask(video, "quick", tokens=4, seed=3)]))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        return await waiting

    (done,) = asyncio.run(run())
    assert done.ids == policy.generate([ask(video, "again", tokens=4, seed=3)])[0].ids
    assert policy._book.get("slow") is None and policy._book.get("quick") is not None


def test_log_probabilities_are_of_the_distribution_that_was_sampled(adapter, video, monkeypatch):
    """Temperature, top-k and top-p: the frequencies of many draws equal the recorded probabilities."""
    cuts = {"top_k": 20, "top_p": 0.8}
    policy = TransformersPolicy(adapter, max_batch=512)
    done = policy.generate([ask(video, f"e{i}", seed=i, tokens=1, temperature=1.7, cuts=cuts) for i in range(1500)])
    counts, claimed = {}, {}
    for completion in done:
        counts[completion.ids[0]] = counts.get(completion.ids[0], 0) + 1
        claimed.setdefault(completion.ids[0], completion.logprobs[0])
        assert completion.logprobs[0] == pytest.approx(claimed[completion.ids[0]], abs=1e-4)
    assert len(claimed) <= 20 and sum(np.exp(list(claimed.values()))) == pytest.approx(1, abs=0.04)
    for token, count in counts.items():
        p = float(np.exp(claimed[token]))
        assert abs(count / 1500 - p) <= 5 * np.sqrt(p * (1 - p) / 1500)


def test_changed_weights_are_never_mixed_with_what_the_old_ones_gave(tmp_path, video):
    own = load_adapter(str(write_random_checkpoint(tmp_path / "own")), device="cpu")
    policy = TransformersPolicy(own)
    request = ask(video, "e", tokens=4)
    said = policy.generate([request])[0]
    before = policy.settings()["weights"]
    with torch.no_grad():
        for parameter in own.model.parameters():
            parameter.mul_(1.05)
    policy.weights_changed()
    assert policy.settings()["weights"] != before
    later = Request(
        "e", (*request.messages, Message.of("assistant", said.text), Message.of("user", "?")), request.videos
    )
    updated = policy.generate([later])[0]
    ids = list(said.prompt_ids + said.ids + updated.prompt_ids)
    shown = own.encode(request.messages, request.videos)
    with torch.inference_mode():
        embeds = own.embed(torch.tensor(ids), own.encode_clips(list(shown.frames.values())))[None]
        where = torch.from_numpy(own.positions(ids, shown.media))[:, None]
        logits = own.logits(own.hidden(embeds, where, mask=None, cache=None))[0, -1]
    logits = logits.clone()  # out of inference mode
    logits[list(own.suppressed_ids)] = -torch.inf
    assert updated.ids[0] == int(logits.argmax())
    assert updated.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[updated.ids[0]]), abs=1e-4)


def test_the_models_own_attention_setting_comes_back(policy, adapter, video):
    before = adapter.text_config._attn_implementation
    policy.generate([ask(video, "e", tokens=2)])
    assert adapter.text_config._attn_implementation == before == "sdpa"


def test_settings_are_json_and_name_the_weights(policy):
    import json

    assert json.loads(json.dumps(policy.settings()))["dtype"] == "float32"


def test_it_runs_episodes_on_a_real_file(policy, make_video):
    """A random model says nonsense: every message is a named fault, every trajectory has exact ids."""
    path = make_video(seconds=20.0, size=(112, 112))
    tasks = [Task(id=f"t{i}", videos=(path,), question="Which?", options=("3", "7"), answer="7") for i in range(3)]
    preset = get_preset("tiny").model_copy(update={"temperature": 1.0})
    for trajectory in run_episodes(tasks, policy, preset=preset, seed=5):
        assert not trajectory.outcome.failed and trajectory.outcome.truncated
        assert len(trajectory.steps) == 8 and trajectory.steps[-1].forced
        assert trajectory.steps[-1].text.startswith('<tool_call>\n{"name": "answer"')
        last = trajectory.full_prompt_ids(7)
        assert len(last) + len(trajectory.steps[7].ids) == trajectory.steps[7].context_tokens
        assert trajectory.path_to(7) == tuple(range(8))
    assert policy.media.encoded == 1  # three tasks, one overview
