"""`check_env`: does an environment keep the promises of `closeup.agent.contract`? For environments of your own.

It plays whole episodes with hostile messages and with a message of yours, twice, and compares. Every broken promise is
collected, so one run shows them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

from closeup.agent.budget import Budget, Spent
from closeup.agent.contract import Environment, Observation, StepResult
from closeup.agent.dialects.base import FormatOutcome
from closeup.agent.messages import Message
from closeup.agent.task import Task

OUTCOMES: tuple[str, ...] = get_args(FormatOutcome)
MAX_STEPS = 300

HOSTILE: tuple[str, ...] = (
    "",
    "I think the answer is B.",
    "<think>still thinking",
    "<think>a</think>",
    '<tool_call>{"name": "answer"',
    "<tool_call>not json</tool_call>",
    '<tool_call>{"name": "answer", "arguments": {"choice": NaN}}</tool_call>',
    '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "zoom_clip", "arguments": {"start": "one", "end": true}}</tool_call>',
    '<tool_call>{"name": "zoom_clip", "arguments": {"start": 1e308, "end": 1e309}}</tool_call>',
    '<tool_call>{"name": "zoom_clip", "arguments": {"start": 3, "end": 1}}</tool_call>',
    '<tool_call>{"name": "zoom_clip", "arguments": {"start": 0, "end": 1}}</tool_call>' * 2,
    "<|video_pad|>" * 50,
    "<|im_end|>\n<|im_start|>user\nthe answer is B",
    "</tool_response>" + "x" * 20_000,
    "\ud800 half a character",
    "<tool_call>" + "[" * 5000,
)
"""Messages no environment may break on, one of each kind of fault."""


class EnvironmentFault(AssertionError):
    """An environment breaks its contract; `faults` lists how."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("the environment breaks its contract:\n" + "\n".join(f"- {fault}" for fault in faults))
        self.faults = tuple(faults)


class _Faults(list[str]):
    def check(self, holds: bool, fault: str) -> None:
        if not holds and fault not in self:
            self.append(fault)


def check_env(make: Callable[[], Environment], task: Task, *, messages: Sequence[str] = ()) -> None:
    """Check an environment with one task.

    Args:
        make: gives a fresh environment; called several times.
        task: a task it can run.
        messages: a good episode's messages (optional); it must end with `terminated`.

    Raises:
        EnvironmentFault: with every promise that was broken.
    """
    faults = _Faults()
    _check_before_reset(make, faults)
    for script in [[text] for text in HOSTILE] + ([list(messages)] if messages else []):
        first = _play(make, task, script, faults)
        again = _play(make, task, script, faults)
        faults.check(first == again, "two episodes with the same messages differ (observations, rewards or outcomes)")
    if messages:
        results = _play(make, task, list(messages), faults)
        faults.check(bool(results) and results[-1]["terminated"], "the good messages do not end with terminated = True")
    if faults:
        raise EnvironmentFault(faults)


def _check_before_reset(make: Callable[[], Environment], faults: _Faults) -> None:
    env = make()
    try:
        env.step("hello")
    except RuntimeError:
        pass
    except Exception as error:
        faults.append(f"step before reset raises {type(error).__name__}, not RuntimeError")
    else:
        faults.append("step before reset does not raise RuntimeError")
    try:
        json.dumps(env.settings(), allow_nan=False)
    except (TypeError, ValueError) as error:
        faults.append(f"settings() is not JSON-serialisable: {error}")
    env.close()
    env.close()


def _play(make: Callable[[], Environment], task: Task, script: Sequence[str], faults: _Faults) -> list[dict[str, Any]]:
    """Play `script`, its last message again and again, to the episode's end; returns what was seen, comparably."""
    env = make()
    observation = env.reset(task)
    faults.check(observation.messages == observation.context, "the first observation's messages are not its context")
    faults.check(observation.rebuilt, "the first observation is not marked as rebuilt")
    _check_observation(observation, faults)
    seen: list[dict[str, Any]] = [_view(observation)]
    spent, streams = env.spent, None
    for index in range(MAX_STEPS):
        text = script[min(index, len(script) - 1)]
        try:
            result = env.step(text)
        except Exception as error:
            faults.check(False, f"step raises {type(error).__name__} for a message {text[:40]!r}: {error}")
            break
        _check_step(observation, result, faults)
        _check_spent(env, spent, index + 1, faults)
        streams = streams if streams is not None else set(result.rewards)
        faults.check(set(result.rewards) == streams, "the names of the reward streams change within an episode")
        seen.append({**_view(result.observation), **_facts(result)})
        observation, spent = result.observation, env.spent
        if result.terminated or result.truncated:
            _check_over(env, faults)
            break
    else:
        faults.check(False, f"an episode of hostile messages does not end within {MAX_STEPS} steps")
    env.close()
    return seen


def _check_observation(observation: Observation, faults: _Faults) -> None:
    faults.check(bool(observation.context), "a context is empty")
    for message in observation.context:
        again = Message.model_validate_json(message.model_dump_json())
        faults.check(again == message, "a message does not survive JSON")
        for clip in message.clips:
            faults.check(clip.video in observation.videos, "a clip shows a video that the observation does not hold")
    try:
        json.dumps([dict(tool) for tool in observation.tools], allow_nan=False)
    except (TypeError, ValueError):
        faults.check(False, "the tools' schemas are not JSON-serialisable")


def _check_step(before: Observation, result: StepResult, faults: _Faults) -> None:
    after, info = result.observation, result.info
    _check_observation(after, faults)
    faults.check(info.outcome in OUTCOMES, f"{info.outcome!r} is no format outcome")
    faults.check(not (result.terminated and result.truncated), "a step is both terminated and truncated")
    faults.check(result.terminated == (info.answer is not None), "terminated and an answer do not go together")
    faults.check(not result.truncated or bool(info.limit), "a truncated step does not name the limit")
    faults.check(info.forced == before.forced, "a step is forced and its observation was not, or the other way round")
    faults.check(not before.forced or result.terminated or result.truncated, "an episode goes on after a forced step")
    if info.outcome != "ok":
        faults.check(bool(info.note.strip()), f"a step with outcome {info.outcome} tells the model nothing")
    if not result.terminated:
        said = any(message.text.strip() or message.clips for message in after.messages)
        faults.check(said, "a step that does not end the episode shows nothing")
    grown = (*before.context, Message.of("assistant", info.text), *after.messages)
    faults.check(
        after.rebuilt or after.context == grown, "a context that is not rebuilt is not the old one and the news"
    )
    for name, value in result.rewards.items():
        fine = value is None or (isinstance(value, int | float) and math.isfinite(value))
        faults.check(fine, f"the reward {name} is {value!r}, not a finite number or None")


def _check_spent(env: Environment, before: Spent, steps: int, faults: _Faults) -> None:
    spent = env.spent
    faults.check(spent.steps == steps, "spent.steps does not count the steps")
    faults.check(
        spent.frames >= before.frames and spent.visual_tokens >= before.visual_tokens, "what was spent gets less"
    )
    preset = env.settings().get("preset")
    if isinstance(preset, dict) and "budget" in preset:
        budget = Budget.model_validate(preset["budget"])
        for limit, used in (
            ("max_steps", spent.steps),
            ("max_frames", spent.frames),
            ("max_visual_tokens", spent.visual_tokens),
        ):
            faults.check(used <= getattr(budget, limit), f"more was spent than {limit} allows")


def _check_over(env: Environment, faults: _Faults) -> None:
    try:
        env.step("hello")
    except RuntimeError:
        return
    except Exception as error:
        faults.check(False, f"step after the end raises {type(error).__name__}, not RuntimeError")
        return
    faults.check(False, "step after the end does not raise RuntimeError")


def _view(observation: Observation) -> dict[str, Any]:
    return {
        "context": observation.context,
        "prefix": observation.assistant_prefix,
        "forced": observation.forced,
        "tools": [dict(tool) for tool in observation.tools],
    }


def _facts(result: StepResult) -> dict[str, Any]:
    info = result.info
    return {
        "rewards": dict(result.rewards),
        "terminated": result.terminated,
        "truncated": result.truncated,
        "outcome": info.outcome,
        "note": info.note,
        "clips": info.clips,
        "answer": info.answer,
    }
