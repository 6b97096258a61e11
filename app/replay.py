"""`closeup replay`: recorded messages through the environment again; every difference is a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from closeup.app.errors import NO_ANSWER, BadInput, complain
from closeup.app.progress import bar

if TYPE_CHECKING:
    from closeup.agent.replay import ReplayReport
    from closeup.agent.trajectory import Trajectory


def run(file: Path, *, videos: Path | None, as_json: bool) -> int:
    """Replay every trajectory of a file; 0 when all come out the same, else 1. Raises what becomes a sentence."""
    from closeup.agent.trajectory import read_trajectories

    if videos is not None and not videos.is_dir():
        raise BadInput(f"--videos takes a folder; there is none at {videos}")
    trajectories = list(read_trajectories(file))
    if not trajectories:
        raise BadInput(f"{file} holds no trajectory; make one with: closeup ask VIDEO QUESTION --save {file}")
    found = by_content(videos) if videos is not None else {}
    same = compared = 0
    with bar("replay", len(trajectories)) as advance:
        for done, trajectory in enumerate(trajectories, 1):
            report = _replay(trajectory, found)
            compared += report is not None
            same += report is not None and report.same
            _print(trajectory.id, report, as_json)
            advance(done)
    if not as_json:
        gone = len(trajectories) - compared
        rest = f", {gone} could not be replayed" if gone else ""
        sys.stdout.write(f"{len(trajectories)} trajectories, {compared - same} came out differently{rest}\n")
    return 0 if same == len(trajectories) else NO_ANSWER


def _replay(trajectory: Trajectory, found: dict[str, Path]) -> ReplayReport | None:
    from closeup.agent.replay import ReplayError, replay
    from closeup.rl.rewards import DEFAULT_REWARDS
    from closeup.tools.video import VideoError

    streams = {name for step in trajectory.steps for name in step.rewards}
    try:
        return replay(
            trajectory,
            videos={identity: found[identity] for identity in trajectory.videos if identity in found},
            rewards={name: fn for name, fn in DEFAULT_REWARDS.items() if name in streams},
        )
    except (ReplayError, VideoError) as error:
        complain(f"{trajectory.id}: {error}")
        return None


def by_content(folder: Path) -> dict[str, Path]:
    """Where every video below a folder is, by content identity; what is no video is passed over."""
    from closeup.tools.video import Video, VideoError

    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            with Video(path) as video:
                found[video.identity] = path
        except VideoError:
            continue  # not a video: the folder may hold anything
    return found


def _print(name: str, report: ReplayReport | None, as_json: bool) -> None:
    if as_json:
        row = {
            "id": name,
            "same": report is not None and report.same,
            "differences": [str(d) for d in report.differences] if report is not None else ["could not be replayed"],
        }
        sys.stdout.write(json.dumps(row) + "\n")
    elif report is not None:
        sys.stdout.write(f"{name}: {'same' if report.same else 'different'} ({report.steps} steps)\n")
        for difference in report.differences:
            sys.stdout.write(f"   {difference}\n")
