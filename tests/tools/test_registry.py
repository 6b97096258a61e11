from __future__ import annotations

import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import closeup
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolResult
from closeup.tools.registry import (
    BUILTINS,
    GROUP,
    DuplicateTool,
    PluginWarning,
    UnknownTool,
    register_tool,
    registered_tools,
    tool_entries,
    unregister_tool,
)

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
GOOD = '''
from closeup.tools import Tool, ToolArgs, ToolResult

class {class_name}(Tool[ToolArgs]):
    """Do nothing, kindly."""

    name = "{name}"

    def run(self, args, context):
        return ToolResult(text="{name}")
'''
Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package with one entry point on the path, as pip would; returns the module's name."""
    made: list[str] = []

    def make(package: str, name: str, code: str = "", *, attribute: str = "Plugin", version: str = "1.2") -> str:
        site, module = tmp_path / package, f"mod_{package}"
        info = site / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:{attribute}\n")
        (site / f"{module}.py").write_text(code or GOOD.format(class_name=attribute, name=name))
        monkeypatch.syspath_prepend(site)
        made.append(module)
        return module

    yield make
    for module in made:
        sys.modules.pop(module, None)


def ours() -> list[str]:
    """Registered names, whatever other plugins this environment happens to have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return list(registered_tools())


def test_the_built_ins_come_first_with_their_package_and_version() -> None:
    assert ours()[:3] == ["zoom_clip", "resample_frames", "answer"]
    for name, entry in tool_entries(list(BUILTINS)).items():
        assert (entry.name, entry.package, entry.version) == (name, "closeup", closeup.__version__)
        assert entry.tool.name == name and entry.target == BUILTINS[name]


def test_the_package_metadata_names_the_same_built_ins() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert project["entry-points"][GROUP] == BUILTINS


def test_tools_come_in_the_order_asked_for() -> None:
    assert list(registered_tools(["answer", "zoom_clip"])) == ["answer", "zoom_clip"]
    assert registered_tools([]) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zoom", "unknown tool 'zoom'; did you mean 'zoom_clip'? Registered: zoom_clip, resample_frames, answer"),
        ("qqq", "unknown tool 'qqq'. Registered: zoom_clip"),
        ("x" * 5000, "xxx...'. Registered"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_the_list(name: str, said: str) -> None:
    with pytest.raises(UnknownTool) as caught:
        registered_tools(["answer", name])
    assert said in str(caught.value) and len(str(caught.value)) < 500


def test_a_plugin_is_found_with_its_origin(install: Install) -> None:
    module = install("good_plugin", "be_kind")
    entry = tool_entries()["be_kind"]
    assert (entry.package, entry.version, entry.target) == ("good_plugin", "1.2", f"{module}:Plugin")
    tool: Any = entry.tool()
    assert tool.run(ToolArgs(), ToolContext()).text == "be_kind"
    assert ours()[:3] == list(BUILTINS) and "be_kind" in ours()


def test_only_the_tools_asked_for_are_imported(install: Install) -> None:
    module = install("lazy_plugin", "be_lazy")
    registered_tools(["zoom_clip", "answer"])
    assert module not in sys.modules
    registered_tools(["be_lazy"])
    assert module in sys.modules


def test_a_plugin_that_shadows_a_built_in_is_an_error_naming_both(install: Install) -> None:
    install("shady_plugin", "zoom_clip")
    with pytest.raises(DuplicateTool, match=r"called 'zoom_clip': from closeup .* and shady_plugin 1.2 "):
        registered_tools(["answer"])


def test_two_plugins_with_one_name_are_an_error_naming_both(install: Install) -> None:
    install("twin_one", "be_twin")
    install("twin_two", "be_twin")
    with pytest.raises(DuplicateTool, match=r"'be_twin': from twin_one 1.2 .*and twin_two 1.2 .*rename"):
        registered_tools()


@pytest.mark.parametrize(
    ("case", "code", "why"),
    [
        ("error", "import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("exit", "raise SystemExit(1)", "SystemExit"),
        ("missing", "x = 1", "AttributeError"),
        ("function", "def Plugin(): pass", "a tool is a subclass of closeup.tools.Tool"),
        ("unfinished", "from closeup.tools import Tool\nclass Plugin(Tool):\n  'Doc.'\n  name='be_bad'", "run()"),
        ("renamed", GOOD.format(class_name="Plugin", name="be_other"), "give both the same name"),
        (
            "undocumented",
            GOOD.format(class_name="Plugin", name="be_bad").replace('"""Do nothing, kindly."""', ""),
            "docstring",
        ),
    ],
)
def test_a_broken_plugin_warns_and_is_skipped(install: Install, case: str, code: str, why: str) -> None:
    package = f"bad_{case}"
    install(package, "be_bad", code)
    with pytest.warns(PluginWarning, match="skipped the tool 'be_bad'") as caught:
        tools = registered_tools()
    assert "be_bad" not in tools and set(BUILTINS) <= set(tools)
    (message,) = [str(w.message) for w in caught if "be_bad" in str(w.message)]
    assert why in message and f"package {package} 1.2" in message
    with pytest.raises(UnknownTool, match=r"'be_bad' cannot be used: .*" + package):
        registered_tools(["be_bad"])


def test_a_name_that_is_not_snake_case_is_a_broken_plugin(install: Install) -> None:
    install("bad_name", "BeBad")
    with pytest.warns(PluginWarning, match="'BeBad' is not in snake_case"):
        assert "BeBad" not in registered_tools()


class NoteArgs(ToolArgs):
    text: str = Field(description="what to note")


def note(doc: str | None = "Note something.", **namespace: Any) -> Any:
    body = {"__doc__": doc, "__module__": __name__, "run": lambda self, args, context: ToolResult(text=args.text)}
    return type("Note", (Tool,), {**body, "Args": NoteArgs, **namespace})


def test_a_script_adds_a_tool_and_may_run_twice() -> None:
    first = register_tool(note())
    try:
        assert registered_tools()["note"] is first
        assert tool_entries(["note"])["note"].package == __name__
        second = register_tool(note())
        assert registered_tools(["note"]) == {"note": second} and second is not first
        with pytest.raises(DuplicateTool, match="'note'"):
            register_tool(note(__qualname__="AnotherNote"))
        with pytest.raises(DuplicateTool, match="'answer': from closeup"):
            register_tool(note(name="answer"))
    finally:
        unregister_tool("note")
    assert "note" not in ours()
    with pytest.raises(UnknownTool, match="added: none"):
        unregister_tool("note")


def test_what_is_not_a_tool_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="no docstring"):
        register_tool(note(doc=None))
    wrong: Any = dict
    with pytest.raises(TypeError, match="is not a tool: a tool is a subclass"):
        register_tool(wrong)
