"""Real recordings against the ffmpeg program, where the clips are at hand (../shared/videos)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from closeup.tools.video import Video, probe

FOLDER = Path(__file__).parents[4] / "shared" / "videos"
CLIPS = sorted(p for p in FOLDER.rglob("*") if p.suffix in (".mp4", ".mkv", ".webm", ".mov")) if FOLDER.is_dir() else []
PICTURES = 6  # compared in the first four seconds of each clip


def output(*command: str | Path) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.shared_clips
@pytest.mark.skipif(not CLIPS, reason="../shared/videos is not there")
@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_frames_equal_ffmpegs(ffmpeg: None, path: Path) -> None:
    facts = probe(path)
    show = ("ffprobe", "-v", "quiet", "-select_streams", str(facts.stream), "-read_intervals", "%+4", "-of", "json")
    frames = json.loads(output(*show, "-show_entries", "frame=best_effort_timestamp", path))["frames"]
    ticks = np.array([int(frame["best_effort_timestamp"]) for frame in frames])
    times = (ticks - facts.start) * float(facts.time_base)
    chosen = np.unique(np.linspace(0, len(ticks) - 1, PICTURES).astype(int))
    select = "select=" + "+".join(f"eq(n\\,{number})" for number in chosen)
    read = ("ffmpeg", "-v", "quiet", "-i", path, "-map", f"0:{facts.stream}", "-vf", select, "-fps_mode", "passthrough")
    raw = output(*read, "-frames:v", str(len(chosen)), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    height, width = facts.orientation.stored((facts.coded_height, facts.coded_width))
    expected = np.frombuffer(raw, dtype=np.uint8).reshape(-1, height, width, 3)
    with Video(path) as video:
        assert times[-1] < video.duration
        order = np.random.default_rng(0).permutation(len(chosen))
        for place in order:
            until = times[chosen[place] + 1] if chosen[place] + 1 < len(times) else times[-1]
            got = video.frames([(times[chosen[place]] + until) / 2], (height, width))
            assert got.times[0] == pytest.approx(times[chosen[place]], abs=1e-6)
            assert np.abs(got.pixels[0].astype(int) - expected[place]).mean() < 3
            assert got.bad_packets == 0
        skim = video.frames(list(np.linspace(0, times[-1], 9)), (90, 160), mode="keyframe")
        assert set(np.round(skim.times, 6)) <= set(np.round(times, 6))
