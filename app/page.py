"""The demo's page, drawn with Gradio, which is imported when the page is built: not every installation has it.

Gradio reads its listeners' annotations, so this file has them evaluated. One column holds the controls, the other what
happens: HTML of `closeup.app.html`, drawn again as the episode's events arrive, of which the browser changes what
differs. The API beside it is `closeup.app.api`.

Invariants
1. No listener raises: whatever goes wrong becomes a sentence on the page.
2. The page asks no other host for anything: system fonts, no analytics, and `closeup.app.guard` forbids the rest.
3. Nothing of a visitor lives in the page's Python: listeners find the session by the request's key.
"""

import asyncio
import html
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closeup.agent.task import Task
from closeup.app.api import add_api, key_of
from closeup.app.asking import Run
from closeup.app.demo import Demo
from closeup.app.errors import BadInput
from closeup.app.guard import Guard
from closeup.app.html import script, style
from closeup.app.sessions import Session
from closeup.app.settings import MB
from closeup.app.stage import HEADER, KINDS, Page
from closeup.app.watching import changes
from closeup.app.wishes import Wish, default_memory

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)
ASSETS = Path(__file__).resolve().parent / "assets"
DRAWN_PER_SECOND = 600_000
"""Characters of HTML that a page is sent per second while a question runs: what a slow phone keeps up with."""
FOLLOW_UPS = [
    ("the clips watched closely", "clips"),
    ("the whole conversation", "conversation"),
    ("nothing", "nothing"),
]


def build(demo: Demo) -> "gr.Blocks":
    """The page as Gradio Blocks, listeners and API included."""
    import gradio as gr

    page = Page(demo)
    models = demo.models.names
    own = demo.models.preset(models[0])
    with gr.Blocks(title="closeup", analytics_enabled=False) as made:
        blocks: gr.Blocks = made
        gr.HTML(HEADER, apply_default_css=False)
        with gr.Row(elem_classes="cud-examples"):
            examples = [
                (gr.Button(KINDS.get(t.kind, t.kind), size="sm", elem_classes="cud-example"), t) for t in demo.examples
            ]
        with gr.Row(elem_classes="cud-main"):
            with gr.Column(scale=2, min_width=320, elem_classes="cud-controls"):
                player = gr.HTML(page.player(Session("")), elem_id="cud-player", apply_default_css=False)
                with gr.Row(elem_classes="cud-sources"):
                    upload = gr.UploadButton(
                        "Upload a video", file_types=["video"], file_count="single", size="sm", elem_id="cud-upload"
                    )
                    pick = gr.Dropdown(
                        [("Pick a video…", ""), *((name, name) for name in demo.films())],
                        value="",
                        label="Pick a video",
                        show_label=False,
                        container=False,
                        scale=2,
                        allow_custom_value=bool(demo.settings.allow),
                        elem_id="cud-pick",
                    )
                text = gr.Textbox(
                    label="Question",
                    placeholder="When does she open the letter?",
                    lines=2,
                    max_lines=6,
                    max_length=4000,
                    elem_id="cud-question",
                )
                options = gr.Textbox(
                    label="Options, one per line (none: a free answer)",
                    lines=4,
                    max_lines=10,
                    max_length=12_000,
                    elem_id="cud-options",
                )
                with gr.Row(elem_classes="cud-actions"):
                    ask = gr.Button("Ask", variant="primary", elem_id="cud-ask")
                    stop = gr.Button("Stop", interactive=False, elem_id="cud-stop")
                    retry = gr.Button("Retry", elem_id="cud-retry")
                    clear = gr.Button("Clear", elem_id="cud-clear")
                with gr.Accordion("Settings", open=False, elem_id="cud-settings"):
                    compare = gr.Checkbox(label="Compare with and without zoom, side by side", elem_id="cud-compare")
                    model = gr.Dropdown(list(models), value=models[0], label="Model", visible=len(models) > 1)
                    preset = gr.Dropdown(list(demo.models.presets(models[0])), value=own.name, label="Preset")
                    steps = gr.Slider(1, 32, value=own.budget.max_steps, step=1, label="Messages at most")
                    heat = gr.Slider(0, 2, value=own.temperature, step=0.1, label="Temperature (0: always the same)")
                    tools = gr.CheckboxGroup(
                        choices=_tool_names(), value=demo.tools_of(own), label="Tools (answer is always there)"
                    )
                    memory = gr.Radio(FOLLOW_UPS, value=default_memory(models[0]), label="A follow-up keeps")
            with gr.Column(scale=3, min_width=320, elem_classes="cud-stage"):
                view = gr.HTML(page.welcome, elem_id="cud-view", apply_default_css=False)
                with gr.Row(elem_classes="cud-further"):  # below what is read, so that its coming moves nothing
                    further = gr.Button("", visible=False, size="sm", elem_id="cud-further")
                before = gr.HTML("", elem_id="cud-before", apply_default_css=False)

        wishes = [text, options, model, preset, steps, heat, tools, compare, memory]
        shown = [view, before, player, ask, stop, further]

        def wish(*values: Any) -> Wish:
            names = ("question", "options", "model", "preset", "max_steps", "temperature", "tools", "compare", "memory")
            return Wish(**dict(zip(names, values, strict=True)))

        def emptied(session: Session) -> list[Any]:
            """What Clear leaves of `shown`."""
            return [page.welcome, "", page.player(session), _can(True), _can(False), gr.update(visible=False)]

        async def show(begin: Callable[[], Run], key: str) -> AsyncIterator[list[Any]]:
            """Begin a question and draw it until it is over."""
            try:
                session = demo.sessions.get(key)
                run = await asyncio.to_thread(begin)
            except Exception as error:
                yield [page.complaint(error), *([gr.skip()] * 5)]
                return
            number, last, cleared = session.asked - 1, "", session.cleared
            try:
                yield [
                    gr.skip(),
                    gr.skip(),
                    page.player(session),
                    _can(False),
                    _can(True),
                    gr.update(visible=False),
                ]
                earlier = await asyncio.to_thread(page.earlier, session)
                async for over in changes(run, demo.settings.refresh_seconds):
                    now = await asyncio.to_thread(page.running, run, number)
                    if session.cleared != cleared:  # Gradio shows the last yield once more, so it must be Clear's page
                        yield emptied(session) if session.run is None else [gr.skip()] * 6
                        return
                    if now != last and not over:
                        yield [now, earlier, *([gr.skip()] * 4)]
                        last = now
                        await asyncio.sleep(len(now) / DRAWN_PER_SECOND)
                yield [now, earlier, gr.skip(), _can(True), _can(False), _further(demo, session)]
            except Exception as error:  # drawing failed: the buttons must not stay as they are
                yield [page.complaint(error), gr.skip(), gr.skip(), _can(True), _can(False), gr.skip()]
            finally:
                if not run.over:  # the visitor went away
                    run.stop("stopped")

        async def on_ask(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
            key = key_of(request)
            async for out in show(lambda: demo.ask(key, wish(*values)), key):
                yield out

        async def on_retry(request: gr.Request) -> AsyncIterator[list[Any]]:
            key = key_of(request)
            async for out in show(lambda: demo.retry(key), key):
                yield out

        def on_example(task: Task) -> Callable[..., AsyncIterator[list[Any]]]:
            async def run_example(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
                key = key_of(request)

                def begin() -> Run:
                    demo.pick(key, task.videos[0].name)
                    asked = wish(*values)
                    wish_now = replace(asked, question=task.question, options=list(task.options))
                    return demo.ask(key, wish_now, afresh=True)  # one click runs it, whatever was asked before

                first = [task.question, "\n".join(task.options), task.videos[0].name]
                async for out in show(begin, key):
                    yield [*out, *first]
                    first = [gr.skip()] * 3

            return run_example

        async def on_further(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
            key = key_of(request)
            task = _next_question(demo, demo.sessions.get(key))
            if task is None:
                yield [
                    page.complaint(BadInput("there is no further question for this video; type one")),
                    *([gr.skip()] * 7),
                ]
                return
            first = [task.question, "\n".join(task.options)]
            asked = replace(wish(*values), question=task.question, options=list(task.options))
            async for out in show(lambda: demo.ask(key, asked), key):
                yield [*out, *first]
                first = [gr.skip()] * 2

        def on_film(change: Callable[[str, str], object], request: gr.Request, value: str | None) -> list[Any]:
            key = key_of(request)
            if not value:
                return [gr.skip()] * 6
            try:
                before_film = demo.sessions.get(key).film
                if change(key, value) is before_film:
                    return [gr.skip()] * 6
                session = demo.sessions.get(key)
                note = demo.warning(session.film, models[0])
                shown_note = f'<div class="cu"><p class="cud-note" role="status">{html.escape(note)}</p></div>'
                return [shown_note if note else page.welcome, "", page.player(session), *([gr.skip()] * 3)]
            except Exception as error:
                stays = demo.sessions.get(key).film
                more = f". The film here is still {stays.name}." if stays is not None else ""
                return [page.complaint(error, more), *([gr.skip()] * 5)]

        def on_upload(request: gr.Request, path: str | None) -> list[Any]:
            return [*on_film(demo.take, request, path), ""]

        def on_pick(request: gr.Request, name: str | None) -> list[Any]:
            return on_film(demo.pick, request, name)

        def on_stop(request: gr.Request) -> None:
            demo.sessions.get(key_of(request)).stop()

        def on_clear(request: gr.Request) -> list[Any]:
            session = demo.sessions.get(key_of(request))
            session.clear()
            return [*emptied(session), "", ""]

        def on_model(name: str) -> list[Any]:
            own = demo.models.preset(name)
            return [
                gr.update(choices=list(demo.models.presets(name)), value=own.name),
                own.budget.max_steps,
                own.temperature,
                demo.tools_of(own),
                default_memory(name),
            ]

        def on_preset(model_name: str, name: str) -> list[Any]:
            chosen = demo.models.presets(model_name).get(name) or demo.models.preset(model_name)
            return [chosen.budget.max_steps, chosen.temperature, demo.tools_of(chosen)]

        def on_unload(request: gr.Request) -> None:
            demo.sessions.drop(key_of(request))

        # All go by the queue: the guard shuts the other way in. Without a limit, Stop never waits for its turn.
        live: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        gr.on([ask.click, text.submit], on_ask, wishes, shown, **live)
        retry.click(on_retry, None, shown, **live)
        further.click(on_further, wishes, [*shown, text, options], **live)
        for button, task in examples:
            button.click(on_example(task), wishes, [*shown, text, options, pick], **live)
        stop.click(on_stop, None, None, **live)
        clear.click(on_clear, None, [*shown, text, options], **live)
        slow: dict[str, Any] = live | {"show_progress": "full", "concurrency_limit": 2}
        upload.upload(on_upload, upload, [*shown, pick], **slow)
        pick.input(on_pick, pick, shown, **live)
        model.input(on_model, model, [preset, steps, heat, tools, memory], **live)
        preset.input(on_preset, [model, preset], [steps, heat, tools], **live)
        blocks.unload(on_unload)
        add_api(demo)
    return blocks


def _can(can: bool) -> Any:
    import gradio as gr

    return gr.update(interactive=can)


def _tool_names() -> list[str]:
    from closeup.tools.registry import registered_tools

    return [name for name in registered_tools() if name != "answer"]


def _next_question(demo: Demo, session: Session) -> Task | None:
    if session.film is None:
        return None
    asked = {turn.question.text for turn in session.turns}
    tasks = demo.further.get(session.film.name, ())
    return next((t for t in tasks if t.videos[0] == session.film.path and t.question not in asked), None)


def _further(demo: Demo, session: Session) -> Any:
    import gradio as gr

    task = _next_question(demo, session)
    return gr.update(visible=False) if task is None else gr.update(value=f"Ask next: {task.question}", visible=True)


def head() -> str:
    """Style and script for the page's head: nothing is loaded from anywhere."""
    css = style() + (ASSETS / "demo.css").read_text(encoding="utf-8")
    js = script() + (ASSETS / "demo.js").read_text(encoding="utf-8")
    return f"<style>{css}</style><script>{js}</script>"


def launch(demo: Demo, *, block: bool = False, quiet: bool = True) -> "tuple[gr.Blocks, str]":
    """Serve the page; returns the Blocks and the address. Raises `BadInput` when the port is taken."""
    import gradio as gr
    from starlette.middleware import Middleware

    settings = demo.settings
    os.environ["GRADIO_TEMP_DIR"] = str(demo.uploads.incoming)  # Gradio asks for its upload folder by this name only
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio remembers 10,000 events and makes a table of them all after each, for a monitoring page that is shut here.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**12)
    blocks = build(demo)
    blocks.queue(max_size=4 * (settings.at_once + settings.waiting) + 64, default_concurrency_limit=16)
    guard = Middleware(
        Guard,
        sessions=demo.sessions,
        shelf=demo.shelf,
        uploads=demo.uploads,
        local=settings.is_local,
        max_upload=int(settings.max_upload_mb * MB),
    )
    try:
        _, address, shared = blocks.launch(
            server_name=settings.host,
            server_port=settings.port or _free_port(settings.host),
            share=settings.share,
            prevent_thread_lock=True,
            quiet=quiet,
            show_error=False,
            allowed_paths=[],
            max_file_size=int(settings.max_upload_mb * MB),
            state_session_capacity=settings.max_sessions,
            enable_monitoring=False,
            run_history=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=gr.themes.Default(
                primary_hue="indigo",
                neutral_hue="slate",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ).set(
                button_border_width="1px",
                button_secondary_background_fill="*background_fill_primary",
                button_secondary_background_fill_hover="*background_fill_secondary",
                button_secondary_background_fill_dark="*background_fill_secondary",
                button_secondary_background_fill_hover_dark="*background_fill_primary",
                button_secondary_border_color="*border_color_primary",
                button_secondary_border_color_dark="*border_color_primary",
                button_secondary_border_color_hover="*border_color_primary",
                button_primary_background_fill="*primary_600",
                button_primary_background_fill_dark="*primary_600",
            ),
            head=head(),
        )
    except OSError:
        raise BadInput(
            f"the page cannot be served at {settings.host}:{settings.port} (is the port taken?); give another"
            " --port, or --port 0 for any free one"
        ) from None
    if block:
        blocks.block_thread()
    return blocks, str(shared or address)


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
