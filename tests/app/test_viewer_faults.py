"""`closeup view` of what a long or broken run leaves: thousands of steps, a line cut off, films that went elsewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import Trajectory, write_trajectories
from closeup.app.credit import Crediting
from closeup.app.groups import group_of
from closeup.rl.rewards import DEFAULT_REWARDS

ZOOM = '<think>I look</think>\n<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 18, "end": 21}}\n</tool_call>'
ANSWER = '<think>6</think>\n<tool_call>\n{"name": "answer", "arguments": {"choice": "C"}}\n</tool_call>'


@pytest.fixture
def film(examples: Path, tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    return Path(shutil.copy(examples / "digit.mp4", tmp_path / "films"))


@pytest.fixture
def episode(film: Path, examples: Path) -> Trajectory:
    task = next(task for task in load_tasks(examples / "tasks.jsonl") if "digit" in str(task.videos[0]))
    task = Task.model_validate(task.model_dump() | {"videos": (film,)})
    policy = ScriptedPolicy([ZOOM, ANSWER])
    (record,) = run_episodes([task], policy, preset=get_preset("tiny"), rewards=DEFAULT_REWARDS)
    return record


def named(episode: Trajectory, name: str) -> Trajectory:
    """The same episode of another task."""
    return episode.model_copy(update={"id": f"{name}/0", "task": episode.task.model_copy(update={"id": name})})


def test_an_episode_of_thousands_of_steps_is_a_tree_as_well(episode: Trajectory) -> None:
    first, last = episode.steps
    long = episode.model_copy(update={"steps": (*[first] * 2500, last)})
    other = episode.model_copy(update={"id": "other/1", "steps": (*[first] * 2400, last)})
    group = group_of([long, other], Crediting({"format": 1.0}))
    assert (group.width, group.order) == (2501, (0, 1))
    (branch,) = group.branches
    depth = 1
    while len(branch.children) == 1:
        (branch,) = branch.children
        depth += 1
    assert (depth, [child.rollouts for child in branch.children]) == (2400, [(0,), (1,)])
    cells = {index: len(cells) for index, cells, _ in group.rows}
    assert cells == {0: 2501, 1: 1}


def test_a_last_line_that_is_cut_off_is_left_out_and_told(cli, episode: Trajectory, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "run.jsonl"
    write_trajectories(file, [named(episode, name) for name in ("one", "two", "three")])
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    ran = cli("view", file)
    assert ran.code == 0 and "2 episodes" in ran.out
    assert "line 3" in ran.err and "the last line and cut off, so it is left out; the 2 before it" in ran.err
    first, second, third = whole.splitlines(keepends=True)
    for broken in (first + second[:-100] + b"\n" + third, first + second[:-100] + b"\n", first[:-100]):
        file.write_bytes(broken)  # not the last line, not cut off, or nothing before it: refused as ever
        ran = cli("view", file)
        assert ran.code == 2 and "left out" not in ran.err and "not JSON" in ran.err


def test_films_that_are_elsewhere_are_told_on_standard_error(  # type: ignore[no-untyped-def]
    cli, episode: Trajectory, film: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    write_trajectories(file, [episode])
    assert cli("view", file).err == ""
    film.rename(tmp_path / "elsewhere.mp4")
    ran = cli("view", file)
    assert ran.code == 0 and "2 looks have no pictures (digit.mp4 is not there any more)" in ran.err
    assert "--videos DIR" in ran.err
    assert cli("view", file, "--videos", tmp_path).err == ""


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("rollouts", [1, 2])
def test_headings_skip_no_level_and_notes_stand_in_a_landmark(  # type: ignore[no-untyped-def]
    cli, episode: Trajectory, tmp_path: Path, tasks: int, rollouts: int
) -> None:
    file = tmp_path / "run.jsonl"
    episodes = [named(episode, f"task{task}") for task in range(tasks)]
    some = [e.model_copy(update={"id": f"{e.task.id}/{i}"}) for e in episodes for i in range(rollouts)]
    write_trajectories(file, [*some, named(episode, "beyond")])
    assert cli("view", file, "--limit", str(len(some))).code == 0
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", page)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), levels
    assert page.index("<main>") < page.index("1 more episodes of the file") < page.index("</main>")
