"""`VideoQAEnv` for stock `trl.GRPOTrainer`: an `environment_factory`, and the dataset, processor and settings it needs.

    processor = trl_processor(model)
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(**trl_settings(processor, preset), ...),
        train_dataset=trl_dataset(tasks, preset),
        processing_class=processor,
        environment_factory=video_qa_environment(preset, processor, rewards="default"),
    )

Every tool in force is a public method of the environment, as TRL asks; a call is put to `VideoQAEnv.step` as the
message of the dialect `hermes` that makes it: rules, budgets, refusals and reward streams are those of every room.

Invariants
1. The ids a policy is prompted with are those of closeup's own rendering, with every frame an image block behind its
   time (TRL 1.16 takes no video); control tokens spelled in a task's text are broken up.
2. What a model wrote never raises. What is a bug (`EpisodeError`) or a video that does not open is logged, its rollout
   goes on without frames and has no reward (None: TRL leaves it out and gives it no advantage). No reward is made up.
3. A rollout that ends without an answer ended with a message that made no call, and so it is put to the environment.
4. A preset or stream that TRL cannot honour is refused here, by name.

What TRL 1.16 cannot do, and closeup's own trainer can: thoughts and the wording of a message never reach the
environment, only calls that could be read do, and several in one message are several steps; no tool can end a rollout,
so after the answer the model writes one more message, which is trained on like the others; the last answer cannot be
forced by a prefix; there is one reward per rollout, so streams are summed and late ones (`Scorer`) are refused; ids
that are never sampled are still part of the log-probabilities; a clip that does not fit `max_completion_length` is
dropped from the rollout after it was counted; frames are encoded anew for every rollout and pass.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from PIL import Image

from closeup.agent.contract import EpisodeError, Observation, StepResult
from closeup.agent.dialects.base import ToolCall
from closeup.agent.environment import VideoQAEnv
from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import ClipPart
from closeup.agent.models.load import find_checkpoint
from closeup.agent.models.qwen2_5_vl import time_label
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.extras import require
from closeup.rl.reward_config import RewardConfig, RewardSet, build_rewards
from closeup.tools.base import Tool
from closeup.tools.registry import registered_tools
from closeup.tools.video.errors import VideoError
from closeup.tools.video.reader import Video

Block = dict[str, Any]
log = logging.getLogger(__name__)

# How transformers' `parse_response` reads a message of the dialect `hermes`.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
_CONTROL = re.compile(r"<\|(?=\w+\|>)")
_OVER = "the episode is over; no call is taken any more"
_BROKEN = "this episode cannot go on; it will not be scored"


class TRLAdapterError(ValueError):
    """A preset, stream or checkpoint that TRL's trainer cannot run with; the message says which and what to do."""


def trl_processor(model: str) -> Any:
    """The processor to give to `GRPOTrainer`: tokenizer, image processor, chat template and response template.

    The stock Qwen2.5-VL processor needs torchvision, and its template ignores tools, which TRL refuses; this one takes
    text and images. What `save_pretrained` writes can be loaded with `load_adapter`.

    Args:
        model: what `closeup.agent.models.load.find_checkpoint` takes.

    Raises:
        ModelError: as `find_checkpoint`.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    path = find_checkpoint(model).path
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer.padding_side = "left"  # TRL takes the types of an image's tokens from the padded prompts
    tokenizer.response_template = RESPONSE_TEMPLATE
    images = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    return _processor_class()(image_processor=images, tokenizer=tokenizer, chat_template=chat_template())


def chat_template() -> str:
    """The jinja2 template of `trl_processor`."""
    return resources.files("closeup.prompts").joinpath("trl_chat.jinja").read_text(encoding="utf-8")


def image_geometry(processor: Any) -> VisionGeometry:
    """How a processor turns frames into tokens when each of them is an image."""
    images = processor.image_processor
    return VisionGeometry(
        patch=images.patch_size,
        merge=images.merge_size,
        temporal=1,
        min_pixels=images.size["shortest_edge"],
    )


def trl_settings(processor: Any, preset: Preset) -> dict[str, Any]:
    """What `GRPOConfig` must be given beside the user's own settings.

    - `max_tool_calling_iterations`: the preset's messages.
    - `generation_kwargs`: no vision or turn token is sampled. TRL suppresses one of them alone, and a sampled
      `<|video_pad|>` breaks its next forward pass.
    """
    tokenizer = processor.tokenizer
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.content.startswith("<|")}
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return {
        "max_tool_calling_iterations": preset.budget.max_steps,
        "generation_kwargs": {"suppress_tokens": sorted(special - ends)},
    }


def trl_dataset(tasks: Sequence[Task], preset: Preset) -> Any:
    """A `datasets.Dataset` with one row per task: `prompt` (system message, empty user message) and `task` (JSON).

    The environment's `reset` fills the user message with overview and question.

    Raises:
        MissingExtra: `datasets` is not installed. TRLAdapterError: as `video_qa_environment`.
    """
    datasets = require("train", "datasets")
    _check_preset(preset)
    with VideoQAEnv(preset) as environment:
        start = environment.reset(Task(question="?"))
        system = [_plain(m.text) for m in start.context if m.role == "system"]
    prompt = [{"role": "system", "content": text} for text in system] + [{"role": "user", "content": ""}]
    return datasets.Dataset.from_list([{"prompt": prompt, "task": task.model_dump_json()} for task in tasks])


def video_qa_environment(
    preset: Preset,
    processor: Any,
    *,
    rewards: RewardConfig | str = "default",
    tools: Sequence[type[Tool[Any]]] | None = None,
    video_backend: str = "pyav",
    threads: int = 2,
) -> type[TRLEnvironment]:
    """A class of environments for one preset, to be given to `GRPOTrainer` as `environment_factory`.

    Args:
        preset: of the dialect `hermes`. processor: from `trl_processor`; it says how large a frame may be.
        rewards: the streams; each is summed over the episode, times its weight. None counts as nothing.
        tools, video_backend, threads: as for `VideoQAEnv`.

    Raises:
        TRLAdapterError: another dialect; a stream that needs the finished trajectory; a tool with a name that TRL takes
            for something else.
        ValueError: as `VideoQAEnv` and `build_rewards`.
    """
    _check_preset(preset)
    streams = build_rewards(rewards, preset=preset)
    if streams.scorers:
        late = sorted(set(streams.streams) - set(streams.immediate))
        raise TRLAdapterError(
            f"the streams {', '.join(late)} need a finished trajectory, which TRL does not keep; leave them out, or "
            "train with: closeup train grpo"
        )
    chosen = tuple(registered_tools(preset.tools).values() if tools is None else tools)
    shape, largest = image_geometry(processor), int(processor.image_processor.size["longest_edge"])

    def make() -> VideoQAEnv:
        return VideoQAEnv(
            preset,
            tools=chosen,
            rewards=streams.immediate,
            geometry=shape,
            video_backend=video_backend,
            threads=threads,
        )

    make().close()  # a preset that makes no environment is the caller's error, before anything runs
    methods: dict[str, Any] = {tool.name: _method(tool) for tool in chosen}
    if clash := sorted(name for name in methods if name.startswith("_") or name in ("reset", "get_reward")):
        raise TRLAdapterError(f"TRL does not take {', '.join(clash)} for a tool; give it another name")
    fixed = {"_make": staticmethod(make), "_streams": streams, "_largest": largest}
    return type("VideoQA", (TRLEnvironment,), {**fixed, **methods})


class TRLEnvironment:
    """One slot of a rollout batch; TRL makes them, resets them often and calls their public methods as tools."""

    _make: ClassVar[Callable[..., VideoQAEnv]]
    _streams: ClassVar[RewardSet]
    _largest: ClassVar[int]  # pixels of a frame

    def __init__(self) -> None:
        self._environment = self._make()
        self._earned: dict[str, float] = {}
        self._failure: str | None = None
        self._over = False

    def reset(self, *, task: str | None = None, **_: Any) -> list[Block]:
        """Begin the episode of a row of `trl_dataset`; returns overview and question as content blocks.

        Raises:
            TRLAdapterError: a row without a task, or frames that the processor would shrink. ValueError: as
                `VideoQAEnv.reset`.
        """
        if task is None:
            raise TRLAdapterError("a row of the training set has no column 'task'; make the set with trl_dataset")
        self._earned, self._failure, self._over = {}, None, False
        try:
            return self._shown(self._environment.reset(Task.model_validate_json(task)))
        except VideoError as error:
            self._fail(error)
            return _said(_BROKEN)

    def get_reward(self) -> float | None:
        """The weighted sum of what the episode earned; None when it failed or no stream said anything."""
        if self._failure is None and not self._over:
            self._step("")
            self._over = True
        self._environment.close()
        if self._failure is not None or not self._earned:
            return None
        return sum(self._streams.weights.get(name, 0.0) * value for name, value in self._earned.items())

    def _act(self, name: str, arguments: Mapping[str, Any]) -> list[Block]:
        """Put one call to the environment; returns what it shows next."""
        if self._failure is not None or self._over:
            return _said(_BROKEN if self._failure is not None else _OVER)
        result = self._step(self._message(ToolCall(name, arguments)))
        if result is None:
            return _said(_BROKEN)
        try:
            return self._shown(result.observation) if result.observation.messages else _said("done")
        except (VideoError, TRLAdapterError) as error:  # TRL would show it to the model
            self._fail(error)
            return _said(_BROKEN)

    def _step(self, message: str) -> StepResult | None:
        """One step of the environment, its rewards added up; None when the episode failed."""
        try:
            result = self._environment.step(message)
        except EpisodeError as error:
            self._fail(error)
            return None
        for stream, value in result.rewards.items():
            if value is not None:
                self._earned[stream] = self._earned.get(stream, 0.0) + value
        self._over = result.terminated or result.truncated
        return result

    def _message(self, call: ToolCall) -> str:
        try:
            return self._environment.dialect.write("", call)
        except ValueError:  # NaN and infinity, which JSON has no word for: a broken call, as the dialect will say
            return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': dict(call.arguments)})}\n</tool_call>"

    def _fail(self, error: Exception) -> None:
        self._failure = str(error)
        log.error("a rollout is left out of its group: %s", error)
        self._environment.close()

    def _shown(self, observation: Observation) -> list[Block]:
        """The content of what is new, frame by frame; a system message stands in the row's prompt."""
        blocks: list[Block] = []
        for message in observation.messages:
            for part in message.content if message.role != "system" else ():
                if isinstance(part, ClipPart):
                    blocks += self._frames(observation.videos[part.clip.video], part)
                else:
                    blocks.append({"type": "text", "text": _plain(part.text)})
        return blocks

    def _frames(self, video: Video, part: ClipPart) -> list[Block]:
        size = self._environment.geometry.size(video.width, video.height, part.clip.pixels)
        if size[0] * size[1] > self._largest:
            raise TRLAdapterError(
                f"frames of {size[1]}x{size[0]} pixels are above the processor's longest_edge ({self._largest} pixels) "
                "and it would shrink them; raise that, or lower the preset's pixels"
            )
        frames = video.frames(part.clip, size)
        blocks: list[Block] = []
        for pixels, seconds in zip(frames.pixels, frames.times, strict=True):
            blocks.append({"type": "text", "text": time_label(float(seconds))})
            blocks.append({"type": "image", "image": Image.fromarray(pixels)})
        return blocks


def _method(tool: type[Tool[Any]]) -> Callable[..., list[Block]]:
    """A tool as a method: signature and docstring give TRL its schema; arguments are checked by `VideoQAEnv`."""

    def call(self: TRLEnvironment, /, **arguments: Any) -> list[Block]:
        return self._act(tool.name, arguments)

    fields = tool.Args.model_fields
    described = [f"    {name}: {field.description or name}" for name, field in fields.items()]
    call.__name__ = call.__qualname__ = tool.name
    call.__doc__ = "\n".join([tool.description(), *(["", "Args:", *described] if described else [])])
    hints = {name: _hint(field.annotation) for name, field in fields.items()}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[name],
            default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
        )
        for name, field in fields.items()
    ]
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    call.__signature__ = inspect.Signature([receiver, *parameters])  # type: ignore[attr-defined]
    call.__annotations__ = hints
    return call


def _hint(annotation: Any) -> Any:
    """A type hint that transformers can write as a JSON schema; `Any` where it could not."""
    origin, given = get_origin(annotation), get_args(annotation)
    if annotation in (int, float, str, bool, type(None)) or origin is Literal:
        return annotation
    if origin is list or annotation is list:
        return list[_hint(given[0])] if given else list  # type: ignore[misc]
    if origin is dict or annotation is dict:
        return dict
    if origin in (Union, types.UnionType):
        return Union[tuple(_hint(part) for part in given)]  # noqa: UP007  # a union of as many as there are
    if hasattr(annotation, "__metadata__"):
        return _hint(given[0])
    return Any


def _said(text: str) -> list[Block]:
    return [{"type": "text", "text": f"<tool_response>\n{text}\n</tool_response>"}]


def _check_preset(preset: Preset) -> None:
    if preset.dialect != "hermes":
        raise TRLAdapterError(
            f"TRL reads tool calls, so the preset must speak the dialect 'hermes', and {preset.name!r} speaks "
            f"{preset.dialect!r}; train it with: closeup train grpo"
        )


def _plain(text: str) -> str:
    """`text` with control tokens broken up: TRL tokenises a rendering in which they would count."""
    return _CONTROL.sub("< |", text)


@cache
def _processor_class() -> Any:
    """Qwen2.5-VL's processor without its video half, which needs torchvision."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class FrameProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
        """Text and images to model inputs."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        def __call__(self, *given: Any, **settings: Any) -> Any:
            """As the stock processor; pixels and grids are tensors whatever else is asked for, which TRL counts on."""
            import torch

            out = super().__call__(*given, **settings)
            for name in ("pixel_values", "image_grid_thw"):
                if name in out:
                    out[name] = torch.as_tensor(out[name])
            return out

    return FrameProcessor
