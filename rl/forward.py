"""The tree forward: a `TreeBatch` in, a log-probability per target out; the one path of every pass and every loss.

Old, reference and policy log-probabilities come from here, with the same code, kernels and chunks, so that their
ratio is 1 where nothing was learnt. Two ways to run a training pass:

- `packed`: one forward of the N distinct tokens, one backward.
- `two_phase`: the first segment alone; its keys, values and those last hidden states that predict something become
  leaves; then branch after branch forward and backward on top of them; at last the first segment's backward with what
  the leaves gathered. Peak memory is that of the first segment and one branch.

Invariant: both equal separate forwards of the rows in loss and in every gradient (`tests/invariants/test_tree.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from closeup.agent.models.adapter import Adapter
from closeup.agent.models.attention import Core, KeysValues, Segment, TreePlan, attention_of_trees
from closeup.rl.logprobs import suppression, target_logprobs
from closeup.rl.tree import TreeBatch

LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Loss of some targets: their log-probabilities (m,) and their indices (m,) in the tree's targets; a scalar."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Per target of a tree, (M,): log-probability under the sampling distribution, and entropy (no gradient)."""

    logprobs: torch.Tensor
    entropy: torch.Tensor


class TreeForward:
    """Runs trees through one adapter's model."""

    def __init__(
        self, adapter: Adapter, *, core: Core = "segment", temperature: float = 1.0, head_chunk: int = 1024
    ) -> None:
        """`temperature`: of the sampling whose log-probabilities are wanted. `head_chunk`: see `target_logprobs`."""
        self.adapter, self.core = adapter, core
        self.temperature, self.head_chunk = temperature, head_chunk

    def scores(self, tree: TreeBatch, features: Sequence[torch.Tensor]) -> Scores:
        """Log-probabilities of all targets, in one forward, with gradient where it is enabled.

        Args:
            features: one (tokens, hidden) tensor per clip of `tree.media`, in order.
        """
        with attention_of_trees(self.adapter.text_config):
            embeds = self._embed(tree, features)
            positions = self._long(tree.positions).unsqueeze(1)
            plan = TreePlan(tree.segments, self.core)
            hidden = self.adapter.hidden(embeds, positions, mask=None, cache=None, tree=plan)[0]
            return self._score(hidden, tree.targets.source, tree.targets.token)

    def backward(
        self,
        tree: TreeBatch,
        features: Sequence[torch.Tensor],
        loss_of: LossOf,
        *,
        two_phase: bool = False,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """Forward and backward of a tree; gradients are added to the parameters (and to features that want them).

        Args:
            loss_of: the loss of any set of whole rows' targets; it must add up over such sets.
            scale: the gradient is that of `scale` times the loss.

        Returns:
            the loss, a scalar without gradient.
        """
        with attention_of_trees(self.adapter.text_config):  # recomputation in the backward pass needs it too
            if two_phase and len(tree.segments) > 1:
                return self._two_phase(tree, features, loss_of, scale)
            scores = self.scores(tree, features)
            loss = loss_of(scores.logprobs, self._long(np.arange(len(tree.targets))))
            torch.autograd.backward(loss * scale)
            return loss.detach()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _embed(self, tree: TreeBatch, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Input embeddings (1, N, hidden)."""
        counts = [item.record.tokens for item in tree.media]
        given = [len(rows) for rows in features]
        if counts != given:
            raise ValueError(f"the tree's clips have {counts} feature rows, but {given} were given")
        ids = self._long(tree.ids)
        stands = [torch.cat(list(features))[self._long(tree.feature)]] if len(tree.feature) else []
        return self.adapter.embed(ids, stands).unsqueeze(0)

    def _score(self, hidden: torch.Tensor, source: np.ndarray[Any, Any], token: np.ndarray[Any, Any]) -> Scores:
        distinct, place = np.unique(source, return_inverse=True)
        logprobs, entropy = target_logprobs(
            self.adapter.logits,
            hidden[self._long(distinct)],
            self._long(place),
            self._long(token),
            bias=suppression(self.adapter.suppressed_ids, self.adapter.text_config.vocab_size, hidden.device),
            temperature=self.temperature,
            chunk=self.head_chunk,
        )
        return Scores(logprobs, entropy)

    def _long(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.adapter.model.device)

    def _two_phase(
        self, tree: TreeBatch, features: Sequence[torch.Tensor], loss_of: LossOf, scale: float
    ) -> torch.Tensor:
        adapter = self.adapter
        embeds = self._embed(tree, features)
        leaf = embeds.detach().requires_grad_(embeds.requires_grad)
        positions = self._long(tree.positions).unsqueeze(1)
        total = torch.zeros((), device=embeds.device, dtype=torch.float64)
        for trunk, branches in _trunks(tree.segments):
            kept: dict[int, KeysValues] = {}
            first = TreePlan((Segment(0, trunk.end - trunk.start, -1, trunk.end - trunk.start),), self.core)
            first.collect = kept
            span = slice(trunk.start, trunk.end)
            hidden = adapter.hidden(leaf[:, span], positions[:, :, span], mask=None, cache=None, tree=first)[0]
            sources = tree.targets.source
            spoken = np.unique(sources[(sources >= trunk.start) & (sources < trunk.end)])  # the few states that predict
            roots = [tensor for layer in sorted(kept) for tensor in kept[layer]]
            roots.append(hidden[self._long(spoken - trunk.start)])
            # with adapters the first layer's keys or values may hang on nothing that is trained: they want no gradient
            leaves = [_wide(root.detach()).requires_grad_(root.requires_grad) for root in roots]
            for begin, end, segments in (*branches, (trunk.end, trunk.end, ())):
                mine = self._rows_through(tree, trunk, begin, end)
                if not len(mine):
                    continue
                states = leaves[-1].to(hidden)
                if end > begin:
                    past = {
                        layer: (leaves[2 * i].to(hidden), leaves[2 * i + 1].to(hidden))
                        for i, layer in enumerate(sorted(kept))
                    }
                    plan = TreePlan(segments, self.core, past=past)
                    span = slice(begin, end)
                    more = adapter.hidden(leaf[:, span], positions[:, :, span], mask=None, cache=None, tree=plan)[0]
                    states = torch.cat([states, more])
                source = tree.targets.source[mine]
                place = np.where(source < trunk.end, np.searchsorted(spoken, source), source - begin + len(spoken))
                scores = self._score(states, place, tree.targets.token[mine])
                loss = loss_of(scores.logprobs, self._long(mine))
                torch.autograd.backward(loss * scale)
                total += loss.detach()
            pairs = [(root, grown.grad) for root, grown in zip(roots, leaves, strict=True) if grown.grad is not None]
            if pairs:
                torch.autograd.backward([root for root, _ in pairs], [grad.to(root) for root, grad in pairs])
        if leaf.grad is not None:
            torch.autograd.backward(embeds, leaf.grad)
        return total

    @staticmethod
    def _rows_through(tree: TreeBatch, trunk: Segment, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Indices of the targets of the rows that end in [begin, end), or in the trunk itself when that is empty."""
        ends = np.array([path[-1] for path in tree.paths])
        low, high = (begin, end) if end > begin else (trunk.start, trunk.end)
        rows = (ends >= low) & (ends < high)
        return np.flatnonzero(rows[tree.targets.row])


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: many branches' gradients are summed into it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _trunks(segments: Sequence[Segment]) -> list[tuple[Segment, list[tuple[int, int, tuple[Segment, ...]]]]]:
    """Each first segment with its branches: (begin, end, the branch's segments counted from its begin)."""
    found = []
    for index, trunk in enumerate(segments):
        if trunk.parent >= 0:
            continue
        branches: list[tuple[int, int, tuple[Segment, ...]]] = []
        for child, top in enumerate(segments):
            if top.parent != index:
                continue
            inside = [s for s in segments[child:] if s.start < top.last]
            branches.append(
                (
                    top.start,
                    top.last,
                    tuple(
                        Segment(
                            s.start - top.start,
                            s.end - top.start,
                            -1 if s is top else s.parent - child,
                            s.last - top.start,
                        )
                        for s in inside
                    ),
                )
            )
        found.append((trunk, branches))
    return found
