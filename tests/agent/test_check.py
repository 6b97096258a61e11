"""`check_env` passes the environment of this project and catches each broken promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from closeup.agent.check import HOSTILE, EnvironmentFault, check_env
from closeup.agent.contract import Observation, StepResult
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import Message
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import Task
from closeup.rl.rewards import DEFAULT_REWARDS

Say = Callable[..., str]


@pytest.mark.parametrize("name", ["tiny", "tiny-direct", "default"])
def test_our_environment_keeps_its_promises(name: str, task: Task, say: Say) -> None:
    good = [say("zoom_clip", start=12, end=13), say("answer", choice="B", evidence=[[12, 13]])]
    check_env(lambda: VideoQAEnv(get_preset(name), rewards=DEFAULT_REWARDS), task, messages=good[-1:])
    check_env(lambda: VideoQAEnv(get_preset("tiny")), task, messages=good)


class Raises(VideoQAEnv):
    def step(self, message: str, **rest: Any) -> StepResult:
        if "\ud800" in message:
            raise UnicodeError("not text")
        return super().step(message, **rest)


class GoesOn(VideoQAEnv):
    """Answers to every step after the end as if nothing had happened."""

    last: StepResult | None = None

    def reset(self, task: Task, **rest: Any) -> Observation:
        self.last = None
        return super().reset(task, **rest)

    def step(self, message: str, **rest: Any) -> StepResult:
        if self.last is None or not (self.last.truncated or self.last.terminated):
            self.last = super().step(message, **rest)
        return self.last


class Random(VideoQAEnv):
    counter = itertools.count()

    def step(self, message: str, **rest: Any) -> StepResult:
        result = super().step(message, **rest)
        return replace(result, rewards={"luck": float(next(self.counter))})


class Edited(VideoQAEnv):
    """Changes every step's result by the function given."""

    edit: Callable[[StepResult], StepResult]

    def step(self, message: str, **rest: Any) -> StepResult:
        return type(self).edit(super().step(message, **rest))


def edited(change: Callable[[StepResult], StepResult]) -> type[VideoQAEnv]:
    return type("Edited", (Edited,), {"edit": staticmethod(change)})


def silent(result: StepResult) -> StepResult:
    observation = replace(result.observation, messages=(Message.of("tool", " "),))
    return replace(result, observation=observation, info=replace(result.info, note=""))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Raises, "UnicodeError"),
        (GoesOn, "step after the end does not raise"),
        (Random, "two episodes with the same messages differ"),
        (edited(lambda r: replace(r, rewards={"a": float("nan")})), "not a finite number"),
        (edited(lambda r: replace(r, rewards={r.info.outcome: None})), "names of the reward streams change"),
        (edited(lambda r: replace(r, terminated=True)), "terminated and an answer"),
        (edited(lambda r: replace(r, info=replace(r.info, outcome="confused"))), "'confused' is no format outcome"),
        (edited(lambda r: replace(r, info=replace(r.info, limit=""))), "does not name the limit"),
        (edited(silent), "tells the model nothing"),
        (
            edited(lambda r: replace(r, observation=replace(r.observation, context=r.observation.context[:1]))),
            "not the old one and the news",
        ),
        (
            edited(lambda r: replace(r, observation=replace(r.observation, tools=({"name": {1, 2}},)))),
            "not JSON-serialisable",
        ),
    ],
)
def test_a_broken_promise_is_caught(broken: type[VideoQAEnv], says: str, preset: Preset, task: Task) -> None:
    with pytest.raises(EnvironmentFault, match=says) as caught:
        check_env(lambda: broken(preset), task)
    assert caught.value.faults


def test_good_messages_must_end_well(preset: Preset, task: Task) -> None:
    with pytest.raises(EnvironmentFault, match="do not end with terminated"):
        check_env(lambda: VideoQAEnv(preset), task, messages=["no call"])


def test_the_hostile_messages_are_of_many_kinds(preset: Preset, task: Task) -> None:
    outcomes = set()
    with VideoQAEnv(preset) as env:
        for text in HOSTILE:
            env.reset(task)
            outcomes.add(env.step(text).info.outcome)
    assert outcomes >= {
        "no_call", "several_calls", "broken_call", "unknown_tool", "bad_arguments", "refused", "media_tokens"
    }  # fmt: skip
