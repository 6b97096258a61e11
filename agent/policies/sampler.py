"""Drawing tokens for a batch whose rows have settings and seeds of their own.

The distribution of a row is: logits without the suppressed ids, divided by its temperature, cut by top-k and then
top-p, renormalised. The recorded log-probability is that of the drawn token under exactly this distribution. A greedy
row (temperature 0) takes the most probable token and records its log-probability at temperature 1 without cuts.

Invariants
1. Row i's tokens depend on its own logits, settings and seed only: draw number n of a row is the n-th number of its own
   generator, whatever else is in the batch.
2. A suppressed token has probability 0: it is never drawn and takes no probability mass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from closeup.agent.policies.base import Sampling


class Sampler:
    """Draws one token per row and step."""

    def __init__(
        self, rows: Sequence[Sampling], suppressed: Sequence[int], vocabulary: int, device: torch.device
    ) -> None:
        """`rows`: how each row draws. `suppressed`: ids never drawn. `vocabulary`: logits per row."""
        for row in rows:
            check(row)
        self._bias = torch.zeros(vocabulary, device=device)
        self._bias[torch.tensor(list(suppressed), dtype=torch.long, device=device)] = -torch.inf
        self._temperature = torch.tensor([row.temperature or 1.0 for row in rows], device=device).unsqueeze(1)
        self._greedy = torch.tensor([row.temperature == 0 for row in rows], device=device)
        drawn = [row for row in rows if row.temperature > 0]
        self._any_drawn = bool(drawn)
        self._warm = any(row.temperature != 1 for row in drawn)
        self._top_k = [row.top_k if row.temperature > 0 else 0 for row in rows]
        self._top_p = [row.top_p if row.temperature > 0 else 1.0 for row in rows]
        if self._any_drawn:
            draws = [
                torch.rand(row.max_new_tokens, generator=_generator(row.seed), dtype=torch.float64) for row in rows
            ]
            self._draws = torch.nn.utils.rnn.pad_sequence(draws, batch_first=True).to(device)

    def __call__(self, logits: torch.Tensor, rows: Sequence[int], step: int) -> tuple[list[int], list[float]]:
        """Draw number `step` of some rows.

        Args:
            logits: (len(rows), vocabulary). rows: which rows these are.

        Returns:
            ids and their log-probabilities, one per row.
        """
        which = torch.tensor(rows, device=logits.device)
        scores = logits.float() + self._bias
        if self._warm:
            scores = scores / self._temperature[which]
        if any(self._top_k[r] or self._top_p[r] < 1 for r in rows):
            for i, r in enumerate(rows):
                scores[i] = cut(scores[i], self._top_k[r], self._top_p[r])
        logprobs = scores.log_softmax(-1)
        ids = logprobs.argmax(-1)
        if self._any_drawn:
            mass = logprobs.double().exp().cumsum(-1)
            aim = self._draws[which, step].unsqueeze(1) * mass[:, -1:]
            drawn = torch.searchsorted(mass, aim, right=True).squeeze(1)
            ids = torch.where(self._greedy[which], ids, drawn.clamp(max=mass.shape[1] - 1))
        chosen = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        return ids.tolist(), chosen.tolist()


def cut(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Scores (vocabulary,) with all but the `top_k` best at -inf, then all past the smallest set of mass >= `top_p`."""
    if top_k and top_k < scores.numel():
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ordered, index = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        scores = scores.masked_fill(beyond[index.argsort()], -torch.inf)
    return scores


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % (1 << 63))


def check(row: Sampling) -> None:
    """Raise `ValueError` for settings that mean nothing."""
    if not (row.temperature >= 0 and row.temperature < float("inf")):
        raise ValueError(f"temperature must be a finite number >= 0, got {row.temperature}")
    if not 0 < row.top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {row.top_p}")
    if row.top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 = off), got {row.top_k}")
    if row.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {row.max_new_tokens}")
