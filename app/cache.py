"""`closeup cache`: encode a task file's clips ahead of training, see what is kept, remove it.

`build` walks the tasks in order; what is there already is skipped without decoding or encoding, so a build that was
stopped goes on where it was, and several may run at once. It never makes room by removing: a full cache ends it, and
less room than is taken is refused.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from closeup.app.errors import NO_ANSWER, BadInput, complain
from closeup.app.progress import bar
from closeup.app.setup import Overrides, choose_preset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from closeup.agent.contract import Observation
    from closeup.agent.environment import VideoQAEnv
    from closeup.agent.models.adapter import Adapter
    from closeup.agent.models.featurecache import FeatureCache
    from closeup.agent.models.media import FrameSource, MediaStore
    from closeup.agent.task import Task
    from closeup.tools.video.clip import Clip

MEMORY = 1 << 20
"""Bytes of features a build keeps in memory: nothing is asked for twice."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The arguments of `closeup cache build`, as typed."""

    tasks: Path
    model: str = "tiny"
    preset: str | None = None
    folder: Path | None = None
    evidence: bool = False
    max_gib: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    limit: int | None = None
    show: int = 10
    as_json: bool = False


@dataclass(slots=True)
class Built:
    """What a build did: clips encoded, clips that were there already, and what could not be had, with reasons."""

    tasks: int = 0
    encoded: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    full: str = ""


def default_folder() -> Path:
    """`$CLOSEUP_CACHE`, or `closeup/features` in the user's cache folder."""
    if named := os.environ.get("CLOSEUP_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "closeup" / "features"


def build(options: BuildOptions) -> int:
    """Encode the clips of a task file; 0 when all of them are in the cache, else 1. Raises what becomes a sentence."""
    from closeup.agent.task import load_tasks

    tasks = load_tasks(options.tasks)[: options.limit]
    preset = choose_preset(options.model, options.preset, Overrides())
    limit = None if options.max_gib is None else _bytes_of(options.max_gib)
    from closeup.agent.environment import VideoQAEnv
    from closeup.agent.models.featurecache import FeatureCache
    from closeup.agent.models.load import load_adapter
    from closeup.agent.models.media import MediaStore

    if options.evidence and "zoom_clip" not in VideoQAEnv(preset).tools:
        raise BadInput(f"--evidence zooms at the gold windows, and the preset {preset.name!r} has no tool zoom_clip")
    cache = FeatureCache(options.folder or default_folder(), max_bytes=limit, when_full="refuse")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `setup.open_policy`
    adapter = load_adapter(options.model, dtype=options.dtype, device=options.device, timestamps=preset.timestamps)
    adapter.records = cache
    store = MediaStore(adapter, max_bytes=MEMORY, disk=cache)
    done = Built(tasks=len(tasks))
    with bar("cache", len(tasks)) as advance, VideoQAEnv(preset, geometry=adapter.geometry) as env:
        seen: set[str] = set()
        for number, task in enumerate(tasks, 1):
            _fill(task, env, adapter, store, done, seen, evidence=options.evidence)
            if done.full:
                break
            advance(number)
    _report(done, cache, options)
    return NO_ANSWER if done.failed or done.full else 0


def _bytes_of(gib: float) -> int:
    size = gib * 2**30
    if not 1 <= size < 2**63:  # false of NaN too
        raise BadInput(
            f"--max-gib is the size of the cache in GiB, above 0 (at least one byte) and finite; got {gib:g}"
        )
    return int(size)


def _fill(
    task: Task, env: VideoQAEnv, adapter: Adapter, store: MediaStore, done: Built, seen: set[str], *, evidence: bool
) -> None:
    """Encode one task's clips; what cannot be had is noted in `done`."""
    import torch

    from closeup.agent.messages import Message
    from closeup.agent.models.adapter import EncodeError
    from closeup.agent.models.featurecache import CacheError, CacheFull
    from closeup.tools.video import VideoError

    try:
        start = env.reset(task)
        clips = list(start.overviews)
        if evidence:
            for clip, fault in _zooms(task, env, start):
                if clip is None:
                    done.failed.append((task.id, fault))
                else:
                    clips.append(clip)
        for clip in clips:
            place = f"{start.videos[clip.video].path}:{clip.key}"  # two large files may share an identity
            if place in seen:
                continue
            shown = adapter.encode([Message.of("user", clip)], start.videos, add_generation_prompt=False)
            (item,) = shown.media
            if store.holds(item):
                done.present += 1
            else:
                pixels = shown.frames[item.key] if item.key in shown.frames else adapter.frames(item, start.videos)
                with torch.no_grad():
                    store.features([item], _giving(pixels))
                done.encoded += 1
            seen.add(place)
    except CacheFull as error:
        done.full = str(error)
    except CacheError:
        raise
    except (VideoError, EncodeError, ValueError) as error:
        done.failed.append((task.id, str(error)))


def _giving(pixels: NDArray[np.uint8]) -> FrameSource:
    return lambda media: pixels


def _zooms(task: Task, env: VideoQAEnv, start: Observation) -> Iterator[tuple[Clip | None, str]]:
    """The close look at each gold window that the preset's rules allow; otherwise None and why not."""
    from closeup.tools.base import ToolContext, ToolError
    from closeup.tools.zoom_clip import ZoomArgs, ZoomClip

    if len(task.videos) != 1:
        if task.evidence:
            yield None, f"{len(task.videos)} videos: gold windows do not say which of them they are in"
        return
    context = ToolContext(videos=tuple(start.videos.values()), seen=start.overviews, rules=env.preset.rules)
    for first, last in task.evidence:
        try:
            yield ZoomClip().run(ZoomArgs(start=first, end=last), context).clips[0], ""
        except ToolError as error:
            yield None, f"gold window [{first:g}, {last:g}] s: {error}"


def _report(done: Built, cache: FeatureCache, options: BuildOptions) -> None:
    held = cache.summary()
    entries, size = sum(group.entries for group in held if group.maker), sum(group.bytes for group in held)
    if options.as_json:
        report = {
            "tasks": done.tasks,
            "encoded": done.encoded,
            "present": done.present,
            "failed": [{"task": task, "reason": reason} for task, reason in done.failed],
            "full": bool(done.full),
            "dir": str(cache.store.folder),
            "bytes": size,
        }
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for task, reason in done.failed[: options.show]:
            sys.stdout.write(f"{task}: {reason}\n")
        if len(done.failed) > options.show:
            sys.stdout.write(f"… and {len(done.failed) - options.show} more; see more with --show N\n")
        counts = f"{done.encoded} clips encoded, {done.present} there already, {len(done.failed)} failed"
        sys.stdout.write(
            f"{done.tasks} tasks: {counts}\n"
            f"{cache.store.folder}: {entries} clips, {size_text(size)} of at most {size_text(cache.store.max_bytes)}\n"
        )
    if done.full:
        complain(f"{done.full}, or give build more with --max-gib")


def show(folder: Path | None, *, check: bool, as_json: bool) -> int:
    """List a cache by what made it; with `check` read every entry: 1 when one is damaged."""
    cache = _existing(folder)
    held = cache.summary()
    faults = list(cache.faults()) if check else []
    if as_json:
        rows = [
            {
                "key": group.key or None,
                "model": group.maker.model if group.maker else None,
                "weights": group.maker.weights if group.maker else None,
                "dtype": group.maker.dtype if group.maker else None,
                "device": group.maker.device if group.maker else None,
                "entries": group.entries,
                "bytes": group.bytes,
                "used": group.used,
            }
            for group in held
        ]
        report = {"dir": str(cache.store.folder), "max_bytes": cache.store.max_bytes, "groups": rows}
        sys.stdout.write(json.dumps(report | ({"faults": faults} if check else {})) + "\n")
        return NO_ANSWER if faults else 0
    from rich.console import Console
    from rich.table import Table

    table = Table("features of", "fingerprint", "dtype", "device", "entries", "size", "last used")
    for group in held:
        named = group.maker
        table.add_row(
            (named.model if named else "unknown model") if group.key else "(requests, decoded before)",
            (named.weights[:12] if named else group.key[:12]) if group.key else "",
            named.dtype if named else "",
            named.device if named else "",
            str(group.entries),
            size_text(group.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(group.used)),
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    size = size_text(sum(group.bytes for group in held))
    sys.stdout.write(f"{cache.store.folder}: {size} of at most {size_text(cache.store.max_bytes)}\n")
    for fault in faults:
        sys.stdout.write(fault + "\n")
    if check:
        sys.stdout.write(f"{len(faults)} damaged entries\n")
    return NO_ANSWER if faults else 0


def clear(folder: Path | None, *, fingerprint: str | None = None, entry: str | None = None) -> int:
    """Remove everything, or one model's features, or one entry, and say what went; 1 when nothing fitted.

    Raises `BadInput` for an empty fingerprint or entry: a shell variable that is not set must not remove everything.
    """
    for option, given in (("--fingerprint", fingerprint), ("--entry", entry)):
        if given is not None and not given.strip():
            raise BadInput(
                f"{option} is empty, so nothing was removed; give one that closeup cache ls names, or leave it out to "
                "remove everything"
            )
    if fingerprint is not None and entry is not None:
        raise BadInput("give --fingerprint or --entry, not both")
    cache = _existing(folder)
    if entry is not None:
        removed = cache.clear(name=entry)
    elif fingerprint is not None:
        keys = [
            group.key
            for group in cache.summary()
            if group.key and (group.maker.weights if group.maker else group.key).startswith(fingerprint)
        ]
        parts = [cache.clear(maker=key) for key in keys]
        removed = sum(count for count, _ in parts), sum(size for _, size in parts)
    else:
        removed = cache.clear()
    wanted = entry or (f"features of {fingerprint}" if fingerprint else "")
    if not removed[0] and wanted:
        complain(f"there is no {wanted} in {cache.store.folder}; see what is: closeup cache ls {cache.store.option}")
        return NO_ANSWER
    sys.stdout.write(f"removed {removed[0]} files, {size_text(removed[1])}, from {cache.store.folder}\n")
    return 0


def size_text(count: int) -> str:
    """Bytes for a person: "0 B", "1.5 MiB", "64 GiB"."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"


def _existing(folder: Path | None) -> FeatureCache:
    from closeup.agent.models.diskstore import MARKER
    from closeup.agent.models.featurecache import FeatureCache

    place = folder or default_folder()
    if not (place / MARKER).is_file():
        raise BadInput(f"there is no feature cache at {place}; make one with: closeup cache build TASKS.jsonl")
    return FeatureCache(place)
