"""`closeup view`: recorded episodes and rollout groups as one HTML file that needs nothing else, not even a network.

Invariants
1. The page asks nobody for anything: pictures are `data:` URLs, and its content security policy lets it load nothing
   else and run no script but its own.
2. It is bounded: `limit` episodes, `max_mb` of pictures, texts cut at `html.MAX_TEXT`; what is left out is said on it.
3. Nothing is lost: the page is written beside its place and then moved there, and a file that is not such a page is
   never replaced.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from closeup import __version__
from closeup.app import html
from closeup.app.drawing import compared
from closeup.app.errors import BadInput, complain
from closeup.app.pictures import Pictures, Strip
from closeup.app.progress import bar
from closeup.app.scene import Film, Look

if TYPE_CHECKING:
    from closeup.agent.trajectory import Trajectory
    from closeup.app.credit import Crediting
    from closeup.app.groups import Group

MARK = b"<!doctype html>\n<!-- a page of closeup view -->\n"
"""What every page begins with; only such a file is replaced."""
FILM_SIDE = 640
NEEDS_MORE = {
    "remax": "a greedy rollout of each task, which is not in the record",
    "reinforce_plus_plus": "all groups of the batch at once, and this page looks at one group at a time",
}


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """The command's arguments, as typed."""

    file: Path
    out: Path | None = None
    limit: int = 64
    task: str | None = None
    rewards: str | None = None
    advantage: str = "decoupled"
    videos: Path | None = None
    max_mb: float = 24.0


def run(options: ViewOptions) -> int:
    """Write the page and say where it is; returns 0. Raises what the CLI turns into a sentence (exit code 2)."""
    out = options.out or options.file.with_suffix(".html")
    _check(options, out)
    trajectories, left_out = _read(options)
    gone: Counter[str] = Counter()
    page = make_page(trajectories, options, left_out, gone=gone)
    _write(out, page)
    episodes = f"{len(trajectories)} episode{'s' if len(trajectories) != 1 else ''}"
    sys.stdout.write(f"{out}: {episodes}, {len(page) / 1e6:.1f} MB. Open it in a browser.\n")
    if left_out:
        complain(f"{left_out} more episodes are not on the page; raise --limit, or choose with --task ID")
    if gone:
        whys = "; ".join(why for why, _ in gone.most_common(3)) + ("; …" if len(gone) > 3 else "")
        looks = f"{gone.total()} look{'s have' if gone.total() != 1 else ' has'} no pictures"
        complain(f"{looks} ({whys}); give the folder the films are in with --videos DIR")
    return 0


def make_page(
    trajectories: Sequence[Trajectory], options: ViewOptions, left_out: int = 0, *, gone: Counter[str] | None = None
) -> bytes:
    """The page, as UTF-8. Raises `BadInput` or `RewardError` for options that cannot be used.

    Args:
        gone: filled with the reasons why looks have no pictures, each as often as it held.
    """
    from closeup.app.groups import group_of, split

    moved: Mapping[str, Path] = {}
    if options.videos is not None:
        from closeup.app.replay import by_content

        moved = by_content(options.videos)
    pictures = Ration(Pictures(moved, film_side=FILM_SIDE), round(options.max_mb * 1e6))
    groups: list[Group] = []
    entries: list[str] = []
    found = split(trajectories)
    with bar("view", len(found)) as advance:
        for number, members in enumerate(found, 1):
            group = group_of(members, crediting_of(options, members[0]))
            groups.append(group)
            entries.append(_entry(group, pictures, number, of=len(found)))
            advance(number)
    if gone is not None:
        gone.update(pictures.gone)
    script = html.script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    text = html.template("page.html").render(
        mark=Markup(MARK.decode("ascii")),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';"
        " base-uri 'none'; form-action 'none'",
        style=Markup(html.style()),
        script=Markup(script),
        name=options.file.name,
        version=__version__,
        groups=groups,
        entries=[Markup(entry) for entry in entries],
        left_out=left_out,
        limit=options.limit,
        pictures_left_out=pictures.left_out,
        max_mb=options.max_mb,
    )
    return bytes(text.encode("utf-8"))


def crediting_of(options: ViewOptions, trajectory: Trajectory) -> Crediting:
    """Weights and estimator: those asked for, or else the reward preset called as the record's preset is, or "default".

    Raises:
        BadInput: an unknown estimator, or weights that cannot be read. RewardError: an unknown reward preset.
    """
    from closeup.app.credit import Crediting
    from closeup.rl.advantages import ESTIMATORS
    from closeup.rl.reward_config import REWARD_PRESETS, get_reward_config

    if options.advantage in NEEDS_MORE:
        raise BadInput(f"the estimator {options.advantage!r} needs {NEEDS_MORE[options.advantage]}; choose another one")
    if options.advantage not in ESTIMATORS:
        accepted = ", ".join(name for name in ESTIMATORS if name not in NEEDS_MORE)
        raise BadInput(f"no advantage estimator is called {options.advantage!r}; accepted: {accepted}")
    name = options.rewards
    if name is not None and "=" in name:
        return Crediting(_weights(name), options.advantage)
    if name is None:
        preset = trajectory.settings.get("preset")
        called = str(preset.get("name", "")) if isinstance(preset, dict) else ""
        name = next((n for n in (called, called.partition("-")[0]) if n in REWARD_PRESETS), "default")
    streams = get_reward_config(name).streams
    return Crediting({s.name: s.weight for s in streams if s.weight}, options.advantage)


class Ration:
    """Pictures until so many bytes are given out; then the film's own first, then none.

    Attributes:
        left_out: pictures there was no room for. gone: why looks have none at all, each reason as often as it held.
    """

    def __init__(self, pictures: Pictures, max_bytes: int) -> None:
        self._pictures = pictures
        self._left = max_bytes
        self._enlarged = max_bytes // 2
        self.left_out = 0
        self.gone: Counter[str] = Counter()

    def strip(self, film: Film | None, look: Look) -> Strip:
        """See `Pictures.strip`."""
        found = self._pictures.strip(film, look)
        if found.why:
            self.gone[found.why] += 1
        given = []
        for picture in found.pictures:
            if picture.bytes > self._left - self._enlarged:
                picture = replace(picture, film="")
            if picture.bytes > self._left:
                continue
            self._left -= picture.bytes
            given.append(picture)
        self.left_out += len(found.pictures) - len(given)
        why = found.why or ("" if given or not found.pictures else "the page is full")
        return Strip(tuple(given), found.total, why)


def _entry(group: Group, pictures: Ration, number: int, *, of: int) -> str:
    """One group, or the one episode it is made of."""
    scenes, level = [], 3 if of == 1 and len(group.scenes) > 1 else 2
    for index, scene in enumerate(group.scenes):
        prefix = f"cu-{number}-{index}"
        scenes.append(Markup(html.render(scene, pictures, overview=index == 0, level=level, prefix=prefix)))
    text: str = html.template("group.html").render(
        group=group,
        scenes=scenes,
        number=number,
        opened=number == 1,
        alone=of == 1,
        looked=compared(group.scenes, group.order),
    )
    return text


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise BadInput(
                f"--rewards takes the name of a reward preset, or weights such as format=0.2,zoom=1,answer=1; {pair!r}"
                " is neither"
            ) from None
    return weights


def _check(options: ViewOptions, out: Path) -> None:
    """Everything that can be refused before the work is done."""
    if options.file.is_dir():
        raise BadInput(
            f"{options.file} is a folder; give a trajectory file (JSON Lines) in it, e.g. trajectories.jsonl"
        )
    if options.videos is not None and not options.videos.is_dir():
        raise BadInput(f"--videos takes a folder; there is none at {options.videos}")
    if out.is_dir():
        raise BadInput(f"--out takes a file, {out} is a folder; give e.g. {out / 'page.html'}")
    if not out.exists():
        return
    if not out.is_file():
        raise BadInput(f"--out {out} is no plain file; give another one")
    try:
        with out.open("rb") as file:
            ours = file.read(len(MARK)) in (MARK, b"")
    except OSError as error:
        raise BadInput(f"cannot read {out}, which stands where the page would go: {error.strerror}") from None
    if not ours:
        raise BadInput(f"{out} is there already and is no page of `closeup view`, so it is kept; give another --out")


def _read(options: ViewOptions) -> tuple[list[Trajectory], int]:
    """At most `limit` trajectories, and how many more there are (lines that were not read, or episodes of the task)."""
    from closeup.agent.trajectory import read_trajectories

    chosen: list[Trajectory] = []
    more = 0
    for trajectory in _whole(options.file, read_trajectories(options.file)):
        if options.task is None:
            chosen.append(trajectory)
            if len(chosen) == options.limit:
                break  # what follows is counted, not read
        elif trajectory.task.id == options.task:
            more += len(chosen) == options.limit
            chosen += [trajectory] * (len(chosen) < options.limit)
    if options.task is None and len(chosen) == options.limit:
        more = _lines(options.file) - len(chosen)
    if not chosen and options.task is not None:
        raise BadInput(f"{options.file} has no episode of a task called {options.task!r}")
    if not chosen:
        raise BadInput(
            f"{options.file} holds no trajectory; make one with: closeup ask VIDEO QUESTION --save {options.file}"
        )
    return chosen, more


def _whole(path: Path, trajectories: Iterator[Trajectory]) -> Iterator[Trajectory]:
    """The trajectories of a file whose last line may be cut off, as a run that crashed leaves it; that is said."""
    from closeup.agent.trajectory import TrajectoryError

    read = 0
    try:
        for trajectory in trajectories:
            read += 1
            yield trajectory
    except TrajectoryError as error:
        if not read or read != _lines(path) - 1 or _ends_whole(path):
            raise
        complain(f"{error}. It is the last line and cut off, so it is left out; the {read} before it are on the page")


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _write(out: Path, page: bytes) -> None:
    target = out.resolve()  # through a link to the file it names
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {out}: {error.strerror or error}; give another file to --out") from None
