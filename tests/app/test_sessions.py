"""Line, sessions, uploads and runs of the demo, without Gradio."""

from __future__ import annotations

import os
import runpy
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.policies.base import Policy
from closeup.app.asking import Run, begin, without_paths
from closeup.app.demo import Demo, result
from closeup.app.errors import BadInput
from closeup.app.sessions import Line, LineFull, Sessions
from closeup.app.settings import DemoSettings
from closeup.app.uploads import Uploads, plain_name
from closeup.app.wishes import Wish

# Loaded by path: tests are no package, and must not need the working folder on Python's path.
_helpers = runpy.run_path(str(Path(__file__).with_name("slow_policy.py")))
ANSWER, SlowPolicy, zoom_and_answer = (_helpers[name] for name in ("ANSWER", "SlowPolicy", "zoom_and_answer"))
QUESTION = "Which digit is in the orange box?"
OPTIONS = ("5", "1", "6", "7")


@pytest.fixture
def demo_of() -> Iterator[Callable[..., Demo]]:
    """Makes demos with a given policy; closes them."""
    made: list[Demo] = []

    def make(policy: Policy, **settings: Any) -> Demo:
        made.append(Demo(DemoSettings(**settings), load=lambda model, preset: policy))
        return made[-1]

    yield make
    for demo in made:
        demo.close()


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def finished(run: Run) -> dict[str, Any]:
    """The result of a run that ends by itself."""
    assert run.wait(60), "the run did not end"
    return result(run)


def test_a_line_is_first_come_first_served() -> None:
    line = Line(places=2, waiting=2)
    tickets = [line.join() for _ in range(4)]
    assert [ticket.ahead for ticket in tickets] == [0, 0, 1, 2]
    with pytest.raises(LineFull, match="4 questions are being answered or waiting"):
        line.join()
    tickets[2].leave()  # one that was waiting gives up
    tickets[2].leave()
    assert [ticket.ahead for ticket in tickets] == [0, 0, 0, 1]
    tickets[0].leave()
    assert tickets[3].ahead == 0
    assert len(line) == 2


def test_sessions_are_bounded_and_the_one_unused_longest_goes() -> None:
    dropped: list[str] = []
    sessions = Sessions(2, 1000, lambda session: dropped.append(session.key))
    first = sessions.get("a")
    sessions.get("b")
    assert sessions.get("a") is first
    sessions.get("c")
    assert dropped == ["b"]
    sessions.get("a").run = sessions.get("c").run = object()  # type: ignore[assignment] # both are answering
    with pytest.raises(LineFull, match="every place is taken"):
        sessions.get("d")
    assert dropped == ["b"]
    for key in ("", "x" * 201):
        with pytest.raises(BadInput, match="names no session"):
            sessions.get(key)


def test_idle_sessions_are_swept_and_busy_ones_are_not() -> None:
    sessions = Sessions(9, 0.05)
    sessions.get("idle")
    busy = sessions.get("busy")
    busy.run = object()  # type: ignore[assignment]
    time.sleep(0.1)
    sessions.sweep()
    assert len(sessions) == 1
    assert sessions.get("busy") is busy
    busy.run = None


def test_the_example_is_answered_with_every_step_told(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    film = demo.pick("me", "digit.mp4")
    assert (film.name, film.upload, film.generated) == ("digit.mp4", False, True)
    found = finished(demo.ask("me", Wish(QUESTION, "\n".join(OPTIONS))))
    assert (found["status"], found["answer"], found["choice"], found["correct"]) == ("done", "6", "C", True)
    assert found["evidence"] == [[18.0, 21.0]]
    assert [call["tool"] for step in found["steps"] for call in step["calls"]] == ["zoom_clip", "answer"]
    assert found["steps"][0]["calls"][0]["windows"] == [[18.0, 21.0]]
    assert found["budgets"]["steps"] == {"used": 2, "allowed": 8}
    assert str(film.path.parent) not in str(found)
    session = demo.sessions.get("me")
    assert (len(session.turns), session.run, len(demo.line)) == (1, None, 0)


def test_stopping_ends_the_generation(demo_of: Callable[..., Demo]) -> None:
    policy = SlowPolicy(lambda request: "…")
    demo = demo_of(policy)
    demo.pick("me", "digit.mp4")
    run = demo.ask("me", Wish(QUESTION))
    until(lambda: policy.begun == 1)
    assert (policy.ended, run.over) == (0, False)
    began = time.monotonic()
    assert demo.sessions.get("me").stop()
    found = finished(run)
    assert time.monotonic() - began < 10  # the policy would have gone on for a minute
    assert (policy.ended, policy.cancelled) == (1, 1)
    assert (found["status"], found["reason"], found["answer"]) == ("stopped", "stopped", None)
    until(lambda: demo.sessions.get("me").run is None)
    assert len(demo.line) == 0
    assert not demo.sessions.get("me").stop()


def test_the_time_limit_stops_too_and_is_named(demo_of: Callable[..., Demo]) -> None:
    policy = SlowPolicy(lambda request: "…")
    demo = demo_of(policy, max_seconds=0.5)
    demo.pick("me", "digit.mp4")
    found = finished(demo.ask("me", Wish(QUESTION)))
    assert found["reason"] == "the time limit of 0.5 s per question was reached"
    assert policy.cancelled == 1


def test_a_question_waits_its_turn_and_can_be_stopped_while_it_waits(demo_of: Callable[..., Demo]) -> None:
    policy = SlowPolicy(lambda request: "…")
    demo = demo_of(policy, at_once=1, waiting=2)
    for key in ("a", "b", "c", "d"):
        demo.pick(key, "digit.mp4")
    first, second, third = (demo.ask(key, Wish(QUESTION)) for key in ("a", "b", "c"))
    until(lambda: policy.begun == 1)
    assert [run.ahead for run in (first, second, third)] == [0, 1, 2]
    assert result(third)["status"] == "waiting"
    with pytest.raises(LineFull):
        demo.ask("d", Wish(QUESTION))
    demo.sessions.get("b").stop()
    assert finished(second)["status"] == "stopped"
    assert policy.begun == 1  # it never came to the model
    assert third.ahead == 1
    demo.sessions.get("a").stop()
    until(lambda: policy.begun == 2)
    demo.sessions.drop("c")  # its page was closed
    assert third.wait(20)
    assert policy.cancelled == 2


def test_visitors_do_not_see_each_other(demo_of: Callable[..., Demo]) -> None:
    policy = SlowPolicy(zoom_and_answer)
    demo = demo_of(policy)
    tokens = set()
    for key, name in (("a", "digit.mp4"), ("b", "colour.mp4")):
        tokens.add(demo.pick(key, name).token)
    runs = [demo.ask(key, Wish(QUESTION, OPTIONS)) for key in ("a", "b")]
    for run in runs:
        finished(run)
    assert len(tokens) == 2
    assert len({request.episode_id for request in policy.asked}) == 2  # the policy keeps state by it
    names = [turn.question.film.name for key in ("a", "b") for turn in demo.sessions.get(key).turns]
    assert names == ["digit.mp4", "colour.mp4"]
    demo.sessions.get("a").clear()
    assert len(demo.sessions.get("b").turns) == 1


@pytest.mark.parametrize(
    ("memory", "clips", "before"), [("clips", 1, False), ("conversation", 1, True), ("nothing", 0, False)]
)
def test_a_follow_up_keeps_what_was_asked_for(
    demo_of: Callable[..., Demo], memory: str, clips: int, before: bool
) -> None:
    policy = SlowPolicy(zoom_and_answer)
    demo = demo_of(policy)
    demo.pick("me", "digit.mp4")
    finished(demo.ask("me", Wish(QUESTION, OPTIONS)))
    policy.asked.clear()
    found = finished(demo.ask("me", Wish("Which digit is in the pink box?", ["0", "1"], memory=memory)))
    first = policy.asked[0]
    shown = [clip for message in first.messages for clip in message.clips if (clip.start, clip.end) == (18.0, 21.0)]
    assert len(shown) == clips
    assert any(QUESTION in message.text for message in first.messages) is before
    assert ([18.0, 21.0] in found["earlier"]) is bool(clips)


def test_the_bundled_model_is_asked_afresh_unless_a_visitor_wants_otherwise(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    demo.pick("me", "digit.mp4")
    first = demo.ask("me", Wish(QUESTION, OPTIONS))
    assert finished(first)["answer"] == "6" and demo.notes(first) == []
    again = demo.ask("me", Wish(QUESTION, OPTIONS))
    assert finished(again)["earlier"] == []
    (note,) = demo.notes(again)
    assert note.startswith("Asked afresh, since the bundled model was never trained on second questions")
    kept = demo.ask("me", Wish(QUESTION, OPTIONS, memory="clips"))
    assert finished(kept)["earlier"] == [[18.0, 21.0]]
    assert len(demo.sessions.get("me").turns) == 3
    fresh = demo.ask("me", Wish(QUESTION, OPTIONS, memory="clips"), afresh=True)  # as a click on an example asks
    assert finished(fresh)["earlier"] == []
    assert [turn.question for turn in demo.sessions.get("me").turns] == [fresh.question]


def test_a_follow_up_that_fails_says_how_to_go_on(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(lambda request: zoom_and_answer(request) if "pink" not in str(request) else "no"))
    demo.pick("me", "digit.mp4")
    finished(demo.ask("me", Wish(QUESTION, OPTIONS)))
    run = demo.ask("me", Wish("Which digit is in the pink box?", OPTIONS, memory="clips"))
    assert finished(run)["answer"] is None
    assert "press Clear" in demo.notes(run)[-1]


def test_larger_models_keep_the_conversation() -> None:
    from closeup.app.wishes import default_memory

    assert (default_memory("tiny"), default_memory("org/a-model")) == ("nothing", "conversation")


def test_what_does_not_fit_is_said(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(policy := SlowPolicy(zoom_and_answer))
    demo.pick("me", "digit.mp4")
    run = demo.ask("me", Wish(QUESTION, OPTIONS, memory="clips"))
    finished(run)
    turns = demo.sessions.get("me").turns
    question, preset, task = run.question, run.question.presets[0][1], run.arms[0].task
    tight = preset.model_copy(update={"budget": preset.budget.model_copy(update={"max_visual_tokens": 40})})
    start, note = begin(task, tight, policy, question, turns)
    assert (start.seen_clips, start.history) == ((), ())
    assert note == "No clip seen so far fits the model's budget; this question starts afresh."
    start, note = begin(task, preset, policy, question, turns)
    assert (len(start.seen_clips), note) == (1, "")


def test_comparing_runs_both_arms(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(lambda request: ANSWER if len(request.tools) == 1 else zoom_and_answer(request)))
    demo.pick("me", "digit.mp4")
    found = finished(demo.ask("me", Wish(QUESTION, OPTIONS, compare=True)))
    assert [arm["label"] for arm in found["arms"]] == ["with zoom", "without zoom"]
    assert [len(arm["steps"]) for arm in found["arms"]] == [2, 1]
    assert found["arms"][1]["budgets"]["steps"] == {"used": 1, "allowed": 1}
    assert [arm["answer"] for arm in found["arms"]] == ["6", "6"]
    with pytest.raises(BadInput, match="needs a tool to compare with"):
        demo.ask("me", Wish(QUESTION, OPTIONS, compare=True, tools=[]))


def test_retry_asks_the_same_again_in_the_place_of_the_answer(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    with pytest.raises(BadInput, match="no question to ask again"):
        demo.retry("me")
    demo.pick("me", "digit.mp4")
    finished(demo.ask("me", Wish(QUESTION, OPTIONS)))
    again = demo.retry("me")
    assert (again.question.text, again.question.seed) == (QUESTION, 1)
    finished(again)
    assert len(demo.sessions.get("me").turns) == 1


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("  "), "the question is empty"),
        (Wish("q" * 4001), "4001 characters"),
        (Wish("q", "one"), "leaves nothing to choose"),
        (Wish("q", "a\na"), "two options are the same"),
        (Wish("q", [str(n) for n in range(27)]), "27 options are too many"),
        (Wish("q", ["a", "b" * 401]), "more than 400 characters"),
        (Wish("q\ud800"), "not valid text"),
        (Wish("q", model="other"), "no model 'other' here; offered: tiny"),
        (Wish("q", preset="love_r1"), "no preset 'love_r1' for tiny; offered: tiny, tiny-direct"),
        (Wish("q", preset="/etc/passwd.json"), "no preset"),
        (Wish("q", max_steps=0), "max_steps is a number from 1 to 64"),
        (Wish("q", max_steps=1.5), "max_steps is a whole number"),
        (Wish("q", max_steps=float("nan")), "max_steps is a number"),
        (Wish("q", temperature=-1), "temperature is a number from 0 to 10"),
        (Wish("q", tools=["rm"]), "no tool named 'rm'"),
        (Wish("q", memory="all"), "keeps 'conversation', 'clips' or 'nothing', got 'all'"),
        (Wish(5), "question is a text, got 5"),  # what follows is of a wrong type, as an HTTP request may have it
        (Wish(["a"]), "question is a text, got \\['a'\\]"),
        (Wish("q", 5), "options is a list of texts"),
        (Wish("q", {"a": 1, "b": 2}), "options is a list of texts"),
        (Wish("q", [{"a": 1}, 2]), "options is a list of texts"),
        (Wish("q", model=["tiny"]), "model is a text"),
        (Wish("q", model={"x": 1}), "model is a text"),
        (Wish("q", preset={"a": 1}), "preset is a text"),
        (Wish("q", preset=["a" * 9999]), "preset is a text, got \\['a{50,80}…$"),
        (Wish("q", memory=1), "memory is a text"),
        (Wish("q", tools=5), "tools is a list"),
        (Wish("q", tools=[["zoom_clip"]]), "tools is a list"),
        (Wish("q", compare="yes"), "compare is true or false, got 'yes'"),
    ],
)
def test_a_bad_wish_is_refused_in_a_sentence(demo_of: Callable[..., Demo], wish: Wish, said: str) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    demo.pick("me", "digit.mp4")
    with pytest.raises(BadInput, match=said):
        demo.ask("me", wish)
    assert (len(demo.line), demo.sessions.get("me").run) == (0, None)


def test_one_question_at_a_time_and_none_without_a_film(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(lambda request: "…"))
    with pytest.raises(BadInput, match="there is no video yet"):
        demo.ask("me", Wish(QUESTION))
    demo.pick("me", "digit.mp4")
    demo.ask("me", Wish(QUESTION))
    for act in (
        lambda: demo.ask("me", Wish(QUESTION)),
        lambda: demo.pick("me", "colour.mp4"),
        lambda: demo.take("me", "x"),
    ):
        with pytest.raises(BadInput, match="still being answered"):
            act()


def test_a_fault_becomes_a_sentence_and_gives_its_place_back(demo_of: Callable[..., Demo]) -> None:
    def load(model: str, preset: object) -> Policy:
        raise RuntimeError("secret of a folder")

    demo = demo_of(SlowPolicy(zoom_and_answer))
    demo.models._load = load
    demo.pick("me", "digit.mp4")
    found = finished(demo.ask("me", Wish(QUESTION)))
    assert found["status"] == "failed"
    assert found["reason"].startswith("the demo has a fault (RuntimeError)")
    assert "secret" not in found["reason"]
    until(lambda: len(demo.line) == 0 and demo.sessions.get("me").run is None)


def test_a_film_that_goes_away_fails_in_a_sentence(demo_of: Callable[..., Demo], examples: Path) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    upload = demo.uploads.incoming / "film.mp4"
    shutil.copy(examples / "digit.mp4", upload)
    film = demo.take("me", str(upload))
    film.path.unlink()
    found = finished(demo.ask("me", Wish(QUESTION)))
    assert found["status"] == "failed"
    assert "film.mp4" in found["reason"]
    assert str(demo.uploads.folder) not in found["reason"]


def test_uploads_are_taken_once_and_go_with_their_session(demo_of: Callable[..., Demo], examples: Path) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer))
    upload = demo.uploads.incoming / "hash" / "my film.mp4"
    upload.parent.mkdir()
    shutil.copy(examples / "digit.mp4", upload)
    film = demo.take("me", str(upload))
    assert (film.name, film.path.is_file(), upload.exists(), upload.parent.exists()) == (
        "my film.mp4",
        True,
        False,
        False,
    )
    assert demo.sessions.film(film.token) == film
    demo.sessions.drop("me")
    assert (film.path.exists(), film.path.parent.exists(), demo.sessions.film(film.token)) == (False, False, None)


def test_no_upload_outside_the_folder_is_taken(tmp_path: Path) -> None:
    uploads = Uploads(10_000, 1_000, 60)
    try:
        secret = tmp_path / "secret.mp4"
        secret.write_bytes(b"secret")
        link = uploads.incoming / "link.mp4"
        link.symlink_to(secret)
        os.mkfifo(uploads.incoming / "pipe")
        for path in (
            secret,
            link,
            uploads.incoming / "pipe",
            uploads.incoming,
            f"{uploads.incoming}/../../{tmp_path}/secret.mp4",
            "file:///etc/passwd",
            "/etc/passwd",
            "",
            "\0",
            "/dev/zero",
        ):
            with pytest.raises(BadInput, match="no upload of yours"):
                uploads.take(str(path))
        assert secret.read_bytes() == b"secret"
        big = uploads.incoming / "big.mp4"
        big.write_bytes(b"x" * 1001)
        with pytest.raises(BadInput, match="the upload has"):
            uploads.take(str(big))
        assert not big.exists()
    finally:
        uploads.close()
    assert not uploads.folder.exists()


def test_uploads_stay_bounded(tmp_path: Path) -> None:
    uploads = Uploads(1_000, 600, 60)
    try:
        (one := uploads.incoming / "one.mp4").write_bytes(b"x" * 600)
        kept = uploads.take(str(one))
        (two := uploads.incoming / "two.mp4").write_bytes(b"x" * 600)
        with pytest.raises(BadInput, match="disk space for uploads is full"):
            uploads.take(str(two))
        old, new = (uploads.incoming / name / "film.mp4" for name in ("old", "new"))
        for path in (old, new):
            path.parent.mkdir()
            path.write_bytes(b"x" * 300)
        os.utime(old, (time.time() - 9,) * 2)
        assert uploads.room() == 0
        uploads.sweep()
        assert (old.exists(), new.exists(), kept.exists()) == (False, True, True)
        assert uploads.bytes() <= 1_000
        uploads.give_back(kept)
        uploads.give_back(kept)
        assert uploads.room() == 700
        outside = tmp_path / "mine.mp4"
        outside.write_bytes(b"mine")
        uploads.give_back(outside)
        assert outside.exists()
    finally:
        uploads.close()


def test_the_folder_of_a_killed_demo_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "closeup-demo-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "film.mp4").write_bytes(b"x")
    living = Uploads(1_000, 600, 60)
    other = Uploads(1_000, 600, 60)
    try:
        assert not dead.exists()
        assert living.folder.exists()
    finally:
        living.close()
        other.close()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("film.mp4", "film.mp4"),
        ("../../etc/passwd", "_.._etc_passwd"),
        (".hidden", "hidden"),
        ("<script>.mp4", "_script_.mp4"),
        ("", "video"),
        ("…", "_"),
    ],
)
def test_names_of_uploads_are_plain(given: str, shown: str) -> None:
    assert plain_name(given) == shown
    assert len(plain_name("é" * 300 + ".mp4").encode()) <= 80


def test_paths_are_cut_from_sentences() -> None:
    assert without_paths("cannot open /tmp/closeup-demo-x/kept/a/film.mp4: gone") == "cannot open film.mp4: gone"
    assert without_paths("16/9 and 3/4, or https://host/a") == "16/9 and 3/4, or https://host/a"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": ()}, "no model is given"),
        ({"at_once": 0}, "--at-once is at least 1"),
        ({"max_seconds": float("nan")}, "--max-seconds is a number above 0"),
        ({"max_upload_mb": 10, "max_disk_mb": 5}, "not even one upload would fit"),
        ({"port": 70000}, "--port is 0 to 65535"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        DemoSettings(**settings)


def test_a_film_that_is_too_long_is_refused(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer), max_minutes=1)
    with pytest.raises(BadInput, match=r"digit.mp4 lasts 1:16 and at most 1:00 is accepted"):
        demo.pick("me", "digit.mp4")
    assert demo.sessions.get("me").film is None


def test_only_allowed_videos_are_picked(demo_of: Callable[..., Demo], tmp_path: Path, examples: Path) -> None:
    films, secret = tmp_path / "films", tmp_path / "secret"
    for folder in (films, secret):
        folder.mkdir()
        shutil.copy(examples / "digit.mp4", folder / "mine.mp4")
    (films / "link.mp4").symlink_to(secret / "mine.mp4")
    (films / "near.mp4").symlink_to(films / "mine.mp4")
    (films / "below").symlink_to(secret)
    os.mkfifo(films / "pipe.mp4")
    demo = demo_of(SlowPolicy(zoom_and_answer), allow=(films,))
    bundled = [task.videos[0].name for task in demo.examples]
    assert demo.films() == [*bundled, "mine.mp4"]  # nothing that would be refused, nor that it is there
    assert demo.pick("me", "mine.mp4").path == (films / "mine.mp4").resolve()
    for name in (
        "link.mp4",
        str(secret / "mine.mp4"),
        "../secret/mine.mp4",
        "file:///etc/passwd",
        "http://127.0.0.1/film.mp4",
        "/dev/zero",
    ):
        with pytest.raises(BadInput) as refused:
            demo.pick("me", name)
        assert "an upload of yours" in str(refused.value)
    assert demo.sessions.get("me").film is not None


def test_closing_the_demo_stops_what_runs(examples: Path) -> None:
    policy = SlowPolicy(lambda request: "…")
    demo = Demo(DemoSettings(), load=lambda model, preset: policy)
    demo.pick("me", "digit.mp4")
    run = demo.ask("me", Wish(QUESTION))
    until(lambda: policy.begun == 1)
    demo.close()
    assert run.wait(20)
    assert policy.cancelled == 1
    assert not demo.uploads.folder.exists()
    # A run is over a moment before its thread, which still closes the film.
    until(lambda: all(thread.name != "closeup-question" for thread in threading.enumerate()))
