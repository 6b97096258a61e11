"""What importing costs and what it must not load.

Timings are never asserted: what makes an import slow is what it loads, and that is a fact of `sys.modules`. Each check
runs in a process of its own, because this one has already imported everything.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import closeup
from closeup import extras

HEAVY = ("torch", "transformers", "av", "numpy", "pydantic", "PIL", "safetensors", "tokenizers", "huggingface_hub")
MODELS = ("torch", "transformers", "safetensors", "tokenizers")
OPTIONAL = (
    "decord",
    "torchcodec",
    "trl",
    "deepspeed",
    "peft",
    "datasets",
    "gradio",
    "vllm",
    "openai",
    "mcp",
    "json_repair",
)
ROOMS = ("agent", "tools", "rl", "prompts", "app")


def loaded_after(statement: str, *, cwd: Path) -> set[str]:
    """Top-level names in `sys.modules` after `statement` has run in a new interpreter."""
    code = (
        "import json, sys\n"
        f"{statement}\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


HELP = """
import contextlib, io
from closeup.app.cli import main
sys.argv = ["closeup", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main()
assert "Usage" in shown.getvalue(), shown.getvalue()
"""


@pytest.mark.parametrize("arguments", ["--help", "ask --help", "eval --help", "data --help", "data needles --help"])
def test_help_loads_nothing_heavy(arguments: str, tmp_path: Path) -> None:
    loaded = loaded_after(HELP.format(arguments=arguments.split()), cwd=tmp_path)
    if arguments != "--help":
        loaded.discard("pydantic")  # typer itself checks a command's options with it
    assert loaded.isdisjoint(HEAVY), f"closeup {arguments} loads {sorted(loaded.intersection(HEAVY))}"


def test_the_package_itself_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = loaded_after("import closeup", cwd=tmp_path)
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    """The checks above could not fail if this one did not hold."""
    assert {"numpy", "closeup"} <= loaded_after("import closeup, numpy", cwd=tmp_path)


@pytest.mark.parametrize("package", ["closeup.tools", "closeup.prompts"])
def test_the_lower_rooms_import_without_torch(package: str, tmp_path: Path) -> None:
    """Every module of theirs, with torch and its friends made impossible to import."""
    statement = f"""
import importlib, pkgutil
for name in {MODELS!r}:
    sys.modules[name] = None
package = importlib.import_module({package!r})
for found in pkgutil.walk_packages(package.__path__, {package + "."!r}):
    importlib.import_module(found.name)
for name in {MODELS!r}:
    del sys.modules[name]
"""
    assert loaded_after(statement, cwd=tmp_path).isdisjoint(MODELS)


def test_agent_needs_torch_only_where_a_model_runs(tmp_path: Path) -> None:
    """Tasks, environments, dialects and scripted policies work on a machine that has no torch."""
    statement = f"""
import importlib, pkgutil
for name in {MODELS!r}:
    sys.modules[name] = None
import closeup.agent, closeup.agent.dialects
for package in (closeup.agent, closeup.agent.dialects):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
import closeup.agent.policies.base, closeup.agent.policies.scripted, closeup.rl.rewards
for name in {MODELS!r}:
    del sys.modules[name]
"""
    assert loaded_after(statement, cwd=tmp_path).isdisjoint(MODELS)


def test_every_module_imports_without_extras(tmp_path: Path) -> None:
    statement = f"""
import importlib, pkgutil
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import closeup
for found in pkgutil.walk_packages(closeup.__path__, "closeup."):
    if not found.name.endswith(".__main__"):
        importlib.import_module(found.name)
for name in {OPTIONAL!r}:
    del sys.modules[name]
"""
    assert "closeup" in loaded_after(statement, cwd=tmp_path)


def test_no_second_copy_under_a_bare_name() -> None:
    """`python -m pytest` puts the current folder on the path, where `import tools` would load everything once more."""
    every = [found.name for found in pkgutil.walk_packages(closeup.__path__, "closeup.")]
    assert len(every) > len(ROOMS)
    for room in ROOMS:
        found = sys.modules.get(room)
        folder = Path(closeup.__file__).parent / room
        assert found is None or not any(Path(place).samefile(folder) for place in getattr(found, "__path__", ())), (
            f"something imported {room!r} where it meant 'closeup.{room}'"
        )


@pytest.mark.parametrize("name", [name for name in closeup.__all__ if name != "__version__"])
def test_the_names_of_the_package_are_there(name: str) -> None:
    assert getattr(closeup, name).__module__.startswith("closeup.")


def test_a_name_the_package_lacks_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Vidoe'.*Video"):
        closeup.Vidoe  # noqa: B018


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(extras.MissingExtra, match=r'pip install "closeup\[decord\]"') as caught:
        extras.require("decord", "decord")
    assert (caught.value.extra, caught.value.name) == ("decord", "decord")


def test_a_module_that_is_there_but_broken_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_library.py").write_text("import a_module_that_nobody_has\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has") as caught:
        extras.require("decord", "half_a_library")
    assert not isinstance(caught.value, extras.MissingExtra)


def test_an_installed_module_is_returned_and_an_unknown_extra_refused() -> None:
    assert extras.require("dev", "json.decoder").__name__ == "json.decoder"
    with pytest.raises(ValueError, match="no extra 'video'"):
        extras.require("video", "json")


def test_python_m_closeup_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "closeup", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("closeup ")
