"""One arm of `grpo_update.py` in a process of its own: `python benchmarks/_update_arms.py REQUEST.json`.

Every arm does the same work: the log-probabilities of all sampled tokens without gradient (GRPO's "old" ones), then one
forward and backward pass of the clipped loss against them. It is warmed up on a group of one frame first; then the
peak of resident memory is reset (Linux), the group's pixels are made, and one update is measured.

The answer is JSON beside the request (`.json` -> `.out.json`) and, in `.pt`, the gradients of the last update.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from _update_model import Group, Scale, load, make_group

from closeup.agent.models.adapter import Adapter
from closeup.rl.forward import TreeForward
from closeup.rl.logprobs import suppression, target_logprobs
from closeup.rl.losses import PolicyLossSettings, TargetBatch, pair_weights, policy_loss
from closeup.rl.rows import Row
from closeup.rl.tree import build_tree

SETTINGS = PolicyLossSettings(loss_type="grpo", vllm_importance_sampling_correction=False)
Update = Callable[[], float]


def targets_of(group: Group) -> TargetBatch:
    """What is known of all sampled tokens, rollout by rollout; the old log-probabilities are still missing."""
    lengths = torch.tensor([row.targets for row in group.rows])
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    return TargetBatch(group.advantages[rows], pair_weights(lengths, "grpo").float()[rows], rows)


def with_old(batch: TargetBatch, old: torch.Tensor) -> TargetBatch:
    """The batch with its old log-probabilities."""
    return TargetBatch(batch.advantages, batch.weights, batch.rows, old=old.detach())


# ---- ours ----------------------------------------------------------------------------------------------------------


def tree(adapter: Adapter, group: Group, *, two_phase: bool) -> Update:
    """This project: clips encoded once, the group forwarded as one tree."""
    forward = TreeForward(adapter)

    def update() -> float:
        batch = build_tree(group.rows, adapter)
        known = targets_of(group)
        features, leaves = encode(adapter, group)
        with torch.no_grad():
            old = forward.scores(batch, leaves).logprobs
        complete = with_old(known, old)
        loss = forward.backward(
            batch,
            leaves,
            lambda found, index: policy_loss(found, complete.take(index), SETTINGS)[0],
            two_phase=two_phase,
        )
        backward_of_features(features, leaves)
        return float(loss)

    return update


def encode(adapter: Adapter, group: Group) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Features of all frames, and the leaves that stand for them; the same tensors when the tower is frozen."""
    trained = any(p.requires_grad for module in adapter.vision_modules for p in module.parameters())
    with torch.set_grad_enabled(trained):
        features = adapter.encode_clips(group.frames)
    return features, [f.detach().requires_grad_() for f in features] if trained else features


def backward_of_features(features: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
    """The tower's backward pass, once for the group."""
    if features[0].requires_grad:
        torch.autograd.backward(features, [leaf.grad for leaf in leaves])


# ---- row by row ----------------------------------------------------------------------------------------------------


def rows_apart(adapter: Adapter, group: Group, *, batch: int, shared_features: bool = False) -> Update:
    """The stock model over `batch` rows at a time, padded to the longest; pixels go in with each of them.

    With `shared_features` every frame is encoded once and only the text model runs row by row.
    """
    parts = [list(range(i, min(i + batch, len(group.rows)))) for i in range(0, len(group.rows), batch)]
    pixels = None if shared_features else pixel_values(adapter, group)

    def update() -> float:
        known = targets_of(group)
        features, leaves = encode(adapter, group) if shared_features else ([], [])
        with torch.no_grad():
            old = torch.cat([logprobs(adapter, group, part, pixels, leaves) for part in parts])
        complete, total = with_old(known, old), 0.0
        for part in parts:
            mine = torch.isin(complete.rows, torch.tensor(part))
            loss, _ = policy_loss(logprobs(adapter, group, part, pixels, leaves), complete.take(mine), SETTINGS)
            loss.backward()
            total += float(loss.detach())
        if shared_features:
            backward_of_features(features, leaves)
        return total

    return update


def pixel_values(adapter: Adapter, group: Group) -> torch.Tensor:
    """The patches of all frames as the image processor gives them."""
    return torch.from_numpy(np.concatenate([adapter.pixel_values(frames) for frames in group.frames]))


def grids(rows: list[Row]) -> torch.Tensor:
    """`(1, h, w)` of every frame of every row."""
    return torch.tensor([grid for row in rows for item in row.media for grid in item.grids])


def logprobs(
    adapter: Adapter, group: Group, part: list[int], pixels: torch.Tensor | None, features: list[torch.Tensor]
) -> torch.Tensor:
    """Log-probabilities of the sampled tokens of some rows, from one forward of the stock model."""
    rows, model = [group.rows[index] for index in part], adapter.model
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.from_numpy(row.ids)
        positions[:, place, : len(row.ids)] = torch.from_numpy(row.positions)
        mask[place, : len(row.ids)] = 1
    if pixels is None:
        assert len(rows) == 1
        hidden = adapter.hidden(adapter.embed(ids[0], features)[None], positions, mask=None, cache=None)
    else:
        hidden = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=pixels if len(rows) == 1 else pixels.repeat(len(rows), 1),
            image_grid_thw=grids(rows),
            use_cache=False,
        ).last_hidden_state
    taken = torch.cat(
        [hidden[place, span.begin - 1 : span.end - 1] for place, row in enumerate(rows) for span in row.spans]
    )
    chosen = torch.cat([torch.from_numpy(row.ids[span.begin : span.end]) for row in rows for span in row.spans])
    bias = suppression(adapter.suppressed_ids, adapter.text_config.vocab_size, hidden.device)
    return target_logprobs(adapter.logits, taken, torch.arange(len(taken)), chosen, bias=bias)[0]


# ---- TRL -----------------------------------------------------------------------------------------------------------


def trl(adapter: Adapter, group: Group, *, batch: int) -> Update:
    """TRL's `GRPOTrainer`: its own two methods, on what its own rollouts would have left behind, frames as images.

    On a CPU its fused head scores every position, on a GPU the sampled ones alone; here it does as on a GPU.
    """
    import trl.trainer.utils as inside

    inside._use_triton = lambda device: True  # read there only to decide which positions are scored
    trainer = make_trainer(adapter, group, batch)
    whole = trl_inputs(adapter, group)
    model, steps = trainer.model, len(group.rows) // batch
    trainer.current_gradient_accumulation_steps = steps

    def update() -> float:
        inputs = dict(whole)
        with torch.no_grad():
            inputs["old_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
                batch_size=batch,
                **{key: inputs[key] for key in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
            )
        total = 0.0
        for part in inside.split_tensor_dict(inside.split_pixel_values_by_grid(inputs), steps):
            loss = trainer._compute_loss(model, inside.unsplit_pixel_values_by_grid(part))
            loss.backward()
            total += float(loss.detach())
        return total

    return update


def make_trainer(adapter: Adapter, group: Group, batch: int) -> Any:
    """A stock `GRPOTrainer` around the model, with the settings that make its loss ours."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder = tempfile.mkdtemp()
    count, new = len(group.rows), group.rows[0].targets
    settings = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=count // batch,
        num_generations=count,
        max_completion_length=new,
        loss_type="grpo",
        beta=0.0,
        temperature=1.0,
    )
    return GRPOTrainer(
        model=adapter.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "?"}]),
        processing_class=adapter._tokenizer,
    )


def trl_inputs(adapter: Adapter, group: Group) -> dict[str, Any]:
    """The dictionary that `_generate_and_score_completions` hands to `_compute_loss`; pixels once per rollout."""
    rows = list(group.rows)
    start = rows[0].spans[0].begin
    ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    image = adapter.model.config.image_token_id
    prompt, completion = ids[:, :start].contiguous(), ids[:, start:].contiguous()
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "advantages": group.advantages,
        "num_items_in_batch": torch.tensor(completion.numel()),
        "pixel_values": pixel_values(adapter, group).repeat(len(rows), 1),
        "image_grid_thw": grids(rows),
        "num_images": [len(row.media) for row in rows],
        "mm_token_type_ids": (ids == image).int(),
    }


ARMS: dict[str, Callable[[Adapter, Group], Update]] = {
    "packed": lambda adapter, group: tree(adapter, group, two_phase=False),
    "two_phase": lambda adapter, group: tree(adapter, group, two_phase=True),
    "rows_1_shared_features": lambda adapter, group: rows_apart(adapter, group, batch=1, shared_features=True),
    "rows_1": lambda adapter, group: rows_apart(adapter, group, batch=1),
    "rows_8": lambda adapter, group: rows_apart(adapter, group, batch=len(group.rows)),
    "trl_1": lambda adapter, group: trl(adapter, group, batch=1),
    "trl_8": lambda adapter, group: trl(adapter, group, batch=len(group.rows)),
}


# ---- one measurement -----------------------------------------------------------------------------------------------


class Peak:
    """Resident memory of this process: `base` at its making, `above()` the highest since, in bytes above it."""

    def __init__(self) -> None:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        except OSError as error:
            raise SystemExit(f"peak memory is measured with Linux's /proc/self/clear_refs: {error}") from None
        self.base = self._read("VmRSS")

    def above(self) -> int:
        return self._read("VmHWM") - self.base

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run one arm as the request says; gradients go to `request["gradients"]`."""
    torch.set_num_threads(request["threads"])
    adapter = load(Path(request["model"]), train_vision=request["train_vision"])
    make, scale = ARMS[request["arm"]], Scale(**request["scale"])
    warm = Scale(prompt=scale.frame_tokens + 32, new=4, rollouts=scale.rollouts)
    make(adapter, make_group(adapter, warm))()
    adapter.model.zero_grad(set_to_none=True)
    encoded = 0

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal encoded
        encoded += int((named["grid_thw"] if "grid_thw" in named else given[1])[:, 0].sum())

    adapter.vision_modules[0].register_forward_pre_hook(count, with_kwargs=True)
    peak = Peak()
    group = make_group(adapter, scale)
    update = make(adapter, group)
    cpu, wall = time.process_time(), time.perf_counter()
    loss = update()
    found = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    found |= {"peak_bytes": peak.above(), "encodings": encoded, "loss": loss}
    torch.save({n: p.grad for n, p in adapter.model.named_parameters() if p.grad is not None}, request["gradients"])
    return found


def main() -> None:
    """Answer the request named on the command line."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out it is this process that ends
    file = Path(sys.argv[1])
    file.with_suffix(".out.json").write_text(json.dumps(measure(json.loads(file.read_text()))))


if __name__ == "__main__":
    main()
