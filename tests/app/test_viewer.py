"""`closeup view`: one page from disk; a group's tree and credit; nothing lost, whatever is wrong."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.policies.base import Completion, Policy, Request
from closeup.agent.preset import get_preset
from closeup.agent.scoring import exact_option
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from closeup.app import html, viewer
from closeup.app.credit import Crediting, credit_of
from closeup.app.groups import Branch, Group, group_of, split
from closeup.app.pictures import Pictures
from closeup.app.scene import scene_of
from closeup.app.viewer import MARK, Ration
from closeup.rl.advantages import decoupled, estimate
from closeup.rl.credit import group_rewards
from closeup.rl.rewards import DEFAULT_REWARDS

WEIGHTS = {"format": 0.2, "zoom": 1.0, "answer": 1.0}


def call(name: str, **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<think>I {name}</think>\n<tool_call>\n{body}\n</tool_call>"


HIT, MISS = call("zoom_clip", start=18, end=22), call("zoom_clip", start=60, end=62)
RIGHT, WRONG = call("answer", choice="C", evidence=[]), call("answer", choice="A", evidence=[])
ROLLOUTS = ([HIT, RIGHT], [MISS, WRONG], [HIT, WRONG], [MISS, HIT, RIGHT], [HIT, RIGHT], ["I do not know"] * 8)


class PerRollout(Policy):
    """Rollout i says the messages of `ROLLOUTS[i]`."""

    def __init__(self, scripts: Any = ROLLOUTS) -> None:
        self.scripts = scripts
        self.at: dict[str, int] = {}

    def generate(self, requests: Any, *, on_token: Any = None, cancel: Any = None) -> list[Completion]:
        return [self._say(request) for request in requests]

    def _say(self, request: Request) -> Completion:
        at = self.at[request.episode_id] = self.at.get(request.episode_id, -1) + 1
        script = self.scripts[int(request.episode_id.rsplit("/", 1)[1])]
        return Completion(request.assistant_prefix + script[min(at, len(script) - 1)])


def rollouts(task: Task, scripts: Any = ROLLOUTS) -> list[Trajectory]:
    return run_episodes(
        [task],
        PerRollout(scripts),
        preset=get_preset("tiny"),
        rewards=DEFAULT_REWARDS,
        rollouts=len(scripts),
        judge=exact_option,
    )


@pytest.fixture(scope="module")
def digit() -> Task:
    examples = Path(__file__).resolve().parents[2] / "app" / "examples"
    return next(task for task in load_tasks(examples / "tasks.jsonl") if "digit" in str(task.videos[0]))


@pytest.fixture(scope="module")
def group(digit: Task) -> list[Trajectory]:
    return rollouts(digit)


@pytest.fixture
def record(tmp_path: Path, group: list[Trajectory]) -> Path:
    path = tmp_path / "group.jsonl"
    write_trajectories(path, group)
    return path


# ---- the tree ----


def branches(group: Group) -> list[Branch]:
    found: list[Branch] = []
    waiting = list(group.branches)
    while waiting:
        branch = waiting.pop()
        found.append(branch)
        waiting += branch.children
    return found


def test_rollouts_share_a_branch_for_as_long_as_their_messages_are_the_same(group: list[Trajectory]) -> None:
    tree = group_of(group, Crediting(WEIGHTS))
    assert [branch.rollouts for branch in tree.branches] == [(0, 2, 4), (1, 3), (5,)]
    assert [child.rollouts for child in tree.branches[0].children] == [(0, 4), (2,)]
    assert [child.rollouts for child in tree.branches[1].children] == [(1,), (3,)]
    assert tree.order == (0, 4, 2, 1, 3, 5) and tree.width == 8


def test_every_step_is_in_exactly_one_branch_and_the_table_is_full(group: list[Trajectory]) -> None:
    tree = group_of(group, Crediting(WEIGHTS))
    steps = [(i, branch.step.index) for branch in branches(tree) for i in branch.rollouts]
    assert sorted(steps) == [(i, t) for i, one in enumerate(group) for t in range(len(one.steps))]
    height = dict.fromkeys(range(tree.width), 0)
    for _, cells, empty in tree.rows:
        for cell in cells:
            height[cell.branch.step.index] += cell.rows
        for t in range(tree.width - empty, tree.width):
            height[t] += 1
    assert set(height.values()) == {len(group)}


def test_other_tasks_starts_and_repeated_ids_are_other_groups(group: list[Trajectory], digit: Task) -> None:
    other = rollouts(digit.model_copy(update={"id": "other"}), [[RIGHT], [WRONG]])
    assert [len(part) for part in split([*group, *other])] == [6, 2]
    assert [len(part) for part in split([group[0], other[0], group[1], other[1]])] == [2, 2]
    assert [len(part) for part in split([group[0], group[0], group[1]])] == [1, 2]


# ---- the credit ----


def test_advantages_are_those_of_the_trainer(group: list[Trajectory]) -> None:
    credit, weights, note = credit_of(group, Crediting(WEIGHTS))
    wanted = decoupled(group_rewards(group, tuple(WEIGHTS)), WEIGHTS)
    assert weights == WEIGHTS and note == ""
    for i, row in enumerate(credit):
        assert [step.advantage for step in row] == pytest.approx(list(wanted[i, : len(row)]))
    assert np.abs(wanted).max() > 0.5


@pytest.mark.parametrize(
    "estimator", ["decoupled", "episode_sum", "outcome_only", "turn_level", "grpo", "rloo", "dr_grpo"]
)
def test_parts_add_up_or_are_not_told(group: list[Trajectory], estimator: str) -> None:
    credit, _, note = credit_of(group, Crediting(WEIGHTS, estimator))
    assert note == ""
    (wanted,) = estimate(estimator, [group_rewards(group, tuple(WEIGHTS))], WEIGHTS)
    told, total = 0, sum(len(row) for row in credit)
    for i, row in enumerate(credit):
        for t, step in enumerate(row):
            assert step.advantage == pytest.approx(wanted[i, t])
            parts = [part.part for part in step.parts]
            if None not in parts:
                told += 1
                assert sum(parts) == pytest.approx(step.advantage, abs=1e-8)  # type: ignore[arg-type]
            else:
                assert parts == [None] * 3
    assert told in ({total} if estimator in ("decoupled", "turn_level") else {0, total})


def test_the_comparison_is_with_the_other_rollouts_from_that_step_on(group: list[Trajectory]) -> None:
    credit, _, _ = credit_of(group, Crediting(WEIGHTS))
    answer = next(part for part in credit[0][0].parts if part.stream == "answer")
    assert answer.reward is None and answer.to_go == 1.0  # nothing at the zoom itself, and a right answer after it
    to_go = [[s.rewards.get("answer") for s in one.steps if s.rewards.get("answer") is not None] for one in group]
    others = [sum(rewards) for rewards in to_go[1:] if rewards]
    assert answer.others == pytest.approx(sum(others) / len(others))


def test_what_cannot_be_computed_is_said(group: list[Trajectory]) -> None:
    assert credit_of(group[:1], Crediting(WEIGHTS))[2].startswith("One rollout")
    credit, _, note = credit_of(group, Crediting({"style": 1.0}))
    assert credit == () and "style" in note and "format" in note
    credit, weights, note = credit_of(group, Crediting({**WEIGHTS, "style": 1.0}))
    assert credit and weights == WEIGHTS and "style" in note
    credit, _, note = credit_of(group, Crediting(WEIGHTS, "love_r1"))
    assert credit == () and note.startswith("No advantages: ") and note.count("..") == 0


def test_a_failed_rollout_does_not_count(group: list[Trajectory]) -> None:
    broken = group[1].model_copy(
        update={"outcome": group[1].outcome.model_copy(update={"failed": True, "reason": "x"})}
    )
    credit, _, _ = credit_of([group[0], broken, *group[2:]], Crediting(WEIGHTS))
    assert [step.advantage for step in credit[1]] == [None, None] and credit[0][0].advantage is not None


# ---- the command ----


def test_one_page_that_holds_everything(cli, record: Path) -> None:  # type: ignore[no-untyped-def]
    ran = cli("view", record)
    page = record.with_suffix(".html")
    assert ran.code == 0 and ran.err == "" and str(page) in ran.out and "6 episodes" in ran.out
    raw = page.read_bytes()
    assert raw.startswith(MARK)
    text = raw.decode()
    for words in ("decoupled", "format 0.2", "zoom_clip", "6 rollouts", "Rollout 5", "Gold window"):
        assert words in text, words
    assert text.count('class="cu-tree"') == 1 and text.count("data:image/jpeg") > 51
    addresses = re.findall(r'\b(?:src|href|action)="([^"]*)"', text)
    assert addresses and all(a.startswith(("data:image/jpeg;base64,", "#")) for a in addresses)
    assert list(page.parent.glob(".*.part")) == []


def test_a_saved_question_becomes_a_page(cli, digit: Task, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    record = tmp_path / "one.jsonl"
    write_trajectories(record, rollouts(digit, [[HIT, RIGHT]]))
    assert cli("view", record, "--out", tmp_path / "deep" / "er" / "page.html").code == 0
    text = (tmp_path / "deep" / "er" / "page.html").read_text()
    assert 'cu-tree"' not in text and text.count("cu-steps") > 0 and digit.question in text
    assert text.count(digit.question) == 2  # title and heading


def test_what_does_not_fit_is_said(cli, record: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "page.html"
    ran = cli("view", record, "--out", out, "--limit", "2", "--max-mb", "0.05")
    assert ran.code == 0 and "4 more episodes" in ran.err
    text = out.read_text()
    assert "4 more episodes of the file are not on this page (--limit 2)" in text
    assert re.search(r"\d+ frames are not drawn", text)
    assert sum(len(url) for url in re.findall(r'data:image/jpeg;base64,[^"]+', text)) <= 50_000


def test_lines_beyond_the_limit_are_not_read(cli, record: Path) -> None:  # type: ignore[no-untyped-def]
    with record.open("a") as file:
        file.write("half a rec\n")
    assert cli("view", record, "--limit", "6").code == 0
    assert cli("view", record, "--limit", "7").code == 2


def test_one_task_of_many(cli, tmp_path: Path, group: list[Trajectory], digit: Task) -> None:  # type: ignore[no-untyped-def]
    record = tmp_path / "two.jsonl"
    write_trajectories(record, [*rollouts(digit.model_copy(update={"id": "other"}), [[WRONG], [RIGHT]]), *group])
    assert cli("view", record, "--task", digit.id, "--limit", "3").code == 0
    text = record.with_suffix(".html").read_text()
    assert (
        "Rollout 2" in text
        and 'of task <span dir="auto">example-digit' in text
        and 'of task <span dir="auto">other' not in text
    )
    ran = cli("view", record, "--task", "nothing")
    assert ran.code == 2 and "nothing" in ran.err
    assert cli("view", record).code == 0
    assert "2 tasks" in record.with_suffix(".html").read_text()


def test_weights_and_estimator_can_be_chosen(cli, record: Path) -> None:  # type: ignore[no-untyped-def]
    page = record.with_suffix(".html")
    assert cli("view", record, "--rewards", "zoom=2,answer=1", "--advantage", "rloo").code == 0
    assert "weights zoom 2.0, answer 1.0" in page.read_text() and "<b>rloo</b>" in page.read_text()
    assert cli("view", record, "--rewards", "longvila_r1", "--advantage", "longvila_r1").code == 0
    assert "weights answer 0.9, format 0.1" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rewards", "nonsense"), ("nonsense", "default")),
        (("--rewards", "zoom=much"), ("zoom=much", "format=0.2")),
        (("--advantage", "magic"), ("magic", "decoupled")),
        (("--advantage", "remax"), ("greedy",)),
        (("--advantage", "reinforce_plus_plus"), ("batch",)),
        (("--videos", "/nowhere/at/all"), ("/nowhere/at/all",)),
        (("--limit", "0"), ("limit",)),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(  # type: ignore[no-untyped-def]
    cli, record: Path, arguments: tuple[str, str], words: tuple[str, ...]
) -> None:
    ran = cli("view", record, *arguments)
    assert ran.code == 2 and ran.err.count("\n") == 1 and ran.out == ""
    assert all(word in ran.err for word in words), ran.err
    assert not record.with_suffix(".html").exists()


def test_files_that_cannot_be_read_are_one_sentence(cli, record: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken.jsonl"
    broken.write_text(record.read_text().splitlines()[0] + "\n" + '{"version": 1, "id": 3}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    later = tmp_path / "later.jsonl"
    later.write_text('{"version": 99}\n')
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(os.urandom(2000))
    for path, words in (
        (tmp_path / "none.jsonl", "No such file"),
        (broken, "line 2"),
        (empty, "holds no trajectory"),
        (later, "upgrade"),
        (binary, "line 1"),
        (tmp_path, "is a folder"),
    ):
        ran = cli("view", path, "--out", tmp_path / "page.html")
        assert ran.code == 2 and ran.err.count("\n") == 1 and words in ran.err, (path, ran.err)
        assert not (tmp_path / "page.html").exists()


def test_nothing_that_is_there_is_lost(cli, record: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page</p>")
    ran = cli("view", record, "--out", mine)
    assert ran.code == 2 and "is kept" in ran.err and mine.read_text() == "<p>my own page</p>"
    before = record.read_bytes()
    assert cli("view", record, "--out", record).code == 2 and record.read_bytes() == before
    assert cli("view", record, "--out", tmp_path).code == 2
    assert cli("view", record, "--out", "/dev/null").code == 2
    out = tmp_path / "page.html"
    assert cli("view", record, "--out", out).code == 0
    first = out.read_bytes()
    assert cli("view", record, "--out", out).code == 0 and out.read_bytes() == first  # a page of ours is replaced


def test_a_place_that_cannot_be_written_is_one_sentence(cli, record: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a-file").write_text("x")
    ran = cli("view", record, "--out", tmp_path / "a-file" / "page.html")
    assert ran.code == 2 and ran.err.count("\n") == 1 and "another file" in ran.err


def test_a_page_that_breaks_off_leaves_the_old_one(  # type: ignore[no-untyped-def]
    cli, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    assert cli("view", record, "--out", out).code == 0
    before = out.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(viewer.os, "fsync", full)
    ran = cli("view", record, "--out", out)
    assert ran.code == 2 and "No space left" in ran.err and out.read_bytes() == before
    assert list(tmp_path.glob(".*.part")) == []


def test_a_link_is_followed_and_stays_a_link(cli, record: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    link.symlink_to(real)
    assert cli("view", record, "--out", link).code == 0
    assert link.is_symlink() and real.read_bytes().startswith(MARK)


def test_moved_videos_are_found_by_content(cli, tmp_path: Path, digit: Task) -> None:  # type: ignore[no-untyped-def]
    was, now = tmp_path / "was", tmp_path / "now"
    was.mkdir(), now.mkdir()
    shutil.copy(digit.videos[0], was / "film.mp4")
    record = tmp_path / "t.jsonl"
    write_trajectories(record, rollouts(digit.model_copy(update={"videos": (was / "film.mp4",)}), [[HIT, RIGHT]]))
    (was / "film.mp4").rename(now / "another-name.mp4")
    page = record.with_suffix(".html")
    assert cli("view", record).code == 0
    assert "film.mp4 is not there any more" in page.read_text() and "data:image/jpeg;base64" not in page.read_text()
    assert cli("view", record, "--videos", now).code == 0
    assert page.read_text().count("data:image/jpeg;base64") > 51


EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'>]]>\u202e\x07"


def hostile(group: list[Trajectory], tmp_path: Path) -> Path:
    first = group[0].steps[0]
    assert first.call is not None
    step = first.model_copy(
        update={
            "thought": EVIL,
            "note": EVIL,
            "outcome": EVIL,
            "rewards": {EVIL: 1.0},
            "call": first.call.model_copy(update={"name": EVIL, "arguments": {EVIL: EVIL, "deep": {"a": [EVIL]}}}),
        }
    )
    made = []
    for one in group:
        task = one.task.model_copy(update={"id": EVIL, "question": EVIL, "options": ("a" + EVIL, EVIL), "answer": EVIL})
        videos = {key: v.model_copy(update={"codec": EVIL}) for key, v in one.videos.items()}
        outcome = one.outcome.model_copy(update={"answer": EVIL, "reason": EVIL})
        made.append(
            one.model_copy(update={"task": task, "videos": videos, "outcome": outcome, "steps": (step, *one.steps[1:])})
        )
    path = tmp_path / "evil <b>&.jsonl"
    write_trajectories(path, made)
    return path


def test_hostile_records_are_shown_as_text(cli, tmp_path: Path, group: list[Trajectory]) -> None:  # type: ignore[no-untyped-def]
    path = hostile(group, tmp_path)
    assert cli("view", path, "--rewards", "format=1").code == 0
    text = path.with_suffix(".html").read_text()
    assert text.count("<script>") == 1 and text.count("</script>") == 1 and "<img src=x" not in text
    assert "onerror" in text  # as words
    assert "\u202e" not in text and "\x07" not in text
    assert "evil &lt;b&gt;&amp;.jsonl" in text


def test_a_ration_gives_the_small_pictures_before_the_large(group: list[Trajectory]) -> None:
    scene = scene_of(group[0])
    pictures = Pictures(film_side=112)
    (overview,) = scene.overview
    whole = pictures.strip(scene.films[0], overview)
    size = sum(picture.bytes for picture in whole.pictures)
    some = Ration(pictures, size // 2)
    strip = some.strip(scene.films[0], overview)
    assert sum(picture.bytes for picture in strip.pictures) <= size // 2
    assert any(picture.film for picture in strip.pictures) and any(not picture.film for picture in strip.pictures)
    assert some.left_out == len(whole.pictures) - len(strip.pictures)
    none = Ration(pictures, 0)
    assert none.strip(scene.films[0], overview).why == "the page is full" and none.left_out == len(whole.pictures)


def test_the_view_needs_no_torch(record: Path) -> None:
    """A page is made in a process that has neither torch nor gradio."""
    import subprocess

    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from closeup.app.viewer import ViewOptions, run\n"
        f"run(ViewOptions(Path({str(record)!r})))\n"
        "print(sorted({'torch', 'transformers', 'gradio', 'mcp'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_records_of_the_page_are_whole_again(record: Path, group: list[Trajectory]) -> None:
    assert [t.id for t in read_trajectories(record)] == [t.id for t in group]


# ---- in a real browser ----


def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page in a browser without network, and what it complained about or asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append("dialog"), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else heard.append(f"asked {r.url}"))
    page.goto(path.as_uri())
    return page, heard


@pytest.mark.browser
def test_keyboard_enlarging_and_seeking(cli, record: Path, browser) -> None:  # type: ignore[no-untyped-def]
    assert cli("view", record).code == 0
    page, heard = opened(browser, record.with_suffix(".html"))
    first = page.locator(".cu-strip-overview .cu-frame").first
    first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.cuTime") == "1.5"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.cuTime") == "75.0"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("img").count() == 2
    assert dialog.get_by_text("What the agent saw: 28×28 pixels").is_visible()
    page.keyboard.press("ArrowRight")
    assert dialog.get_by_text("Frame at 0:01.5").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.dataset.cuTime") == "1.5"  # where one was, not where one began
    page.locator(".cu-rollout").nth(3).locator("summary").first.click()
    lane = page.locator(".cu-rollout").nth(3).locator(".cu-lane-close").first
    lane.click()
    assert page.evaluate("document.activeElement.dataset.cuTime") == "60.0"
    assert heard == []


@pytest.mark.browser
def test_hostile_records_do_nothing_in_a_browser(cli, tmp_path: Path, group, browser) -> None:  # type: ignore[no-untyped-def]
    path = hostile(group, tmp_path)
    assert cli("view", path, "--rewards", "format=1").code == 0
    page, heard = opened(browser, path.with_suffix(".html"))
    page.locator(".cu-frame").first.click()
    assert page.locator("dialog[open]").count() == 1
    assert heard == [] and page.title() != "owned"


@pytest.mark.browser
def test_the_policy_of_the_page_stops_what_slipped_in(cli, record: Path, browser) -> None:  # type: ignore[no-untyped-def]
    """The control: the same page with an injected script and picture runs and loads neither."""
    assert cli("view", record).code == 0
    path = record.with_suffix(".html")
    slipped = "<script>document.title='owned'</script><img src='https://example.org/x.png'></main>"
    path.write_text(path.read_text().replace("</main>", slipped))
    page, heard = opened(browser, path)
    assert page.title() != "owned"
    assert any("Content Security Policy" in line for line in heard)


@pytest.mark.browser
def test_it_is_accessible_and_fits_every_width(cli, record: Path, browser) -> None:  # type: ignore[no-untyped-def]
    axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    assert cli("view", record).code == 0
    path = record.with_suffix(".html")
    path.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    )  # axe is a script
    page, _ = opened(browser, path)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")

    def faults() -> list[object]:
        found = axe.run(page).response["violations"]
        return [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found]

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (360, 820, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, width)
        assert faults() == [], scheme
        page.locator(".cu-frame").first.click()
        assert faults() == [], f"{scheme}, a frame enlarged"
        page.keyboard.press("Escape")


def test_the_script_on_the_page_is_the_one_its_policy_names(cli, record: Path) -> None:  # type: ignore[no-untyped-def]
    import base64
    import hashlib

    assert cli("view", record).code == 0
    text = record.with_suffix(".html").read_text()
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert script == [html.script()]
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text
