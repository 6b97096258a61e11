"""What the same model does without looking closer, trained for it: the overview alone, or uniform frames.

Design note. A baseline that was never trained for its input proves nothing. Each arm starts from the finished model.
Its tower is trained further to read digits at the arm's resolution: this says what can be read there, and is kept at
the one size that the agent does not use. Then its language model is trained to answer at once, in the agent's own words
("I see a red box: 7 (B).") and with the same attention targets.

Source of the frames: the pool's videos, drawn again, encoded, and decoded at the arm's times and size.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from closeup.agent.preset import OverviewRule, Preset, get_preset
from closeup.rl.data.needle_draw import draw_frames
from closeup.rl.data.needle_tasks import KINDS, Needle, ask, boxes_needed
from closeup.rl.data.needle_world import CELL, COLOURS, SECONDS, SIDE, Box, Scene, plan_scene
from closeup.rl.data.needles import encode
from closeup.rl.tiny import vocabulary as v
from closeup.rl.tiny.checkpoint import shape_of
from closeup.rl.tiny.forward import as_pairs, encode_pairs, weights_of
from closeup.rl.tiny.language import Stage, train_language
from closeup.rl.tiny.pool import SCENE_SEED
from closeup.rl.tiny.samples import VARYING, Sample, Writer
from closeup.rl.tiny.timeline import label
from closeup.rl.tiny.vision import IGNORE, Batch, Probe, losses, shown_at
from closeup.tools.video import Video

log = logging.getLogger(__name__)
KNOWN = (28, 112)  # sizes at which the agent's own tower reads what can be read
STUDY_SEED = 4_000
STUDY = 6  # labelled pairs per box, for training the tower at an arm's size


@dataclass(frozen=True)
class Arm:
    """A way of looking once: `preset` says which frames, `size` their side in pixels; `key` is a short name."""

    key: str
    name: str
    preset: Preset
    size: int


def arms(visual_tokens: int) -> tuple[Arm, ...]:
    """The overview alone, and uniform frames at three sizes, each with about `visual_tokens` visual tokens."""
    direct = get_preset("tiny-direct")
    found = [Arm("overview", "overview only", direct, 28)]
    for size in (28, 56, 112):
        pairs = max(1, round(visual_tokens / (size // 28) ** 2))
        rule = OverviewRule(fps=1000.0, max_frames=2 * pairs, pixels=size * size)
        name = f"uniform {2 * pairs} x {size}"
        preset = direct.model_copy(update={"name": name.replace(" ", "-"), "overview": rule})
        found.append(Arm(f"uniform_{size}", name, preset, size))
    return tuple(found)


@dataclass(frozen=True)
class Seen:
    """One video as an arm sees it: frames uint8 (T, S, S, 3) at `times`, and pairs to study (n, 2, S, S, 3)."""

    scene: Scene
    times: tuple[float, ...]
    frames: NDArray[np.uint8]
    study: NDArray[np.uint8]
    study_times: NDArray[np.float64]


def look(index: int, chosen: tuple[Arm, ...]) -> list[Seen]:
    """Pool scene `index` as every arm sees it."""
    rng = np.random.default_rng([SCENE_SEED, index])
    scene = plan_scene(rng, int(rng.integers(SECONDS[0], SECONDS[1] + 1)), boxes=(2, 6), flash_windows=2)
    picks = np.random.default_rng([SCENE_SEED, index, 1])
    starts = [picks.uniform(box.start, box.end - 0.15) for box in scene.boxes for _ in range(STUDY)]
    study = np.array([[t, t + 0.1] for t in starts])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.mp4"
        encode(draw_frames(scene, rng), path)
        with Video(path, threads=1) as video:
            for arm in chosen:
                times = arm.preset.overview.clip(video.identity, video.duration).times()
                size = (arm.size, arm.size)
                shown = video.frames(times, size)
                near = video.frames(study.ravel().tolist(), size).pixels.reshape(-1, 2, *size, 3)
                found.append(Seen(scene, tuple(shown.times.tolist()), shown.pixels, near, study))
    return found


def study_video(index: int, size: int) -> Seen:
    """Forty boxes one after another, to be studied at `size`: what teaches a tower to read at a size of its own."""
    rng = np.random.default_rng([STUDY_SEED, index])
    boxes = []
    for n in range(40):
        x, y = (int(c) * CELL + CELL // 2 + int(rng.integers(-3, 4)) for c in rng.integers(0, SIDE // CELL, size=2))
        start, colour = round(0.4 * n, 1), str(rng.choice(list(COLOURS)))
        boxes.append(Box(colour, int(rng.integers(10)), start, 1, start, round(start + 0.4, 1), x, y))
    scene = Scene(16, 1, tuple(boxes), ())
    times = np.array([[box.start + 0.1, box.start + 0.2] for box in boxes])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.mp4"
        encode(draw_frames(scene, rng), path)
        with Video(path, threads=1) as video:
            pairs = video.frames(times.ravel().tolist(), (size, size)).pixels.reshape(-1, 2, size, size, 3)
    return Seen(scene, tuple(times[0].tolist()), pairs[0], pairs, times)


def study_videos(count: int, size: int, processes: int = 2) -> list[Seen]:
    """`study_video` for the first `count` indices."""
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        return workers.starmap(study_video, [(i, size) for i in range(count)], chunksize=8)


def look_all(count: int, chosen: tuple[Arm, ...], folder: Path, processes: int = 2) -> list[list[Seen]]:
    """`look` for the first `count` pool scenes, kept in `folder`; a list per arm."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"looks-{count}-{'-'.join(arm.preset.name for arm in chosen)}.pkl"
    if not file.exists():
        with multiprocessing.get_context("spawn").Pool(processes) as workers:
            rows = workers.starmap(look, [(i, chosen) for i in range(count)], chunksize=8)
        file.write_bytes(pickle.dumps(rows, protocol=5))
    rows = pickle.loads(file.read_bytes())
    return [[row[n] for row in rows] for n in range(len(chosen))]


def _cell(x: int, y: int, size: int) -> int:
    side = size // 28
    return (y * side // SIDE) * side + x * side // SIDE


def _where(scene: Scene, seconds: float, size: int) -> tuple[int, int, int]:
    """Colour label, digit and token of what the frame at `seconds` shows at an arm's size; see `shown_at`."""
    colour, digit, cell = shown_at(scene, seconds)
    if cell < 0:
        return colour, digit, -1
    row, column = divmod(cell, SIDE // CELL)
    return colour, digit, _cell(column * CELL, row * CELL, size)


def study_batch(items: list[Seen], size: int, count: int, rng: np.random.Generator) -> Batch:
    """Labelled pairs at an arm's size: half of them boxes, half whatever the arm's own frames show."""
    tokens = (size // 28) ** 2
    pairs: list[NDArray[np.uint8]] = []
    colours: list[NDArray[np.int64]] = []
    digits: list[NDArray[np.int64]] = []
    while len(pairs) < count:
        item = items[rng.integers(len(items))]
        if rng.random() < 0.7:
            n = int(rng.integers(len(item.study)))
            pair, times = item.study[n], item.study_times[n]
        else:
            n = 2 * int(rng.integers(len(item.frames) // 2))
            pair, times = item.frames[n : n + 2], np.array(item.times[n : n + 2])
        colour, digit = np.zeros(tokens, dtype=int), np.full(tokens, IGNORE)
        for label_, number, cell in (_where(item.scene, t, size) for t in times):
            if cell >= 0:
                colour[cell], digit[cell] = label_, number if number >= 0 else IGNORE
        pairs.append(pair)
        colours.append(colour)
        digits.append(digit)
    return Batch(np.stack(pairs), np.stack(colours), np.stack(digits))


def train_tower(
    model: Qwen2_5_VLForConditionalGeneration, probe: Probe, items: list[Seen], test: list[Seen], arm: Arm, steps: int
) -> float:
    """Train the tower to read at the arm's size; returns the held-out digit accuracy (chance 0.1)."""
    shape, rng = shape_of(model.config), np.random.default_rng(3)
    parameters = [*model.model.visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.05)
    count = {28: 256, 56: 96, 112: 32}[arm.size]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 30, (steps - step) / (0.5 * steps))
        batch = study_batch(items, arm.size, count, rng)
        colour, digit, right, read = losses(weights_of(model, torch.bfloat16), shape, probe, batch)
        optimizer.zero_grad(set_to_none=True)
        (colour + digit).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            log.info("%s tower %d/%d colour %.3f digit %.3f", arm.name, step + 1, steps, right, read)
    with torch.no_grad():
        scores = [losses(weights_of(model), shape, probe, study_batch(test, arm.size, 200, rng))[3] for _ in range(5)]
    return float(np.mean(scores))


@dataclass(frozen=True)
class Direct:
    """Draws samples that answer at once; picklable. `features[i]` (pairs, tokens, D) belong to `items[i]`."""

    items: list[Seen]
    features: list[NDArray[np.float32]]
    size: int

    def __call__(self, seed: int) -> Callable[[], Sample]:
        """A source of samples with its own random state."""
        rng, tokenizer = np.random.default_rng(seed), v.build_tokenizer()

        def sample() -> Sample:
            while True:
                n, kind = int(rng.integers(len(self.items))), str(rng.choice(KINDS))
                if len(self.items[n].scene.boxes) >= boxes_needed(kind)[0]:
                    needle = ask(self.items[n].scene, kind, rng)
                    return direct_sample(tokenizer, self.items[n], self.features[n], self.size, needle)

        return sample


def direct_sample(tokenizer: Tokenizer, item: Seen, features: NDArray[np.float32], size: int, needle: Needle) -> Sample:
    """One question answered from the frames at hand."""
    scene = item.scene
    w = Writer(tokenizer, features.shape[-1])
    w.add("<|im_start|>user\n")
    marks: dict[tuple[int, int], int] = {}
    for k, feature in enumerate(features):
        mark = w.add(label(item.times[2 * k]))
        for token, pad in enumerate(w.pads(feature)):
            marks[k, token] = pad
            w.guide(0, 0, pad, [mark])
    w.add("\n" + needle.question)
    values = []
    for letter, text in zip("ABCD", needle.options, strict=True):
        w.add("\n")
        mark = w.add(letter)
        w.add(". ")
        values.append(w.add(text))
        w.guide(0, 0, values[-1], [mark])
    w.add("<|im_end|>\n<|im_start|>assistant\n")
    w.add("<think>", 1.0)
    choice = needle.options.index(needle.answer)
    start, end = needle.evidence[0]
    times = np.array([*item.times, item.times[-1]][: 2 * len(features)]).reshape(-1, 2)
    inside = [
        marks[k, cell]
        for k, pair in enumerate(times)
        for cell in {_where(scene, t, size)[2] for t in pair if start <= t + 1e-6 < end}
        if cell >= 0
    ]

    def learn(text: str, head: int | None = None) -> int:
        mark = w.add(text, VARYING)
        if head is not None and inside:
            w.guide(1, head, mark, inside, before=True)
        return mark

    key = 0
    if needle.kind in ("digit", "colour"):
        box = next(b for b in scene.boxes if b.end == end)
        w.add("I see ", 1.0)
        w.add("an " if box.colour[0] in "aeiou" else "a ", VARYING)
        key = colour = learn(box.colour, 4)
        w.add(" box: ", 1.0)
        digit = learn(str(box.digit), 4)
        key = digit if needle.kind == "digit" else colour
    elif needle.kind == "when":
        w.add("It is there in ", 1.0)
        key = learn(str(4 - choice), 5)
        w.add(" of 4 looks", 1.0)
    else:
        w.add("Flashes counted: ", 1.0)
        key = learn(needle.answer, 5)
    w.add(" (", 1.0)
    letter_mark = learn("ABCD"[choice])
    w.guide(0, 3, letter_mark, [key], before=True)
    if needle.kind != "when":
        w.guide(1, 3, letter_mark, [values[choice]], before=True)
    w.add(').</think>\n<tool_call>\n{"name": "answer", "arguments": {"choice": "', 1.0)
    again = w.add("ABCD"[choice], VARYING)
    w.guide(1, 3, again, [letter_mark], before=True)
    w.add('"}}\n</tool_call><|im_end|>', 1.0)
    return w.finish()


def train_arm(
    model: Qwen2_5_VLForConditionalGeneration,
    items: list[Seen],
    arm: Arm,
    *,
    held_out: int,
    tower: int,
    steps: int,
    study: int = 0,
) -> float:
    """Train `model` in place for `arm`; the last `held_out` items only measure. Returns the digit accuracy read.

    Args:
        tower, steps: training steps of the tower and of the language model.
        study: further videos, of forty boxes each, for the tower.
    """
    shape = shape_of(model.config)
    probe = Probe(model.model.language_model.embed_tokens.weight)
    model.requires_grad_(True)
    train, test = items[:-held_out], items[-held_out:]
    extra = study_videos(study, arm.size) if study else []
    as_it_was = copy.deepcopy(model.model.visual.state_dict())
    read = train_tower(model, probe, train + extra, test, arm, tower)
    if arm.size in KNOWN:  # what was learned there is only measured: the language model knows these features already
        model.model.visual.load_state_dict(as_it_was)
    log.info("%s reads %.3f of unseen digits", arm.name, read)
    weights = weights_of(model)
    features = [encode_pairs(weights, shape, as_pairs(item.frames)).numpy() for item in train]
    model.model.visual.requires_grad_(False)
    stage = Stage(arm.name, steps, (1e-3, 3e-5), {}, (), tokens=8000)
    train_language(model, stage, Direct(train, features, arm.size), seed=77)
    return read
