"""Pictures: the frames that were seen, bounded, and nothing at all when the film is not the one that was watched."""

from __future__ import annotations

import base64
import io
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from closeup.app import pictures as module
from closeup.app.pictures import Pictures, data_url, thinned
from closeup.app.scene import Film, Look
from closeup.tools.video import Video


def film_at(path: Path) -> Film:
    with Video(path) as video:
        return Film(video.identity, path.name, str(path), video.duration, video.width, video.height, video.fps, "h264")


def look_at(film: Film, *times: float, size: tuple[int, int] = (28, 28), kind: str = "overview") -> Look:
    return Look(film.id, min(times), max(times), times, size, 1, "exact", kind)  # type: ignore[arg-type]


def pixels(url: str) -> np.ndarray:
    head, _, body = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body, validate=True))).convert("RGB"))


@pytest.fixture
def film(make_video) -> Film:  # type: ignore[no-untyped-def]
    return film_at(make_video(seconds=20, size=(112, 168)))


def test_a_strip_shows_the_frames_the_agent_saw(film: Film) -> None:
    strip = Pictures().strip(film, look_at(film, 0.0, 10.0, 19.0))
    assert [picture.time for picture in strip.pictures] == [0, 10, 19] and strip.left_out == 0 and strip.why == ""
    with Video(film.path) as video:
        wanted = video.frames([0.0, 10.0, 19.0], (28, 28)).pixels
    for picture, frame in zip(strip.pictures, wanted, strict=True):
        assert (picture.width, picture.height, picture.film) == (28, 28, "")
        assert np.abs(pixels(picture.url).astype(int) - frame).mean() < 4  # JPEG, not another frame
    shades = [pixels(picture.url).mean() for picture in strip.pictures]
    assert shades[0] + 20 < shades[1] and shades[1] + 20 < shades[2]


def test_the_film_itself_comes_beside_it_when_asked_for(film: Film) -> None:
    (picture,) = Pictures(film_side=84).strip(film, look_at(film, 5.0)).pictures
    assert pixels(picture.film).shape == (56, 84, 3) and pixels(picture.url).shape == (28, 28, 3)
    (large,) = Pictures(film_side=9999).strip(film, look_at(film, 5.0)).pictures
    assert pixels(large.film).shape == (112, 168, 3)  # never larger than it is


def test_a_large_frame_is_drawn_smaller_and_a_black_one_black(film: Film) -> None:
    (picture,) = Pictures().strip(film, look_at(film, 5.0, size=(672, 1008), kind="close")).pictures
    assert max(picture.width, picture.height) == module.SIDE["close"]
    blank = replace(look_at(film, 5.0), overlay="blank")
    assert pixels(Pictures().strip(film, blank).pictures[0].url).max() == 0


def test_many_frames_are_thinned_and_the_rest_counted(film: Film) -> None:
    times = tuple(i / 10 for i in range(200))
    strip = Pictures(max_frames=7).strip(film, look_at(film, *times))
    assert len(strip.pictures) == 7 and strip.left_out == 193
    assert (strip.pictures[0].time, strip.pictures[-1].time) == (0.0, 19.9)


def test_a_film_that_went_away_or_is_another_one_gives_no_picture(tmp_path: Path, make_video) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "film.mp4"
    shutil.copy(make_video(seconds=4), path)
    film, pictures = film_at(path), Pictures()
    path.unlink()
    gone = pictures.strip(film, look_at(film, 1.0))
    assert gone.pictures == () and "film.mp4 is not there any more" in gone.why
    shutil.copy(make_video(seconds=4, shade=50), path)
    assert "another file stands where film.mp4 was" in pictures.strip(film, look_at(film, 1.0)).why
    path.write_bytes(b"no film at all")
    assert pictures.strip(film, look_at(film, 1.0)).why
    shutil.copy(make_video(seconds=4), path)
    assert len(pictures.strip(film, look_at(film, 1.0)).pictures) == 1  # and it is found when it is back


def test_a_look_of_an_unknown_film_and_a_record_without_sense_give_no_picture(film: Film) -> None:
    assert Pictures().strip(None, look_at(film, 1.0)).why
    assert Pictures().strip(film, look_at(film, 1.0, size=(0, 28))).why
    assert Pictures().strip(film, look_at(film, float("nan"))).why


def test_a_moved_film_is_found_where_it_is_now(tmp_path: Path, film: Film) -> None:
    away = replace(film, path=str(tmp_path / "was-here.mp4"))
    assert not Pictures().strip(away, look_at(film, 1.0)).pictures
    assert Pictures({film.id: Path(film.path)}).strip(away, look_at(film, 1.0)).pictures


def test_pictures_are_made_once_and_what_is_kept_is_bounded(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    whole = module.data_url
    monkeypatch.setattr(module, "data_url", lambda *a, **k: made.append(a) or whole(*a, **k))
    pictures = Pictures(max_bytes=20_000)
    first = pictures.strip(film, look_at(film, 1.0, 2.0))
    assert pictures.strip(film, look_at(film, 1.0, 2.0)) is first and len(made) == 2
    for second in range(3, 20):
        pictures.strip(film, look_at(film, float(second), second + 0.5))
    assert 0 < pictures._bytes <= 20_000
    assert pictures._bytes == sum(p.bytes for strip in pictures._kept.values() for p in strip.pictures)
    again = pictures.strip(film, look_at(film, 1.0, 2.0))
    assert again == first and again is not first  # it was dropped, and made again the same
    assert Pictures(max_bytes=10).strip(film, look_at(film, 1.0)).pictures  # larger than what may be kept: not kept


def test_threads_may_share_them(film: Film) -> None:
    pictures, found = Pictures(), []
    threads = [
        threading.Thread(target=lambda: found.append(pictures.strip(film, look_at(film, 1.0, 5.0)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1
    assert pictures._bytes == sum(picture.bytes for picture in found[0].pictures)


@pytest.mark.parametrize("wrong", [{"film_side": -1}, {"max_frames": 0}, {"max_bytes": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Pictures(**wrong)


def test_thinning_keeps_order_and_ends() -> None:
    assert thinned([1, 2, 3, 4, 5], 3) == [1, 3, 5] and thinned([1, 2], 3) == [1, 2] and thinned([1, 2], 1) == [1]


def test_small_pictures_keep_their_colours() -> None:
    stripes = np.zeros((28, 28, 3), np.uint8)
    stripes[::2] = (255, 0, 0)
    assert np.abs(pixels(data_url(stripes)).astype(int) - stripes).mean() < 12
