"""How long does a visitor of the demo wait, and does its server grow? The real server, asked by real clients.

    python benchmarks/demo.py                             both servers, minutes; results/demo-cpu.json
    python benchmarks/demo.py --questions 200 --clients 8 --alone 0    longer, to see whether anything grows

`closeup demo` is started as a process on loopback with the bundled model and asked through its HTTP API by
gradio_client, first by one client, then by several at once. Every second question is about a bundled example, the
others are about generated videos that the server has not met before, picked by name or uploaded in turn. One client is
one visitor: it asks about another video each time, which starts a new conversation.

- A time runs from the moment a client submits its question, its wait in line included, to the state that first shows a
  thought, a zoom card, the frames of a close look, or the answer. The server tells at most every `refresh_seconds`.
- Memory is that of the server's process after every answer: what it allocated (`anonymous`), RSS, and PSS. The last two
  also move when other programs share or leave its libraries, so growth is told of the first: the slope of least squares
  over the answers after warm-up, with its standard error. Threads and open files are counted too, for what leaks seldom
  leaks memory alone. Disk is what lies below the server's temporary folder, `deleted` what it keeps of deleted files.
- `default` has the caches of video frames and readers as they are. In `small` they are so small that they evict all
  the time, so what still grows there is no cache.

Invariants: the server ends with the benchmark, however that ends; a question that fails ends the benchmark, with the
end of the server's log; nothing is written unless every question was asked.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report

from closeup.agent.task import Task, load_tasks
from closeup.app.demo import EXAMPLES
from closeup.app.progress import Advance, bar
from closeup.app.settings import DemoSettings

SEED = 810_001
SMALL = {"frames_bytes": 1 << 20, "readers_bytes": 1 << 20, "knowledge_bytes": 1 << 18}
TICK = 0.005
"""Seconds between two looks at what a client has received."""
PATIENCE = 300.0
"""Seconds after which a question without an answer is a failure."""
MIB = 1 << 20
USED = ("anonymous_mib", "rss_mib", "pss_mib", "threads", "files", "disk_mib", "deleted_mib")
# The demo itself. It ends when its standard input does, so that it never outlives a benchmark that was killed.
SERVE = """
import json, os, signal, sys, threading
limits = json.loads(sys.argv.pop(1))
if limits:
    from closeup.tools.video import set_cache_limits
    set_cache_limits(**limits)
end = lambda: (sys.stdin.buffer.read(), os.kill(os.getpid(), signal.SIGTERM))
threading.Thread(target=end, daemon=True).start()
from closeup.app.cli import main
main()
"""


# -- arithmetic ------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, median, 90th percentile (the value that at least nine in ten do not exceed), most, and the values."""
    if not values:
        return {"n": 0, "median": None, "p90": None, "most": None, "values": []}
    ordered = sorted(values)
    p90 = ordered[-(-9 * len(ordered) // 10) - 1]
    shown = [round(value, 3) for value in values]
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 3),
        "p90": round(p90, 3),
        "most": round(ordered[-1], 3),
        "values": shown,
    }


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of the line of least squares through the points, and the standard error of that slope.

    Raises `ValueError` for fewer than three points, or all at one x.
    """
    if len(xs) != len(ys) or len(xs) < 3 or len(set(xs)) < 2:
        raise ValueError(f"a slope with an error needs three points at two places or more, got {len(xs)}")
    x0, y0 = statistics.fmean(xs), statistics.fmean(ys)
    square = sum((x - x0) ** 2 for x in xs)
    slope = sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / square
    rest = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, (rest / (len(xs) - 2) / square) ** 0.5


def growth(samples: Sequence[dict[str, float]], warm_up: int) -> dict[str, Any]:
    """Per question after the first `warm_up`: what memory, threads, files and disk grow by; None for too few."""
    kept = [sample for sample in samples if sample["questions"] > warm_up]
    if len(kept) < 3:
        return {"left_out": warm_up, "per_question": None}
    found: dict[str, Any] = {}
    for name in USED:
        slope, error = line([s["questions"] for s in kept], [s[name] for s in kept])
        found[name] = {"slope": round(slope, 5), "standard_error": round(error, 5)}
    return {"left_out": warm_up, "per_question": found}


def moments(states: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, float | None]:
    """When a thought, a zoom card, its frames and the answer first showed, in the states' unit of time, or None."""

    def first(shown: Any) -> float | None:
        return next((at for at, state in states if shown(state)), None)

    def calls(state: dict[str, Any]) -> list[dict[str, Any]]:
        return [call for step in state["steps"] for call in step["calls"] if call["tool"] == "zoom_clip"]

    return {
        "thought": first(lambda state: any(step["thought"] for step in state["steps"])),
        "card": first(calls),
        "look": first(lambda state: any(call["state"] == "done" and call["windows"] for call in calls(state))),
        "answer": first(lambda state: state["answer"] is not None),
    }


# -- the server ------------------------------------------------------------------------------------------------------


def memory(process: int) -> dict[str, float]:
    """MiB of a process (Linux): `anonymous_mib`, `rss_mib`, `pss_mib`; its threads and open files.

    `deleted_mib` is what it keeps on disk although nobody can name it any more: deleted files that it has open.
    """
    fields = {}
    for row in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = row.partition(":")
        fields[name] = int(rest.split()[0]) / 1024
    return {
        "rss_mib": round(fields["Rss"], 2),
        "pss_mib": round(fields["Pss"], 2),
        "anonymous_mib": round(fields["Anonymous"], 2),
        "threads": len(os.listdir(f"/proc/{process}/task")),
        "files": len(os.listdir(f"/proc/{process}/fd")),
        "deleted_mib": round(_deleted(process), 3),
    }


def _deleted(process: int) -> float:
    found: dict[tuple[int, int], int] = {}
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            info = link.stat()
        except FileNotFoundError:  # closed while we looked
            continue
        if stat.S_ISREG(info.st_mode) and not info.st_nlink:
            found[info.st_dev, info.st_ino] = info.st_size
    return sum(found.values()) / MIB


def cpu_seconds(process: int) -> float:
    """Processor time a process has used, all its threads together, in seconds (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disk(folder: Path) -> float:
    """MiB of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_size
            except FileNotFoundError:  # deleted while we looked
                continue
    return total / MIB


class Server:
    """A demo that is being served: `url`, `pid`, and what it uses."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path, log: Path) -> None:
        self.process, self.pid, self.temporary, self.log = process, process.pid, temporary, log
        assert process.stdout is not None
        while True:  # gradio may print before it
            row = process.stdout.readline()
            if row.startswith("closeup demo: http"):
                self.url = row.split()[2]
                return
            if not row:
                raise RuntimeError(f"the demo did not start:\n{self.complaints()}")

    def sample(self, questions: int) -> dict[str, float]:
        """What it uses after so many questions."""
        return {"questions": questions, **memory(self.pid), "disk_mib": round(disk(self.temporary), 3)}

    def complaints(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


@contextmanager
def serving(folder: Path, allow: Path, limits: dict[str, int]) -> Iterator[Server]:
    """The demo on loopback, ended on the way out; its temporary files and log are in `folder`."""
    temporary, log = folder / "temporary", folder / "server.log"
    temporary.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", SERVE, json.dumps(limits), "demo", "--port", "0", "--allow", str(allow)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
            start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then ends the server
        )
    try:
        yield Server(process, temporary, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


# -- the visitors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One question: the task, and how its video reaches the server."""

    task: Task
    way: str  # "example", "allowed" or "upload"


def schedule(questions: int, clients: int, bundled: Sequence[Task], generated: Sequence[Task]) -> list[list[Asked]]:
    """What each client asks, in order: examples and generated videos in turn, so that no two in a row share a video.

    The generated videos are not repeated before all of them were asked about; every second one is uploaded.
    """
    plan: list[list[Asked]] = [[] for _ in range(clients)]
    counts = {"example": 0, "generated": 0}
    for number in range(questions):
        client = number % clients
        if (number // clients + client) % 2 == 0:
            plan[client].append(Asked(bundled[counts["example"] % len(bundled)], "example"))
            counts["example"] += 1
        else:
            task = generated[counts["generated"] % len(generated)]
            plan[client].append(Asked(task, "upload" if counts["generated"] % 2 else "allowed"))
            counts["generated"] += 1
    return plan


def ask(client: Any, asked: Asked) -> dict[str, Any]:
    """Ask one question and watch it: when things showed (seconds), whether the answer was right, whether it waited.

    Raises:
        RuntimeError: the question failed, or took longer than `PATIENCE`.
    """
    from gradio_client import handle_file

    task, video = asked.task, asked.task.videos[0]
    where: dict[str, Any] = {"video": video.name}
    if asked.way == "upload":
        client.predict(handle_file(video), api_name="/upload")
        where = {}
    began = time.perf_counter()
    job = client.submit(question=task.question, options=list(task.options), **where, api_name="/ask")
    states: list[tuple[float, dict[str, Any]]] = []
    while True:
        over = job.done()
        received, now = job.outputs(), time.perf_counter() - began
        states += [(now, state) for state in received[len(states) :]]
        if over:
            break
        if now > PATIENCE:
            raise RuntimeError(f"{task.question!r} about {video.name} had no answer after {PATIENCE:g} s")
        time.sleep(TICK)
    final = job.result()  # raises what the server refused
    if final["status"] not in ("done", "stopped"):
        raise RuntimeError(f"{task.question!r} about {video.name}: {final['status']}, {final['reason']}")
    seen = moments(states)
    return {
        "way": asked.way,
        "waited": any(state["ahead"] for _, state in states),
        "right": final["answer"] == task.answer,
        **{name: None if at is None else round(at, 4) for name, at in seen.items()},
    }


def phase(server: Server, plan: Sequence[Sequence[Asked]], advance: Advance, done: int) -> dict[str, Any]:
    """Let the clients ask all at once; rows, samples after every answer, CPU and wall seconds.

    Args:
        done: questions this server answered before. advance: told of how many it has answered.
    """
    from gradio_client import Client

    told: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
    stop = threading.Event()
    clients = [Client(server.url, verbose=False, analytics_enabled=False) for _ in plan]

    def visit(client: Any, questions: Sequence[Asked]) -> None:
        try:
            for asked in questions:
                if stop.is_set():
                    return
                told.put(ask(client, asked))
        except BaseException as error:
            told.put(error)

    rows: list[dict[str, Any]] = []
    samples: list[dict[str, float]] = []
    wall, cpu = time.perf_counter(), cpu_seconds(server.pid)
    try:
        for client, questions in zip(clients, plan, strict=True):
            threading.Thread(target=visit, args=(client, questions), daemon=True).start()
        for _ in range(sum(map(len, plan))):
            answer = told.get(timeout=PATIENCE + 60)
            if isinstance(answer, BaseException):
                raise RuntimeError(f"a question failed: {answer}\nserver's log:\n{server.complaints()}") from answer
            rows.append(answer)
            samples.append(server.sample(done + len(rows)))
            advance(done + len(rows))
        cpu, wall = cpu_seconds(server.pid) - cpu, time.perf_counter() - wall
    finally:
        stop.set()
    for client in clients:
        client.close()
    return {"rows": rows, "samples": samples, "cpu_s": cpu, "wall_s": wall}


# -- the report ------------------------------------------------------------------------------------------------------


def times(part: dict[str, Any], clients: int) -> dict[str, Any]:
    """The times of a phase as distributions."""
    rows = part["rows"]
    names = {"thought": "first_thought_s", "card": "first_card_s", "look": "first_look_s", "answer": "answer_s"}
    return {
        "clients": clients,
        "questions": len(rows),
        "right": sum(row["right"] for row in rows) / len(rows),
        "waited": sum(row["waited"] for row in rows) / len(rows),
        "wall_s": round(part["wall_s"], 2),
        "cpu_s": round(part["cpu_s"], 2),
        "cpu_s_per_question": round(part["cpu_s"] / len(rows), 3),
        **{label: spread([row[name] for row in rows if row[name] is not None]) for name, label in names.items()},
    }


def table(samples: Sequence[dict[str, float]], every: int = 10) -> list[dict[str, float]]:
    """The samples after every tenth question."""
    return [sample for sample in samples if sample["questions"] % every == 0]


def serve_and_ask(name: str, limits: dict[str, int], tasks: Sequence[Task], options: Any) -> dict[str, Any]:
    """One server's whole life: one client alone, then several; what it uses is sampled while several ask."""
    bundled = [task for file in ("tasks.jsonl", "further.jsonl") for task in load_tasks(EXAMPLES / file)]
    with tempfile.TemporaryDirectory(prefix="closeup-benchmark-") as folder:
        wall = time.perf_counter()
        with serving(Path(folder), tasks[0].videos[0].parent, limits) as server:
            found: dict[str, Any] = {
                "caches": limits or "as they are",
                "start": {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": cpu_seconds(server.pid)},
            }
            fresh = [*tasks]
            found["at_rest"] = server.sample(0)
            with bar(name, options.alone + options.questions) as advance:
                if options.alone:
                    plan = schedule(options.alone, 1, bundled, fresh)
                    found["one"] = times(phase(server, plan, advance, 0), 1)
                    fresh = fresh[options.alone // 2 :]
                plan = schedule(options.questions, options.clients, bundled, fresh)
                several = phase(server, plan, lambda done, total=None: advance(options.alone + done), 0)
            found["several"] = times(several, options.clients)
            found["table"] = table(several["samples"])
            found["growth"] = growth(several["samples"], options.warm_up)
            found["samples"] = several["samples"]
            time.sleep(options.rest)
            found["left"] = server.sample(options.questions)
        found["temporary_files_after_the_end"] = sum(path.is_file() for path in server.temporary.rglob("*"))
    return found


def steady(grown: dict[str, Any]) -> dict[str, Any] | None:
    """Whether memory does not grow: its slope is within two standard errors of none, or below 10 KiB a question."""
    if grown["per_question"] is None:
        return None
    slope = grown["per_question"]["anonymous_mib"]
    met = slope["slope"] <= max(2 * slope["standard_error"], 10 / 1024)
    return {"met": met, "mib_per_question": slope["slope"], "standard_error": slope["standard_error"]}


def report(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Write the result and print the tables."""
    targets: dict[str, Any] = {}
    for name, part in found.items():
        verdict = steady(part["growth"])
        if verdict is not None:
            targets[f"{name}: memory does not grow"] = verdict
        targets[f"{name}: nothing left on disk"] = {
            "met": part["temporary_files_after_the_end"] == 0,
            "files": part["temporary_files_after_the_end"],
        }
    demo = DemoSettings()
    result = {
        "environment": _report.environment(("gradio", "gradio_client", "torch", "transformers", "av", "numpy")),
        "settings": {
            "seed": SEED,
            "model": "tiny",
            "alone": options.alone,
            "questions": options.questions,
            "clients": options.clients,
            "at_once": demo.at_once,
            "refresh_seconds": demo.refresh_seconds,
            "generated_videos": options.films,
            "note": options.note,
        },
        "targets": targets,
        **found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, part in found.items():
        arms = [part[key] for key in ("one", "several") if key in part]
        columns = ["seconds, median / 90 %", *(f"{arm['clients']} client{'s'[: arm['clients'] > 1]}" for arm in arms)]
        rows = [
            [
                label,
                *("–" if not arm[key]["n"] else f"{arm[key]['median']:.2f} / {arm[key]['p90']:.2f}" for arm in arms),
            ]
            for label, key in (
                ("first thought", "first_thought_s"),
                ("zoom card", "first_card_s"),
                ("close look", "first_look_s"),
                ("answer", "answer_s"),
            )
        ]
        rows.append(["right answers", *(f"{arm['right']:.0%}" for arm in arms)])
        rows.append(["CPU seconds a question", *(f"{arm['cpu_s_per_question']:.2f}" for arm in arms)])
        _report.show(f"{name} caches", columns, rows)
        _report.show(
            f"{name} caches, {options.clients} clients",
            ["questions", *(name.replace("_mib", " MiB") for name in USED)],
            [
                [
                    str(s["questions"]),
                    *(f"{s[key]:.1f}" for key in USED),
                ]
                for s in (part["at_rest"], *part["table"], part["left"])
            ]
            + [
                [
                    "growth a question",
                    *(f"{grown[key]['slope']:+.3f}±{grown[key]['standard_error']:.3f}" for key in USED),
                ]
                for grown in [part["growth"]["per_question"]]
                if grown is not None
            ],
        )
    sys.stdout.write(f"written to {options.out}\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""

    def count(text: str) -> int:
        value = int(text)
        if value < 0:
            raise argparse.ArgumentTypeError(f"a count of at least 0, got {text}")
        return value

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=count, default=50, help="asked by several clients together")
    parser.add_argument("--clients", type=count, default=4)
    parser.add_argument("--alone", type=count, default=20, help="questions of one client before; 0 for none")
    parser.add_argument("--films", type=count, default=40, help="generated videos to choose from")
    parser.add_argument("--warm-up", type=count, default=10, help="answers left out of the growth")
    parser.add_argument("--rest", type=float, default=5.0, help="seconds before the last sample, clients gone")
    parser.add_argument("--only", choices=("default", "small"), help="one server instead of both")
    parser.add_argument("--note", default="", help="what else the machine was doing, kept in the result")
    parser.add_argument("--out", type=Path, default=_report.RESULTS / "demo-cpu.json")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.questions < options.clients or options.films < 1:
        parser.error(
            f"every client asks at least once and there is at least one video, got --clients {options.clients},"
            f" --questions {options.questions}, --films {options.films}"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; 130 when interrupted, with nothing written."""
    from closeup.rl.data.needles import write

    options = parse(arguments)
    if not Path("/proc/self/smaps_rollup").is_file():
        raise SystemExit("this benchmark reads /proc/PID/smaps_rollup, which only Linux has; run it there")
    servers = {"default": {}, "small": SMALL}
    try:
        with tempfile.TemporaryDirectory(prefix="closeup-benchmark-") as folder:
            films = Path(folder).resolve()
            write(options.films, SEED, films)
            tasks = list(load_tasks(films / "tasks.jsonl"))
            chosen = {name: limits for name, limits in servers.items() if options.only in (None, name)}
            found = {name: serve_and_ask(name, limits, tasks, options) for name, limits in chosen.items()}
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the server was ended and nothing was written\n")
        return 130
    report(options, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
