"""The one entry point, `closeup`: commands, their options, and nothing else.

Each command's work lives in a module of its own, imported when the command runs, so `closeup --help` loads neither
torch nor pydantic. Exit codes are in `closeup.app.errors`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from closeup import __version__
from closeup.app.errors import USAGE, complain, guarded

app = typer.Typer(
    name="closeup",
    help="Agents that watch long videos: skim, zoom in through typed tools, answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make, convert and check task files.", no_args_is_help=True)
app.add_typer(data, name="data")
train = typer.Typer(help="Train a model: sft, grpo.", no_args_is_help=True)
app.add_typer(train, name="train")
cache = typer.Typer(help="Encode clips ahead of training, see what is kept, remove it.", no_args_is_help=True)
app.add_typer(cache, name="cache")

ModelOption = Annotated[str, typer.Option("--model", help="'tiny' (bundled), a checkpoint folder, or a hub id.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Dialect, prompts, budgets and tool rules by name, or a .json file.")
]
StepsOption = Annotated[
    int | None, typer.Option("--max-steps", min=1, max=256, help="Assistant messages at most; the last must answer.")
]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", min=0.0, max=10.0, help="0 is greedy.")]
FpsOption = Annotated[
    float | None, typer.Option("--fps", min=0.001, max=240, help="Frames of the overview per second, as many as fit.")
]
FramesOption = Annotated[
    int | None,
    typer.Option("--frames", min=1, max=8192, help="So many frames of overview; with --fps at most so many."),
]
BoundOption = Annotated[
    str | None, typer.Option("--bound", help="Show an overview of this part only: START:END in seconds.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--dir", help="The cache's folder. Default: $CLOSEUP_CACHE, or one in the user's cache.")
]
ToolsOption = Annotated[
    str | None, typer.Option("--tools", help="Names of the tools in force, comma-separated; 'none' leaves only answer.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"closeup {__version__}\n")
        raise typer.Exit(0)


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    option: Annotated[list[str] | None, typer.Option("--option", help="One possible answer; repeat.")] = None,
    subtitles: Annotated[Path | None, typer.Option("--subtitles", help="An .srt or .vtt file.")] = None,
    model: ModelOption = "tiny",
    preset: PresetOption = None,
    max_steps: StepsOption = None,
    tools: ToolsOption = None,
    temperature: TemperatureOption = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    bound: BoundOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Append the trajectory to this .jsonl file.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")] = 0,
) -> None:
    """Ask a question about a video and watch the agent find the answer."""
    from closeup.app.ask import AskOptions, run
    from closeup.app.setup import Overrides

    raise typer.Exit(
        run(
            AskOptions(
                video=video,
                question=question,
                options=tuple(option or ()),
                subtitles=subtitles,
                model=model,
                preset=preset,
                overrides=Overrides(max_steps, tools, temperature, fps, frames, bound),
                as_json=as_json,
                save=save,
                seed=seed,
            )
        )
    )


@app.command(name="eval")
def evaluate(
    tasks: Annotated[Path, typer.Argument(help="A task file (JSON Lines).")],
    model: ModelOption = "tiny",
    preset: PresetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for trajectories and the summary.")] = None,
    max_steps: StepsOption = None,
    tools: ToolsOption = None,
    temperature: TemperatureOption = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    bound: BoundOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N tasks.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=256, help="Episodes that run together.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")] = 0,
    feature_cache: Annotated[
        Path | None, typer.Option("--feature-cache", help="Folder of vision features: see closeup cache build.")
    ] = None,
) -> None:
    """Accuracy, zoom hits, steps and tokens on a task file; stop it and run it again to go on."""
    from closeup.app.evaluate import EvalOptions, run
    from closeup.app.setup import Overrides

    raise typer.Exit(
        run(
            EvalOptions(
                tasks=tasks,
                model=model,
                preset=preset,
                out=out,
                overrides=Overrides(max_steps, tools, temperature, fps, frames, bound),
                limit=limit,
                batch=batch,
                as_json=as_json,
                seed=seed,
                feature_cache=feature_cache,
            )
        )
    )


@app.command()
def demo(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="'tiny' (bundled), a checkpoint folder, or a hub id; repeat.")
    ] = None,
    preset: PresetOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve at; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 7860,
    allow: Annotated[
        list[Path] | None, typer.Option("--allow", help="Folder whose videos may be asked about; repeat.")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also serve through Gradio's public tunnel.")] = False,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Questions answered at the same time.")] = 3,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Questions that may wait for their turn.")] = 12,
    max_upload_mb: Annotated[float, typer.Option("--max-upload-mb", help="Size of one upload.")] = 1000.0,
    max_disk_mb: Annotated[float, typer.Option("--max-disk-mb", help="Size of all uploads together.")] = 4000.0,
    max_minutes: Annotated[float, typer.Option("--max-minutes", help="Longest video.")] = 120.0,
    max_seconds: Annotated[float, typer.Option("--max-seconds", help="Longest time for one question.")] = 600.0,
    keep_minutes: Annotated[float, typer.Option("--keep-minutes", help="Uploads are deleted after this.")] = 60.0,
) -> None:
    """Open a web page: upload or pick a video, ask, and watch the agent watch it."""
    from closeup.app.settings import DemoSettings

    settings = DemoSettings(
        models=tuple(model or ["tiny"]),
        preset=preset,
        host=host,
        port=port,
        share=share,
        allow=tuple(allow or ()),
        at_once=at_once,
        waiting=waiting,
        max_upload_mb=max_upload_mb,
        max_disk_mb=max_disk_mb,
        max_minutes=max_minutes,
        max_seconds=max_seconds,
        keep_minutes=keep_minutes,
    )
    from closeup.app.demo import run

    raise typer.Exit(run(settings))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A trajectory file (JSON Lines).")],
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Where the videos are now, when they moved (found by content).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per trajectory.")] = False,
) -> None:
    """Run recorded messages through the environment again and report every difference."""
    from closeup.app.replay import run

    raise typer.Exit(run(file, videos=videos, as_json=as_json))


@app.command()
def view(
    file: Annotated[Path, typer.Argument(help="A trajectory file (JSON Lines): episodes, or rollout groups.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page to write. Default: FILE with .html.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Episodes at most, from the first.")] = 64,
    task: Annotated[str | None, typer.Option("--task", help="Only episodes of the task with this id.")] = None,
    rewards: Annotated[
        str | None, typer.Option("--rewards", help="Weights of the streams: a reward preset, or NAME=WEIGHT,….")
    ] = None,
    advantage: Annotated[str, typer.Option("--advantage", help="How a group's advantages are made.")] = "decoupled",
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Where the videos are now, when they moved (found by content).")
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0, max=1000, help="Megabytes of pictures at most.")] = 24,
) -> None:
    """Make one HTML page of recorded episodes: where the agent looked, and why a rollout got its advantage."""
    from closeup.app.viewer import ViewOptions, run

    raise typer.Exit(
        run(
            ViewOptions(
                file=file,
                out=out,
                limit=limit,
                task=task,
                rewards=rewards,
                advantage=advantage,
                videos=videos,
                max_mb=max_mb,
            )
        )
    )


@app.command()
def tools(
    as_json: Annotated[bool, typer.Option("--json", help="Print the schemas as one JSON list.")] = False,
) -> None:
    """List every tool, its arguments and the package it comes from."""
    from closeup.app.tools import run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the families of models and what each supports."""
    from closeup.app.models import run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def doctor(
    model: ModelOption = "tiny",
    preset: PresetOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Look also at a checkpoint that brings code of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a checkpoint in seconds: family, prompts, tokens per frame, what fits, memory. No weight is read."""
    from closeup.app.doctor import DoctorOptions, run

    raise typer.Exit(run(DoctorOptions(model, preset, trust_remote_code, as_json)))


@app.command()
def mcp(
    transport: Annotated[
        str, typer.Option("--transport", help="stdio (a client starts this program) or http (streamable HTTP).")
    ] = "stdio",
    host: Annotated[str, typer.Option("--host", help="http: the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="http: the port; 0 is any free one.")] = 7861,
    allow: Annotated[
        list[Path] | None, typer.Option("--allow", help="A folder whose videos may be watched; repeat.")
    ] = None,
    expose: Annotated[
        bool,
        typer.Option("--expose", help="http: let other machines in. No password: they can watch all that is allowed."),
    ] = False,
    host_name: Annotated[
        list[str] | None,
        typer.Option("--host-name", help="With --expose: a name clients reach this machine by; repeat."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Also serve ask_video, answered by this model ('tiny' is bundled).")
    ] = None,
    preset: PresetOption = None,
    tools: Annotated[
        str | None,
        typer.Option("--tools", help="Names of the tools to serve, comma-separated. Default: all that look."),
    ] = None,
    max_frames: Annotated[int, typer.Option("--max-frames", min=1, max=4096, help="Frames of one reply.")] = 128,
    max_gb: Annotated[float, typer.Option("--max-gb", help="Largest video file, in GB.")] = 64.0,
) -> None:
    """Serve the tools to other programs' models (Model Context Protocol)."""
    from closeup.app.mcp import McpOptions, run

    raise typer.Exit(
        run(
            McpOptions(
                transport=transport,
                host=host,
                port=port,
                allow=tuple(allow or ()),
                expose=expose,
                host_names=tuple(host_name or ()),
                model=model,
                preset=preset,
                tools=tools,
                max_frames=max_frames,
                max_gb=max_gb,
            )
        )
    )


@data.command()
def needles(
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Tasks to make, one video each.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Task i depends on the seed and i alone.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the videos and tasks.jsonl.")],
    seconds: Annotated[str, typer.Option("--seconds", help="Shortest and longest video, A:B.")] = "16:120",
) -> None:
    """Generate videos with small things to find, and questions about them."""
    from closeup.app.data import make_needles

    raise typer.Exit(make_needles(count, seed, out, seconds))


@data.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A task file: JSON Lines, parquet, or a dataset folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that videos open, windows lie inside them, and the gold answer scores 1.0."""
    from closeup.app.data import validate_file

    raise typer.Exit(validate_file(file, as_json=as_json))


@data.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Annotations: JSON, JSON Lines, parquet, or a dataset folder.")
    ],
    layout: Annotated[str, typer.Option("--layout", help="love_r1, longvideo_reason or video_r1.")],
    videos: Annotated[
        list[Path] | None, typer.Option("--videos", help="Folder of the videos; repeat. Default: the input's folder.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("tasks.jsonl"),
    trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Write chains of thought as episodes for train sft, not tasks.")
    ] = False,
    strip: Annotated[
        list[str] | None, typer.Option("--strip", help="Beginning to take off the videos' names; repeat.")
    ] = None,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Also write tasks whose video is not there (yet).")
    ] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N rows left out.")] = 10,
    faults: Annotated[Path | None, typer.Option("--faults", help="Write every row left out to this .jsonl.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn the annotations of LOVE-R1, LongVideo-Reason or Video-R1 into a task file."""
    from closeup.app.data import ConvertOptions, convert_file

    raise typer.Exit(
        convert_file(
            ConvertOptions(
                source=source,
                layout=layout,
                out=out,
                videos=tuple(videos or ()),
                strip=tuple(strip or ()),
                keep_missing=keep_missing,
                trajectories=trajectories,
                show=show,
                faults=faults,
                limit=limit,
                as_json=as_json,
            )
        )
    )


@cache.command(name="build")
def cache_build(
    tasks: Annotated[Path, typer.Argument(help="A task file: JSON Lines, parquet, or a dataset folder.")],
    model: ModelOption = "tiny",
    preset: PresetOption = None,
    folder: FolderOption = None,
    evidence: Annotated[bool, typer.Option("--evidence", help="Also the close looks at the gold windows.")] = False,
    max_gib: Annotated[float | None, typer.Option("--max-gib", help="Size of the cache; it remembers it.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the model: auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N tasks.")] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N failures.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the overview of every task through the vision tower; what is there already is skipped."""
    from closeup.app.cache import BuildOptions, build

    raise typer.Exit(
        build(
            BuildOptions(
                tasks=tasks,
                model=model,
                preset=preset,
                folder=folder,
                evidence=evidence,
                max_gib=max_gib,
                dtype=dtype,
                device=device,
                limit=limit,
                show=show,
                as_json=as_json,
            )
        )
    )


@cache.command(name="ls")
def cache_ls(
    folder: FolderOption = None,
    check: Annotated[bool, typer.Option("--check", help="Read every entry and name those that are damaged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what is kept: entries, size and last use, by the model that made them."""
    from closeup.app.cache import show

    raise typer.Exit(show(folder, check=check, as_json=as_json))


@cache.command(name="clear")
def cache_clear(
    folder: FolderOption = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="Only this model's features (see ls).")
    ] = None,
    entry: Annotated[str | None, typer.Option("--entry", help="Only this entry, as an error named it.")] = None,
) -> None:
    """Remove what is kept, without asking, and say what went."""
    from closeup.app.cache import clear

    raise typer.Exit(clear(folder, fingerprint=fingerprint, entry=entry))


TrainConfigOption = Annotated[Path, typer.Option("--config", help="A YAML file of settings; see configs/.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest complete checkpoint of the run's folder.")
]
_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@train.command(name="grpo", context_settings=_SETTINGS)
def train_grpo(context: typer.Context, config: TrainConfigOption, resume: ResumeOption = False) -> None:
    """Reinforcement learning by rollouts and step rewards. Settings may be given as --key value, dots for nesting."""
    from closeup.app.train import TrainOptions, run

    raise typer.Exit(run(TrainOptions("grpo", config, tuple(context.args), resume)))


@train.command(name="sft", context_settings=_SETTINGS)
def train_sft(context: typer.Context, config: TrainConfigOption, resume: ResumeOption = False) -> None:
    """Fine-tune on recorded episodes, or on a teacher's. Settings may be given as --key value, dots for nesting."""
    from closeup.app.train import TrainOptions, run

    raise typer.Exit(run(TrainOptions("sft", config, tuple(context.args), resume)))


def main() -> None:
    """Console entry point: runs a command and leaves with its exit code."""
    raise SystemExit(guarded(_run))


def _run() -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=sys.argv[1:], prog_name="closeup", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            message = error.format_message().rstrip(".")
            if message:  # without one it is `closeup` alone, which has just printed its help
                complain(f"{message}. Try: closeup --help")
            return USAGE
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from None
        raise
    return result if isinstance(result, int) else 0
