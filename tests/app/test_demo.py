"""The demo as a server: its API through gradio_client, and what raw HTTP requests can and cannot get out of it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed (pip install 'closeup[demo]')", allow_module_level=True)

import httpx
from gradio_client import Client, handle_file

from closeup.app.demo import Demo
from closeup.app.guard import MAX_BODY, PictureShelf
from closeup.app.page import launch
from closeup.app.settings import DemoSettings
from closeup.tools import Video
from closeup.tools.video import clear_caches

_helpers = runpy.run_path(str(Path(__file__).with_name("slow_policy.py")))
SlowPolicy, zoom_and_answer = _helpers["SlowPolicy"], _helpers["zoom_and_answer"]
QUESTION, OPTIONS = "Which digit is in the orange box?", ["5", "1", "6", "7"]
GRADIO_NAMES = (
    *("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"),
    *("GRADIO_ANALYTICS_MAX_EVENTS", "GRADIO_ANALYTICS_CACHE_FREQUENCY"),
)
XSS = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@dataclass
class Served:
    """A demo being served, with the policy that answers in it."""

    demo: Demo
    policy: Any
    url: str
    blocks: Any

    def client(self) -> Client:
        """A new visitor."""
        return Client(self.url, verbose=False, analytics_enabled=False)

    def get(self, path: str, **headers: str) -> httpx.Response:
        """A raw request; the path is sent as it is."""
        return httpx.get(self.url.rstrip("/") + path, headers=headers, follow_redirects=False, timeout=30)


def say(request: Any) -> str:
    """Zoom and answer; a question about ever goes on for ever, one about markup answers with markup."""
    words = " ".join(message.text for message in request.messages if message.role == "user")
    if "for ever" in words:
        return "…"
    if "markup" in words:
        call = json.dumps({"name": "answer", "arguments": {"text": XSS}})
        return f"<think>{XSS}</think>\n<tool_call>\n{call}\n</tool_call>"
    return str(zoom_and_answer(request))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for this module's tests, on loopback, with a folder that is allowed and one that is not."""
    root = tmp_path_factory.mktemp("films")
    examples = Path(__file__).resolve().parents[2] / "app" / "examples"
    for folder in ("allowed", "secret"):
        (root / folder).mkdir()
        shutil.copy(examples / "digit.mp4", root / folder / f"{folder}.mp4")
    (root / "allowed" / "notes.txt").write_text("not a film", encoding="utf-8")
    before = {name: os.environ.get(name) for name in GRADIO_NAMES}
    policy = SlowPolicy(say)
    settings = DemoSettings(port=0, allow=(root / "allowed",), max_upload_mb=1, max_disk_mb=4, at_once=2)
    demo = Demo(settings, load=lambda model, preset: policy)
    blocks, url = launch(demo)
    yield Served(demo, policy, url, blocks)
    demo.close()
    blocks.close(verbose=False)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def test_the_api_is_what_the_docs_say(served: Served) -> None:
    named = served.client().view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == ["/ask", "/clear", "/examples", "/retry", "/stop", "/upload", "/videos"]
    docs = (Path(__file__).resolve().parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    for name, info in named.items():
        assert f"`{name}`" in docs, name
        for parameter in info["parameters"]:
            assert f"`{parameter['parameter_name']}`" in docs, (name, parameter)


def test_an_example_is_asked_through_the_api(served: Served) -> None:
    client = served.client()
    examples = client.predict(api_name="/examples")
    assert {"video": "digit.mp4", "question": QUESTION, "options": OPTIONS} in examples
    assert "allowed.mp4" in client.predict(api_name="/videos")
    job = client.submit(question=QUESTION, video="digit.mp4", options=OPTIONS, api_name="/ask")
    found = job.result(timeout=60)
    assert (found["status"], found["answer"], found["correct"]) == ("done", "6", True)
    assert found["steps"][0]["calls"][0]["tool"] == "zoom_clip"
    states = [state["status"] for state in job.outputs()]
    assert states[-1] == "done"
    assert set(states) <= {"waiting", "running", "done"}
    again = client.predict(
        question="Which digit is in the pink box?", options=["0", "1"], memory="clips", api_name="/ask"
    )
    assert again["earlier"] == [[18.0, 21.0]]  # the same visitor: the film and what was seen of it are still there
    assert client.predict(api_name="/retry")["question"] == "Which digit is in the pink box?"
    assert client.predict(api_name="/clear") is True
    with pytest.raises(Exception, match="no question to ask again"):
        client.predict(api_name="/retry")


def test_an_upload_is_asked_about_and_goes_with_its_visitor(served: Served, examples: Path) -> None:
    client = served.client()
    record = client.predict(handle_file(examples / "digit.mp4"), api_name="/upload")
    assert (record["name"], record["width"], record["codec"]) == ("digit.mp4", 112, "h264")
    assert len(list(served.demo.uploads.kept.rglob("*.mp4"))) == 1
    assert not list(served.demo.uploads.incoming.rglob("*.mp4"))
    found = client.predict(question=QUESTION, options=OPTIONS, api_name="/ask")
    assert (found["answer"], found["correct"]) == ("6", None)  # nothing is known of an upload's answer
    served.demo.sessions.drop(client.session_hash)
    assert not list(served.demo.uploads.kept.rglob("*.mp4"))


def _open_files(path: Path) -> int:
    """How often this process has the file open, deleted or not."""
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return sum(link.removesuffix(" (deleted)") == str(path) for link in links)


def _look(path: Path) -> None:
    """Decode a frame, which leaves a reader open for the next who wants one."""
    clear_caches()  # a frame that is known would be decoded by nobody
    with Video(path) as video:
        video.frames([1.0], (28, 28))
    assert _open_files(path) == 1


def test_a_film_that_nobody_shows_any_more_is_closed(served: Served, examples: Path) -> None:
    """A deleted upload that a decoder still has open would keep its disk space, beyond every limit."""
    one, other = served.client(), served.client()
    one.predict(handle_file(examples / "digit.mp4"), api_name="/upload")
    (upload,) = served.demo.uploads.kept.rglob("*.mp4")
    _look(upload)
    film = served.demo.pick(one.session_hash, "count.mp4")
    assert not upload.exists() and not _open_files(upload)
    served.demo.pick(other.session_hash, "count.mp4")
    _look(film.path)
    served.demo.pick(one.session_hash, "digit.mp4")
    assert _open_files(film.path) == 1  # the other still shows it
    served.demo.sessions.drop(other.session_hash)
    assert not _open_files(film.path)
    served.demo.sessions.drop(one.session_hash)


def test_a_film_is_closed_although_its_question_ends_after_its_visitor_left(served: Served) -> None:
    client = served.client()
    path = served.demo.pick(client.session_hash, "count.mp4").path
    job = client.submit(question="for ever?", api_name="/ask")
    until(lambda: any(state["status"] == "running" for state in job.outputs()))
    run = served.demo.sessions.get(client.session_hash).run
    assert run is not None
    over, seen = run._on_end, []

    def on_end(run: Any) -> None:
        _look(path)  # whoever reads the film for the question ends after the film was let go
        over(run)
        seen.append(_open_files(path))

    run._on_end = on_end
    served.demo.sessions.drop(client.session_hash)
    until(lambda: bool(seen), 120)
    assert seen == [0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.mp4", b"this is text" * 50, "notes.mp4"),
        ("empty.mp4", b"", "empty"),
        ("half.mp4", None, "half.mp4"),
    ],
)
def test_a_bad_upload_is_refused_in_a_sentence(
    served: Served, tmp_path: Path, examples: Path, name: str, content: bytes | None, said: str
) -> None:
    bad = tmp_path / name
    bad.write_bytes((examples / "digit.mp4").read_bytes()[:5000] if content is None else content)
    with pytest.raises(Exception, match=said) as refused:
        served.client().predict(handle_file(bad), api_name="/upload")
    assert "Traceback" not in str(refused.value)
    assert str(served.demo.uploads.folder) not in str(refused.value)
    assert not list(served.demo.uploads.folder.rglob(name))


def test_stop_ends_the_generation(served: Served) -> None:
    client = served.client()
    cancelled = served.policy.cancelled
    job = client.submit(question="for ever?", video="digit.mp4", api_name="/ask")
    until(lambda: any(state["status"] == "running" for state in job.outputs()))
    assert client.predict(api_name="/stop") is True
    found = job.result(timeout=30)
    assert (found["status"], found["reason"]) == ("stopped", "stopped")
    assert served.policy.cancelled == cancelled + 1
    assert client.predict(api_name="/stop") is False


def test_two_visitors_at_once_and_a_third_waits(served: Served) -> None:
    clients = [served.client() for _ in range(3)]
    jobs = [c.submit(question="for ever?", video="digit.mp4", api_name="/ask") for c in clients[:2]]
    until(lambda: len(served.demo.line) == 2)
    third = clients[2].submit(question=QUESTION, options=OPTIONS, video="digit.mp4", api_name="/ask")
    until(lambda: any(state["status"] == "waiting" and state["ahead"] == 1 for state in third.outputs()))
    clients[0].predict(api_name="/stop")
    assert third.result(timeout=30)["answer"] == "6"
    assert not jobs[1].done()  # the other visitor's question goes on
    clients[1].predict(api_name="/stop")
    assert {job.result(timeout=30)["status"] for job in jobs} == {"stopped"}


@pytest.mark.parametrize(
    "video",
    [
        "/etc/passwd",
        "../secret/secret.mp4",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "/dev/zero",
        "notes.txt",
    ],
)
def test_no_other_file_is_opened_whatever_is_asked(served: Served, video: str) -> None:
    with pytest.raises(Exception) as refused:  # gradio_client raises its own kinds
        served.client().predict(question=QUESTION, video=video, api_name="/ask")
    assert re.search(r"upload|video|address|'\.\.'", str(refused.value))
    assert "root:" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=app/demo.py",
        "/gradio_api/file={upload}",
        "/gradio_api/file={allowed}",
        "/gradio_api/file/{allowed}",
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api//file=/etc/passwd",
        "/gradio_api/../gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/stream/x/y/1/playlist.m3u8",
        "/gradio_api/custom_component/1/client/component/index.js",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/runs",
        "/docs",
        "/openapi.json",
        "/closeup/film/../../../../etc/passwd",
        "/closeup/film/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/closeup/picture/%2fetc%2fpasswd",
        "/closeup/film/",
        "/static/../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_gets_a_file_out(served: Served, path: str) -> None:
    upload = served.demo.uploads.incoming / "somebody" / "film.mp4"
    upload.parent.mkdir(exist_ok=True)
    upload.write_bytes(b"somebody's film")
    try:
        allowed = served.demo.settings.allow[0] / "allowed.mp4"
        host, port = served.url.rstrip("/").rpartition("/")[2].split(":")
        answer = raw(host, int(port), path.format(upload=upload, allowed=allowed))
    finally:
        shutil.rmtree(upload.parent)
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 403, 404, 405), answer[:200]
    for secret in (b"root:", b"somebody's film", b"ftyp", b"def ", b"Traceback"):
        assert secret not in answer


def raw(host: str, port: int, path: str) -> bytes:
    """The whole answer to a GET whose path nobody tidies up on the way."""
    import socket

    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_a_film_is_played_by_its_token_alone(served: Served) -> None:
    film = served.demo.pick("viewer", "digit.mp4")
    answer = served.get(f"/closeup/film/{film.token}", Range="bytes=0-99")
    assert (answer.status_code, len(answer.content), answer.headers["content-type"]) == (206, 100, "video/mp4")
    assert served.get(f"/closeup/film/{film.token[:-1]}x").status_code == 404
    served.demo.sessions.drop("viewer")
    assert served.get(f"/closeup/film/{film.token}").status_code == 404


def test_every_page_forbids_other_hosts_and_names_none(served: Served) -> None:
    page = served.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](https?:)?//[^"']+""", page.text)
    assert loaded == []
    assert "googleapis" not in page.text + served.get("/theme.css").text


def test_another_sites_name_for_this_machine_is_refused(served: Served) -> None:
    assert served.get("/", Host="evil.example").status_code == 421
    assert served.get("/config", Host="evil.example:7860").status_code == 421
    assert served.get("/", Host="localhost:1").status_code == 200


def test_a_file_object_with_an_address_is_not_fetched(served: Served) -> None:
    for path in ("http://127.0.0.1:1/x", "https://host.example/film.mp4", "ftp://x/y", "//host/share", " file:///etc"):
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "session_hash": "s", "fn_index": 0}
        for route in ("/gradio_api/queue/join", "/gradio_api/call/upload"):
            answer = httpx.post(served.url.rstrip("/") + route, json=data)
            assert (answer.status_code, "addresses are not fetched" in answer.text) == (400, True), (path, route)


def test_a_local_path_that_was_not_uploaded_is_refused(served: Served) -> None:
    secret = served.demo.settings.allow[0].parent / "secret" / "secret.mp4"
    url = served.url.rstrip("/") + "/gradio_api/call/upload"
    for path in (secret, "/etc/passwd", "/dev/zero", served.demo.uploads.folder / "lock"):
        data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        event = httpx.post(url, json={"data": data, "session_hash": "thief"}, timeout=30).json()["event_id"]
        told = httpx.get(f"{url}/{event}", timeout=30).text
        assert "event: error" in told, (path, told)
        assert "Traceback" not in told
        assert served.demo.sessions.get("thief").film is None
    assert secret.is_file()
    assert not list(served.demo.uploads.folder.rglob("secret.mp4"))


def test_what_is_too_large_is_refused(served: Served) -> None:
    url = served.url.rstrip("/")
    large = httpx.post(f"{url}/gradio_api/upload", files={"files": ("film.mp4", b"x" * 1_200_000)})
    assert (large.status_code, "larger than" in large.text) == (413, True)
    body = httpx.post(f"{url}/gradio_api/queue/join", content=b" " * (MAX_BODY + 1))
    assert body.status_code == 413

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="film.mp4"\r\n\r\n'
        for _ in range(3000):
            yield b"x" * 65536

    try:
        answer = httpx.post(
            f"{url}/gradio_api/upload",
            content=endless(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
            timeout=30,
        )
        assert answer.status_code >= 400
    except httpx.HTTPError:
        pass  # the connection was ended in the middle, which is as good
    assert served.demo.uploads.bytes() < 4_000_000


def test_a_complaint_begins_with_a_capital_where_a_word_begins_it() -> None:
    from closeup.app.errors import BadInput
    from closeup.app.stage import Page

    for said, shown in (
        ("there is no video yet; upload one", "There is no video yet; upload one"),
        ("film.mp4 lasts 130 minutes", "film.mp4 lasts 130 minutes"),
        ("'x.mp4' is not there", "&#x27;x.mp4&#x27; is not there"),
        ("--max-disk-mb is too low", "--max-disk-mb is too low"),
        ("éclair, they said", "Éclair, they said"),
        ("", ""),
    ):
        assert f">{shown}</p>" in Page.complaint(BadInput(said))


def test_gradio_keeps_no_record_of_every_event(served: Served) -> None:
    client = served.client()
    for _ in range(4):
        client.predict(question=QUESTION, video="digit.mp4", options=OPTIONS, api_name="/ask")
    line = served.blocks._queue
    assert line.events_recorded >= 4  # it does count them: the names that switch its memory off are still its own
    assert len(line.event_analytics) <= 1
    assert line.cached_event_analytics_summary == {"functions": {}}


def test_markup_is_shown_as_text(served: Served) -> None:
    from closeup.app.stage import Page
    from closeup.app.wishes import Wish

    demo = served.demo
    demo.pick("x", "digit.mp4")
    run = demo.ask("x", Wish(f"markup {XSS}"))
    assert run.wait(60)
    page = Page(demo)
    until(lambda: demo.sessions.get("x").run is None)
    for text in (page.running(run, 0), page.complaint(ValueError(XSS))):
        assert "<script" not in text
        assert "<img src=x" not in text
    assert "&lt;script&gt;" in page.running(run, 0)
    demo.sessions.drop("x")


def test_pictures_leave_the_page_and_are_bounded() -> None:
    shelf = PictureShelf(max_bytes=10)
    one = shelf.shelve('<img src="data:image/jpeg;base64,AAAAAAAA">')
    name = one.split("closeup/picture/")[1].split(".jpg")[0]
    assert shelf.get(name) == b"\0" * 6
    shelf.shelve('<img src="data:image/jpeg;base64,BBBBBBBB">')
    assert shelf.get(name) is None
    text = "<p>data:image/svg+xml;base64,AAAA</p>"
    assert shelf.shelve(text) == text


def test_a_taken_port_is_said_in_a_sentence(served: Served) -> None:
    from closeup.app.errors import BadInput

    port = int(served.url.rstrip("/").rpartition(":")[2])
    kept = os.environ["GRADIO_TEMP_DIR"]
    demo = Demo(DemoSettings(port=port), load=lambda model, preset: served.policy)
    try:
        with pytest.raises(BadInput, match=f"cannot be served at 127.0.0.1:{port}"):
            launch(demo)
    finally:
        demo.close()
        os.environ["GRADIO_TEMP_DIR"] = kept
