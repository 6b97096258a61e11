"""The one renderer: a `Scene` as an HTML fragment, for the demo and for `closeup view`.

Templates, style and script lie in `closeup/app/assets`. The fragment holds no script and no event handler; `script()`
handles clicks and keys for the whole page, so a fragment may be replaced at any time.

Invariants
1. Everything that a model, a user, a file name or a plugin wrote is shown as text: escaped by jinja2, freed of
   characters that steer or reorder text (`shown`), and bounded in length.
2. Nothing here asks another host for anything: pictures are `data:` URLs, fonts the reader's own.
3. Every class begins with `cu-` (or is `cu`); ids begin with the given prefix, so several fragments share a page.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from itertools import count
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from closeup.app.drawing import closely, timelines
from closeup.app.pictures import Strip
from closeup.app.scene import Film, Look, Scene
from closeup.app.timeline import clock, span

MAX_TEXT = 6000
"""Characters of one text that are shown."""
SQUEEZED = 1.1
"""Sizes are multiples of a patch, so a little is always lost; more than this is said, and drawn in the film's shape."""
LONG = 280
"""Characters of a question that are shown at once."""
STATUS = {"waiting": "waiting", "running": "watching", "done": "answered", "stopped": "no answer", "failed": "failed"}
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")
_numbers = count(1)


class StripSource(Protocol):
    """Gives the pictures of a look: `Pictures`, or something that rations them."""

    def strip(self, film: Film | None, look: Look) -> Strip:
        """See `Pictures.strip`."""
        ...


def render(
    scene: Scene, pictures: StripSource, *, overview: bool = True, level: int = 2, prefix: str | None = None
) -> str:
    """One scene as an HTML fragment; `style()` and `script()` belong on its page once.

    Args:
        overview: show the film strip of the overview (not for the second rollout of a group).
        level: of its headings, 2 to 5. prefix: of ids; default: one that no other fragment of this process has.
    """
    films = {film.id: film for film in scene.films}

    def strip(look: Look) -> Strip:
        return pictures.strip(films.get(look.video), look)

    text: str = template("scene.html").render(
        scene=scene,
        strip=strip,
        timelines=timelines(scene),
        shape=lambda look: shape(films.get(look.video), look),
        closely=lambda look, seconds: closely(scene, look.video, seconds),
        overview=overview,
        level=max(2, min(5, level)),
        prefix=prefix or f"cu{next(_numbers)}",
        status=STATUS,
        long=LONG,
    )
    return text


def shape(film: Film | None, look: Look) -> str:
    """The film's shape, "180/320", where the agent saw its frames squeezed or stretched by more than a tenth, or ""."""
    if film is None or min(film.width, film.height, *look.size) < 1:
        return ""
    ratio = (film.width / film.height) / (look.size[1] / look.size[0])
    return f"{film.width}/{film.height}" if max(ratio, 1 / ratio) > SQUEEZED else ""


def style() -> str:
    """The style sheet, for a `<style>` element or Gradio's `css`."""
    return _asset("closeup.css")


def script() -> str:
    """The script, for one `<script>` element or Gradio's `js`; running it twice does no harm."""
    return _asset("closeup.js")


def template(name: str) -> Any:
    """A template of the assets by name."""
    return _environment().get_template(f"{name}.jinja")


def shown(value: Any) -> Any:
    """Text as it is shown: bounded, and characters that steer or reorder text made visible as U+FFFD."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = _STEERING.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT:,} more characters)"
    return text


def number(value: float) -> str:
    """A count or seconds for a person: 1,204, 3.4, 12."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.1f}"


def reward(value: float | None) -> str:
    """A reward or advantage with its sign; – when it was not scored."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"


def took(seconds: float | None) -> str:
    """A duration: 5 ms, 0.6 s, 12 s, or "" when unknown."""
    if seconds is None:
        return ""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0005 else "<1 ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def words(name: str) -> str:
    """A name with underscores as words: no_call is "no call"."""
    return name.replace("_", " ")


def picture_url(url: str) -> Markup:
    """The address of a picture, whole; "" for anything that is no `data:` URL of one."""
    return Markup(url if _PICTURE.fullmatch(url) else "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("closeup.app", "assets"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "number": number,
        "reward": reward,
        "took": took,
        "url": picture_url,
        "words": words,
    }
    environment.globals |= {"span": span}
    return environment


@cache
def _asset(name: str) -> str:
    return (resources.files("closeup.app") / "assets" / name).read_text(encoding="utf-8")
