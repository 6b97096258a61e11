"""Log-probabilities of targets from hidden states, without ever holding all logits.

The head runs over chunks of source tokens; a chunk's logits are recomputed in the backward pass, so that at most
`chunk` x vocabulary of them exist at a time. Targets that share a source share its logits.

The distribution is the one the policy sampled from (`policies/sampler.py`): logits plus `bias` (minus infinity for
suppressed ids), divided by the temperature. Computed in float32, or in float64 for float64 models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]


def suppression(suppressed: tuple[int, ...], vocabulary: int, device: torch.device) -> torch.Tensor:
    """Float32 (vocabulary,): minus infinity at ids that are never sampled, 0 elsewhere."""
    bias = torch.zeros(vocabulary, device=device)
    bias[torch.tensor(suppressed, dtype=torch.long, device=device)] = -torch.inf
    return bias


def target_logprobs(
    head: Head,
    hidden: torch.Tensor,
    source: torch.Tensor,
    token: torch.Tensor,
    *,
    bias: torch.Tensor,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target, and the entropy it was drawn with.

    Args:
        head: hidden states (n, D) to logits (n, vocabulary).
        hidden: (S, D), one row per distinct source, with gradient or without.
        source: long (M,), each target's row in `hidden`. token: long (M,), each target's id.
        bias: (vocabulary,), added to the logits. temperature: above 0.
        chunk: sources whose logits are held at a time.

    Returns:
        log-probabilities (M,) and entropies (M,) in nats, both float32 (float64 for float64 models); the entropies
        carry no gradient.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
    order = torch.argsort(source, stable=True)
    bounds = torch.searchsorted(source[order], torch.arange(0, len(hidden) + chunk, chunk, device=source.device))
    found, entropies = [], []
    for number, begin in enumerate(range(0, len(hidden), chunk)):
        mine = order[int(bounds[number]) : int(bounds[number + 1])]
        logprobs, entropy = checkpoint(
            _chunk,
            head,
            hidden[begin : begin + chunk],
            source[mine] - begin,
            token[mine],
            bias,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        found.append(logprobs)
        entropies.append(entropy)
    back = torch.argsort(order)
    return torch.cat(found)[back], torch.cat(entropies)[back]


def _chunk(
    head: Head,
    hidden: torch.Tensor,
    source: torch.Tensor,
    token: torch.Tensor,
    bias: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden)
    if logits.dtype != torch.float64:
        logits = logits.float()
    logits = (logits + bias) / temperature
    total = logits.logsumexp(-1)
    with torch.no_grad():
        every = logits - total.unsqueeze(-1)
        entropy = -(every.exp() * every.masked_fill(every == -torch.inf, 0.0)).sum(-1)
    return logits[source, token] - total[source], entropy[source]
