"""Stage V: the vision tower learns to say, in the text model's own embeddings, what each visual token holds.

Design note. Trained through the language model the tower learns nothing in an affordable time; trained directly it does
in minutes. A visual token's feature is compared (cosine, learned scale) with the embeddings of " no", the colours and
" green", and, where a box's digit is readable, with the embeddings of the ten digits. Embeddings stay as initialised;
afterwards the merger's last layer is rescaled so that features are as long as embeddings, and the tower is frozen.

Labels come from the scene's timeline: a pair of frames in which a box shows in one frame only still counts as that box;
a pair that shows two different things is left out.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

from closeup.rl.data.needle_world import CELL, COLOURS, FPS, SIDE, Scene
from closeup.rl.tiny.checkpoint import shape_of
from closeup.rl.tiny.drills import GRID, LIGHT
from closeup.rl.tiny.forward import Shape, Weights, patchify, vision, weights_of
from closeup.rl.tiny.pool import DrillItem, SceneItem, SkimItem, zoom_times
from closeup.rl.tiny.vocabulary import build_tokenizer

log = logging.getLogger(__name__)
LABELS = ("no", *COLOURS, "green")
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Pairs uint8 (B, 2, S, S, 3); int64 labels per token (B, S / 28 * S / 28): colours and digits, -100 unknown."""

    pairs: NDArray[np.uint8]
    colours: NDArray[np.int64]
    digits: NDArray[np.int64]


def shown_at(scene: Scene, seconds: float) -> tuple[int, int, int]:
    """What the frame shown at `seconds` holds: colour label, digit (-1 without a box), cell (-1 when empty)."""
    shown = np.floor(seconds * FPS + 1e-6) / FPS + 1e-6
    for box in scene.boxes:
        if box.start <= shown < box.end:
            return list(COLOURS).index(box.colour) + 1, box.digit, box.y // CELL * GRID + box.x // CELL
    for window in scene.flashes:
        for start, end in window.lit():
            if start <= shown < end:
                return LIGHT, -1, window.y // CELL * GRID + window.x // CELL
    return 0, -1, -1


class Source:
    """Random labelled pairs from the pool."""

    def __init__(self, scenes: list[SceneItem], drills: list[DrillItem], skims: list[SkimItem], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drills = drills
        self._scenes = scenes
        self._skims = skims
        self._states = []
        for item in scenes:
            seen = [shown_at(item.scene, i / FPS) for i in range(len(item.skim))]
            self._states.append(np.array([s[0] for s in seen]))
        self._zooms: list[Batch] = [_zoom_batch(item) for item in scenes]

    def skim(self, count: int) -> Batch:
        """Pairs at 28 x 28, three in five of them showing something."""
        pairs: list[NDArray[np.uint8]] = []
        labels: list[list[int]] = []
        while len(pairs) < count:
            n = int(self._rng.integers(len(self._scenes)))
            item, states = self._scenes[n], self._states[n]
            for _ in range(4):
                gap = int(self._rng.choice([1, 2, item.scene.spacing * FPS // 2]))
                if self._rng.random() < 0.6:
                    visible = np.flatnonzero(states)
                    first = int(self._rng.choice(visible)) - (gap if self._rng.random() < 0.3 else 0)
                else:
                    first = int(self._rng.integers(len(states)))
                if not 0 <= first < len(states) - gap:
                    continue
                a, b = int(states[first]), int(states[first + gap])
                if a and b and a != b:
                    continue
                pair = item.skim[[first, first + gap]]
                pairs.append(pair if a or b else tinted(pair, self._rng))
                labels.append([a or b])
        colours = np.array(labels[:count], dtype=np.int64)
        return Batch(np.stack(pairs[:count]), colours, np.full_like(colours, IGNORE))

    def quick(self, count: int) -> Batch:
        """Pairs at 28 x 28 from skim videos: every second one shows something in one frame only."""
        pairs: list[NDArray[np.uint8]] = []
        labels: list[list[int]] = []
        while len(pairs) < count:
            item = self._skims[self._rng.integers(len(self._skims))]
            for _ in range(4):
                gap = int(self._rng.choice([1, 2, 3, 5, 10]))
                first = int(self._rng.integers(len(item.labels) - gap))
                a, b = int(item.labels[first]), int(item.labels[first + gap])
                if (a and b and a != b) or (a and a == b and self._rng.random() < 0.4):
                    continue
                pair = item.frames[[first, first + gap]]
                pairs.append(pair if a or b else tinted(pair, self._rng))
                labels.append([a or b])
        colours = np.array(labels[:count], dtype=np.int64)
        return Batch(np.stack(pairs[:count]), colours, np.full_like(colours, IGNORE))

    def zoom(self, count: int) -> Batch:
        """Pairs at 112 x 112 from zoom clips, mostly with one box in one cell."""
        picks = self._rng.integers(len(self._zooms), size=(count + 1) // 2)
        parts = []
        for pick in picks:
            whole = self._zooms[pick]
            rows = self._rng.integers(len(whole.pairs), size=2)
            parts.append(Batch(whole.pairs[rows], whole.colours[rows], whole.digits[rows]))
        return _join(parts)

    def drill(self, count: int) -> Batch:
        """Pairs at 112 x 112 from drill videos: sixteen labelled cells each."""
        parts = []
        for _ in range(count):
            item = self._drills[self._rng.integers(len(self._drills))]
            gap = int(self._rng.integers(1, 4))
            a = int(self._rng.integers(len(item.frames) - gap))
            b = a + gap
            same, alone = item.sprites[a] == item.sprites[b], (item.sprites[a] == 0) | (item.sprites[b] == 0)
            colours = np.where(same | alone, np.maximum(item.colours[a], item.colours[b]), IGNORE)
            digits = np.where(same | alone, np.maximum(item.digits[a], item.digits[b]), IGNORE)
            digits = np.where(digits < 0, IGNORE, digits)
            parts.append(Batch(item.frames[[a, b]][None], colours[None].astype(int), digits[None].astype(int)))
        return _join(parts)

    def cells(self, count: int) -> Batch:
        """Single cells cut from drill videos (28 x 28 at full resolution, cut up to 3 pixels off), boxes only."""
        pairs: list[NDArray[np.uint8]] = []
        colours: list[list[int]] = []
        digits: list[list[int]] = []
        while len(pairs) < count:
            item = self._drills[self._rng.integers(len(self._drills))]
            gap = int(self._rng.integers(1, 4))
            a = int(self._rng.integers(len(item.frames) - gap))
            same = (item.sprites[a] == item.sprites[a + gap]) & (item.digits[a] >= 0)
            for cell in np.flatnonzero(same):
                y, x = (
                    int(np.clip(v * CELL + self._rng.integers(-3, 4), 0, SIDE - CELL)) for v in divmod(int(cell), GRID)
                )
                pairs.append(item.frames[[a, a + gap], y : y + CELL, x : x + CELL])
                colours.append([item.colours[a, cell]])
                digits.append([item.digits[a, cell]])
        return Batch(np.stack(pairs[:count]), np.array(colours[:count], int), np.array(digits[:count], int))


def tinted(pair: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """An empty pair with its contrast and tint changed, three times in four: still dull, still nothing."""
    if rng.random() < 0.25:
        return pair
    mean = pair.mean(axis=(0, 1, 2))
    shift = rng.uniform(-30, 30) + rng.uniform(-14, 14, size=3)
    changed: NDArray[np.uint8] = np.clip(mean + rng.uniform(0.6, 1.3) * (pair - mean) + shift, 0, 255).astype(np.uint8)
    return changed


def _zoom_batch(item: SceneItem) -> Batch:
    pairs, colours, digits = [], [], []
    for start, frames in item.zooms.items():
        spacing = item.scene.spacing
        seen = [shown_at(item.scene, t) for t in zoom_times(start * spacing, spacing)]
        for k in (0, 2):
            colour, digit = np.zeros(GRID * GRID, dtype=int), np.full(GRID * GRID, IGNORE)
            for label, number, cell in seen[k : k + 2]:
                if cell >= 0:
                    colour[cell], digit[cell] = label, number if number >= 0 else IGNORE
            pairs.append(frames[k : k + 2])
            colours.append(colour)
            digits.append(digit)
    return Batch(np.stack(pairs), np.stack(colours), np.stack(digits))


def _join(parts: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([p.pairs for p in parts]),
        np.concatenate([p.colours for p in parts]),
        np.concatenate([p.digits for p in parts]),
    )


def label_tokens() -> tuple[Tensor, Tensor]:
    """Token ids of the ten colour labels and of the ten digits."""
    tokenizer = build_tokenizer()
    colours = [tokenizer.encode(f" {word}").ids[0] for word in LABELS]
    return torch.tensor(colours), torch.tensor([tokenizer.encode(str(d)).ids[0] for d in range(10)])


class Probe(nn.Module):
    """Cosine similarity to the embeddings of labels, with a learned scale."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        words, digits = label_tokens()
        self.words = F.normalize(embedding[words].detach().clone(), dim=-1)
        self.digits = F.normalize(embedding[digits].detach().clone(), dim=-1)
        self.scale = nn.Parameter(torch.tensor(15.0).log())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (…, 10) of colour labels and of digits."""
        unit = F.normalize(features.float(), dim=-1) * self.scale.exp()
        return unit @ self.words.T, unit @ self.digits.T


def losses(weights: Weights, shape: Shape, probe: Probe, batch: Batch) -> tuple[Tensor, Tensor, float, float]:
    """Colour loss, digit loss (0 without digits), colour accuracy where something shows, digit accuracy."""
    features = vision(weights, shape, patchify(batch.pairs))
    words, digits = probe(features)
    colour_labels, digit_labels = torch.from_numpy(batch.colours), torch.from_numpy(batch.digits)
    weight = torch.ones(len(LABELS))
    if batch.colours.shape[1] > 1:
        weight[0] = 0.3
    colour = F.cross_entropy(words.flatten(0, 1), colour_labels.flatten(), weight=weight, ignore_index=IGNORE)
    known = digit_labels >= 0
    digit = F.cross_entropy(digits[known], digit_labels[known]) if bool(known.any()) else words.sum() * 0
    lit = colour_labels > 0
    right = (words.argmax(-1) == colour_labels)[lit].float().mean().item()
    read = (digits.argmax(-1) == digit_labels)[known].float().mean().item() if bool(known.any()) else float("nan")
    return colour, digit, right, read


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    source: Source,
    held_out: Source,
    *,
    steps: int,
    lr: float = 1.5e-3,
    cells_only: float = 0.4,
) -> dict[str, float]:
    """Train the tower in place for `steps`; returns held-out accuracies. Rescales features to embedding length."""
    shape = shape_of(model.config)
    embedding = model.model.language_model.embed_tokens.weight
    probe = Probe(embedding)
    parameters = [*model.model.visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    began = time.process_time()
    mean: dict[str, float] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.6 * steps)))
        weights = weights_of(model, torch.bfloat16)
        total = torch.zeros(())
        if step < cells_only * steps:
            mix = [("cell", source.cells(384)), ("quick", source.quick(128))]
        else:
            mix = [("cell", source.cells(128)), ("drill", source.drill(24)), ("zoom", source.zoom(20))]
            mix += [("skim", source.skim(128)), ("quick", source.quick(448))]
        total, known = torch.zeros(()), sum(int((batch.digits >= 0).sum()) for _, batch in mix)
        for name, batch in mix:
            colour, digit, right, read = losses(weights, shape, probe, batch)
            total = total + colour / len(mix) + digit * (int((batch.digits >= 0).sum()) / known)
            for key, value in ((f"{name}_colour", right), (f"{name}_digit", read)):
                mean[key] = 0.95 * mean.get(key, value) + 0.05 * value
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            shown = " ".join(f"{key} {value:.3f}" for key, value in mean.items() if value == value)
            log.info(
                "vision %d/%d loss %.3f %s, %.0f CPU s",
                step + 1,
                steps,
                total.item(),
                shown,
                time.process_time() - began,
            )
    _rescale(model, shape, source)
    return evaluate_vision(model, probe, held_out)


def evaluate_vision(
    model: Qwen2_5_VLForConditionalGeneration, probe: Probe, source: Source, *, rounds: int = 6
) -> dict[str, float]:
    """Accuracies on held-out pool items: colours where something shows, emptiness, digits."""
    shape, weights = shape_of(model.config), weights_of(model)
    out: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(rounds):
            for name, batch in (
                ("drill", source.drill(40)),
                ("zoom", source.zoom(60)),
                ("skim", source.skim(400)),
                ("quick", source.quick(400)),
            ):
                _, _, right, read = losses(weights, shape, probe, batch)
                out.setdefault(f"{name}_colour", []).append(right)
                out.setdefault(f"{name}_digit", []).append(read)
    return {key: float(np.mean(values)) for key, values in out.items() if values[0] == values[0]}


@torch.no_grad()
def _rescale(model: Qwen2_5_VLForConditionalGeneration, shape: Shape, source: Source) -> None:
    features = vision(weights_of(model), shape, patchify(source.skim(400).pairs))
    length = model.model.language_model.embed_tokens.weight.norm(dim=-1).mean()
    factor = length / features.norm(dim=-1).mean()
    last = model.model.visual.merger.mlp[2]
    last.weight.mul_(factor)
    last.bias.mul_(factor)
