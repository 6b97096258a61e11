"""Token ids for trajectories whose policy gave none: experts, scripted policies, remote models.

The messages are rendered as this project's own policies render them, and what the agent wrote becomes the ids a model
would have had to sample. A record that has ids keeps them: what was sampled is never tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from closeup.agent.models.adapter import Adapter, EncodeError
from closeup.agent.trajectory import StepRecord, Trajectory
from closeup.rl.rows import RowError
from closeup.tools.video import Video, VideoError


def with_ids(trajectory: Trajectory, adapter: Adapter, videos: Mapping[str, Video] | None = None) -> Trajectory:
    """The trajectory with ids at every step, and with what its clips became.

    Args:
        adapter: of the model that shall read it.
        videos: opened videos by identity; None opens those the task names.

    Raises:
        RowError: a video that is gone or has changed, or text the model cannot be given.
    """
    if all(step.ids is not None and step.prompt_ids is not None for step in trajectory.steps):
        return trajectory
    with ExitStack() as stack:
        try:
            opened = videos or _open(trajectory, stack)
            steps: list[StepRecord] = []
            clips = dict(trajectory.clips)
            for step in trajectory.steps:
                if step.ids is not None and step.prompt_ids is not None:
                    steps.append(step)
                    continue
                parent = None if step.parent is None else steps[step.parent]
                encoded = adapter.encode(
                    step.messages,
                    opened,
                    first=parent is None,
                    closed=parent is None or (parent.ids or ())[-1:] == adapter.stop_ids[:1],
                    assistant_prefix=step.assistant_prefix,
                )
                said = step.text.removeprefix(step.assistant_prefix)
                ids = adapter.message_ids(said, closed=step.finish == "stop")
                clips.update({item.record.clip.key: item.record for item in encoded.media})
                steps.append(step.model_copy(update={"prompt_ids": encoded.ids, "ids": ids, "logprobs": None}))
        except (EncodeError, VideoError) as error:
            raise RowError(f"trajectory {trajectory.id!r} cannot be rendered: {error}") from None
    return trajectory.model_copy(update={"steps": tuple(steps), "clips": clips})


def _open(trajectory: Trajectory, stack: ExitStack) -> dict[str, Video]:
    opened = {}
    for path in trajectory.task.videos:
        video = stack.enter_context(Video(path))
        opened[video.identity] = video
    missing = set(trajectory.videos) - set(opened)
    if missing:
        raise RowError(
            f"trajectory {trajectory.id!r} was recorded with other contents of its videos ({sorted(missing)[0]}); "
            "`closeup replay` finds moved files by content"
        )
    return opened
