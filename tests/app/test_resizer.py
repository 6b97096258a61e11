"""A preset file that resizes as the stock processors do, through `closeup ask`, `closeup replay` and the viewer."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from closeup.agent.preset import get_preset
from closeup.agent.trajectory import read_trajectories
from closeup.app.pictures import Pictures
from closeup.app.scene import scene_of
from closeup.tools.video import Video

ASK = ("Which digit is in the orange box?", "--option", "5", "--option", "1", "--option", "6", "--option", "7")


def bicubic_preset(path: Path) -> Path:
    written = json.loads(get_preset("tiny").model_dump_json())
    written["overview"]["resizer"] = "bicubic"
    path.write_text(json.dumps(written))
    return path


def test_ask_replay_and_the_viewer_follow_the_presets_resizer(cli, examples: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With the bundled model: it was trained on the other resizer and still reads the digit."""
    preset, saved = bicubic_preset(tmp_path / "mine.json"), tmp_path / "runs.jsonl"
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", preset, "--save", saved, "--json")
    assert ran.code == 0 and json.loads(ran.out)["choice"] == "C"
    (run,) = read_trajectories(saved)
    assert {record.clip.resizer for record in run.clips.values()} == {"bicubic"} and len(run.clips) >= 2
    assert cli("replay", saved).code == 0
    scene = scene_of(run)
    looks = [look for _, look in scene.watched if look.kind == "close"]
    assert looks and {look.resizer for _, look in scene.watched} == {"bicubic"}
    (film,) = scene.films
    shown = Pictures().strip(film, looks[0]).pictures
    with Video(examples / "digit.mp4") as video:
        wanted = {
            resizer: video.frames(looks[0].times, looks[0].size, resizer=resizer).pixels  # type: ignore[arg-type]
            for resizer in ("bicubic", "swscale-bilinear")
        }
    apart = dict.fromkeys(wanted, 0.0)
    for number, picture in enumerate(shown):
        jpeg = base64.b64decode(picture.url.partition(",")[2])
        seen = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
        for resizer, frames in wanted.items():
            apart[resizer] += float(np.abs(seen - frames[number]).mean())
    assert apart["bicubic"] < apart["swscale-bilinear"], "the viewer shows the pixels that the model saw"


def test_a_preset_file_with_an_unknown_resizer_is_bad_input(cli, examples: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = bicubic_preset(tmp_path / "mine.json")
    path.write_text(path.read_text().replace("bicubic", "lanczos"))
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", path)
    assert ran.code == 2 and ran.out == ""
    assert "overview.resizer" in ran.err and "'swscale-bilinear' or 'bicubic'" in ran.err
