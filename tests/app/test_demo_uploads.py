"""Uploads through the demo's front door: several visitors, other sites' pages, and a disk that fills up."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed (pip install 'closeup[demo]')", allow_module_level=True)

import httpx

from closeup.app.demo import Demo
from closeup.app.guard import _same_site
from closeup.app.page import launch
from closeup.app.settings import DemoSettings
from closeup.app.uploads import Uploads

_helpers = runpy.run_path(str(Path(__file__).with_name("slow_policy.py")))
SIZE = 900_000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Demo, str]]:
    """A demo whose disk holds two large uploads and a bit."""
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    policy = _helpers["SlowPolicy"](_helpers["zoom_and_answer"])
    demo = Demo(DemoSettings(port=0, max_upload_mb=1, max_disk_mb=2), load=lambda model, preset: policy)
    blocks, url = launch(demo)
    yield demo, url.rstrip("/")
    demo.close()
    blocks.close(verbose=False)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def send(url: str, content: bytes, **headers: str) -> httpx.Response:
    """Upload without taking it."""
    files = {"files": ("film.mp4", content)}
    return httpx.post(f"{url}/gradio_api/upload", files=files, headers=headers, timeout=60)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("visitors", [5, 1])
def test_the_same_film_may_be_uploaded_by_many_at_once(served: tuple[Demo, str], examples: Path, visitors: int) -> None:
    demo, url = served
    film = (examples / "colour.mp4").read_bytes()
    ready = threading.Barrier(5)

    def upload(number: int) -> str:
        ready.wait(30)
        (path,) = send(url, film).json()
        return demo.take(f"visitor {number % visitors}", path).name

    for _ in range(3):
        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(upload, range(5))) == ["film.mp4"] * 5
        kept = files(demo.uploads.kept)
        assert [path.read_bytes() == film for path in kept] == [True] * visitors
    for number in range(visitors):
        demo.sessions.drop(f"visitor {number}")
    assert files(demo.uploads.kept) == [] == files(demo.uploads.incoming)


def test_every_upload_has_a_name_of_its_own(served: tuple[Demo, str]) -> None:
    demo, url = served
    ((one,), (two,)) = (send(url, b"the same film").json() for _ in range(2))
    assert one != two  # or one visitor could tell, or take, what another one uploads
    assert Path(one).read_bytes() == Path(two).read_bytes() == b"the same film"
    end = time.monotonic() + 20  # the shared name goes when the answer is out
    while sorted(files(demo.uploads.incoming)) != sorted([Path(one), Path(two)]):
        assert time.monotonic() < end
        time.sleep(0.02)
    taken = demo.uploads.take(one)
    assert Path(two).is_file()
    demo.uploads.give_back(taken)
    Path(two).unlink()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.2:7933"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9"},
    ],
)
def test_another_sites_page_cannot_send_anything(served: tuple[Demo, str], headers: dict[str, str]) -> None:
    demo, url = served
    answer = send(url, b"x" * 1000, **headers)
    assert (answer.status_code, "another site's page" in answer.text) == (403, True)
    for route in ("call/clear", "queue/join"):
        answer = httpx.post(f"{url}/gradio_api/{route}", json={"data": []}, headers=headers)
        assert answer.status_code == 403
    assert files(demo.uploads.incoming) == []


def test_its_own_page_can_also_behind_a_proxy(served: tuple[Demo, str]) -> None:
    _, url = served
    own = url.partition("://")[2]
    for headers in (
        {"Origin": url},
        {"Origin": f"https://{own}"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://demo.example"},
        {"Origin": "https://demo.example", "X-Forwarded-Host": "demo.example"},
    ):
        answer = send(url, b"x", **headers)
        assert answer.status_code == 200, headers
        Path(answer.json()[0]).unlink()


def test_a_browser_that_says_nothing_of_itself_is_judged_by_its_origin() -> None:
    def scope(**headers: str) -> dict[str, Any]:
        return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]}

    assert _same_site(scope(host="demo.example:7860", origin="http://demo.example:7860"))
    assert not _same_site(scope(host="demo.example:7860", origin="http://demo.example:80"))
    assert not _same_site(scope(host="", origin=""" """))
    assert not _same_site(scope(host="demo.example", origin="file://"))


def test_untaken_uploads_make_room_the_oldest_first_and_used_ones_do_not(served: tuple[Demo, str]) -> None:
    demo, url = served
    paths = []
    for number in range(5):  # five times what fits
        answer = send(url, bytes([number]) * SIZE)
        assert answer.status_code == 200, (number, answer.text)
        (path,) = answer.json()
        paths.append(Path(path))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number)) if number < 3 else None
    assert [path.exists() for path in paths] == [False, False, False, True, True]
    kept = [demo.uploads.take(str(path)) for path in paths[3:]]
    full = send(url, b"y" * SIZE)
    assert (full.status_code, "disk space for uploads is full" in full.text) == (507, True)
    assert "larger than" not in full.text
    assert all(path.is_file() for path in kept)
    for path in kept:
        demo.uploads.give_back(path)
    (last,) = send(url, b"y" * SIZE).json()
    Path(last).unlink()


def test_uploads_on_their_way_are_counted(tmp_path: Path) -> None:
    uploads = Uploads(1_000, 600, 60)
    try:
        assert (uploads.room(), uploads.room(coming=600)) == (1_000, 400)
        (uploads.incoming / "tmpabc").write_bytes(b"x" * 250)  # as Gradio writes what is coming
        assert uploads.room(coming=600) == 400
        uploads.sweep(need=900, coming=600)
        assert (uploads.incoming / "tmpabc").exists()
        uploads.tidy()  # nothing is on its way: it was broken off
        assert uploads.room() == 1_000
    finally:
        uploads.close()


@pytest.mark.parametrize(
    "event",
    [
        {"data": [], "fn_index": 0, "session_hash": ""},
        {"data": [], "fn_index": 99_999, "session_hash": "s"},
        {"data": [], "fn_index": "0", "session_hash": "s"},
        {"data": [], "session_hash": "s"},
        {"data": 5, "fn_index": 0, "session_hash": "s"},
        {"fn_index": 0, "session_hash": "s"},
        ["data"],
        None,
    ],
)
def test_an_event_that_is_none_is_refused_in_a_sentence(served: tuple[Demo, str], event: object) -> None:
    _, url = served
    answer = httpx.post(f"{url}/gradio_api/queue/join", content=json.dumps(event), timeout=30)
    assert (answer.status_code, "no such event" in answer.text) == (400, True)
