"""What a training log says beside the loss: its metrics, entropy, notes of the rollouts, figures of evaluations.

A `Tally` collects between two logs and is emptied by each. Its figures are of all processes: means of what every one of
them has noted, not of their means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from closeup.rl.forward import Scores, TreeForward
from closeup.rl.loss_metrics import Metrics, combine, summary
from closeup.rl.processes import gathered
from closeup.rl.statistics import Summary


class MeasuredForward(TreeForward):
    """A `TreeForward` that adds up the entropy, in nats, of what it scores for a gradient."""

    entropy_sum = 0.0
    entropy_count = 0

    def _score(self, hidden: torch.Tensor, source: np.ndarray[Any, Any], token: np.ndarray[Any, Any]) -> Scores:
        scores = super()._score(hidden, source, token)
        if torch.is_grad_enabled():
            self.entropy_sum += float(scores.entropy.sum())
            self.entropy_count += len(scores.entropy)
        return scores


class Tally:
    """Numbers since the last log."""

    def __init__(self, forward: MeasuredForward) -> None:
        self._forward = forward
        self._measured: list[Metrics] = []
        self._numbers: dict[str, list[float]] = {}

    def measure(self, metrics: Metrics) -> None:
        """Take metrics of a loss."""
        self._measured.append(metrics)

    def note(self, **numbers: float) -> None:
        """Take numbers; the log has their mean."""
        for name, value in numbers.items():
            self._numbers.setdefault(name, []).append(value)

    def state(self) -> dict[str, Any]:
        """What this process has collected, as plain values that later numbers do not change."""
        return {
            "measured": list(self._measured),
            "numbers": {name: list(values) for name, values in self._numbers.items()},
            "entropy": [self._forward.entropy_sum, self._forward.entropy_count],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave, in the place of what was collected."""
        self._measured = list(state["measured"])
        self._numbers = {name: list(values) for name, values in state["numbers"].items()}
        self._forward.entropy_sum, self._forward.entropy_count = state["entropy"]

    def drain(self) -> dict[str, float]:
        """The log's numbers, over all processes, each of which makes this call; the tally is empty afterwards."""
        forward = self._forward
        every = gathered([(self._measured, self._numbers, forward.entropy_sum, forward.entropy_count)])
        self._measured, self._numbers = [], {}
        forward.entropy_sum, forward.entropy_count = 0.0, 0
        found = summary(combine([metrics for measured, _, _, _ in every for metrics in measured]))
        count = sum(n for _, _, _, n in every)
        if count:
            found["entropy"] = sum(total for _, _, total, _ in every) / count
        for name in dict.fromkeys(name for _, numbers, _, _ in every for name in numbers):
            values = [value for _, numbers, _, _ in every for value in numbers.get(name, [])]
            found[name] = sum(values) / len(values)
        return found


def figures_of(summary_: Summary) -> dict[str, float]:
    """The figures of an evaluation as flat numbers for a log."""
    every = {"": summary_.overall, **{f"{kind}_": group for kind, group in summary_.by_kind.items()}}
    found: dict[str, float] = {}
    for prefix, group in every.items():
        found[f"{prefix}accuracy"] = group.accuracy
        if group.hit_rate is not None:
            found[f"{prefix}hit_rate"] = group.hit_rate
        if not prefix:
            found |= {
                "accuracy_low": group.low,
                "accuracy_high": group.high,
                "steps": group.steps,
                "visual_tokens": group.visual_tokens,
                "truncated": group.truncated,
                "format_errors": group.format_errors,
                "failed": float(group.failed),
            }
    return found
