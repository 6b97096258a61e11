"""`ScriptedPolicy`: says its script, continues prefixes, streams, stops, and fails per request only."""

from __future__ import annotations

import threading

import pytest

from closeup.agent.policies.base import Request, Sampling
from closeup.agent.policies.scripted import ScriptedPolicy


def ask(episode_id: str = "t/0", prefix: str = "", seed: int = 0) -> Request:
    return Request(episode_id, (), assistant_prefix=prefix, sampling=Sampling(seed=seed))


def test_a_list_is_every_episodes_script() -> None:
    policy = ScriptedPolicy(["one", "two"])
    first = policy.generate([ask("a/0"), ask("b/0")])
    second = policy.generate([ask("b/0")])
    assert [done.text for done in (*first, *second)] == ["one", "one", "two"]
    assert all(done.finish == "stop" and done.ids is None and done.logprobs is None for done in first)


def test_a_mapping_is_by_episode_or_by_task() -> None:
    policy = ScriptedPolicy({"a": ["task"], "a/1": ["episode"]})
    assert [done.text for done in policy.generate([ask("a/0"), ask("a/1")])] == ["task", "episode"]
    (missing,) = policy.generate([ask("b/0")])
    assert missing.finish == "error" and "'b/0'" in str(missing.error)


def test_a_function_sees_the_request_and_its_seed() -> None:
    policy = ScriptedPolicy(lambda request: f"{request.episode_id} {request.sampling.seed}")
    assert policy.generate([ask("a/0", seed=5)])[0].text == "a/0 5"


def test_forgetting_starts_the_script_anew() -> None:
    policy = ScriptedPolicy(["one"])
    assert policy.generate([ask()])[0].text == "one"
    (over,) = policy.generate([ask()])
    assert over.finish == "error" and "1 messages" in str(over.error)
    policy.forget("t/0")
    assert policy.generate([ask()])[0].text == "one"


def test_a_function_that_raises_fails_its_own_request() -> None:
    def script(request: Request) -> str:
        if request.episode_id == "bad/0":
            raise KeyError("oops")
        return "fine"

    bad, good = ScriptedPolicy(script).generate([ask("bad/0"), ask("good/0")])
    assert bad.finish == "error" and "KeyError" in str(bad.error)
    assert good.text == "fine"


@pytest.mark.parametrize(
    ("script", "said"), [("<a>b", "<a>b"), ("<think>x</think><a>b", "<a>b"), ("b", "<a>b"), ("", "<a>")]
)
def test_a_prefix_is_continued(script: str, said: str) -> None:
    assert ScriptedPolicy([script]).generate([ask(prefix="<a>")])[0].text == said


def test_streams_word_by_word() -> None:
    pieces: list[tuple[str, str]] = []
    ScriptedPolicy([" red  at\n12s "]).generate([ask()], on_token=lambda episode, text: pieces.append((episode, text)))
    assert "".join(text for _, text in pieces) == " red  at\n12s "
    assert len(pieces) == 3 and {episode for episode, _ in pieces} == {"t/0"}


def test_stops_within_a_word_when_cancelled() -> None:
    cancel = threading.Event()

    def stop(episode_id: str, text: str) -> None:
        if text.startswith("two"):
            cancel.set()

    (done,) = ScriptedPolicy(["one two three four"]).generate([ask()], on_token=stop, cancel=cancel)
    assert (done.text, done.finish) == ("one two ", "cancelled")


def test_one_string_is_no_script() -> None:
    with pytest.raises(TypeError, match="list of messages"):
        ScriptedPolicy("one")
