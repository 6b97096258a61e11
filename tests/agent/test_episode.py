"""Running episodes: batches, seeds, events, failures that stay at home, cancelling, scorers, the record."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import Start, arun_episode, run_episodes, step_seed
from closeup.agent.events import Answered, Called, Event, Failed, Finished, Opened, Returned, Thought, Token
from closeup.agent.policies.base import Completion, Policy, Request, Sampling
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.scoring import StepFacts
from closeup.agent.task import Task
from closeup.agent.trajectory import ClipRecord, Trajectory, read_trajectories, write_trajectories
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolResult

Say = Callable[..., str]


@pytest.fixture
def good(say: Say) -> list[str]:
    """An episode that zooms, errs once and answers."""
    return [
        say("zoom_clip", start=12, end=13, thought="red at 12s"),
        "no call",
        say("answer", choice="B", evidence=[[12, 14]], thought="red 7, B"),
    ]


def renamed(task: Task, name: str, **changes: Any) -> Task:
    return task.model_copy(update={"id": name, **changes})


def test_the_record_of_a_good_episode(preset: Preset, task: Task, good: list[str]) -> None:
    (run,) = run_episodes([task], ScriptedPolicy(good), preset=preset, rewards={"one": lambda facts: 1.0}, seed=5)
    assert run.id == "red/0" and run.task == task
    out = run.outcome
    assert (out.terminated, out.truncated, out.failed, out.correct) == (True, False, False, True)
    assert (out.answer, out.choice, out.evidence) == ("7", "B", ((12, 13),))
    assert (out.steps, out.frames, out.visual_tokens) == (3, 44, 52)
    zoom, fault, answer = run.steps
    assert [step.parent for step in run.steps] == [None, 0, 1]
    assert [step.outcome for step in run.steps] == ["ok", "no_call", "ok"]
    assert (zoom.thought, zoom.call and zoom.call.name, zoom.text) == ("red at 12s", "zoom_clip", good[0])
    assert fault.note and fault.call is None
    assert fault.messages[0].clips[0].key == zoom.clips[0]
    assert all(step.rewards == {"one": 1.0} for step in run.steps)
    assert [message.role for message in run.context(2)] == ["user", "assistant", "tool", "assistant", "tool"]
    (video,) = run.videos.values()
    assert (Path(video.path), video.duration, video.width) == (task.videos[0], 20.0, 112)
    assert len(run.clips) == 2 and run.clips[zoom.clips[0]].times == (), "a scripted policy looks at no frame"
    assert run.clips[zoom.clips[0]].tokens == 32
    assert {"preset", "prompts", "geometry", "policy", "sampling", "seed", "versions"} <= set(run.settings)


def test_the_record_survives_its_file(preset: Preset, task: Task, good: list[str], tmp_path: Path) -> None:
    runs = run_episodes([task], ScriptedPolicy(good), preset=preset, rollouts=2, rewards={"none": lambda facts: None})
    write_trajectories(tmp_path / "runs.jsonl", runs)
    assert list(read_trajectories(tmp_path / "runs.jsonl")) == runs


def test_episodes_run_together_as_they_run_alone(preset: Preset, task: Task, good: list[str], say: Say) -> None:
    tasks = [renamed(task, name) for name in "abcde"]
    script = {"a": good, "b": [good[-1]], "c": ["?"] * 8, "d": good[:1] * 8, "e": [say("answer", choice="A")]}
    alone = [run_episodes([t], ScriptedPolicy(script), preset=preset)[0] for t in tasks]
    for max_live in (1, 2, 5):
        together = run_episodes(tasks, ScriptedPolicy(script), preset=preset, max_live=max_live)
        assert [t.task.id for t in together] == list("abcde")
        for one, other in zip(alone, together, strict=True):
            assert timeless(one) == timeless(other)
    assert [t.outcome.correct for t in alone] == [True, True, False, False, False]
    assert [t.outcome.truncated for t in alone] == [False, False, True, True, False]
    assert alone[2].outcome.reason.startswith("max_steps: ")


def timeless(trajectory: Trajectory) -> Trajectory:
    steps = tuple(s.model_copy(update={"generate_seconds": 0.0, "tool_seconds": 0.0}) for s in trajectory.steps)
    outcome = trajectory.outcome.model_copy(update={"seconds": 0.0})
    return trajectory.model_copy(update={"steps": steps, "outcome": outcome})


def test_seeds_are_pure_functions_of_their_names(preset: Preset, task: Task) -> None:
    seen: dict[tuple[str, int], int] = {}
    counts: dict[str, int] = {}

    def note(request: Request) -> str:
        step = counts[request.episode_id] = counts.get(request.episode_id, -1) + 1
        seen[request.episode_id, step] = request.sampling.seed
        return "?"

    run_episodes([task, renamed(task, "b")], ScriptedPolicy(note), preset=preset, rollouts=2, seed=7)
    assert seen == {
        (f"{name}/{rollout}", step): step_seed(7, name, rollout, step)
        for name in ("red", "b")
        for rollout in range(2)
        for step in range(preset.budget.max_steps)
    }
    assert len(set(seen.values())) == len(seen) and all(0 <= value < 2**63 for value in seen.values())
    assert step_seed(0, "t", 0, 0) == 7163944482156921913, "seeds are the same on every machine and in every version"
    assert step_seed(1, "t", 0, 0) != step_seed(0, "t", 0, 0)


def test_sampling_is_the_presets_unless_given(preset: Preset, task: Task) -> None:
    seen: list[Sampling] = []

    def note(request: Request) -> str:
        seen.append(request.sampling)
        return "?"

    warm = preset.model_copy(update={"temperature": 0.7})
    run_episodes([task], ScriptedPolicy(note), preset=warm)
    assert (seen[0].temperature, seen[0].max_new_tokens) == (0.7, preset.budget.max_new_tokens)
    seen.clear()
    (run,) = run_episodes([task], ScriptedPolicy(note), preset=warm, sampling=Sampling(top_p=0.5, max_new_tokens=9))
    assert (seen[0].temperature, seen[0].top_p, seen[0].max_new_tokens) == (0.0, 0.5, 9)
    assert run.settings["sampling"] == {"temperature": 0.0, "top_p": 0.5, "top_k": 0, "max_new_tokens": 9}


def test_events_tell_the_whole_story_in_order(preset: Preset, task: Task, good: list[str]) -> None:
    events: list[Event] = []
    (run,) = run_episodes([task], ScriptedPolicy(good), preset=preset, on_event=events.append)
    assert "".join(e.text for e in events if isinstance(e, Token) and e.step == 0) == good[0]
    told = [e for e in events if not isinstance(e, Token)]
    assert [type(e) for e in told] == [
        Opened, Thought, Called, Returned, Returned, Thought, Called, Answered, Finished
    ]  # fmt: skip
    opened, thought, called, shown, fault, *_, answered, finished = told
    assert isinstance(opened, Opened) and opened.overviews[0].video in opened.videos
    assert isinstance(thought, Thought) and thought.text == "red at 12s"
    assert isinstance(called, Called) and called.call.arguments == {"start": 12, "end": 13}
    assert isinstance(shown, Returned) and shown.clips[0].start == 12 and shown.outcome == "ok"
    assert isinstance(fault, Returned) and fault.outcome == "no_call" and fault.note
    assert isinstance(answered, Answered) and answered.answer.evidence == ((12, 13),)
    assert isinstance(finished, Finished) and finished.trajectory == run


def test_a_listener_that_raises_ends_the_run(preset: Preset, task: Task, good: list[str]) -> None:
    for kind in (Token, Called, Finished):

        def listen(event: Event, kind: type[Event] = kind) -> None:
            if isinstance(event, kind):
                raise ZeroDivisionError("the listener is at fault")

        with pytest.raises(ZeroDivisionError):
            run_episodes([task], ScriptedPolicy(good), preset=preset, on_event=listen)


# --- failures ------------------------------------------------------------------------------------------------------


class Buggy(Tool[ToolArgs]):
    """Break."""

    def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
        raise KeyError("a bug")


def test_what_breaks_fails_alone_and_says_why(
    preset: Preset, task: Task, good: list[str], say: Say, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from closeup.tools.answer import AnswerTool
    from closeup.tools.zoom_clip import ZoomClip

    (tmp_path / "empty.mp4").touch()
    tasks = [
        task,
        renamed(task, "gone", videos=(tmp_path / "gone.mp4",)),
        renamed(task, "empty", videos=(tmp_path / "empty.mp4",)),
        renamed(task, "buggy"),
        renamed(task, "silent"),
        renamed(task, "last"),
    ]
    script = {"red": good, "buggy": [say("buggy")], "silent": [], "last": good}
    events: list[Event] = []
    runs = run_episodes(
        tasks,
        ScriptedPolicy(script),
        environment=lambda: VideoQAEnv(preset, tools=(ZoomClip, AnswerTool, Buggy)),
        on_event=events.append,
    )
    assert [run.outcome.failed for run in runs] == [False, True, True, True, True, False]
    assert [run.outcome.correct for run in runs] == [True, None, None, None, None, True]
    reasons = {run.task.id: run.outcome.reason for run in runs}
    assert "gone.mp4" in reasons["gone"] and "empty" in reasons["empty"]
    assert "KeyError" in reasons["buggy"] and "'buggy/0'" in reasons["buggy"]
    assert "0 messages" in reasons["silent"]
    assert {e.episode_id for e in events if isinstance(e, Failed)} == {"gone/0", "empty/0", "buggy/0", "silent/0"}
    assert sum(isinstance(e, Finished) for e in events) == 6
    assert "buggy/0" in caplog.text and "gone/0" not in caplog.text, "bugs are logged, bad input is only reported"


class Moody(Policy):
    """Raises whenever the named episode is in the batch; else answers B."""

    def __init__(self, answer: str, how: str) -> None:
        self.answer, self.how = answer, how

    def generate(self, requests: Sequence[Request], **rest: Any) -> list[Completion]:
        if self.how == "raises":
            raise MemoryError("no room")
        if self.how == "too few":
            return []
        return [
            Completion("", "error", error="too long") if "bad" in r.episode_id else Completion(self.answer)
            for r in requests
        ]


def test_a_policy_may_fail_one_request(preset: Preset, task: Task, good: list[str]) -> None:
    bad, fine = run_episodes([renamed(task, "bad"), task], Moody(good[-1], "one"), preset=preset)
    assert (bad.outcome.failed, bad.outcome.reason) == (True, "too long")
    assert fine.outcome.correct


def test_a_completion_that_contradicts_itself_fails_its_episode(preset: Preset, task: Task, good: list[str]) -> None:
    class Wrong(Policy):
        def generate(self, requests: Sequence[Request], **rest: Any) -> list[Completion]:
            return [Completion(good[-1], ids=(1, 2), logprobs=(-0.5,), prompt_ids=(3,)) for _ in requests]

    (run,) = run_episodes([task], Wrong(), preset=preset)
    assert run.outcome.failed and "2 ids have 1 log-probabilities" in run.outcome.reason


@pytest.mark.parametrize(("how", "says"), [("raises", "MemoryError: no room"), ("too few", "0 completions for 1")])
def test_a_policy_that_breaks_its_contract_fails_whom_it_was_asked_for(
    preset: Preset, task: Task, how: str, says: str
) -> None:
    runs = run_episodes([task, renamed(task, "b")], Moody("", how), preset=preset, max_live=1)
    assert len(runs) == 2
    assert all(run.outcome.failed and says in run.outcome.reason for run in runs)


def test_a_policy_must_continue_the_prefix(preset: Preset, task: Task, good: list[str]) -> None:
    start = Start(task, assistant_prefix="<think>it is")
    (run,) = run_episodes([start], Moody(good[-1], "one"), preset=preset)
    assert run.outcome.failed and "'<think>it is'" in run.outcome.reason


def test_two_episodes_cannot_have_one_name(preset: Preset, task: Task) -> None:
    with pytest.raises(ValueError, match="'red/0'"):
        run_episodes([task, task], ScriptedPolicy([]), preset=preset)
    runs = run_episodes([Start(task), Start(task, rollout=1)], ScriptedPolicy(["?"] * 8), preset=preset)
    assert [run.id for run in runs] == ["red/0", "red/1"]


def test_arguments_that_make_no_sense_are_refused(preset: Preset, task: Task) -> None:
    policy = ScriptedPolicy([])
    with pytest.raises(ValueError, match="exactly one"):
        run_episodes([task], policy)
    with pytest.raises(ValueError, match="exactly one"):
        run_episodes([task], policy, preset=preset, environment=lambda: VideoQAEnv(preset))
    with pytest.raises(ValueError, match="rewards belong"):
        run_episodes([task], policy, environment=lambda: VideoQAEnv(preset), rewards={})
    with pytest.raises(ValueError, match="at least 1"):
        run_episodes([task], policy, preset=preset, rollouts=0)
    for field, wrong in (("tools", "teleport"), ("dialect", "klingon"), ("prompts", "nowhere")):
        broken = preset.model_copy(update={field: (wrong, "answer") if field == "tools" else wrong})
        with pytest.raises(ValueError, match=wrong):
            run_episodes([task], policy, preset=broken)
    assert run_episodes([], policy, preset=preset) == []


# --- ids -----------------------------------------------------------------------------------------------------------


class WithIds(Policy):
    """Counts up ids; `extends` after the first step unless told to begin anew at step `anew`."""

    def __init__(self, script: list[str], anew: int | None = None) -> None:
        self.script, self.anew, self.step = script, anew, 0

    def generate(self, requests: Sequence[Request], **rest: Any) -> list[Completion]:
        (request,) = requests
        step, self.step = self.step, self.step + 1
        extends = step > 0 and step != self.anew
        ids = (1000 + step, 0)
        prompt = (step,) if extends else tuple(range(10 * step, 10 * step + len(request.messages)))
        records = {
            clip.key: ClipRecord(clip=clip, times=clip.times(), size=(28, 28), tokens=9)
            for message in request.messages
            for clip in message.clips
        }
        return [
            Completion(
                self.script[step],
                ids=ids,
                logprobs=(-1.0, -2.0),
                prompt_ids=prompt,
                extends=extends,
                clips=records,
                context_tokens=100 + step,
            )
        ]


def test_ids_and_parents_are_the_policys(preset: Preset, task: Task, good: list[str]) -> None:
    (run,) = run_episodes([task], WithIds(good), preset=preset)
    assert [step.parent for step in run.steps] == [None, 0, 1]
    assert run.full_prompt_ids(2) == (0, 1000, 0, 1, 1001, 0, 2)
    assert [step.context_tokens for step in run.steps] == [100, 101, 102]
    assert all(record.tokens == 9 and record.times for record in run.clips.values())
    (run,) = run_episodes([task], WithIds(good, anew=1), preset=preset)
    assert [step.parent for step in run.steps] == [None, None, 1]
    assert len(run.steps[1].messages) == 3, "a context that was not continued is recorded whole"
    assert run.full_prompt_ids(2) == (10, 11, 12, 1001, 0, 2)
    assert [m.role for m in run.context(2)] == ["user", "assistant", "tool", "assistant", "tool"]


# --- scoring -------------------------------------------------------------------------------------------------------


class Late:
    """A late stream: the answer's correctness, credited to every step."""

    def __init__(self, name: str = "late", extra: int = 0, value: float | None = None) -> None:
        self.name, self.extra, self.value = name, extra, value

    def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
        value = float(trajectory.outcome.answer == "7") if self.value is None else self.value
        return [{self.name: value} for _ in range(len(trajectory.steps) + self.extra)]


def test_late_streams_join_the_immediate_ones(preset: Preset, task: Task, good: list[str]) -> None:
    def now(facts: StepFacts) -> float | None:
        return 1.0 if facts.outcome == "ok" else None

    (run,) = run_episodes([task], ScriptedPolicy(good), preset=preset, rewards={"now": now}, scorers=[Late()])
    assert [step.rewards for step in run.steps] == [
        {"now": 1.0, "late": 1.0},
        {"now": None, "late": 1.0},
        {"now": 1.0, "late": 1.0},
    ]
    assert run.settings["rewards"] == ["now"], "what a replay can check"


@pytest.mark.parametrize("scorer", [Late("now"), Late(extra=1), Late(value=float("nan"))])
def test_a_scorer_that_breaks_fails_the_episode_and_makes_nothing_up(
    preset: Preset, task: Task, good: list[str], scorer: Late
) -> None:
    (run,) = run_episodes(
        [task], ScriptedPolicy(good), preset=preset, rewards={"now": lambda facts: 1.0}, scorers=[scorer]
    )
    assert run.outcome.failed and "scoring failed" in run.outcome.reason and run.outcome.correct is None


def test_the_judge_decides_and_no_answer_is_wrong(preset: Preset, task: Task, good: list[str], say: Say) -> None:
    free = renamed(task, "free", options=(), answer="seven", answer_kind="text")
    script = {"free": [say("answer", text="7")], "red": ["?"] * 8}
    judged, silent = run_episodes(
        [free, task], ScriptedPolicy(script), preset=preset, judge=lambda task, answer: answer is not None
    )
    assert (judged.outcome.correct, silent.outcome.correct) == (True, False)
    (unjudged,) = run_episodes([free], ScriptedPolicy(script), preset=preset)
    assert unjudged.outcome.correct is None, "free text is not compared unless a judge is given"
    unknown = renamed(task, "free", options=("7", "8"), answer=None)
    (unjudged,) = run_episodes([unknown], ScriptedPolicy({"free": [say("answer", choice="A")]}), preset=preset)
    assert unjudged.outcome.correct is None


# --- cancelling ----------------------------------------------------------------------------------------------------


def test_cancelling_records_every_episode_as_truncated(preset: Preset, task: Task, good: list[str]) -> None:
    cancel = threading.Event()

    def stop(event: Event) -> None:
        if isinstance(event, Token) and event.episode_id == "red/0" and event.step == 2:
            cancel.set()

    tasks = [task, renamed(task, "b"), renamed(task, "c")]
    runs = run_episodes(
        tasks, ScriptedPolicy(good), preset=preset, on_event=stop, cancel=cancel, max_live=2, rewards={}
    )
    assert [(run.outcome.truncated, run.outcome.reason, run.outcome.correct) for run in runs] == [
        (True, "cancelled", None)
    ] * 3
    assert [len(run.steps) for run in runs] == [3, 3, 0]
    assert [step.finish for step in runs[0].steps] == ["stop", "stop", "cancelled"]


def test_cancelled_before_it_began(preset: Preset, task: Task, good: list[str]) -> None:
    cancel = threading.Event()
    cancel.set()
    (run,) = run_episodes([task], ScriptedPolicy(good), preset=preset, cancel=cancel)
    assert run.outcome.reason == "cancelled" and run.steps == ()


def test_one_episode_without_blocking(preset: Preset, task: Task, good: list[str]) -> None:
    (same,) = run_episodes([task], ScriptedPolicy(good), preset=preset, seed=3)

    async def main() -> list[Trajectory]:
        runs = [arun_episode(task, ScriptedPolicy(good), preset=preset, seed=3) for _ in range(3)]
        return list(await asyncio.gather(*runs))

    assert [timeless(run) for run in asyncio.run(main())] == [timeless(same)] * 3


def test_a_failing_policy_fails_the_asynchronous_episode(preset: Preset, task: Task) -> None:
    run = asyncio.run(arun_episode(task, Moody("", "raises"), preset=preset))
    assert run.outcome.failed and "MemoryError" in run.outcome.reason


def test_cancelling_the_awaiting_task_records_the_episode(preset: Preset, task: Task) -> None:
    events: list[Event] = []
    started = threading.Event()
    going_on = threading.Event()

    def slow(request: Request) -> str:
        started.set()
        going_on.wait(20)
        return "one two three"

    async def main() -> None:
        run = asyncio.create_task(arun_episode(task, ScriptedPolicy(slow), preset=preset, on_event=events.append))
        await asyncio.to_thread(started.wait, 20)
        run.cancel()
        await asyncio.sleep(0)
        going_on.set()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(main())
    assert isinstance(events[-1], Finished)
    outcome = events[-1].trajectory.outcome
    assert (outcome.truncated, outcome.reason) == (True, "cancelled")


class Slow(Tool[ToolArgs]):
    """Take a while."""

    started, going_on, ended = threading.Event(), threading.Event(), threading.Event()

    def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
        self.started.set()
        self.going_on.wait(20)
        self.ended.set()
        return ToolResult(text="done at last")


def test_cancelling_during_a_tool_waits_for_it_before_closing(preset: Preset, task: Task, say: Say) -> None:
    from closeup.tools.answer import AnswerTool

    events: list[Event] = []

    async def main() -> None:
        run = asyncio.create_task(
            arun_episode(
                task,
                ScriptedPolicy([say("slow")] * 3),
                environment=lambda: VideoQAEnv(preset, tools=(Slow, AnswerTool)),
                on_event=events.append,
            )
        )
        await asyncio.to_thread(Slow.started.wait, 20)
        run.cancel()
        await asyncio.sleep(0.01)
        assert not Slow.ended.is_set() and not any(isinstance(event, Finished) for event in events)
        Slow.going_on.set()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(main())
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert Slow.ended.is_set() and finished.trajectory.outcome.reason == "cancelled"
    assert [step.outcome for step in finished.trajectory.steps] == ["ok"]


# --- starts --------------------------------------------------------------------------------------------------------


def test_a_start_in_the_middle_is_recorded(preset: Preset, task: Task, good: list[str], say: Say) -> None:
    (first,) = run_episodes([task], ScriptedPolicy(good), preset=preset)
    seen = next(record.clip for record in first.clips.values() if record.clip.start == 12)
    start = Start(task, seen_clips=(seen,), assistant_prefix="<think>")
    (run,) = run_episodes([start], ScriptedPolicy([say("answer", choice="B", thought="7")]), preset=preset)
    assert run.start.seen_clips == (seen,) and run.steps[0].assistant_prefix == "<think>"
    assert run.context(0)[0].clips[-1] == seen and run.outcome.correct
