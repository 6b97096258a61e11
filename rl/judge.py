"""The late stream `judge`: another model reads a free answer and says whether it means what the gold answer means.

Any OpenAI-compatible endpoint (`POST …/chat/completions`) over the standard library. A group's answers are asked about
at once, equal ones only once, and an answer that equals the gold one is not asked about at all.

Invariants
1. A question without a verdict (time-out, refused, unreadable reply) is None and counted in `failures` by its reason;
   it is never 0 and never repeats another's verdict.
2. The key comes from the environment variable that is named, is sent to that endpoint alone (no redirect is followed),
   and stands in no message, log or record.
3. What the judged model wrote is data between marks, bounded in length, and cannot close the marks.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from closeup import prompts
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.answers import is_correct
from closeup.rl.looks import final_answer, judgeable
from closeup.tools.base import Answer

log = logging.getLogger(__name__)
MAX_SHOWN = 4000  # characters of a question or an answer that a judge is shown
MAX_REPLY = 1 << 20  # bytes
MAX_WAIT = 60.0  # seconds between two attempts, whatever a server asks for
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may pass by themselves; others are not tried again."""
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_MARK = re.compile(r"<(/?(?:question|reference|answer)>)", re.IGNORECASE)

Question = tuple[str, str, str]
"""What is asked, the gold answer, and the answer to judge."""


class JudgeError(RuntimeError):
    """A judge that gave no verdict; `reason` is a short name to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class JudgeClient:
    """Asks one model at one endpoint for one verdict at a time. Safe under threads.

    Args:
        model: the name the endpoint knows it by.
        base_url: up to and including the version, as in `http://localhost:8000/v1`.
        api_key_env: name of the environment variable that holds the key; None sends none.
        timeout: seconds one attempt may take. attempts: how often a passing fault is tried in all.
        backoff: seconds before the second attempt, doubled for each further one; or a server's Retry-After, if longer.
        max_tokens: of the reply. options: further fields of the request (`{"seed": 1}`).
        sleep: how to wait, for tests.

    Raises:
        ValueError: an address that is not http(s), an environment variable that is not set, numbers out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        attempts: int = 4,
        backoff: float = 1.0,
        max_tokens: int = 16,
        options: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a judge's base_url is like http://localhost:8000/v1 or https://…/v1, got {base_url!r}")
        if parts.username or parts.password:
            raise ValueError("a judge's base_url holds no key; name an environment variable with api_key_env")
        if attempts < 1 or timeout <= 0 or backoff < 0 or max_tokens < 1:
            raise ValueError(
                "attempts and max_tokens are at least 1, timeout is above 0 and backoff at least 0 seconds; got"
                f" {attempts}, {max_tokens}, {timeout}, {backoff}"
            )
        key = None if api_key_env is None else os.environ.get(api_key_env)
        if api_key_env is not None and not key:
            raise ValueError(f"the environment variable {api_key_env} holds the judge's key and is not set; export it")
        self.model = model
        self.base_url = base_url.rstrip("/")
        self._key = key
        self._timeout, self._attempts, self._backoff = timeout, attempts, backoff
        self._fields = {"temperature": 0, "max_tokens": max_tokens, **(options or {}), "model": model}
        self._sleep = sleep
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def verdict(self, question: Question) -> bool:
        """Whether the answer means what the gold answer means. Raises `JudgeError` when that could not be found out."""
        asked, gold, given = (_bounded(text) for text in question)
        said = self.complete(prompts.render_alone("judge", question=asked, reference=gold, answer=given))
        found = _VERDICT.match(said.rpartition("</think>")[2])  # a model that thinks aloud says its verdict after that
        if found is None:
            raise JudgeError("unreadable", f"the judge {self.model!r} said neither yes nor no: {said[:80]!r}")
        return found[1].lower() == "yes"

    def complete(self, prompt: str) -> str:
        """The reply to one user message. Raises `JudgeError` when there is none after all attempts."""
        body = json.dumps({**self._fields, "messages": [{"role": "user", "content": prompt}]}).encode()
        for attempt in range(1, self._attempts + 1):
            fault, wait = self._attempt(body)
            if isinstance(fault, str):
                return fault
            if wait is None or attempt == self._attempts:
                raise fault
            self._sleep(min(MAX_WAIT, max(wait, self._backoff * 2 ** (attempt - 1))))
        raise AssertionError("attempts is at least 1")

    def _attempt(self, body: bytes) -> tuple[str | JudgeError, float | None]:
        """The reply, or what went wrong and the least wait before another try (None: trying again is of no use)."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.base_url}/chat/completions", body, headers, method="POST")
        where = f"the judge {self.model!r} at {self.base_url}"
        try:
            with self._open(request, timeout=self._timeout) as response:
                raw = response.read(MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            with error:
                wait = _seconds(error.headers.get("Retry-After")) if error.code in PASSING else None
            return JudgeError(f"http {error.code}", f"{where} answered with HTTP {error.code} ({error.reason})"), wait
        except TimeoutError:
            return JudgeError("timeout", f"{where} gave no reply within {self._timeout:g} s"), 0.0
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                return JudgeError("timeout", f"{where} could not be reached within {self._timeout:g} s"), 0.0
            return JudgeError("unreachable", f"{where} cannot be reached: {reason}"), 0.0
        try:
            said = json.loads(raw)["choices"][0]["message"]["content"]
            if len(raw) > MAX_REPLY or not isinstance(said, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            return JudgeError("unreadable", f"{where} sent no chat completion: {raw[:80]!r}"), 0.0
        return said, None


class JudgeScorer:
    """Free answers judged by a model: 1.0 or 0.0 at the step that answered, None everywhere else.

    An episode that ended without an answer earns 0.0 at its last step. Tasks with options, with an answer kind that is
    compared by number or by time ("numeric", "regression", "grounding"), and without a gold answer are left alone:
    None.

    Args:
        client: asks. Or give its arguments (`model=…, base_url=…, …`), which is how a configuration does.
        name: of the stream.
        workers: questions asked at the same time.

    Attributes:
        asked: verdicts asked for so far. failures: those that were not got, by reason. A trainer logs both
            (`scorers.Unanswered`) and calls `check` before its first rollout.
    """

    def __init__(
        self, client: JudgeClient | None = None, *, name: str = "judge", workers: int = 8, **connection: Any
    ) -> None:
        if (client is None) == (not connection):
            raise ValueError("give a JudgeClient, or the model and base_url of one")
        if workers < 1:
            raise ValueError(f"workers is at least 1, got {workers}")
        self.name = name
        self.client = client or JudgeClient(**connection)
        self.asked = 0
        self.failures: Counter[str] = Counter()
        self._workers = workers
        self._lock = threading.Lock()

    def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
        """The stream for every step of one trajectory."""
        (scores,) = self.score_many([trajectory])
        return scores

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[list[dict[str, float | None]]]:
        """The streams of many trajectories, their distinct answers asked about at once."""
        verdicts = self._verdicts([_question(t.task, final_answer(t)) if judgeable(t) else None for t in trajectories])
        scores: list[list[dict[str, float | None]]] = []
        for trajectory, verdict in zip(trajectories, verdicts, strict=True):
            stream: list[dict[str, float | None]] = [{self.name: None} for _ in trajectory.steps]
            if stream:
                stream[-1] = {self.name: None if verdict is None else float(verdict)}
            scores.append(stream)
        return scores

    def judge(self, task: Task, answer: Answer | None) -> bool | None:
        """Whether an answer is right: a `closeup.agent.scoring.Judge` that compares where it can, and asks otherwise.

        None when no verdict was got, and when it cannot be told.
        """
        question = _question(task, answer)
        if question is None:
            return is_correct(task, answer)
        (verdict,) = self._verdicts([question])
        return verdict

    def check(self) -> None:
        """Ask one question whose verdict is known, before long work starts. Raises `JudgeError` for a useless judge."""
        if not self.client.verdict(("What colour is the sky on a clear day?", "It is blue.", "blue")):
            raise JudgeError("wrong", f"the judge {self.client.model!r} says that 'blue' is not 'It is blue.'")

    def _verdicts(self, questions: Sequence[Question | bool | None]) -> list[bool | None]:
        """A verdict for each question; what is a verdict already stays one."""
        distinct = list(dict.fromkeys(question for question in questions if isinstance(question, tuple)))
        with ThreadPoolExecutor(max_workers=max(1, min(self._workers, len(distinct)))) as pool:
            told = dict(zip(distinct, pool.map(self._ask, distinct), strict=True))
        return [told[question] if isinstance(question, tuple) else question for question in questions]

    def _ask(self, question: Question) -> bool | None:
        reason = ""
        try:
            return self.client.verdict(question)
        except JudgeError as error:
            reason = error.reason
            with self._lock:
                first = not self.failures[reason]
            log.log(logging.WARNING if first else logging.DEBUG, "an answer is not judged (%s): %s", reason, error)
            return None
        finally:
            with self._lock:
                self.asked += 1
                if reason:
                    self.failures[reason] += 1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are faults: following one could carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _question(task: Task, answer: Answer | None) -> Question | bool | None:
    """What to ask about an answer; a verdict where none needs to be asked for; None where nothing can be said."""
    if task.options or task.answer is None or task.answer_kind not in ("choice", "text", "ocr"):
        return None
    if answer is None:
        return False
    if is_correct(task.model_copy(update={"answer_kind": "text"}), answer):
        return True
    return (task.question, task.answer, answer.text)


def _bounded(text: str) -> str:
    """`text` as data for the judge's prompt: no mark of the prompt in it, and not too long."""
    text = _MARK.sub(r"< \1", text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _seconds(header: str | None) -> float:
    """A Retry-After in seconds; 0 for none, and for a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
