"""Rewards as configuration: named streams, each a function or scorer with options, and a weight.

    streams:
      - {name: format, weight: 0.1}
      - {name: zoom, weight: 1.0, function: zoom_gain, options: {measure: recall}}
      - {name: answer, weight: 1.0}
      - {name: style, weight: 0.2, function: "my_rewards.py:style"}

A mapping from names to weights is the short form (`streams: {format: 0.1, zoom: 1, answer: 1}`), and the name of a
reward preset alone is a configuration too (`REWARD_PRESETS`). `build_rewards` turns it into what an environment, the
late scorers and an advantage estimator each need.

Invariants
1. Nothing is ignored: an unknown field, function or option raises, with what is accepted.
2. Every stream is called by its `name`, whatever its function calls itself.
3. Weights are applied by the estimator and nowhere else, so that records hold what was earned, not what it was worth.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from closeup.agent.policies.base import Policy
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.scoring import RewardFn, Scorer
from closeup.agent.trajectory import Trajectory
from closeup.rl.reward_registry import BUILTINS, RewardError, is_scorer, load_reward
from closeup.rl.scorers import Gated, GroupScorer, check_scorers


class Stream(BaseModel):
    """One reward stream.

    Attributes:
        name: of the stream, in records, metrics and advantages.
        weight: what the estimator multiplies it by; 0: it is recorded and logged, and trains nothing.
        function: a registered reward, `module:function` or `file.py:function`; default: the one called as the stream
            is.
        options: keyword arguments of the function, or of the scorer's class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    weight: float = Field(default=1.0, allow_inf_nan=False)
    function: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def target(self) -> str:
        """What the stream's reward is called."""
        return self.function or self.name


def _streams(**weights: float) -> tuple[Stream, ...]:
    return tuple(Stream(name=name, weight=weight) for name, weight in weights.items())


class RewardConfig(BaseModel):
    """The streams of a run, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    streams: tuple[Stream, ...] = Field(default=_streams(format=0.2, zoom=1.0, answer=1.0), min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """The name of a reward preset stands for its streams."""
        return {"streams": get_reward_config(given).streams} if isinstance(given, str) else given

    @field_validator("streams", mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """A mapping from names to weights stands for streams of these names and weights."""
        if isinstance(given, Mapping):
            return tuple({"name": name, "weight": weight} for name, weight in given.items())
        return given

    @model_validator(mode="after")
    def _consistent(self) -> RewardConfig:
        names = [stream.name for stream in self.streams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two streams are called {', '.join(twice)}; every stream has a name of its own")
        if all(stream.weight == 0 for stream in self.streams):
            raise ValueError("every stream has the weight 0, so nothing would be trained; give one of them a weight")
        return self

    def build(self, *, policy: Policy | None = None, preset: Preset | None = None) -> RewardSet:
        """The streams ready for use; see `build_rewards`."""
        return build_rewards(self, policy=policy, preset=preset)


_LOVE_R1 = (
    Stream(name="format"),
    Stream(name="answer", function="love_r1_accuracy"),
    Stream(name="zoom_by_answer", weight=0.0),
)
REWARD_PRESETS: dict[str, RewardConfig] = {
    "default": RewardConfig(),
    # LOVE-R1: accuracy + format of each step, 0 or 1, weights 1 and 1. A zoom's accuracy is that of the answer it led
    # to: the estimator "love_r1" (with zoom: null) and every return-to-go say so, and `zoom_by_answer` records it.
    "love_r1": RewardConfig(streams=_LOVE_R1),
    # its code as published: a message with neither sentence keeps its format reward
    "love_r1-published": RewardConfig(
        streams=(Stream(name="format", function="love_r1_format_published"), *_LOVE_R1[1:])
    ),
    # LongVILA-R1: 0.9 accuracy + 0.1 format. Its accuracy is read from the message itself, so that a message of the
    # wrong format may be right: 0.9
    "longvila_r1": RewardConfig(
        streams=(
            Stream(name="answer", weight=0.9, function="longvila_r1_accuracy"),
            Stream(name="format", weight=0.1, function="longvila_r1_format"),
        )
    ),
    # the same weights for answers without a thought; read strictly, as everywhere but in that paper
    "longvila_r1-direct": RewardConfig(streams=_streams(answer=0.9, format=0.1)),
}


@dataclass(frozen=True)
class RewardSet:
    """Rewards ready for use.

    Attributes:
        immediate: immediate streams, for `VideoQAEnv(rewards=…)` or `run_episodes(rewards=…)`.
        scorers: late streams, for `scorers.score_group` (a group at once) or `run_episodes(scorers=…)`.
        weights: for the estimator, of the streams that have one; those of weight 0 are recorded and train nothing.
        streams: names of all streams, in the configuration's order.
    """

    immediate: Mapping[str, RewardFn]
    scorers: tuple[Scorer, ...]
    weights: Mapping[str, float]
    streams: tuple[str, ...]


def get_reward_config(name: str) -> RewardConfig:
    """A reward preset by name. Raises `RewardError` naming those there are."""
    if name not in REWARD_PRESETS:
        raise RewardError(f"no reward preset {name!r}; accepted: {', '.join(REWARD_PRESETS)}")
    return REWARD_PRESETS[name]


def build_rewards(
    config: RewardConfig | str, *, policy: Policy | None = None, preset: Preset | None = None
) -> RewardSet:
    """Load every stream of a configuration, or of a reward preset by name.

    Args:
        policy, preset: for scorers that take them (`sufficiency` asks the policy again, under the preset's rules).

    Raises:
        RewardError: a function that is not there or no reward, an option that it does not take, a scorer that needs a
            policy or a preset and got none.
    """
    if isinstance(config, str):
        config = get_reward_config(config)
    rewards: dict[str, RewardFn] = {}
    scorers: list[Scorer] = []
    for stream in config.streams:
        loaded = load_reward(stream.target)
        if is_scorer(loaded):
            scorers.append(_renamed(stream.name, _scorer(stream, loaded, {"policy": policy, "preset": preset})))
        else:
            rewards[stream.name] = _function(stream, loaded)
    weights = {stream.name: stream.weight for stream in config.streams if stream.weight != 0}
    return RewardSet(rewards, tuple(scorers), weights, tuple(stream.name for stream in config.streams))


def check_rewards(config: RewardConfig, *, preset: Preset) -> None:
    """Load every stream and check its options, before there is a policy.

    Scorers of this package are made once, with a policy that is never asked, and a judge is asked whether it works; a
    user's are not, which may load a model.

    Raises `RewardError` as `build_rewards`, for a `gated` stream whose other stream is not there before it, and for a
    judge that does not answer.
    """
    known: set[str] = set()
    late, made = [], []
    for stream in config.streams:
        loaded = load_reward(stream.target)
        if is_scorer(loaded):
            late.append((stream, loaded))
        else:
            _function(stream, loaded)
            known.add(stream.name)
    for stream, scorer in late:
        if stream.target in BUILTINS:
            one = _scorer(stream, scorer, {"policy": ScriptedPolicy(()), "preset": preset})
            made.append(_renamed(stream.name, one))
        else:
            _scorer_options(stream, scorer)
        if scorer is Gated and stream.options["of"] not in known:
            raise RewardError(
                f"the stream {stream.name!r} gates {stream.options['of']!r}, which is no stream before it; there are"
                f" {', '.join(sorted(known)) or 'none'}"
            )
        known.add(stream.name)
    check_scorers(made)


def _function(stream: Stream, function: Callable[..., Any]) -> RewardFn:
    parameters = list(_parameters(function, stream).values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    ):
        raise RewardError(
            f"the reward {stream.target!r} of stream {stream.name!r} takes no argument; its first one is the StepFacts"
        )
    options = _check_options(stream, {p.name: p for p in parameters[1:]}, function)
    return functools.partial(function, **options) if options else function


def _scorer(stream: Stream, scorer: Callable[..., Any], given: Mapping[str, object]) -> Scorer:
    parameters = dict(_parameters(scorer, stream))
    found = {name: value for name, value in given.items() if name in parameters}
    needed = [n for n, value in found.items() if value is None and parameters[n].default is inspect.Parameter.empty]
    if needed:
        raise RewardError(
            f"the stream {stream.name!r} ({stream.target}) needs a {needed[0]}: give build_rewards(…, {needed[0]}=…)"
        )
    arguments = _scorer_options(stream, scorer)
    arguments |= {name: value for name, value in found.items() if value is not None}
    try:
        made: Scorer = scorer(**arguments)
    except (ValueError, TypeError) as error:
        raise RewardError(f"the stream {stream.name!r} ({stream.target}) cannot be made: {error}") from error
    return made


def _scorer_options(stream: Stream, scorer: Callable[..., Any]) -> dict[str, Any]:
    rest = {name: of for name, of in _parameters(scorer, stream).items() if name not in ("policy", "preset")}
    return _check_options(stream, rest, scorer.__init__)


def _parameters(function: Callable[..., Any], stream: Stream) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise RewardError(f"the reward {stream.target!r} has no signature to check options against: {error}") from error


def _check_options(
    stream: Stream, parameters: Mapping[str, inspect.Parameter], annotated: Callable[..., Any]
) -> dict[str, Any]:
    """The options: every one is a parameter and of its type, and every parameter without a default is one."""
    plain = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(stream.options) - set(plain)) if not takes_any else []
    if unknown:
        raise RewardError(
            f"the reward {stream.target!r} of stream {stream.name!r} has no option {', '.join(unknown)};"
            f" accepted: {', '.join(plain) or 'none'}"
        )
    missing = [n for n, p in plain.items() if p.default is inspect.Parameter.empty and n not in stream.options]
    if missing:
        raise RewardError(
            f"the reward {stream.target!r} of stream {stream.name!r} needs the option {', '.join(missing)}"
        )
    return _converted(stream, annotated)


def _converted(stream: Stream, annotated: Callable[..., Any]) -> dict[str, Any]:
    """Options as the annotations of the parameters have them, where these can be read and pydantic knows them."""
    options = dict(stream.options)
    try:
        hints = get_type_hints(annotated)
    except (NameError, TypeError, AttributeError):  # names that only a type checker has
        return options
    for name, value in stream.options.items():
        try:
            options[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except PydanticSchemaGenerationError:
            continue
        except ValidationError as error:
            raise RewardError(
                f"the option {name} of stream {stream.name!r} ({stream.target}) cannot be {value!r}:"
                f" {error.errors()[0]['msg'].lower()}"
            ) from None
    return options


def _renamed(name: str, scorer: Scorer) -> Scorer:
    """`scorer` with its one stream called `name`."""
    return _RenamedGroup(name, scorer) if isinstance(scorer, GroupScorer) else _Renamed(name, scorer)


class _Renamed:
    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self.scorer = scorer

    def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
        return self._rename(self.scorer.score(trajectory))

    def _rename(self, scores: list[dict[str, float | None]]) -> list[dict[str, float | None]]:
        own = sorted({stream for step in scores for stream in step})
        if len(own) > 1:
            raise ValueError(
                f"the scorer of stream {self.name!r} gives the streams {', '.join(own)}; a configured scorer gives one"
            )
        return [{self.name: next(iter(step.values()), None)} for step in scores]


class _RenamedGroup(_Renamed):
    scorer: GroupScorer

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[list[dict[str, float | None]]]:
        return [self._rename(scores) for scores in self.scorer.score_many(trajectories)]
