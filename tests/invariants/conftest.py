"""Which invariants of which families run by default: every mechanism for one family, the essence for the others.

Qwen2.5-VL runs every shape, core and way to train. What a further family can get wrong is in its adapter, and shows in
fewer: two shapes on one core packed and in two phases, one of them with gradient checkpointing, generation in turns and
batches, and the controls of positions and masks. The rest of it is marked slow.
"""

from __future__ import annotations

import pytest

WHOLE = "qwen2_5_vl"
KEPT = {
    "test_a_tree_equals_its_rows": [{"shape": ("growing", "rebuilt"), "core": ("segment",)}],
    "test_also_with_gradient_checkpointing": [{"shape": ("growing",), "core": ("segment",), "two_phase": (False,)}],
    "test_control_a_plain_causal_mask": [{}],
    "test_control_positions_of_the_packed_row": [{"shape": ("growing",)}],
    "test_control_positions_shifted_in_one_branch": [{}],
    "test_control_a_tree_over_ids_alone": [{}],
}
"""Tests of trees that run by default for every family, with the values of the parameters that they do so for."""


def essential(item: pytest.Item) -> bool:
    """Whether a test of a tree belongs to what runs by default for every family."""
    given = item.callspec.params  # type: ignore[attr-defined]
    name = getattr(item, "originalname", item.name)
    return any(all(given[key] in values for key, values in kept.items()) for kept in KEPT.get(name, ()))


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(item, "callspec", None)
        form = params.params.get("adapter") if params is not None else None
        if item.path.stem != "test_tree" or not isinstance(form, tuple) or form[0] == WHOLE or essential(item):
            continue
        item.add_marker(pytest.mark.slow)
