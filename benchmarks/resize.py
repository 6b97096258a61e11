"""The two resizers against the stock processors: pixels, features of the bundled model, and what a frame costs.

    python benchmarks/resize.py [--videos FOLDER] [--large NAME] [--frames N] [--repeat N]      results/resize-cpu.json

Pixels: frames of every clip in FOLDER are decoded as PyAV gives them to a stock processor (whole RGB pictures), then
resized by two oracles: "pil", the `resize` of transformers' PIL image processor of Qwen2-VL, and "torch", torch's
integer antialiased bicubic filter, which torchvision's resize of a uint8 tensor on a CPU is. Each of our resizers gives
the same frames at the same size through `Video.frames`; differences are in levels of 255, over all clips. Features: the
bundled model's tower on both, |ours - theirs| / |theirs| (Frobenius) over all clips.

Cost: CPU milliseconds of one core per frame of a 1920x1080 H.264 file that is made here from one clip, enlarged; every
frame in order through `Video.frames` with no frame kept, and the step from the decoder's picture to the frame alone.
Arms take turns in random order within each repetition.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

sys.path.insert(0, str(Path(__file__).parent))
import _report

from closeup.agent.geometry import VisionGeometry
from closeup.agent.models.load import load_adapter
from closeup.tools.video import Video, VideoError, probe, set_cache_limits
from closeup.tools.video.clip import Resizer
from closeup.tools.video.orientation import UPRIGHT
from closeup.tools.video.pixels import bicubic, to_rgb

SEED, THREADS = 0, 1
ARMS: tuple[Resizer, ...] = ("swscale-bilinear", "bicubic")
AREAS = {"tiny close look": 112 * 112, "overview": 32 * 28 * 28, "close look": 256 * 28 * 28}
HD = (1080, 1920)
Pixels = NDArray[np.uint8]


def frames_of(path: Path, count: int) -> tuple[list[float], list[Pixels]]:
    """Times in seconds and whole RGB pictures of `count` frames spread over the middle of a clip."""
    with Video(path, threads=THREADS) as video:
        if video.rotation:
            raise ValueError(f"{path} is turned by its container; the oracle here takes upright clips")
        asked = [video.duration * (n + 0.5) / count for n in range(count)]
        times = list(map(float, video.frames(asked, (16, 16)).times))
        start, stream = video.start_time, probe(path).stream
    found: dict[float, Pixels] = {}
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams[stream]):
            near = min(times, key=lambda time: abs(time - (float(frame.time) - start)))
            if abs(near - (float(frame.time) - start)) < 1e-4:
                found[near] = frame.to_ndarray(format="rgb24")
    return times, [found[time] for time in times]


def by_pillow(pictures: list[Pixels], size: tuple[int, int]) -> Pixels:
    """The stock PIL processor's own resize, after its choice of a size (which is ours: test_sizes.py)."""
    stock = Qwen2VLImageProcessorPil()
    resize, bounds = super(Qwen2VLImageProcessorPil, stock).resize, SizeDict(height=size[0], width=size[1])
    return np.stack([resize(p.transpose(2, 0, 1), bounds, stock.resample).transpose(1, 2, 0) for p in pictures])


def by_torch(pictures: list[Pixels], size: tuple[int, int]) -> Pixels:
    """What torchvision's resize of uint8 pictures is on a CPU."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(stacked, size=size, mode="bicubic", antialias=True, align_corners=False)
    return out.permute(0, 2, 3, 1).numpy()


def compare(folder: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per clip, area, arm and oracle; and the whole, by area, arm and oracle."""
    adapter = load_adapter("tiny", device="cpu")
    rows: list[dict[str, Any]] = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".webm", ".mov")):
        try:
            times, pictures = frames_of(path, count)
        except VideoError as error:
            raise SystemExit(f"{path}: {error}") from None
        height, width = pictures[0].shape[:2]
        for name, area in AREAS.items():
            size = VisionGeometry().size(width, height, area)
            oracles = {"pil": by_pillow(pictures, size), "torch": by_torch(pictures, size)}
            with Video(path, threads=THREADS) as video:
                ours = {arm: video.frames(times, size, resizer=arm).pixels for arm in ARMS}
            with torch.no_grad():
                told = {key: adapter.encode_clips([pixels])[0] for key, pixels in (*ours.items(), *oracles.items())}
            for arm in ARMS:
                for oracle, theirs in oracles.items():
                    apart = np.abs(ours[arm].astype(int) - theirs)
                    rows.append(
                        {
                            "clip": path.name,
                            "source": [height, width],
                            "area": name,
                            "size": list(size),
                            "arm": arm,
                            "oracle": oracle,
                            "values": apart.size,
                            "max": int(apart.max()),
                            "mean": float(apart.mean()),
                            "above 2": float((apart > 2).mean()),
                            "features": float((told[arm] - told[oracle]).norm() / told[oracle].norm()),
                            "squares": [
                                float((told[arm] - told[oracle]).square().sum()),
                                float(told[oracle].square().sum()),
                            ],
                        }
                    )
    table: dict[str, Any] = {}
    for name in AREAS:
        for arm in ARMS:
            for oracle in ("pil", "torch"):
                of = [r for r in rows if (r["area"], r["arm"], r["oracle"]) == (name, arm, oracle)]
                values = sum(r["values"] for r in of)
                table.setdefault(name, {}).setdefault(arm, {})[oracle] = {
                    "max": max(r["max"] for r in of),
                    "mean": sum(r["mean"] * r["values"] for r in of) / values,
                    "above 2": sum(r["above 2"] * r["values"] for r in of) / values,
                    "features": (sum(r["squares"][0] for r in of) / sum(r["squares"][1] for r in of)) ** 0.5,
                    "features, worst clip": max(r["features"] for r in of),
                }
    return rows, table


def write_hd(source: Path, path: Path, count: int) -> None:
    """`count` frames of `source`, enlarged to 1920x1080, as H.264."""
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = HD[1], HD[0], "yuv420p"
        for number, frame in enumerate(reading.decode(video=0)):
            if number == count:
                break
            large = frame.reformat(width=HD[1], height=HD[0], format="yuv420p", interpolation="BICUBIC")
            large.pts, large.time_base = number, Fraction(1, 25)
            writing.mux(stream.encode(large))
        writing.mux(stream.encode(None))


def costs(source: Path, repeat: int, count: int = 60) -> dict[str, Any]:
    """CPU milliseconds per 1080p frame by area and arm: the whole call, and the step from picture to frame alone."""
    order = random.Random(SEED)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hd.mp4"
        write_hd(source, path, count)
        with av.open(str(path)) as container:
            decoded = [frame for number, frame in enumerate(container.decode(video=0)) if number % 6 == 0]
        sizes = {name: VisionGeometry().size(HD[1], HD[0], area) for name, area in AREAS.items()}
        for _ in range(repeat):
            jobs = [(name, arm) for name in AREAS for arm in ARMS]
            order.shuffle(jobs)
            for name, arm in jobs:
                taken = found.setdefault(name, {"size": list(sizes[name])}).setdefault(arm, {"call": [], "step": []})
                with Video(path, threads=THREADS) as video:
                    times = [(n + 0.5) / 25 for n in range(count)]
                    began = time.process_time()
                    video.frames(times, sizes[name], resizer=arm)
                    taken["call"].append((time.process_time() - began) / count)
                reformatter = VideoReformatter()
                began = time.process_time()
                for frame in decoded:
                    if arm == "bicubic":
                        bicubic(to_rgb(frame, None, UPRIGHT, reformatter), sizes[name])
                    else:
                        to_rgb(frame, sizes[name], UPRIGHT, reformatter)
                taken["step"].append((time.process_time() - began) / len(decoded))
    for table in found.values():
        for arm in ARMS:
            for part in ("call", "step"):
                table[arm][f"{part} median"] = statistics.median(table[arm][part])
    return found


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=_report.ROOT.parent / "shared" / "videos")
    parser.add_argument("--frames", type=int, default=8, help="frames of each clip that are compared")
    parser.add_argument("--large", default="bigbuckbunny.mp4", help="clip of FOLDER whose enlarged frames are timed")
    parser.add_argument("--repeat", type=int, default=7, help="repetitions of the cost measurement")
    options = parser.parse_args()
    if not (options.videos / options.large).is_file():
        parser.error(f"there is no {options.videos / options.large}; give clips with --videos FOLDER --large NAME")
    torch.set_num_threads(THREADS)
    rows, table = compare(options.videos, options.frames)
    set_cache_limits(frames_bytes=0)
    cost = costs(options.videos / options.large, options.repeat)
    for row in rows:
        del row["squares"], row["values"]
    targets = {
        "bicubic equals the stock PIL processor bit for bit": all(
            row["max"] == 0 for row in rows if (row["arm"], row["oracle"]) == ("bicubic", "pil")
        ),
        "bicubic is within 2 levels of torch's filter": all(
            row["max"] <= 2 for row in rows if (row["arm"], row["oracle"]) == ("bicubic", "torch")
        ),
    }
    result = {
        "environment": _report.environment(("av", "pillow", "torch", "transformers", "numpy"))
        | {"torch kernels": torch.backends.cpu.get_cpu_capability()},
        "settings": {"seed": SEED, "threads": THREADS, "frames": options.frames, "repeat": options.repeat}
        | {"clips": sorted({row["clip"] for row in rows}), "cost clip": options.large, "areas": AREAS},
        "table": table,
        "cost": cost,
        "rows": rows,
        "targets": targets,
    }
    path = _report.write("resize-cpu", result)
    lines = []
    for name in AREAS:
        for arm in ARMS:
            pil, by = table[name][arm]["pil"], table[name][arm]["torch"]
            lines.append(
                [f"{name}, {arm}", f"{pil['max']} / {pil['mean']:.3f}", f"{by['max']} / {by['mean']:.3f}"]
                + [f"{100 * pil['features']:.2f} %", f"{100 * by['features']:.3f} %"]
                + [f"{1000 * cost[name][arm][part + ' median']:.1f}" for part in ("step", "call")]
            )
    columns = ["frames", "PIL: max / mean", "torch: max / mean", "features, PIL", "torch", "step ms", "call ms"]
    _report.show(f"resizing ({path.name})", columns, lines)
    missed = [name for name, met in targets.items() if not met]
    if missed:
        raise SystemExit(f"not met: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
