"""The demo's HTTP API: Gradio endpoints that call the same methods of `Demo` as the page does. Gradio is imported when
they are added, and reads their annotations, which this file therefore has evaluated.

Invariants
1. What is refused comes back as a `gr.Error` of one sentence, never as a traceback.
2. A client whose connection ends stops its question.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from closeup.app.asking import Run, sentence
from closeup.app.demo import Demo, result
from closeup.app.watching import changes
from closeup.app.wishes import Wish

if TYPE_CHECKING:
    import gradio as gr


def key_of(request: "gr.Request") -> str:
    """The session a request belongs to."""
    return str(request.session_hash or "")


def add_api(demo: Demo) -> None:
    """Add the endpoints to the Blocks being built; see docs/demo.md."""
    import gradio as gr
    from gradio.events import api as add_endpoint

    async def ask(
        question: str,
        video: str | None = None,
        options: list[str] | None = None,
        model: str | None = None,
        preset: str | None = None,
        max_steps: float | None = None,
        temperature: float | None = None,
        tools: list[str] | None = None,
        compare: bool = False,
        memory: str | None = None,
        request: gr.Request = None,  # type: ignore[assignment] # Gradio gives it
    ) -> AsyncIterator[dict]:  # type: ignore[type-arg] # Gradio reads the annotation
        """Ask about the session's video, or about `video` (a name of /videos); streams the state, last the answer."""
        given = () if options is None else options
        wish = Wish(question, given, model, preset, max_steps, temperature, tools, compare, memory)
        key = key_of(request)

        def begin() -> Run:
            if video:
                demo.pick(key, video)
            return demo.ask(key, wish)

        async for state in _follow(demo, begin):
            yield state

    async def retry(request: gr.Request = None) -> AsyncIterator[dict]:  # type: ignore[type-arg, assignment]
        """Ask the session's last question again with another seed; streams like /ask."""
        key = key_of(request)
        async for state in _follow(demo, lambda: demo.retry(key)):
            yield state

    def upload(file: dict, request: gr.Request = None) -> dict:  # type: ignore[type-arg, assignment]
        """Make an uploaded file (`gradio_client.handle_file`) the session's video."""
        with _in_sentences():
            path = file.get("path") if isinstance(file, dict) else None
            film = demo.take(key_of(request), str(path))
            return film.record.model_dump(exclude={"path"}) | {"name": film.name}
        raise AssertionError

    def stop(request: gr.Request = None) -> bool:  # type: ignore[assignment]
        """Stop the session's question; tells whether one was running."""
        with _in_sentences():
            return demo.sessions.get(key_of(request)).stop()
        raise AssertionError

    def clear(request: gr.Request = None) -> bool:  # type: ignore[assignment]
        """Forget the session's questions; the video stays."""
        with _in_sentences():
            demo.sessions.get(key_of(request)).clear()
        return True

    def videos() -> list:  # type: ignore[type-arg]
        """Names of the videos that may be asked about without uploading one."""
        return demo.films()

    def examples() -> list:  # type: ignore[type-arg]
        """The bundled examples: video, question, options."""
        return [{"video": t.videos[0].name, "question": t.question, "options": list(t.options)} for t in demo.examples]

    for endpoint in (ask, retry):
        add_endpoint(endpoint, api_name=endpoint.__name__, concurrency_limit=None)
    add_endpoint(upload, api_name="upload", concurrency_limit=2)
    for quick in (stop, clear, videos, examples):
        add_endpoint(quick, api_name=quick.__name__, queue=False)


async def _follow(demo: Demo, begin: Callable[[], Run]) -> AsyncIterator[dict[str, Any]]:
    with _in_sentences():
        run = await asyncio.to_thread(begin)
    last = None
    try:
        async for _ in changes(run, demo.settings.refresh_seconds):
            state = result(run)
            if state != last:
                yield state
                last = state
    finally:
        if not run.over:
            run.stop("stopped")


class _in_sentences:  # reads as a statement
    """Turns every exception into a `gr.Error` of one sentence, without a traceback in the log for bad input."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            import gradio as gr

            raise gr.Error(sentence(error), print_exception=False) from None
