"""`closeup cache` at work: build, build again, use, list, check, clear."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.models.featurecache import FeatureCache
from closeup.agent.models.load import load_adapter
from closeup.agent.models.media import MediaStore
from closeup.agent.policies.base import Sampling
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.agent.trajectory import Trajectory
from closeup.app.cache import default_folder, size_text
from closeup.tools.video import clear_caches
from closeup.tools.video.reader import Video


@pytest.fixture
def tasks(examples: Path, tmp_path: Path) -> Path:
    """Two of the bundled tasks, with gold windows."""
    lines = (examples / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[:2]):
        shutil.copy(examples / row["video"], tmp_path)
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    return tmp_path / "tasks.jsonl"


def built(cli: Any, tasks: Path, *more: str) -> dict[str, Any]:
    ran = cli("cache", "build", tasks, "--dir", tasks.parent / "kept", "--json", *more)
    assert ran.code in (0, 1) and not ran.err.startswith("closeup: internal"), ran
    report: dict[str, Any] = json.loads(ran.out)
    return report | {"code": ran.code, "err": ran.err}


def test_a_build_goes_on_where_it_stopped(cli: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(cli, tasks, "--limit", "1")
    assert (first["code"], first["tasks"], first["encoded"], first["present"], first["failed"]) == (0, 1, 1, 0, [])
    assert first["bytes"] > 0 and first["dir"] == str(tasks.parent / "kept")
    second = built(cli, tasks)
    assert (second["encoded"], second["present"]) == (1, 1)
    decoded: list[Any] = []
    monkeypatch.setattr(Video, "frames", lambda self, *args, **more: decoded.append(args))
    third = built(cli, tasks)
    assert (third["encoded"], third["present"], decoded) == (0, 2, [])


def test_the_gold_windows_are_encoded_when_asked(cli: Any, tasks: Path) -> None:
    windows = sum(len(task.evidence) for task in load_tasks(tasks))
    assert windows >= 2
    assert built(cli, tasks, "--evidence")["encoded"] == 2 + windows


def test_an_episode_on_a_warm_cache_is_the_same_and_decodes_no_overview(
    cli: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(cli, tasks)
    asked: list[Any] = []
    decode = Video.frames

    def frames(self: Video, clip: Any, *args: Any, **more: Any) -> Any:
        asked.append(clip)
        return decode(self, clip, *args, **more)

    monkeypatch.setattr(Video, "frames", frames)

    def episodes(folder: Path | None) -> tuple[list[Trajectory], TransformersPolicy, int]:
        asked.clear()
        policy = TransformersPolicy("tiny", feature_cache_dir=folder)
        preset = get_preset("tiny")
        found = run_episodes(load_tasks(tasks), policy, preset=preset, sampling=Sampling(max_new_tokens=96), seed=0)
        return found, policy, len(asked)

    plain, _, all_clips = episodes(None)
    warm, policy, fewer = episodes(tasks.parent / "kept")
    again, last, none = episodes(tasks.parent / "kept")
    assert all_clips > 2 and fewer == all_clips - 2 and none == 0
    assert policy.media.loaded == 2 and last.media.encoded == 0
    for other in (warm, again):
        assert [[step.text for step in t.steps] for t in other] == [[step.text for step in t.steps] for t in plain]
        for one, two in zip(other, plain, strict=True):
            bare = {key: record.model_copy(update={"seconds": 0.0}) for key, record in two.clips.items()}
            assert {key: r.model_copy(update={"seconds": 0.0}) for key, r in one.clips.items()} == bare
            for a, b in zip(one.steps, two.steps, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_an_evaluation_takes_what_is_kept(cli: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tasks.parent / "kept"
    plain = cli("eval", tasks, "--out", tasks.parent / "plain", "--json")
    assert cli("eval", tasks, "--out", tasks.parent / "x", "--feature-cache", tasks).code == 2
    built(cli, tasks)
    clear_caches()
    loaded: list[Any] = []
    get = FeatureCache.get
    monkeypatch.setattr(FeatureCache, "get", lambda *args, **more: loaded.append(get(*args, **more)) or loaded[-1])
    cached = cli("eval", tasks, "--out", tasks.parent / "cached", "--json", "--feature-cache", kept)
    assert (plain.code, cached.code) == (0, 0)
    assert sum(found is not None for found in loaded) >= 2, "the overviews"
    same = [{k: v for k, v in json.loads(ran.out)["overall"].items() if k != "seconds"} for ran in (plain, cached)]
    assert same[0] == same[1]


def test_what_cannot_be_had_is_named(cli: Any, tasks: Path) -> None:
    rows = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    rows[0]["evidence"] = [[1, 60]]
    rows[1]["video"] = "gone.mp4"
    tasks.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ran = cli("cache", "build", tasks, "--dir", tasks.parent / "kept", "--evidence")
    assert ran.code == 1
    assert f"{rows[0]['id']}: gold window [1, 60] s: " in ran.out and f"{rows[1]['id']}: there is no file" in ran.out
    assert "2 tasks: 1 clips encoded, 0 there already, 2 failed" in ran.out
    short = cli("cache", "build", tasks, "--dir", tasks.parent / "kept", "--evidence", "--show", "1")
    assert "… and 1 more" in short.out


def test_videos_that_share_an_identity_do_not_share_features(
    cli: Any, twins: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [
        {"id": path.stem, "video": str(path), "question": "Which colour?", "options": ["red", "blue"], "answer": "red"}
        for path in twins
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first = built(cli, tmp_path / "tasks.jsonl")
    assert (first["encoded"], first["present"], first["failed"]) == (2, 0, [])
    clear_caches()  # another process comes
    assert [built(cli, tmp_path / "tasks.jsonl")[key] for key in ("encoded", "present")] == [0, 2]
    cache = FeatureCache(tmp_path / "kept")
    adapter = load_adapter("tiny", device="cpu")
    adapter.records = cache
    found = []
    for path in twins:
        with Video(path) as video:
            clip = get_preset("tiny").overview.clip(video.identity, video.duration)
            shown = adapter.encode([Message.of("user", clip)], {video.identity: video})
            assert not shown.frames, "the overview is known"
            with torch.no_grad():
                (kept,) = MediaStore(adapter, max_bytes=0, disk=cache).features(shown.media, lambda m: pytest.fail("m"))
                (fresh,) = adapter.encode_clips([adapter.frames(shown.media[0], {video.identity: video})])
            torch.testing.assert_close(kept, fresh, rtol=1e-4, atol=1e-4)
            found.append(kept)
    assert not torch.allclose(*found, atol=1e-2)


def test_a_full_cache_ends_the_build_and_loses_nothing(cli: Any, tasks: Path) -> None:
    needed = built(cli, tasks)["bytes"]
    shutil.rmtree(tasks.parent / "kept")
    first = built(cli, tasks, "--max-gib", str((needed - 1) / 2**30))  # one of the two overviews fits
    assert first["full"] and first["code"] == 1 and first["encoded"] == 1
    assert "is full" in first["err"] and "--max-gib" in first["err"]
    more = built(cli, tasks, "--max-gib", "1")
    assert (more["full"], more["encoded"], more["present"]) == (False, 1, 1)


def test_a_build_with_less_room_than_is_taken_removes_nothing(cli: Any, tasks: Path) -> None:
    taken = built(cli, tasks)["bytes"]
    held = sorted((tasks.parent / "kept").rglob("*.safetensors"))
    ran = cli("cache", "build", tasks, "--dir", tasks.parent / "kept", "--max-gib", str(taken / 2 / 2**30))
    assert ran.code == 2 and "holds" in ran.err and "closeup cache clear --dir" in ran.err, ran
    assert sorted((tasks.parent / "kept").rglob("*.safetensors")) == held
    assert "of at most 64 GiB" in cli("cache", "ls", "--dir", tasks.parent / "kept").out


@pytest.mark.parametrize("option", ["--fingerprint", "--entry"])
def test_an_empty_option_clears_nothing(cli: Any, tasks: Path, option: str) -> None:
    """As it comes of a shell variable that is not set."""
    built(cli, tasks, "--limit", "1")
    before = sorted((tasks.parent / "kept").rglob("*.*"))
    ran = cli("cache", "clear", "--dir", tasks.parent / "kept", option, "")
    assert ran.code == 2 and f"{option} is empty" in ran.err and "leave it out" in ran.err, ran
    assert sorted((tasks.parent / "kept").rglob("*.*")) == before
    both = ("--fingerprint", "", "--entry", "")
    assert cli("cache", "clear", "--dir", tasks.parent / "kept", *both).code == 2
    assert sorted((tasks.parent / "kept").rglob("*.*")) == before


def test_files_of_others_in_the_folder_are_passed_over(cli: Any, tasks: Path) -> None:
    folder = tasks.parent / "kept"
    built(cli, tasks, "--limit", "1")
    listed = cli("cache", "ls", "--dir", folder, "--json").out
    for stray in ("features/stray.txt", "records/stray.json", "features/notes/stray.bin"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text("mine", encoding="utf-8")
    assert cli("cache", "ls", "--dir", folder, "--json").out == listed
    assert cli("cache", "ls", "--dir", folder, "--check").out.endswith("0 damaged entries\n")
    assert cli("cache", "clear", "--dir", folder).code == 0
    assert (folder / "features/stray.txt").is_file() and (folder / "records/stray.json").is_file()


def test_list_check_and_clear(cli: Any, tasks: Path) -> None:
    folder = tasks.parent / "kept"
    built(cli, tasks)
    shown = cli("cache", "ls", "--dir", folder)
    assert shown.code == 0 and "tiny" in shown.out and "float32" in shown.out and "of at most 64 GiB" in shown.out
    groups = json.loads(cli("cache", "ls", "--dir", folder, "--json").out)["groups"]
    assert [(group["model"], group["entries"]) for group in groups] == [("tiny", 2), (None, 2)]
    assert groups[0]["weights"][:12] in shown.out
    assert cli("cache", "ls", "--dir", folder, "--check").out.endswith("0 damaged entries\n")
    file = next((folder / "features").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    broken = cli("cache", "ls", "--dir", folder, "--check")
    assert broken.code == 1 and str(file) in broken.out and "1 damaged entries" in broken.out
    command = broken.out.split("Remove it with: closeup ")[1].split("\n")[0].split()
    removed = cli(*command)
    assert removed.code == 0 and removed.out.startswith("removed 1 files, ")
    assert cli(*command).code == 1  # it is gone
    assert built(cli, tasks)["encoded"] == 1
    assert cli("cache", "clear", "--dir", folder, "--fingerprint", "zz").code == 1
    assert "removed 3 files" in cli("cache", "clear", "--dir", folder, "--fingerprint", groups[0]["weights"][:12]).out
    assert "removed 2 files" in cli("cache", "clear", "--dir", folder).out
    assert json.loads(cli("cache", "ls", "--dir", folder, "--json").out)["groups"] == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("ls", "--dir", "{tmp}/nowhere"), "there is no feature cache at"),
        (("clear", "--dir", "{tmp}"), "there is no feature cache at"),
        (("clear", "--dir", "{tmp}/kept", "--entry", "a", "--fingerprint", "b"), "not both"),
        (("build", "{tmp}/gone.jsonl"), "no task file at"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}"), "is no feature cache: it holds"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--max-gib", "0"), "above 0"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--max-gib", "inf"), "got inf"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--max-gib", "nan"), "got nan"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--max-gib", "1e-10"), "got 1e-10"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--max-gib", "1e300"), "got 1e+300"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--device", "mps"), "device is auto, cpu, cuda or cuda:N"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--device", "meta"), "device is auto, cpu, cuda or cuda:N"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--model", "nope"), "no model 'nope'"),
        (("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--dtype", "int8"), "dtype is auto"),
        (
            ("build", "{tmp}/tasks.jsonl", "--dir", "{tmp}/x", "--preset", "tiny-direct", "--evidence"),
            "no tool zoom_clip",
        ),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(cli: Any, tasks: Path, args: tuple[str, ...], says: str) -> None:
    if "not both" in says:
        built(cli, tasks, "--limit", "1")
    ran = cli("cache", *(arg.replace("{tmp}", str(tasks.parent)) for arg in args))
    assert ran.code == 2 and says in ran.err and ran.err.count("\n") == 1, ran
    assert [path.suffix for path in tasks.parent.iterdir() if path.is_file()].count(".jsonl") == 1


def test_the_folder_can_be_named_by_the_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CLOSEUP_CACHE", raising=False)
    assert default_folder() == tmp_path / "closeup" / "features"
    monkeypatch.setenv("CLOSEUP_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_sizes_are_for_people() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 64 << 30, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "64 GiB",
        "1024 TiB",
    ]
