"""The demo in a real browser: Debian's chromium against the real app with the bundled model, as a visitor uses it.

Every page here listens: a console message, an error, a dialog, or a request to any other address fails its test.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("gradio") is None:
    if os.environ.get("CI"):
        raise RuntimeError("gradio is not installed (pip install 'closeup[dev]'), and CI skips no browser test")
    pytest.skip("gradio is not installed (pip install 'closeup[demo]')", allow_module_level=True)

from closeup.agent.policies.base import Completion, Policy
from closeup.app.demo import Demo
from closeup.app.page import launch
from closeup.app.settings import DemoSettings
from closeup.app.setup import open_policy

pytestmark = pytest.mark.browser

WAIT = 240
"""Seconds until something must have happened: generous, for machines that are busy with other things."""
QUESTION, OPTIONS = "Which digit is in the orange box?", ("5", "1", "6", "7")
XSS = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b id=owned>"
ALONE = re.compile(r"^(data|blob|about):")


class Paced(Policy):
    """The bundled model itself, which pauses at every token while `pause` is above 0; counts what was cut short."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.name, self.pause = inner, inner.name, 0.0
        self.geometry, self.max_context = inner.geometry, inner.max_context
        self.ended: list[Completion] = []

    def generate(self, requests: Any, *, on_token: Any = None, cancel: Any = None) -> list[Completion]:
        def told(episode_id: str, piece: str) -> None:
            if on_token is not None:
                on_token(episode_id, piece)
            time.sleep(self.pause)

        done = self.inner.generate(requests, on_token=told, cancel=cancel)
        self.ended += done
        return done

    def forget(self, episode_id: str) -> None:
        self.inner.forget(episode_id)

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()


@dataclass
class Served:
    """A demo being served, and the model in it."""

    demo: Demo
    url: str
    policies: list[Paced] = field(default_factory=list)

    @property
    def policy(self) -> Paced:
        """The model, loaded."""
        self.demo.models.policy("tiny")
        return self.policies[0]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for this module's tests, on a free port of this machine."""
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    policies: list[Paced] = []

    def load(model: str, preset: Any) -> Policy:
        policies.append(Paced(open_policy(model, preset)))
        return policies[-1]

    demo = Demo(DemoSettings(port=0, max_upload_mb=2, max_disk_mb=8), load=load)
    blocks, url = launch(demo)
    yield Served(demo, url, policies)
    demo.close()
    blocks.close(verbose=False)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


class Visit:
    """A visitor's page, and everything it complained about or asked of others."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.heard: list[str] = []
        wanted = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | context
        self.context = browser.new_context(**wanted)
        self.context.set_default_timeout(WAIT * 1000)
        self.page = page = self.context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.heard.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url.replace("ws", "http", 1)))
        page.goto(url)
        page.locator("#cud-ask").wait_for()
        page.locator(".cud-example").first.wait_for()

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.heard.append(f"{message.type}: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith(self.url) and not ALONE.match(url):
            self.heard.append(f"asked {url}")

    def example(self, title: str) -> None:
        """Click a bundled example."""
        self.page.locator(".cud-example", has_text=title).click()

    def fill(self, question: str, options: tuple[str, ...] = ()) -> None:
        """Type a question and its options."""
        self.page.locator("#cud-question textarea").fill(question)
        self.page.locator("#cud-options textarea").fill("\n".join(options))

    def ask(self, question: str, options: tuple[str, ...] = ()) -> None:
        """Type a question and press Ask."""
        self.fill(question, options)
        self.page.locator("#cud-ask").click()

    def upload(self, path: Path) -> None:
        """Choose a file of this machine."""
        with self.page.expect_file_chooser() as chosen:
            self.page.locator("#cud-upload").click()
        chosen.value.set_files(path)

    def until(self, *statuses: str, question: str = "") -> Any:
        """The scene in the middle, once it has one of these statuses (and asks this)."""
        wanted = ", ".join(f'#cud-view .cu-scene[data-cu-status="{status}"]' for status in statuses)
        scene = self.page.locator(wanted)
        if question:
            scene = scene.filter(has=self.page.locator(".cu-question", has_text=question))
        scene.wait_for()
        return scene

    def ready(self) -> None:
        """Wait until a question may be asked."""
        self.page.wait_for_function("() => !document.querySelector('#cud-ask').disabled")

    def fine(self) -> None:
        """Nothing was heard. Raises AssertionError with what was."""
        assert self.heard == []


@pytest.fixture
def visit(served: Served, browser: Any) -> Callable[..., Visit]:
    """Opens the page as a new visitor."""

    def opened(**context: Any) -> Visit:
        return Visit(browser, served.url, **context)

    return opened


def test_one_click_shows_where_the_agent_looked_and_the_right_answer(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.example("Read a digit")
    scene = one.until("done")
    assert scene.locator(".cu-answer-text").inner_text() == "C 6"
    assert scene.locator(".cu-answer.cu-right").is_visible()
    call = scene.locator(".cu-call-done", has=one.page.locator(".cu-name", has_text="zoom_clip"))
    assert call.count() == 1
    frames = call.locator(".cu-frame img")
    assert frames.count() == 4
    one.page.wait_for_function(
        "() => [...document.querySelectorAll('.cu-call .cu-frame img')].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert "as the agent saw it" in frames.first.get_attribute("alt")
    assert scene.locator(".cu-timeline .cu-lane-close").count() == 1
    assert scene.locator(".cu-timeline .cu-gold").count() == 1
    assert "steps\n2 of 8" in scene.locator(".cu-budgets").inner_text()
    one.ready()
    one.example("Read a digit")  # and one more click: it begins afresh, on the film it has been asked about
    until(lambda: one.page.locator("#cud-further").is_hidden(), "the question was not asked again")
    one.ready()
    assert one.until("done").locator(".cu-answer-text").inner_text() == "C 6"
    one.page.locator(
        "#cud-ask"
    ).click()  # typed again, it is a second question, which the bundled model is asked afresh
    one.page.locator(".cud-note", has_text="Asked afresh").wait_for()
    one.ready()
    assert one.until("done").locator(".cu-answer-text").inner_text() == "C 6"
    one.fine()


def test_an_upload_is_asked_about_and_its_evidence_seeks_the_player(
    visit: Callable[..., Visit], examples: Path, tmp_path: Path
) -> None:
    film = tmp_path / "my <b>film & more.mp4"
    shutil.copy(examples / "digit.mp4", film)
    one = visit()
    one.upload(film)
    one.page.locator("#cud-player figcaption > b", has_text="film").wait_for()
    assert one.page.locator("#cud-player figcaption b b").count() == 0
    one.ask(QUESTION, OPTIONS)
    scene = one.until("done")
    assert scene.locator(".cu-answer-text").inner_text() == "C 6"
    seek = scene.locator(".cu-seek").first
    start = float(seek.get_attribute("data-seek"))
    assert 15 < start < 22
    seek.click()
    one.page.wait_for_function(
        "(at) => { const v = document.querySelector('#cud-player video'); return v && v.currentTime >= at - 0.1"
        " && v.currentTime < at + 60; }",
        arg=start,
    )
    one.fine()


def test_a_frame_is_enlarged_and_the_keyboard_moves_on(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.example("Read a digit")
    one.until("done")
    one.page.locator(".cu-call .cu-frame").first.focus()
    one.page.keyboard.press("Enter")
    dialog = one.page.locator("dialog[open]")
    title = dialog.locator(".cu-dialog-title").inner_text()
    assert dialog.locator("img").count() == 2
    one.page.keyboard.press("ArrowRight")
    assert dialog.locator(".cu-dialog-title").inner_text() != title
    one.page.keyboard.press("Escape")
    assert one.page.locator("dialog[open]").count() == 0
    one.fine()


def until(true: Callable[[], bool], fault: str) -> None:
    """Wait for something that the page does not show."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, fault
        time.sleep(0.05)


def test_a_follow_up_keeps_what_was_seen_and_folds_the_question_before(
    visit: Callable[..., Visit], served: Served
) -> None:
    one = visit()
    one.page.locator("#cud-settings button").first.click()
    one.page.get_by_label("the clips watched closely").check()
    one.page.locator(".cud-card").first.click()  # a card of the welcome does what the example's button does
    one.until("done")
    further = one.page.locator("#cud-further")
    further.wait_for()
    assert "pink" in further.inner_text()
    further.click()
    scene = one.until("done", question="pink")
    assert scene.locator(".cu-answer-text").is_visible()
    assert scene.locator(".cu-film > .cu-strip-close").count() >= 1  # the clip of the first question
    before = one.page.locator("#cud-before details.cud-earlier")
    assert before.count() == 1 and QUESTION in before.locator("summary").inner_text()
    before.locator("summary").click()
    assert before.locator(".cu-answer-text").inner_text() == "C 6"
    one.ready()
    source = one.page.locator("#cud-player video").get_attribute("src")
    film = served.demo.sessions.film(source.rsplit("/", 1)[1])
    (session,) = (s for s in served.demo.sessions._sessions.values() if s.film is film)
    one.page.locator("#cud-retry").click()
    until(lambda: session.run is None and session.turns[-1].question.seed == 1, "the question was not asked again")
    one.until("done", question="pink")
    one.ready()
    assert one.page.locator("#cud-before details").count() == 1  # asked again in its place, not after it
    one.page.locator("#cud-clear").click()
    one.page.locator(".cud-welcome").wait_for()
    assert one.page.locator("#cud-before details").count() == 0
    assert one.page.locator("#cud-player video").count() == 1  # the film stays
    one.fine()


def test_clear_while_it_runs_leaves_an_empty_page(visit: Callable[..., Visit], served: Served) -> None:
    policy = served.policy
    one = visit()
    policy.pause, already = 0.4, len(policy.ended)
    try:
        one.example("Read a digit")
        one.until("running").locator(".cu-thought", has_text=re.compile(r"\w")).wait_for()
        one.page.locator("#cud-clear").click()
        one.page.locator(".cud-welcome").wait_for()
        until(lambda: len(policy.ended) > already, "the model went on writing")
        assert policy.ended[-1].finish == "cancelled"
        one.page.wait_for_timeout(2000)  # time for a late picture of the question to come back
        assert one.page.locator(".cud-welcome").is_visible() and one.page.locator("#cud-view .cu-scene").count() == 0
    finally:
        policy.pause = 0.0
    one.fine()


def test_stop_ends_the_generation(visit: Callable[..., Visit], served: Served) -> None:
    policy = served.policy
    one = visit()
    policy.pause, already = 0.4, len(policy.ended)
    try:
        one.example("Read a digit")
        one.until("running").locator(".cu-thought", has_text=re.compile(r"\w")).wait_for()  # it streams
        one.page.locator("#cud-stop").click()
        scene = one.until("stopped")
        assert scene.locator(".cu-answer-text").count() == 0
        until(lambda: len(policy.ended) > already, "the model went on writing")
        assert policy.ended[-1].finish == "cancelled"
    finally:
        policy.pause = 0.0
    one.ready()
    assert one.page.locator("#cud-stop").is_disabled()
    one.ask(QUESTION, OPTIONS)  # nothing is left over: the next question is answered
    one.until("done")
    one.fine()


def test_a_page_that_is_closed_stops_its_question(visit: Callable[..., Visit], served: Served) -> None:
    policy = served.policy
    one = visit()
    policy.pause = 0.4
    try:
        one.example("Read a digit")
        one.until("running").locator(".cu-thought", has_text=re.compile(r"\w")).wait_for()
        already = len(policy.ended)
        one.page.close()
        until(lambda: len(policy.ended) > already, "the model went on writing for nobody")
        assert policy.ended[-1].finish == "cancelled"
    finally:
        policy.pause = 0.0


def test_on_a_phone_stop_is_in_reach_and_nothing_that_is_read_moves(
    visit: Callable[..., Visit], served: Served
) -> None:
    policy = served.policy
    one = visit(viewport={"width": 360, "height": 740})
    one.page.evaluate(
        "() => { window.moved = 0; new PerformanceObserver(l => { for (const e of l.getEntries())"
        " if (!e.hadRecentInput && document.querySelector('#cud-view .cu-scene')) window.moved += e.value; })"
        ".observe({type: 'layout-shift'}); }"
    )
    policy.pause = 0.05
    try:
        one.example("Read a digit")
        scene = one.until("running")
        scene.locator(".cu-call-running, .cu-call-done").first.wait_for()  # a card is seen while it runs
        assert scene.locator(".cu-is-gold, .cu-gold").count() == 0  # the solution comes with the answer
        box = one.page.locator("#cud-stop").bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 740 and box["width"] > 300
    finally:
        policy.pause = 0.0
    scene = one.until("done")
    assert scene.locator(".cu-is-gold").count() == 1
    one.page.locator("#cud-further").wait_for()
    one.page.wait_for_timeout(300)
    assert one.page.evaluate("window.moved") < 0.1
    one.fine()


def test_a_server_that_is_gone_is_told(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.example("Read a digit")
    one.until("done")
    one.page.evaluate(
        "document.querySelector('#cud-view .cu-scene').dataset.cuStatus = 'running'"
    )  # it stood still here
    one.page.route("**/closeup/alive", lambda route: route.abort())
    one.page.locator("#cud-gone", has_text="server is gone").wait_for()
    assert one.page.locator("#cud-view .cu-status").inner_text() == "connection lost"
    one.page.unroute("**/closeup/alive")
    one.page.locator("#cud-gone").wait_for(state="detached")


def test_two_visitors_at_once_see_only_their_own(visit: Callable[..., Visit]) -> None:
    one, two = visit(), visit(viewport={"width": 390, "height": 844})
    one.example("Read a digit")
    two.example("Find a colour")
    first, second = one.until("done"), two.until("done")
    assert first.locator(".cu-question").inner_text() == QUESTION
    assert second.locator(".cu-question").inner_text() == "Which colour shows digit 3?"
    assert first.locator(".cu-answer-text").inner_text() == "C 6"
    assert second.locator(".cu-answer-text").inner_text().endswith("cyan")
    assert "digit.mp4" not in two.page.locator("#cud-view").inner_text()
    assert "colour.mp4" not in one.page.locator("#cud-view").inner_text()
    tokens = [v.page.locator("#cud-player video").get_attribute("src") for v in (one, two)]
    assert tokens[0] != tokens[1]
    one.fine(), two.fine()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("notes.mp4", b"this is no film" * 100, "notes.mp4"), ("empty.mp4", b"", "empty")],
)
def test_a_bad_file_is_refused_in_a_sentence(
    visit: Callable[..., Visit], tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    one = visit()
    one.upload(tmp_path / name)
    alert = one.page.locator(".cud-alert")
    alert.wait_for()
    text = alert.inner_text()
    assert said in text and "Traceback" not in text and str(tmp_path) not in text and "/tmp/" not in text
    assert one.page.locator("#cud-player video").count() == 0
    one.example("Read a digit")  # the page still works
    one.until("done")
    one.fine()


def test_a_question_without_a_video_and_an_empty_one_are_sentences(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.ask("What is it?")
    one.page.locator(".cud-alert", has_text="there is no video yet").wait_for()
    one.example("Read a digit")
    one.until("done")
    one.ready()
    one.ask("   ")
    alert = one.page.locator(".cud-alert")
    alert.wait_for()
    assert "question" in alert.inner_text()
    one.fine()


def test_markup_in_questions_options_and_names_is_shown_as_text(
    visit: Callable[..., Visit], examples: Path, tmp_path: Path
) -> None:
    film = tmp_path / "a<img src=x onerror=document.title=1>.mp4"
    shutil.copy(examples / "digit.mp4", film)
    one = visit()
    one.upload(film)
    one.page.locator("#cud-player video").wait_for()
    one.ask(XSS, (XSS, "5", "</div></section>" + XSS))
    scene = one.until("done", "stopped", "failed")  # a model may well have no answer to that
    assert scene.locator(".cu-question").inner_text() == XSS
    assert XSS in scene.locator(".cu-options li").first.inner_text()
    one.ready()
    one.ask(QUESTION, OPTIONS)  # the hostile one is drawn again, folded
    one.until("done", question=QUESTION)
    assert XSS in one.page.locator("#cud-before details.cud-earlier > summary").inner_text()
    assert one.page.title() == "closeup"
    assert one.page.locator("#owned, img[src=x]").count() == 0
    one.fine()


def test_compare_shows_both_arms_side_by_side(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.page.locator("#cud-settings button").first.click()
    one.page.locator("#cud-compare input").check()
    one.example("Read a digit")
    one.page.wait_for_function(
        "() => [...document.querySelectorAll('#cud-view .cu-scene')].filter("
        "s => ['done', 'stopped'].includes(s.dataset.cuStatus)).length === 2"
    )
    scenes = one.page.locator("#cud-view .cu-scene")
    assert [t.strip() for t in one.page.locator(".cud-arm").all_inner_texts()] == ["with zoom", "without zoom"]
    assert scenes.nth(0).locator(".cu-call .cu-name", has_text="zoom_clip").count() == 1
    assert scenes.nth(1).locator(".cu-call .cu-name", has_text="zoom_clip").count() == 0
    lefts = [scenes.nth(i).bounding_box()["x"] for i in (0, 1)]
    assert lefts[1] > lefts[0] + 200
    one.fine()


def test_what_listens_would_hear(visit: Callable[..., Visit]) -> None:
    """The control: a request to another host is forbidden by the page and heard, and so is an error."""
    one = visit()
    said = one.page.evaluate("fetch('https://example.org/font.woff').then(() => 'came', () => 'refused')")
    assert said == "refused"
    one.page.evaluate("console.error('mine')")
    one.page.evaluate("setTimeout(() => { throw new Error('thrown') }, 0)")
    one.page.wait_for_timeout(500)
    assert any("Content Security Policy" in line for line in one.heard)
    assert "error: mine" in one.heard and any("thrown" in line for line in one.heard)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_every_width(visit: Callable[..., Visit], scheme: str) -> None:
    axe = __import__("axe_playwright_python.sync_playwright", fromlist=["Axe"]).Axe()
    one = visit(color_scheme=scheme, bypass_csp=True)  # axe is a script

    def faults() -> list[object]:
        found = axe.run(one.page).response["violations"]
        return [(v["id"], [node["html"][:160] for node in v["nodes"][:3]]) for v in found]

    dark = one.page.evaluate("document.body.classList.contains('dark')")
    assert dark is (scheme == "dark")
    assert faults() == [], "before anything was asked"
    one.ask("What is it?")
    one.page.locator(".cud-alert").wait_for()
    assert faults() == [], "an error"
    one.example("Read a digit")
    one.until("done")
    one.ready()
    one.page.locator("#cud-further").click()
    one.until("done", question="pink")
    one.ready()
    one.page.locator("#cud-settings button").first.click()
    one.page.locator("#cud-before summary").click()
    for width in (360, 820, 1280):
        one.page.set_viewport_size({"width": width, "height": 900})
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert faults() == [], width
