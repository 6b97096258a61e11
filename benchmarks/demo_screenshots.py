"""The pictures of the demo in docs/images: the real page with the bundled model, in Debian's chromium.

    make screenshots            # or: python benchmarks/demo_screenshots.py [--only done-desktop-light]

Each picture is one state (asking, done, error, compare) at one width (desktop, tablet, phone), light or
dark. PNG, in as many colours as keep it below 200 KB. The model is slowed down for asking, which is over too soon to
be photographed otherwise. Animations are stopped, so that two runs differ only where the seconds do.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from closeup.agent.policies.base import Completion, Policy
from closeup.app.demo import Demo
from closeup.app.page import launch
from closeup.app.settings import DemoSettings
from closeup.app.setup import open_policy

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
MAX_BYTES = 200_000
WIDTHS = {"desktop": (1280, 900), "tablet": (820, 1180), "phone": (390, 844)}
STATES = ("asking", "done", "error", "compare")
SCHEMES = ("light", "dark")
WAIT = 240
"""Seconds until a state must have come."""


class Paced(Policy):
    """The bundled model, which rests after every token while `pause` is above 0."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.name, self.pause = inner, inner.name, 0.0
        self.geometry, self.max_context = inner.geometry, inner.max_context

    def generate(self, requests: Any, *, on_token: Any = None, cancel: Any = None) -> list[Completion]:
        def told(episode_id: str, piece: str) -> None:
            if on_token is not None:
                on_token(episode_id, piece)
            time.sleep(self.pause)

        return self.inner.generate(requests, on_token=told, cancel=cancel)

    def forget(self, episode_id: str) -> None:
        self.inner.forget(episode_id)

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()


def small(png: bytes) -> bytes:
    """The picture as a PNG of at most `MAX_BYTES`, with as many colours as that leaves room for."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            out, "PNG", optimize=True
        )
        if out.tell() <= MAX_BYTES:
            return out.getvalue()
    raise SystemExit(f"a picture of {image.width}x{image.height} does not fit {MAX_BYTES} bytes; take a smaller one")


def reach(page: Any, policy: Paced, state: str) -> None:
    """Bring a fresh page into a state."""
    if state == "error":
        page.locator("#cud-question textarea").fill("When does she open the letter?")
        page.locator("#cud-ask").click()
        page.locator(".cud-alert").wait_for()
        return
    if state == "compare":
        page.locator("#cud-settings button").first.click()
        page.locator("#cud-compare input").check()
        page.locator("#cud-settings button").first.click()
    policy.pause = 0.12 if state == "asking" else 0.0
    page.locator(".cud-example").first.click()
    if state == "asking":  # the close-up has come and the model writes what it makes of it
        page.locator("#cud-view .cu-call-done .cu-frame").first.wait_for()
        page.locator("#cud-view .cu-step").nth(1).locator(".cu-thought", has_text="see").wait_for()
        return
    count = 2 if state == "compare" else 1
    over = "['done', 'stopped'].includes(s.dataset.cuStatus)"
    page.wait_for_function(
        f"(n) => [...document.querySelectorAll('#cud-view .cu-scene')].filter(s => {over}).length === n", arg=count
    )


def settle(page: Any, state: str, size: str) -> None:
    """Wait for pictures and fonts; on a narrow screen, where the page scrolls by itself, be where a visitor is."""
    page.mouse.move(0, 0)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#cud-view img')].every("
        "i => { const r = i.getBoundingClientRect(); return i.complete"
        " || r.top > innerHeight || r.bottom < 0 || r.left > innerWidth || r.right < 0; })"
    )
    page.wait_for_timeout(900)
    if state == "error":  # with the controls above it: the sentence alone says little
        page.locator(".cud-alert").evaluate("e => e.scrollIntoView({block: 'end', behavior: 'instant'})")
        page.evaluate("() => scrollBy({top: 32, behavior: 'instant'})")
        page.wait_for_timeout(500)
    elif state != "asking" and size != "desktop":
        target = "#cud-view .cu-steps" if state == "done" and size == "phone" else "#cud-view"
        if page.locator(target).count():
            page.evaluate(
                "(t) => document.querySelector(t).scrollIntoView({block: 'start', behavior: 'instant'})", target
            )
            page.wait_for_timeout(500)


def take(only: str) -> list[Path]:
    """Take every picture whose name contains `only`."""
    from playwright.sync_api import sync_playwright

    policies: list[Paced] = []

    def load(model: str, preset: Any) -> Policy:
        policies.append(Paced(open_policy(model, preset)))
        return policies[-1]

    demo = Demo(DemoSettings(port=0), load=load)
    blocks, url = launch(demo)
    demo.models.policy("tiny")
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        with sync_playwright() as play:
            chromium = play.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            )
            for state in STATES:
                for size, (width, height) in WIDTHS.items():
                    for scheme in SCHEMES:
                        name = f"demo-{state}-{size}-{scheme}.png"
                        if only not in name:
                            continue
                        context = chromium.new_context(
                            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                        )
                        context.set_default_timeout(WAIT * 1000)
                        page = context.new_page()
                        page.goto(url)
                        page.locator(".cud-example").first.wait_for()
                        reach(page, policies[0], state)
                        settle(page, state, size)
                        path = FOLDER / name
                        path.write_bytes(small(page.screenshot(animations="disabled")))
                        policies[0].pause = 0.0
                        context.close()
                        sys.stdout.write(
                            f"{path.relative_to(FOLDER.parents[1])}  {path.stat().st_size / 1000:.0f} KB\n"
                        )
                        sys.stdout.flush()
                        made.append(path)
            chromium.close()
    finally:
        demo.close()
        blocks.close(verbose=False)
    return made


def main() -> int:
    """Take the pictures; 1 when none has the wanted name."""
    parser = argparse.ArgumentParser(description="take the pictures of the demo in docs/images")
    parser.add_argument("--only", default="", help="take those whose name contains this, e.g. done-desktop")
    made = take(parser.parse_args().only)
    if not made:
        sys.stdout.write("no picture has that in its name; they are demo-STATE-SIZE-SCHEME.png\n")
    return 0 if made else 1


if __name__ == "__main__":
    raise SystemExit(main())
