"""A scene grows with events and comes from records: the same for a finished episode, unchanged once given out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.episode import run_episodes
from closeup.agent.events import Event, Finished, Returned, Token
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.start import Start
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import Trajectory
from closeup.app.scene import Call, Scene, SceneBuilder, scene_of, value_text
from closeup.app.writing import _FAULTS, call_so_far, in_words, is_garbled, thought_so_far
from closeup.rl.rewards import DEFAULT_REWARDS

ZOOM = (
    "<think>orange is at 18s</think>\n<tool_call>\n"
    '{"name": "zoom_clip", "arguments": {"start": 18, "end": 21}}\n</tool_call>'
)
ANSWER = (
    "<think>orange 6, C</think>\n<tool_call>\n"
    '{"name": "answer", "arguments": {"choice": "C", "evidence": [[18, 21], [60, 61]]}}\n</tool_call>'
)
PAST_THE_END = ZOOM.replace("18", "500").replace("21", "510")


@pytest.fixture
def digit(examples: Path) -> Task:
    return next(task for task in load_tasks(examples / "tasks.jsonl") if "digit" in str(task.videos[0]))


def play(
    task: Task | Start, messages: Sequence[str], builder: SceneBuilder | None = None, preset: Preset | None = None
) -> tuple[Trajectory, list[tuple[Event, Scene]], SceneBuilder]:
    """Run a scripted episode; the record, every event with the scene after it, and the builder."""
    preset = preset or get_preset("tiny")
    builder = builder or SceneBuilder(budget=preset.budget)
    seen: list[tuple[Event, Scene]] = []

    def on_event(event: Event) -> None:
        builder(event)
        seen.append((event, builder.scene))

    policy = ScriptedPolicy(list(messages))
    (record,) = run_episodes([task], policy, preset=preset, rewards=DEFAULT_REWARDS, on_event=on_event)
    return record, seen, builder


SCRIPTS = {
    "zoom and answer": [ZOOM, ANSWER],
    "refused": [PAST_THE_END, ZOOM, ANSWER],
    "no call": ["I do not know", ANSWER],
    "broken call": ['<think>hm</think>\n<tool_call>\n{"name": "zoom_clip", "arg\n</tool_call>', ANSWER],
    "unknown tool": [ZOOM.replace("zoom_clip", "teleport"), ANSWER],
    "never answers": ["?"] * 8,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_live_and_from_the_record_it_is_the_same_scene(digit: Task, script: list[str]) -> None:
    record, seen, _ = play(digit, script)
    assert isinstance(seen[-1][0], Finished)
    assert seen[-1][1] == scene_of(record)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_what_was_built_from_events_alone_agrees_with_the_record(digit: Task, script: list[str]) -> None:
    """All but what only the record knows: rewards, durations, forced steps, how it ended, times that were shown."""
    record, seen, _ = play(digit, script)
    (live,) = [scene for event, scene in seen[-2:-1]]
    told = scene_of(record)

    def comparable(scene: Scene) -> Scene:
        steps = tuple(
            replace(
                step,
                rewards=(),
                seconds=None,
                forced=False,
                calls=tuple(replace(call, seconds=None) for call in step.calls),
            )
            for step in scene.steps
        )
        budgets = tuple(spent for spent in scene.budgets if spent.name != "seconds")
        return replace(scene, status="running", steps=steps, budgets=budgets, correct=None, reason="")

    assert comparable(live) == comparable(told)
    assert live.status == "running" and live.steps


def test_a_scene_says_where_the_agent_looked_and_how_closely(digit: Task) -> None:
    record, _, _ = play(digit, [ZOOM, ANSWER])
    scene = scene_of(record)
    (overview,) = scene.overview
    assert (overview.kind, overview.size, len(overview.times)) == ("overview", (28, 28), 51)
    ((step, close),) = [(step, look) for step, look in scene.watched if look.kind == "close"]
    assert (step, close.start, close.end, close.size, len(close.times)) == (0, 18, 21, (112, 112), 4)
    assert scene.steps[0].calls == (
        Call("zoom_clip", (("start", "18"), ("end", "21")), "done", record.steps[0].tool_seconds, (close,)),
    )
    assert dict(scene.steps[0].rewards)["format"] == 1.0
    assert (scene.answer, scene.choice, scene.evidence) == ("6", "C", ((18, 21),))
    assert scene.gold == digit.evidence and scene.gold_answer == digit.answer
    used = {spent.name: (spent.used, spent.allowed) for spent in scene.budgets}
    assert used["steps"] == (2, 8) and used["frames"] == (55, 256) and used["visual tokens"] == (58, 640)


def test_a_refusal_stands_at_its_call_and_a_fault_without_call_at_its_step(digit: Task) -> None:
    record, _, _ = play(digit, [PAST_THE_END, "I do not know", ANSWER])
    refused, fault, _ = scene_of(record).steps
    assert refused.calls[0].state == "refused" and "500" in refused.calls[0].note and not refused.note
    assert fault.calls == () and fault.outcome == "no_call" and fault.note and fault.thought == "I do not know"


def test_scenes_that_were_given_out_never_change(digit: Task) -> None:
    given: list[tuple[str, Scene]] = []
    builder = SceneBuilder()

    def on_event(event: Event) -> None:
        builder(event)
        scene = builder.scene
        given.append((repr(scene), scene))

    run_episodes([digit], ScriptedPolicy([ZOOM, ANSWER]), preset=get_preset("tiny"), on_event=on_event)
    assert [repr(scene) for _, scene in given] == [told for told, _ in given]
    assert len({told for told, _ in given}) > 4  # while the episode did go on
    with pytest.raises(FrozenInstanceError):
        given[0][1].question = "another"  # type: ignore[misc]


def test_a_call_runs_from_its_first_letter_until_its_result(digit: Task) -> None:
    _, seen, _ = play(digit, [ZOOM, ANSWER])
    states = [scene.steps[0].calls[0].state for _, scene in seen if scene.steps and scene.steps[0].calls]
    assert states[0] == "running" and states[-1] == "done"
    returned = next(scene for event, scene in seen if isinstance(event, Returned))
    assert returned.steps[0].calls[0].looks


def test_a_thought_grows_with_its_tokens() -> None:
    builder = SceneBuilder()
    seen = []
    for piece in ("<thi", "nk>The or", "ange box", "</th", "ink>\n<tool_", 'call>\n{"name": "zoom_clip", "argum'):
        builder(Token("e", 0, piece))
        seen.append((builder.scene.steps[0].thought, [c.name for c in builder.scene.steps[0].calls]))
    assert seen == [
        ("", []),
        ("The or", []),
        ("The orange box", []),
        ("The orange box", []),
        ("The orange box", []),
        ("The orange box", ["zoom_clip"]),
    ]


def test_events_of_other_episodes_are_ignored() -> None:
    builder = SceneBuilder()
    builder(Token("mine", 0, "<think>mine"))
    builder(Token("other", 0, "<think>other"))
    assert builder.scene.id == "mine" and builder.scene.steps[0].thought == "mine"


def test_it_may_be_read_while_another_thread_writes() -> None:
    builder = SceneBuilder()
    faults: list[Exception] = []

    def write() -> None:
        for _ in range(300):
            builder(Token("e", 0, "word "))

    def read() -> None:
        try:
            for _ in range(300):
                scene = builder.scene
                assert all(len(step.thought.split()) <= 300 for step in scene.steps)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write), threading.Thread(target=read), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and builder.scene.steps[0].thought.count("word") == 300


def test_while_it_waits_the_question_is_there_and_nothing_is_made_up(digit: Task) -> None:
    scene = SceneBuilder(digit, budget=get_preset("tiny").budget).scene
    assert (scene.status, scene.question, scene.steps, scene.films) == ("waiting", digit.question, (), ())
    assert [(spent.name, spent.used) for spent in scene.budgets][0] == ("steps", 0)
    assert SceneBuilder().scene.budgets[0].allowed is None


def test_seconds_run_while_the_episode_does(digit: Task) -> None:
    now = [100.0]
    builder = SceneBuilder(clock=lambda: now[0])
    builder(Token("e", 0, "x"))
    now[0] = 107.5
    assert builder.scene.budgets[-1].used == 7.5


def test_a_follow_up_shows_the_clips_of_the_conversation_before_as_earlier(digit: Task) -> None:
    first, _, _ = play(digit, [ZOOM, ANSWER])
    history = (*first.context(1),)
    clips = [clip for message in history for clip in message.clips]
    builder = SceneBuilder(budget=get_preset("tiny").budget, earlier=clips)
    record, seen, _ = play(Start(digit, history=history, rollout=1), [ANSWER], builder)
    scene = scene_of(record)
    assert [(look.kind, look.start) for look in scene.earlier] == [("overview", 0), ("close", 18)]
    assert scene.overview == ()
    assert [(look.kind, look.start) for look in seen[0][1].earlier] == [("overview", 0), ("close", 18)]
    assert scene.evidence == ((18, 21),)


def test_a_clip_that_was_kept_is_the_same_look_live_and_from_the_record(digit: Task) -> None:
    """Live it was drawn as the overview, at times the film has not got, and other looks were measured against it."""
    early = ZOOM.replace("18", "17.93").replace("21", "18.6")  # between frames: the film shows others than were asked
    first, _, _ = play(digit, [early, ANSWER])
    kept = tuple(first.clips[key].clip for step in first.steps for key in step.clips)
    preset = get_preset("tiny")
    builder = SceneBuilder(budget=preset.budget, earlier=kept, known=first.clips)
    record, seen, _ = play(
        Start(digit, seen_clips=kept), [ZOOM.replace("18", "40").replace("21", "44"), ANSWER], builder
    )
    told = scene_of(record)
    assert [look.kind for look in told.earlier] == ["close"] and told.overview
    for _, scene in seen:
        assert scene.earlier == told.earlier
        assert [look.kind for look in scene.overview] == ["overview"]
        assert all(look.kind == "close" for step in scene.steps for look in step.watched)


def test_reasons_are_sentences(digit: Task) -> None:
    record, seen, _ = play(digit, ["?"] * 8)
    assert record.outcome.reason.startswith("max_steps: ")  # the record keeps the name, people read words
    told = "The agent used up all its messages. It was told to answer then, and its answer could not be read."
    assert scene_of(record).reason == seen[-1][1].reason == told
    assert in_words("max_context_tokens: no room was left for an answer") == (
        "The conversation grew as long as the model can read. No room was left for an answer."
    )
    assert in_words("after_fault: the message could not be carried out (refused)") == (
        "The agent's message could not be carried out: what it did instead was refused."
    )
    for other in ("cancelled", "film.mp4: cannot be read", "", "a sentence: with a colon"):
        assert in_words(other) == other


def test_every_fault_has_words() -> None:
    from typing import get_args

    from closeup.agent.dialects.base import FormatOutcome

    assert set(_FAULTS) == set(get_args(FormatOutcome)) - {"ok"}


def test_debris_of_a_call_is_no_thought(digit: Task) -> None:
    for debris in (
        'I see no box. The white box is",",",", "arguments": "D",", "arguments": [[56}}\n</tool_call>',
        '": 4 (A", "arguments": [[562}}\n</tool_call>',
        '", "evidence": [[102, 104',
        'I", "arguments": "num',
        "The orange box</think> is at 18",
    ):
        assert is_garbled(debris), debris
    for prose in (
        'He said "yes", then "no": I look again [at 3 s], and {perhaps} later',
        "I do not know",
        'The sign reads "OPEN".',
        "a < b, and </b> is no tag of ours",
    ):
        assert not is_garbled(prose), prose
    record, seen, _ = play(digit, ['": 4 (A", "arguments": [[562}}\n</tool_call>', "I do not know", ANSWER])
    assert [step.garbled for step in scene_of(record).steps] == [True, False, False]


def test_an_episode_that_could_not_open_is_a_failed_scene(tmp_path: Path) -> None:
    record, seen, _ = play(Task(id="gone", videos=(tmp_path / "no.mp4",), question="?"), [ANSWER])
    scene = scene_of(record)
    assert scene.status == "failed" and scene.reason and scene.films == () and scene == seen[-1][1]


def test_a_record_of_another_environment_has_no_limits(digit: Task) -> None:
    record, _, _ = play(digit, [ZOOM, ANSWER])
    for settings in ({}, {"preset": "mine"}, {"preset": {"budget": {"max_steps": -1}}}):
        scene = scene_of(record.model_copy(update={"settings": settings}))
        assert all(spent.allowed is None for spent in scene.budgets)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("C", "C"),
        (21.0, "21"),
        (2.5, "2.5"),
        ([[21.0, 24]], "[[21, 24]]"),
        (["a"], '["a"]'),
        (None, "null"),
        ({}, "{}"),
    ],
)
def test_arguments_are_written_as_people_read_them(value: object, text: str) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("raw", "name", "arguments"),
    [
        ("<think>a</think>\n<tool_call>", "", ()),
        ('<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 21, "en', "zoom_clip", (("start", "21"),)),
        ('<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 21, "end": 2', "zoom_clip", (("start", "21"),)),
        ('"choice": "C", "evid', "answer", (("choice", "C"),)),
        ("<think>x</think><answer>B", "answer", ()),
    ],
)
def test_a_call_can_be_read_while_it_is_written(raw: str, name: str, arguments: tuple[tuple[str, str], ...]) -> None:
    call = call_so_far(raw)
    assert call is not None and (call.name, call.arguments) == (name, arguments)
    assert "tool_call" not in thought_so_far(raw) and "answer>" not in thought_so_far(raw)


@pytest.mark.parametrize("raw", ["<think>I look</think>", "I need to zoom in", "<think><tool_call></think>", ""])
def test_no_call_has_begun_in_a_thought(raw: str) -> None:
    assert call_so_far(raw) is None


@given(st.text(alphabet='<>/think_toolcallanswer{}":,\\b[]01 ', max_size=200))
def test_any_half_written_message_can_be_shown(raw: str) -> None:
    call = call_so_far(raw)
    assert call is None or isinstance(call.name, str)
    assert not any(tag in thought_so_far(raw) for tag in ("</think>", "<tool_call>", "<answer>", "\\boxed{"))
