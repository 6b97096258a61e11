"""sdist → wheel → a clean environment: what a person gets from `pip install closeup` is whole, and nothing more.

Marked slow; `.ci/run` runs it. The sdist is built from the tracked files alone, so a file that somebody forgot to
commit is missed here and not by a user. The clean environment gets its dependencies from the environment that runs the
tests, through a `.pth` line: downloading torch again would take minutes and prove nothing about our own package (that
a fresh installation resolves is seen by `make test`, which starts with one). Our own files come first on its path and
are the only `closeup` there: a `.pth` line is not followed into further `.pth` files, so the editable installation
stays out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import closeup

pytestmark = pytest.mark.slow

ROOMS = ("agent", "app", "prompts", "rl", "tools")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """Paths of the files that git would hand to somebody else."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout: only git knows which files a release has")
    return run("git", "ls-files", "-z", cwd=root).split("\0")[:-1]


@pytest.fixture(scope="module")
def distributions(root: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from the unpacked sdist."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, source / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def clean(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel; the path of its Python."""
    place = tmp_path_factory.mktemp("clean")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet"]
    run(*install, "--disable-pip-version-check", distributions[1], cwd=place)
    ours = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    Path(ours, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_the_wheel_holds_every_tracked_file_of_the_rooms_and_nothing_else(
    tracked: list[str], distributions: tuple[Path, Path]
) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    inside = {name for name in names if ".dist-info/" not in name}
    linked = {f"src/closeup/{room}" for room in ROOMS}
    expected = {f"closeup/{name}" for name in tracked if name.split("/")[0] in ROOMS}
    expected |= {name.removeprefix("src/") for name in tracked if name.startswith("src/") and name not in linked}
    assert inside == expected, {"missing": sorted(expected - inside), "unexpected": sorted(inside - expected)}
    assert {name.split("/")[0] for name in names} == {"closeup", f"closeup-{closeup.__version__}.dist-info"}


def test_the_licence_travels(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
        assert b"Apache License" in wheel.read(licence)
    with tarfile.open(distributions[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_command_answers_in_the_clean_environment(clean: Path, tmp_path: Path) -> None:
    assert run(clean.parent / "closeup", "--version", cwd=tmp_path).strip() == f"closeup {closeup.__version__}"
    assert "ask" in run(clean.parent / "closeup", "--help", cwd=tmp_path)


def test_the_rooms_import_from_the_wheel_and_under_no_bare_name(clean: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, importlib.util, json
found = {{room: importlib.import_module("closeup." + room).__file__ for room in {ROOMS!r}}}
bare = [room for room in (*{ROOMS!r}, "tests") if importlib.util.find_spec(room)]
print(json.dumps([found, bare]))
"""
    found, bare = json.loads(run(clean, "-c", code, cwd=tmp_path))
    for room in ROOMS:
        assert Path(found[room]).is_relative_to(clean.parent.parent), found[room]
        assert not Path(found[room]).parent.is_symlink(), "the wheel holds real folders"
    assert bare == []


def test_the_built_in_tools_are_found_through_their_entry_points(clean: Path, tmp_path: Path) -> None:
    code = """
from importlib.metadata import entry_points
print(*sorted(f"{entry.name}={entry.load().name}" for entry in entry_points(group="closeup.tools")
              if entry.dist.name == "closeup"))
"""
    expected = "answer=answer resample_frames=resample_frames zoom_clip=zoom_clip"
    assert run(clean, "-c", code, cwd=tmp_path).strip() == expected


def test_templates_model_and_examples_are_readable_as_package_data(clean: Path, tmp_path: Path) -> None:
    code = """
import json
from importlib.resources import files
def walk(place):
    for entry in place.iterdir():
        yield from walk(entry) if entry.is_dir() else [entry]
print(json.dumps({
    "templates": sum(entry.name.endswith(".jinja") for entry in walk(files("closeup.prompts"))),
    "model": sorted(entry.name for entry in walk(files("closeup.agent.models") / "closeup-tiny")),
    "half": sorted(entry.name for entry in walk(files("closeup.agent.models") / "tiny-half")),
    "examples": sorted(entry.name for entry in walk(files("closeup.app") / "examples")),
}))
"""
    there = json.loads(run(clean, "-c", code, cwd=tmp_path))
    assert there["templates"] > 5
    for model in ("model", "half"):
        assert {"config.json", "model.safetensors", "tokenizer.json", "closeup.json"} <= set(there[model])
    assert {"digit.mp4", "tasks.jsonl"} <= set(there["examples"])


def test_the_bundled_model_answers_from_the_wheel(clean: Path, tmp_path: Path) -> None:
    """The whole way, with nothing of the checkout in reach: package data, weights, decoder, tools, answer."""
    code = "from importlib.resources import files; print(files('closeup.app') / 'examples')"
    examples = Path(run(clean, "-c", code, cwd=tmp_path).strip())
    task = json.loads((examples / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])
    options = [part for option in task["options"] for part in ("--option", option)]
    command = [clean.parent / "closeup", "ask", examples / task["video"], task["question"], *options, "--json"]
    assert json.loads(run(*command, cwd=tmp_path))["answer"] == task["answer"]
