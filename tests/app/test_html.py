"""The renderer: everything is text, everything has a name, nothing reaches out, and nothing grows without bound."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from closeup.app import html
from closeup.app.drawing import MAX_LANES, bar, cited_film, compared, ruler, sharpness, timelines
from closeup.app.pictures import Picture, Strip, data_url
from closeup.app.scene import Call, Film, Look, Scene, Spending, StepView

EVIL = "<script>alert(1)</script>\"' onmouseover='x' ]]> --> </style> \u202egnp.exe\u202c \x1b[2J \x00 {{ 7*7 }} &amp;"
VOID = {"meta", "img", "br", "input", "link", "rect", "line", "path"}
PIXEL = Picture(1.0, data_url(__import__("PIL.Image", fromlist=["Image"]).new("RGB", (28, 28))), 28, 28)


class Fixed:
    """As many pictures as a look has times, all the same."""

    def strip(self, film: Film | None, look: Look) -> Strip:
        return Strip(tuple(replace(PIXEL, time=time) for time in look.times), len(look.times))


class Page(HTMLParser):
    """What a fragment is made of; unbalanced tags fail."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def of(self, name: str) -> list[dict[str, str]]:
        return [a for _, a in self.elements if name in a.get("class", "").split()]


FILM = Film("f" * 32, "film.mp4", "/secret/folder/film.mp4", 100.0, 640, 360, 25.0, "h264")
OVERVIEW = Look(FILM.id, 0, 100, (0.0, 50.0, 99.0), (28, 28), 3, "exact", "overview")
CLOSE = Look(FILM.id, 40, 44, (40.0, 41.0, 42.0, 43.0), (112, 112), 32)


def scene(**changes: object) -> Scene:
    made = Scene(
        id="task/0",
        status="done",
        question="What is it?",
        options=("red", "blue"),
        films=(FILM,),
        overview=(OVERVIEW,),
        steps=(
            StepView(0, "I look", (Call("zoom_clip", (("start", "40"),), "done", 0.05, (CLOSE,)),), "ok"),
            StepView(1, "I know", (Call("answer", (("choice", "B"),), "done", 0.0),), "ok", rewards=(("zoom", None),)),
        ),
        gold=((38.0, 42.0),),
        gold_answer="blue",
        answer="blue",
        choice="B",
        evidence=((40.0, 44.0),),
        correct=True,
        budgets=(Spending("steps", 2, 8), Spending("seconds", 1.234)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def drawn(made: Scene) -> Page:
    return Page(html.render(made, Fixed()))


def evil_scene(evil: str) -> Scene:
    look = replace(CLOSE, overlay="blank")
    step = StepView(
        0, evil, (Call(evil, ((evil, evil),), "refused", 1.0, (look,), evil),), "refused", evil, (look,), ((evil, 1.0),)
    )
    return scene(
        id=evil,
        question=evil,
        options=(evil, "x" + evil),
        films=(replace(FILM, name=evil, codec=evil),),
        steps=(step, replace(step, index=1, calls=(), outcome=evil)),
        answer=evil,
        choice=None,
        gold_answer=evil,
        reason=evil,
        correct=False,
    )


def test_everything_of_an_episode_is_on_the_page() -> None:
    page = drawn(scene())
    for words in (
        "What is it?",
        "red",
        "film.mp4",
        "1:40",
        "I look",
        "zoom_clip",
        "50 ms",
        "112×112",
        "right",
        "0:40–0:44",
    ):
        assert words in page.text, words
    assert len(page.of("cu-frame")) == 3 + 4
    assert len(page.of("cu-lane-close")) == 1 and len(page.of("cu-lane-overview")) == 1
    assert len(page.of("cu-gold")) == 1 and len(page.of("cu-cited")) == 1
    (seek,) = [a for a in page.all("button") if "cu-seek" in a["class"]]
    assert (seek["data-seek"], seek["data-seek-end"]) == ("40.0", "44.0")
    assert page.of("cu-none")  # an unscored reward is shown as such


def test_every_frame_has_a_text_and_says_its_time_and_size() -> None:
    page = drawn(scene())
    images = page.all("img")
    assert len(images) == 7 and all("as the agent saw it" in image["alt"] for image in images)
    assert all(image["width"] and image["height"] for image in images)  # so that nothing jumps when it arrives
    assert "0:42" in [a["data-cu-clock"] for a in page.of("cu-frame")]
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        named = svg["aria-labelledby"].split()
        assert set(named) <= {a.get("id") for tag, a in page.elements if tag in ("title", "desc")}
    assert "Step 1: 0:40–0:44, 4 frames of 112 by 112 pixels." in page.text
    assert "Gold window: 0:38–0:42." in page.text


def test_one_frame_of_a_strip_is_in_the_tab_order() -> None:
    page = drawn(scene())
    frames = page.of("cu-frame")
    assert all(tag == "button" for tag, a in page.elements if "cu-frame" in a.get("class", "").split())
    assert [a.get("tabindex") for a in frames] == [None, "-1", "-1", None, "-1", "-1", "-1"]


def safe(page: Page) -> None:
    assert not page.all("script") and not page.all("style") and not page.all("iframe")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data-cu-film"):
            assert attributes.get(name, "").startswith("data:image/jpeg;base64,") or not attributes.get(name)
        for part in attributes.get("class", "").split():
            assert part == "cu" or part.startswith("cu-"), part
        if "style" in attributes:
            assert re.fullmatch(r"width:[\d.]+%|aspect-ratio:\d+/\d+", attributes["style"])


def test_hostile_text_stays_text() -> None:
    text = html.render(evil_scene(EVIL), Fixed())
    page = Page(text)
    safe(page)
    assert "<script>alert(1)</script>" in page.text  # told, not run
    assert "{{ 7*7 }}" in page.text and "49" not in page.text.replace("149", "")
    assert "&amp;" in page.text  # not unescaped once too often
    for steering in ("\u202e", "\u202c", "\x1b", "\x00"):
        assert steering not in text
    assert "\N{REPLACEMENT CHARACTER}gnp.exe" in page.text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_stays_text(evil: str) -> None:
    safe(drawn(evil_scene(evil)))


def test_half_a_character_can_be_written_to_a_file(tmp_path: Path) -> None:
    html.render(evil_scene("\ud83d alone"), Fixed()).encode("utf-8")


@pytest.mark.parametrize("text", ["سلام", "日本語", "é", "a\u0301", "👩\u200d🚀", "line\nline"])
def test_honest_writing_is_left_alone(text: str) -> None:
    assert html.shown(text) == text


def test_text_is_cut_and_the_cut_is_told() -> None:
    page = drawn(scene(question="q" * 50_000))
    assert "44,000 more characters" in page.text and len(page.text) < 40_000


def test_an_address_that_is_no_picture_is_not_used() -> None:
    for url in (
        "https://example.org/x.jpg",
        "javascript:alert(1)",
        'data:image/jpeg;base64,AA"onload=x',
        "data:text/html,x",
    ):
        assert html.picture_url(url) == ""
    assert html.picture_url(PIXEL.url) == PIXEL.url


def test_where_a_file_lies_is_not_told() -> None:
    assert "/secret" not in html.render(scene(), Fixed())


def test_ids_are_unique_on_a_page_of_many() -> None:
    page = Page(html.render(scene(), Fixed()) + html.render(scene(), Fixed()))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.parametrize(
    "made",
    [
        Scene(),
        Scene(status="running", question="?"),
        scene(status="failed", answer=None, choice=None, reason="it broke", steps=()),
        scene(
            status="stopped", answer=None, choice=None, evidence=(), reason="max_steps: the last message was no answer"
        ),
        scene(films=()),
        scene(films=(replace(FILM, duration=0.0, width=0, height=0, fps=0.0),)),
        scene(films=(FILM, replace(FILM, id="0" * 32, name="second.mp4"))),
        scene(status="running", steps=(StepView(0, "hal"),), answer=None),
        scene(status="running", steps=(StepView(0, "", (Call("zoom_clip"),)),), answer=None),
    ],
    ids=["empty", "opened", "failed", "stopped", "no film", "odd film", "two films", "thinking", "calling"],
)
def test_every_state_can_be_drawn(made: Scene) -> None:
    page = drawn(made)
    safe(page)
    assert len(page.of("cu-timeline")) == len(made.films)
    if made.status == "failed":
        assert "it broke" in page.text
    if made.status == "running" and made.steps:
        assert page.of("cu-caret") or page.of("cu-spin")
    else:
        assert not page.of("cu-caret") and not page.of("cu-spin")  # nothing runs for ever


def test_many_windows_are_bounded_and_counted() -> None:
    steps = tuple(StepView(i, "", (Call("zoom_clip", (), "done", None, (CLOSE,)),), "ok") for i in range(60))
    page = drawn(scene(steps=steps))
    assert len(page.of("cu-lane")) == MAX_LANES and f"{61 - MAX_LANES} more windows are not drawn" in page.text


def test_frames_that_were_squeezed_keep_the_films_shape_and_say_so() -> None:
    tall = replace(FILM, width=180, height=320)
    near = replace(CLOSE, size=(224, 126))
    page = drawn(scene(films=(tall,), steps=(StepView(0, "", (Call("zoom_clip", (), "done", None, (near,)),), "ok"),)))
    assert [image.get("style") for image in page.all("img")] == ["aspect-ratio:180/320"] * 3 + [None] * 4
    assert page.text.count("squeezed") == 1
    assert html.shape(replace(tall, height=0), OVERVIEW) == html.shape(None, OVERVIEW) == ""


def test_gold_is_not_shown_before_the_agent_has_answered() -> None:
    for status in ("waiting", "running"):
        page = drawn(scene(status=status, answer=None, choice=None, evidence=()))
        assert not page.of("cu-gold") and not page.of("cu-is-gold") and not page.of("cu-mark-gold")
        assert "Gold" not in page.text
    page = drawn(scene())
    assert len(page.of("cu-gold")) == len(page.of("cu-is-gold")) == len(page.of("cu-mark-gold")) == 1


def test_places_are_kept_for_what_comes_later() -> None:
    """Legend, lanes and rewards have their room from the start, and the answer comes last: what is read stays."""
    early = drawn(scene(status="running", answer=None, choice=None, evidence=(), steps=(StepView(0, "hm", (), "ok"),)))
    late = drawn(scene())
    assert [svg["height"] for svg in early.all("svg")] == [svg["height"] for svg in late.all("svg")]
    for key in ("cu-key-gold", "cu-key-cited"):
        assert len(early.of(key)) == len(late.of(key)) == 1
    assert (len(early.of("cu-off")), len(late.of("cu-off"))) == (2, 0)
    assert early.of("cu-rewards-due") and not late.of("cu-rewards-due")
    names = [attributes.get("class", "") for _, attributes in late.elements]
    assert names.index("cu-budgets") < names.index("cu-steps")
    assert names.index("cu-steps") < next(i for i, name in enumerate(names) if name.startswith("cu-answer"))


def test_a_short_window_of_a_long_film_has_a_marker_and_room_to_be_hit() -> None:
    long = replace(FILM, duration=2400.0)
    assert len(drawn(scene(films=(long,))).of("cu-pin")) == 1
    assert not drawn(scene()).of("cu-pin")
    lanes = drawn(scene(films=(long,)))
    assert len(lanes.of("cu-hit")) == len(lanes.of("cu-lane")) == 2


def test_a_long_question_is_clamped_with_a_way_to_all_of_it() -> None:
    for question in ("W" * 300, "word " * 700, "a\n" * 20):
        page = drawn(scene(question=question))
        assert len(page.of("cu-question-long")) == len(page.of("cu-whole")) == 1
        assert question.strip() in page.text
    assert not drawn(scene()).of("cu-whole")


def test_debris_is_folded_away_and_not_drawn_as_a_thought() -> None:
    debris = '": 4 (A", "arguments": [[562}}\n</tool_call>'
    page = drawn(scene(steps=(StepView(0, debris, (), "broken_call", "the call cannot be read"),)))
    assert len(page.of("cu-wrote")) == 1 and not page.of("cu-thought")
    assert debris in page.text and "the call cannot be read" in page.text


def test_frames_of_the_overview_that_were_watched_closely_are_marked() -> None:
    overview = replace(OVERVIEW, times=(0.0, 42.0, 99.0))
    marks = ["cu-watched" in a["class"].split() for a in drawn(scene(overview=(overview,))).of("cu-frame")]
    assert marks[:3] == [False, True, False] and not any(marks[3:])


# ---- where things lie ----


@given(
    duration=st.floats(allow_nan=False, min_value=0, max_value=1e6),
    start=st.floats(-10, 1e6),
    length=st.floats(0, 1e6),
)
def test_a_bar_is_inside_the_film_and_can_be_seen(duration: float, start: float, length: float) -> None:
    found = bar(duration, (start, start + length))
    assert found.left >= 0 and found.right <= 100.001 and found.width >= 0.499


def test_a_bar_lies_where_its_window_is() -> None:
    found = bar(100, (40, 44))
    assert (found.left, found.width, found.start, found.end) == (40, 4, 40, 44)
    assert bar(7200, (7199.9, 7200)).right == 100


@given(st.floats(0.01, 1e6))
def test_a_ruler_has_round_times_and_few_of_them(duration: float) -> None:
    marks = ruler(duration)
    assert marks[0] == (0, 0) and 1 <= len(marks) <= 7
    assert all(0 <= at <= 100.001 and 0 <= seconds <= duration * 1.001 for at, seconds in marks)


def test_sharper_looks_have_taller_bars() -> None:
    values = [
        sharpness(replace(CLOSE, size=size), FILM) for size in ((1, 1), (28, 28), (112, 112), (360, 640), (900, 900))
    ]
    assert values == sorted(values) and values[0] == 0 and values[3] == values[4] == 1


def test_gold_and_cited_windows_are_on_the_right_film() -> None:
    second = replace(FILM, id="0" * 32, name="second.mp4")
    step = StepView(0, "", (Call("zoom_clip", (), "done", None, (replace(CLOSE, video=second.id),)),), "ok")
    made = scene(films=(FILM, second), steps=(step,))
    first, other = timelines(made)
    assert (len(first.gold), len(first.cited)) == (1, 0) and (len(other.gold), len(other.cited)) == (0, 1)
    assert cited_film(made, (40, 44)) == second.id
    assert cited_film(scene(films=(), steps=()), (1, 2)) is None


def test_rollouts_are_compared_on_the_film_they_share() -> None:
    blind = scene(steps=(), correct=False)
    found = compared([scene(), blind], [1, 0])
    assert found is not None
    line, rows = found
    assert [(row.rollout, len(row.bars)) for row in rows] == [(1, 0), (0, 1)] and len(line.gold) == 1
    assert compared([scene(films=())], [0]) is None


# ---- style and script ----


def test_the_style_touches_nothing_outside_and_asks_nobody() -> None:
    css = re.sub(r"/\*.*?\*/", "", html.style(), flags=re.S)
    assert "url(" not in css and "@import" not in css and "http" not in css and "</" not in css
    for name in re.findall(r"\.([a-zA-Z][\w-]*)", re.sub(r"\{[^{}]*\}", "{}", css)):
        assert name == "cu" or name.startswith("cu-") or name in ("dark", "gradio-container"), name
    used = set(re.findall(r"var\((--[\w-]+)\)", css))
    assert used and all(f"{name}:" in css for name in used)


def test_the_script_writes_no_markup_and_asks_nobody() -> None:
    script = html.script()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "fetch(", "http", "import(", "</"):
        assert word not in script, word


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.001, "0"), (1.0, "+1.00"), (-0.5, "−0.50"), (12.345, "+12.35")]
)
def test_a_reward_has_its_sign(value: float | None, text: str) -> None:
    assert html.reward(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0001, "<1 ms"), (0.005, "5 ms"), (0.0996, "0.1 s"), (1.25, "1.2 s"), (75, "75 s")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert html.took(seconds) == text
