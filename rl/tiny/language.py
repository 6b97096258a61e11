"""Stages S and T: the language model learns the experts' trajectories over the frozen tower's features.

Design note. The loss is next-token cross-entropy on what the agent says (tokens that differ between tasks weigh eight
times the wording), plus a small cross-entropy on a few attention rows (`experts`); without the latter lookups stay at
chance for as long as anyone cared to wait. Compute is bfloat16, master weights float32. Sampling runs in a worker
process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen2_5_VLForConditionalGeneration

from closeup.rl.tiny import vocabulary as v
from closeup.rl.tiny.checkpoint import shape_of
from closeup.rl.tiny.experts import Expert, Mix
from closeup.rl.tiny.forward import Shape, Weights, logits, text, weights_of
from closeup.rl.tiny.samples import Batch, Sample, collate
from closeup.rl.tiny.units import SceneUnits

log = logging.getLogger(__name__)
GUIDANCE = 0.3


@dataclass(frozen=True)
class Stage:
    """One stage: steps, learning rate from and to, what is sampled, tokens per step."""

    name: str
    steps: int
    lr: tuple[float, float]
    kinds: dict[str, float]
    mixes: tuple[Mix, ...]
    tokens: int = 8000
    warmup: int = 30


class Stream(IterableDataset[Batch]):
    """Endless batches of about `tokens` tokens, samples of like length together."""

    def __init__(self, draw: Callable[[int], Callable[[], Sample]], tokens: int, seed: int) -> None:
        self._draw, self._tokens, self._seed = draw, tokens, seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        rng = np.random.default_rng(self._seed)
        sample = self._draw(self._seed)
        while True:
            samples = sorted((sample() for _ in range(160)), key=lambda s: len(s.ids))
            groups: list[list[Sample]] = [[]]
            for item in samples:
                if groups[-1] and len(item.ids) * (len(groups[-1]) + 1) > self._tokens:
                    groups.append([])
                groups[-1].append(item)
            for n in rng.permutation(len(groups)):
                yield collate(groups[n])


@dataclass(frozen=True)
class Drawer:
    """Draws expert samples of one stage; picklable."""

    units: list[SceneUnits]
    stage: Stage

    def __call__(self, seed: int) -> Callable[[], Sample]:
        """A source of samples with its own random state."""
        expert = Expert(self.units, v.build_tokenizer(), seed)
        rng = np.random.default_rng(seed + 1)
        kinds, shares = list(self.stage.kinds), np.array(list(self.stage.kinds.values()))

        def sample() -> Sample:
            mix = self.stage.mixes[rng.integers(len(self.stage.mixes))]
            return expert.sample(str(rng.choice(kinds, p=shares / shares.sum())), mix)

        return sample


def guidance(batch: Batch, shape: Shape, found: list[Tensor]) -> Callable[[int, Tensor, Tensor], None]:
    """A watcher for `forward.text` that appends the attention losses of every guided head to `found`."""
    group = shape.heads // shape.kv_heads

    def watch(layer: int, queries: Tensor, keys: Tensor) -> None:
        for (at, head), guide in batch.guides.items():
            if at != layer:
                continue
            rows = torch.gather(queries[:, head], 1, guide.rows[..., None].expand(-1, -1, queries.shape[-1]))
            scores = (rows @ keys[:, head // group].transpose(1, 2)).float() * queries.shape[-1] ** -0.5
            later = torch.arange(keys.shape[2]) > guide.rows[..., None]
            chances = F.log_softmax(scores.masked_fill(later, -1e9), dim=-1)
            found.append(-(chances[guide.sample, guide.row, guide.source] * guide.weight).sum() / guide.weight.sum())

    return watch


def batch_loss(weights: Weights, shape: Shape, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """Cross-entropy, attention loss (mean over heads), and the share of varying tokens predicted right."""
    embedding = weights["text.embed_tokens.weight"]
    x = F.embedding(batch.ids, embedding)
    x = x.masked_scatter((batch.ids == v.VIDEO_PAD)[..., None], batch.features.to(x.dtype))
    found: list[Tensor] = []
    hidden = text(weights, shape, x, batch.positions, watch=guidance(batch, shape, found))
    learned = batch.weights[:, 1:] > 0
    scores = logits(weights, hidden[:, :-1][learned]).float()
    targets, weight = batch.ids[:, 1:][learned], batch.weights[:, 1:][learned]
    loss = (F.cross_entropy(scores, targets, reduction="none") * weight).sum() / weight.sum()
    varying = weight > 1
    right = (scores.argmax(-1) == targets)[varying].float().mean().item()
    return loss, torch.stack(found).mean() if found else loss * 0, right


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    stage: Stage,
    draw: Callable[[int], Callable[[], Sample]],
    *,
    seed: int,
    trained: Sequence[nn.Parameter] | None = None,
    each: Callable[[int], None] | None = None,
) -> None:
    """Train the text side in place for one stage.

    Args:
        draw: makes a source of samples from a seed (see `Drawer`); run in a worker process.
        trained: parameters to train; default: the language model's.
        each: called after every step with the number of steps done.
    """
    shape = shape_of(model.config)
    parameters = list(trained) if trained is not None else list(model.model.language_model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr[0], betas=(0.9, 0.98), weight_decay=0.05)
    loader = iter(DataLoader(Stream(draw, stage.tokens, seed), batch_size=None, num_workers=1, prefetch_factor=6))
    began, mean = time.process_time(), {"loss": 0.0, "attention": 0.0, "right": 0.0}
    for step in range(stage.steps):
        share = step / stage.steps
        for group in optimizer.param_groups:
            decay = stage.lr[1] + (stage.lr[0] - stage.lr[1]) * 0.5 * (1 + float(np.cos(np.pi * share)))
            group["lr"] = decay * min(1.0, (step + 1) / stage.warmup)
        batch = next(loader)
        loss, attention, right = batch_loss(weights_of(model, torch.bfloat16), shape, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss + GUIDANCE * attention).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate = max(0.04, 1 / (step + 1))
        for key, value in (("loss", loss.item()), ("attention", attention.item()), ("right", right)):
            mean[key] += rate * (value - mean[key])
        if (step + 1) % 20 == 0:
            shown = " ".join(f"{key} {value:.3f}" for key, value in mean.items())
            log.info("%s %d/%d %s, %.0f CPU s", stage.name, step + 1, stage.steps, shown, time.process_time() - began)
        if each is not None:
            each(step + 1)
