"""Decoding an hour of video: our PyAV backend against decord, torchcodec and the ffmpeg program.

    python benchmarks/decode.py [--repeat N] [--threads N] [--quick]

Three files of one hour are made once and kept in the system's temporary folder: 640x360, 30 frames per second, H.264;
two with B-frames, a key frame at most every 250 or every 48 frames, and one without B-frames, where no frame can be
left undecoded (one minute is encoded, then repeated by stream copy). Every measurement is a process of its own, and its
cost is the CPU seconds (user + system, children included) from the moment its libraries are loaded; arms take turns in
random order within each repetition. All arms return the same frames as uint8 RGB of the same size (checked by shape);
our frame store is off. decord and torchcodec are used directly, as their own documentation does, not through our
backends. The ffmpeg program is the limit where stretches are decoded whole: it throws frames away, and where every
frame is returned a second arm of it scales and converts them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _report

SECONDS, RATE, SIZE = 3600, 30, (360, 640)
SMALL, LARGE = (126, 224), (252, 448)  # (height, width) of a skim and of a zoom
ARMS = ("closeup", "decord", "torchcodec", "ffmpeg", "ffmpeg-rgb")
LIMIT = ["-t", "600"]  # what the ffmpeg program decodes of ten minutes
Window = list[float]
Runs = dict[tuple[str, str], list[dict[str, float]]]  # (task, arm) -> its repetitions


def tasks(seed: int, quick: bool) -> dict[str, dict[str, Any]]:
    """name -> file, size, and the requests (one list of times for each call)."""
    draw = random.Random(seed)
    starts = [draw.uniform(0, SECONDS - 10) for _ in range(20)]
    zooms = [[start + n / 2 for n in range(20)] for start in starts]

    def spread(count: int) -> list[Window]:
        return [[SECONDS * (n + 0.5) / count for n in range(count)]]

    seconds = [[n + 0.5 for n in range(600)]]
    frames = [[(n + 0.5) / RATE for n in range(60 * RATE)]]
    result: dict[str, dict[str, Any]] = {
        "open": {"file": "gop250", "size": SMALL, "calls": []},
        "uniform 128, GOP 250": {"file": "gop250", "size": SMALL, "calls": spread(128)},
        "uniform 128, GOP 48": {"file": "gop48", "size": SMALL, "calls": spread(128)},
        "20 windows of 10 s at 2 fps, GOP 250": {"file": "gop250", "size": LARGE, "calls": zooms},
        "20 windows of 10 s at 2 fps, GOP 48": {"file": "gop48", "size": LARGE, "calls": zooms},
        "every second of 10 min, GOP 250": {"file": "gop250", "size": SMALL, "calls": seconds, "limit": ["-t", "600"]},
        "every second of 10 min, no B-frames": {
            "file": "plain",
            "size": SMALL,
            "calls": seconds,
            "limit": ["-t", "600"],
        },
        "every frame of 1 min, no B-frames": {"file": "plain", "size": SMALL, "calls": frames, "limit": ["-t", "60"]},
        "skim 128 key frames, GOP 250": {"file": "gop250", "size": SMALL, "calls": spread(128), "mode": "keyframe"},
    }
    if not quick:
        result["uniform 512, GOP 250"] = {"file": "gop250", "size": SMALL, "calls": spread(512)}
        result["uniform 512, GOP 48"] = {"file": "gop48", "size": SMALL, "calls": spread(512)}
    return result


FILES = {"gop250": ("-g", "250", "-bf", "3"), "gop48": ("-g", "48", "-bf", "3"), "plain": ("-g", "250", "-bf", "0")}


def make_hour(folder: Path, file: str) -> Path:
    """One hour of moving pictures, made once."""
    path = folder / f"hour-{SIZE[1]}x{SIZE[0]}-{file}.mp4"
    if path.exists():
        return path
    minute, part = folder / f"minute-{file}.mp4", path.with_suffix(".part.mp4")
    source = f"mandelbrot=s={SIZE[1]}x{SIZE[0]}:r={RATE},format=yuv420p"
    x264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "31", *FILES[file]]
    ffmpeg = ["ffmpeg", "-v", "error", "-y"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", source, "-t", "60", *x264, minute], check=True)
    loop = ["-stream_loop", str(SECONDS // 60 - 1), "-i", minute, "-c", "copy", "-movflags", "+faststart"]
    subprocess.run([*ffmpeg, *loop, part], check=True)
    part.rename(path)
    return path


# -- one measurement, in a process of its own ------------------------------------------------------------------------


def with_closeup(path: str, task: dict[str, Any], threads: int) -> Callable[[], Any]:
    import av  # noqa: F401  # loaded before the clock starts, as the other arms load theirs

    from closeup.tools.video import Video, set_cache_limits

    set_cache_limits(frames_bytes=0)

    def work() -> Any:
        with Video(path, threads=threads) as video:
            size = tuple(task["size"])
            mode = task.get("mode", "exact")
            return video.duration, [video.frames(call, size, mode=mode).pixels for call in task["calls"]]

    from closeup.tools.video.backends import load

    load("pyav")
    return work


def with_decord(path: str, task: dict[str, Any], threads: int) -> Callable[[], Any]:
    import decord

    def work() -> Any:
        height, width = task["size"]
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads, width=width, height=height)
        duration = len(reader) / reader.get_avg_fps()
        calls = [[int(t * RATE + 1e-6) for t in call] for call in task["calls"]]
        return duration, [reader.get_batch(call).asnumpy() for call in calls]

    return work


def with_torchcodec(path: str, task: dict[str, Any], threads: int) -> Callable[[], Any]:
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(threads)

    def work() -> Any:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=threads)
        pixels = []
        for call in task["calls"]:
            parts = []
            for first in range(0, len(call), 16):  # a batch of full-size frames at a time
                batch = decoder.get_frames_played_at(seconds=call[first : first + 16]).data
                small = torch.nn.functional.interpolate(batch, task["size"], mode="bilinear", antialias=True)
                parts.append(small.permute(0, 2, 3, 1).contiguous())
            pixels.append(torch.cat(parts).numpy())
        return decoder.metadata.duration_seconds, pixels

    return work


def with_ffmpeg(path: str, task: dict[str, Any], threads: int) -> Callable[[], Any]:
    command = ["ffmpeg", "-v", "error", "-threads", str(threads), "-i", path, "-an", *task["limit"], "-f", "null", "-"]
    return lambda: (float(SECONDS), subprocess.run(command, check=True) and None)


def with_ffmpeg_rgb(path: str, task: dict[str, Any], threads: int) -> Callable[[], Any]:
    height, width = task["size"]
    scaled = f"scale={width}:{height}:flags=bilinear+accurate_rnd+full_chroma_int,format=rgb24"
    return with_ffmpeg(path, {"limit": [*task["limit"], "-vf", scaled]}, threads)


def measure(arm: str, path: str, task: dict[str, Any], threads: int) -> dict[str, float]:
    """CPU and wall seconds, and MiB of memory at the peak, of one task."""
    prepare = {"closeup": with_closeup, "decord": with_decord, "torchcodec": with_torchcodec, "ffmpeg": with_ffmpeg}
    prepare["ffmpeg-rgb"] = with_ffmpeg_rgb
    work = prepare[arm](path, task, threads)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    duration, pixels = work()
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
    assert abs(duration - SECONDS) < 1, f"{arm} says the hour lasts {duration} s"
    if pixels is not None:
        for call, picture in zip(task["calls"], pixels, strict=True):
            assert picture.shape == (len(call), *task["size"], 3) and picture.dtype == np.uint8, picture.shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": round(cpu, 4), "wall_s": round(wall, 4), "peak_mib": round(peak, 1)}


def _cpu_seconds() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# -- all of them -----------------------------------------------------------------------------------------------------


def available(arm: str, name: str, task: dict[str, Any]) -> bool:
    """Whether an arm can do a task here."""
    if arm == "ffmpeg":
        return "limit" in task
    if arm == "ffmpeg-rgb":
        return name.startswith("every frame")
    if task.get("mode") == "keyframe":
        return arm == "closeup"
    return arm == "closeup" or importlib.util.find_spec(arm) is not None


def in_child(arm: str, path: Path, task: dict[str, Any], threads: int) -> dict[str, float]:
    """Run `measure` in a fresh process."""
    job = json.dumps({"arm": arm, "path": str(path), "task": task, "threads": threads})
    done = subprocess.run([sys.executable, __file__, "--child", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arm} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds for decoding an hour of video")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="leave out the longest tasks")
    parser.add_argument("--name", default="decode-hour", help="name of the file under benchmarks/results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job = json.loads(options.child)
        sys.stdout.write(json.dumps(measure(job["arm"], job["path"], job["task"], job["threads"])) + "\n")
        return
    if shutil.which("ffmpeg") is None:
        raise SystemExit("this benchmark needs the ffmpeg program (Debian: apt install ffmpeg)")
    folder = Path(tempfile.gettempdir()) / "closeup-decode-benchmark"
    folder.mkdir(exist_ok=True)
    hours = {file: make_hour(folder, file) for file in FILES}
    work = tasks(options.seed, options.quick)
    runs: Runs = {}
    shuffle = random.Random(options.seed)
    for done in range(1, options.repeat + 1):
        for name, task in work.items():
            arms = [arm for arm in ARMS if available(arm, name, task)]
            for arm in shuffle.sample(arms, len(arms)):
                measured = in_child(arm, hours[task["file"]], task, options.threads)
                runs.setdefault((name, arm), []).append(measured)
                sys.stderr.write(f"{done}/{options.repeat} {name}, {arm}: {measured['cpu_s']:.2f} CPU s\n")
        report(options, work, runs)  # after each repetition, so that an interrupted run is not lost


def report(
    options: argparse.Namespace, work: dict[str, Any], runs: dict[tuple[str, str], list[dict[str, float]]]
) -> None:
    """Write the JSON file and print the table."""
    cpu = {key: statistics.median(run["cpu_s"] for run in repeated) for key, repeated in runs.items()}
    targets: dict[str, Any] = {}
    lines = []
    for name in work:
        ours = cpu[name, "closeup"]
        line = [name, *(f"{cpu[name, arm]:.3f}" if (name, arm) in cpu else "" for arm in ARMS)]
        if (name, "decord") in cpu:
            ratio = cpu[name, "decord"] / ours
            targets[f"{name}: at least 2x fewer CPU seconds than decord"] = {
                "met": ratio >= 2,
                "ratio": round(ratio, 2),
            }
            line.append(f"{ratio:.2f}x")
        else:
            line.append("")
        for limit in ("ffmpeg", "ffmpeg-rgb"):
            if (name, limit) not in cpu:
                line.append("")
                continue
            ratio = ours / cpu[name, limit]
            targets[f"{name}: within 1.3x of {limit}"] = {"met": ratio <= 1.3, "ratio": round(ratio, 2)}
            line.append(f"{ratio:.2f}x")
        lines.append(line)
    settings = {
        "seed": options.seed,
        "repetitions": max(map(len, runs.values())),
        "threads": options.threads,
        "video": "640x360, 30 fps, 1 h",
    }
    rows = [
        {"task": name, "arm": arm, "cpu_s": round(cpu[name, arm], 4), "runs": repeated}
        for (name, arm), repeated in runs.items()
    ]
    table: dict[str, dict[str, float]] = {}  # the same figures by name, for documents to quote
    for row in rows:
        table.setdefault(str(row["task"]), {})[str(row["arm"])] = float(row["cpu_s"])
    ffmpeg = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    where = _report.environment(("av", "decord", "torchcodec", "torch", "numpy"))
    result = {"environment": where, "ffmpeg": ffmpeg, "settings": settings, "targets": targets}
    result |= {"table": table, "rows": rows}
    path = _report.write(options.name, result)
    columns = ["CPU s (median)", *ARMS, "decord / ours", "ours / ffmpeg", "ours / ffmpeg-rgb"]
    _report.show(f"{where['cpu']}, {options.threads} threads, commit {where['commit']}", columns, lines)
    sys.stdout.write(f"written to {path.relative_to(_report.ROOT)}\n")


if __name__ == "__main__":
    main()
