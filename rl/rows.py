"""Rows: a trajectory as the token sequences a model would have to read, with the places where it spoke.

A row is a path from the root: one per episode while its context grows, one per step where each step's context is built
anew (LOVE-R1), one per leaf in between. A message that stands on several paths is learnt once, in the first of them.

Invariants
1. Ids are those of the record, token for token; nothing is rendered or tokenised here (`render.py` does that, for
   records whose policy gave no ids).
2. A row's pads and its clips' feature rows agree in number, clip by clip; where they do not, `RowError` is raised.
3. A row is only ever cut after a whole message of the agent: never within a clip, never within an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from closeup.agent.messages import ClipPart
from closeup.agent.models.adapter import Adapter, EncodeError, Media
from closeup.agent.trajectory import Trajectory


class RowError(ValueError):
    """A trajectory that cannot be trained on; the message names it and says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """What the agent sampled at one step: `ids[begin:end]` of the row.

    `logprobs` (end - begin,) float32 are those of the policy that sampled, or None when it gave none.
    """

    step: int
    begin: int
    end: int
    logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One path of one episode.

    Attributes:
        rollout: which trajectory of the group it is of.
        ids: int64 (N,). media: the clips among them, in order of appearance.
        positions: int64 (axes, N), those of this path alone.
        spans: where the agent spoke and learns from it, in order.
    """

    rollout: int
    ids: NDArray[np.int64]
    media: tuple[Media, ...]
    positions: NDArray[np.int64]
    spans: tuple[Span, ...]

    @property
    def targets(self) -> int:
        """Tokens the agent sampled here."""
        return sum(span.end - span.begin for span in self.spans)


def rows_of(
    trajectory: Trajectory, adapter: Adapter, *, rollout: int = 0, max_tokens: int | None = None
) -> tuple[Row, ...]:
    """The rows of a trajectory.

    Args:
        adapter: of the model that shall learn; the ids must be of its tokenizer.
        rollout: index of the trajectory in its group.
        max_tokens: longer rows are cut after the last message of the agent that fits; a row whose first message does
            not fit is left out.

    Raises:
        RowError: a step without ids, a clip nobody looked at, or pads and clips that do not agree.
    """
    inner = {step.parent for step in trajectory.steps}
    taken: set[int] = set()
    rows = []
    for leaf in range(len(trajectory.steps)):
        if leaf in inner:
            continue
        row = _row(trajectory, trajectory.path_to(leaf), adapter, rollout, max_tokens, taken)
        if row is not None:
            rows.append(row)
            taken |= {span.step for span in row.spans}
    return tuple(rows)


def _row(
    trajectory: Trajectory,
    path: Sequence[int],
    adapter: Adapter,
    rollout: int,
    max_tokens: int | None,
    taken: set[int],
) -> Row | None:
    ids: list[int] = []
    media: list[Media] = []
    spans: list[Span] = []
    seen = 0  # clips up to the end of the last span
    for index in path:
        step = trajectory.steps[index]
        if step.finish in ("error", "cancelled"):
            break  # the policy did not finish this message: nobody chose these tokens
        if step.prompt_ids is None or step.ids is None:
            raise RowError(
                f"step {index} of trajectory {trajectory.id!r} has no token ids: its policy gave none; "
                "closeup.rl.render.with_ids makes them"
            )
        length = len(ids) + len(step.prompt_ids) + len(step.ids)
        if max_tokens is not None and length > max_tokens:
            break
        media += _clips(trajectory, index, adapter)
        begin = len(ids) + len(step.prompt_ids)
        ids += (*step.prompt_ids, *step.ids)
        if step.ids and index not in taken:
            known = None if step.logprobs is None else np.array(step.logprobs, dtype=np.float32)
            spans.append(Span(index, begin, length, known))
            seen = len(media)
    if not spans:
        return None
    ids, media = ids[: spans[-1].end], media[:seen]  # a last message may be empty
    try:
        positions = adapter.positions(ids, media)
    except ValueError as error:
        raise RowError(f"trajectory {trajectory.id!r}: {error}; it was not recorded with this model") from None
    return Row(rollout, np.array(ids, dtype=np.int64), tuple(media), positions, tuple(spans))


def _clips(trajectory: Trajectory, index: int, adapter: Adapter) -> list[Media]:
    """The clips in the messages step `index` added, in order."""
    found = []
    for message in trajectory.steps[index].messages:
        for part in message.content:
            if isinstance(part, ClipPart):
                record = trajectory.clips.get(part.clip.key)
                if record is None:
                    raise RowError(f"step {index} of trajectory {trajectory.id!r} shows a clip that has no record")
                try:
                    found.append(adapter.media(record))
                except EncodeError as error:
                    raise RowError(f"step {index} of trajectory {trajectory.id!r}: {error}") from None
    return found
