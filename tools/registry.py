"""The registry: every tool by name, with the package it came from.

Three sources, one table: the built-ins; plugins, which are entry points of the group `closeup.tools` of any installed
package (`scene_cuts = "my_package:SceneCuts"`, the entry point's name being the tool's); and `@register_tool` for
scripts and notebooks.

Invariants
1. A name means one tool: two packages that offer the same name are an error that names both; nothing is ever shadowed.
2. A plugin that cannot be loaded costs a `PluginWarning`, not the program; asked for by name it is an error.
3. Only the tools asked for are imported: choosing tools by name never loads an unrelated plugin.
4. The built-ins are there without any installed metadata, so a source tree on the path works too.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from closeup import __version__
from closeup.tools.base import Tool

GROUP = "closeup.tools"
BUILTINS = {
    "zoom_clip": "closeup.tools.zoom_clip:ZoomClip",
    "resample_frames": "closeup.tools.resample_frames:ResampleFrames",
    "answer": "closeup.tools.answer:AnswerTool",
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class DuplicateTool(ValueError):
    """Two sources offer a tool of the same name."""


class UnknownTool(ValueError):
    """A tool was asked for that is not there, or whose plugin cannot be loaded."""


class PluginWarning(UserWarning):
    """A plugin was skipped: it could not be loaded, or what it offers is not a tool."""


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """A tool and where it came from: the package's name and version ("" for a script), and `module:Class`."""

    name: str
    tool: type[Tool[Any]]
    package: str
    version: str
    target: str


@dataclass(frozen=True, slots=True)
class _Source:
    """A name in the table before anything is imported."""

    name: str
    package: str
    version: str
    target: str


_scripts: dict[str, ToolEntry] = {}
_loaded: dict[_Source, ToolEntry | str] = {}
_lock = threading.RLock()

ToolT = TypeVar("ToolT", bound=type[Tool[Any]])


def registered_tools(names: Sequence[str] | None = None) -> dict[str, type[Tool[Any]]]:
    """The tools by name: all that load (built-ins first), or exactly `names`, in that order. See `tool_entries`."""
    return {name: entry.tool for name, entry in tool_entries(names).items()}


def tool_entries(names: Sequence[str] | None = None) -> dict[str, ToolEntry]:
    """The tools by name with their origin.

    Raises `DuplicateTool` when two sources offer one name, and, with `names`, `UnknownTool` for one that is not there
    or does not load. Without `names` a plugin that does not load is left out with a `PluginWarning`.
    """
    with _lock:
        sources = _sources()
        known = [*sources, *_scripts]
        if names is not None:
            for name in names:
                if name not in known:
                    raise UnknownTool(_unknown(name, known))
        entries: dict[str, ToolEntry] = {}
        for name in known if names is None else names:
            found = _scripts[name] if name in _scripts else _load(sources[name])
            if isinstance(found, ToolEntry):
                entries[name] = found
            elif names is not None:
                raise UnknownTool(f"the tool {name!r} cannot be used: {found}")
            else:
                warnings.warn(f"skipped the tool {name!r}: {found}", PluginWarning, stacklevel=2)
        return entries


def register_tool(tool: ToolT) -> ToolT:
    """Class decorator: add a tool of this process (a script's, a notebook's) to the registry.

    Running the same definition again (same module and class name) replaces it. Raises `DuplicateTool` when another
    source has the name and `TypeError` when the class is not a complete tool.
    """
    fault = tool_fault(tool)
    if fault:
        raise TypeError(f"{getattr(tool, '__qualname__', tool)!r} is not a tool: {fault}")
    target = f"{tool.__module__}:{tool.__qualname__}"
    entry = ToolEntry(tool.name, tool, tool.__module__, "", target)
    with _lock:
        other = _sources().get(tool.name) or _scripts.get(tool.name)
        if other is not None and other.target != target:
            raise DuplicateTool(_duplicate(tool.name, other, entry))
        _scripts[tool.name] = entry
    return tool


def unregister_tool(name: str) -> None:
    """Take a tool added by `register_tool` out again. Raises `UnknownTool` when there is none of this name."""
    with _lock:
        if name not in _scripts:
            raise UnknownTool(f"no tool {name!r} was added by register_tool; added: {', '.join(_scripts) or 'none'}")
        del _scripts[name]


def _sources() -> dict[str, _Source]:
    """Every name offered by the built-ins and by installed packages; nothing is imported."""
    table = {name: _Source(name, "closeup", __version__, target) for name, target in BUILTINS.items()}
    plugins = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _origin(point)))
    for point in plugins:
        package, version = _origin(point)
        if package == "closeup":  # its own are in the table already, whatever older metadata says
            continue
        source = _Source(point.name, package, version, point.value)
        other = table.get(point.name)
        if other is not None and other != source:
            raise DuplicateTool(_duplicate(point.name, other, source))
        table[point.name] = source
    return table


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("an unnamed package", "")


def _load(source: _Source) -> ToolEntry | str:
    """Import a source; the entry, or why it cannot be used. Each source is imported once."""
    if source not in _loaded:
        module, _, attribute = source.target.partition(":")
        origin = f"package {source.package} {source.version}, {source.target}"
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
            fault = tool_fault(found)
            if not fault and found.name != source.name:
                fault = (
                    f"its entry point is called {source.name!r} but the tool {found.name!r}; give both the same name"
                )
        except (Exception, SystemExit) as error:
            if source.package == "closeup":
                raise
            fault = f"{type(error).__name__}: {error}"
        _loaded[source] = (
            f"{fault} ({origin})"
            if fault
            else ToolEntry(source.name, found, source.package, source.version, source.target)
        )
    return _loaded[source]


def tool_fault(found: Any) -> str:
    """Why this object is not a usable tool; empty when it is one."""
    if not (isinstance(found, type) and issubclass(found, Tool)):
        return f"a tool is a subclass of closeup.tools.Tool, got {found!r}"
    if inspect.isabstract(found):
        return "it does not implement run()"
    if not _NAME.fullmatch(found.name):
        return (
            f"the name {found.name!r} is not in snake_case (a letter, then at most 63 letters, digits and underscores)"
        )
    if not found.description():
        return "it has no docstring; the first paragraph is what the model is told"
    return ""


def _duplicate(name: str, one: _Source | ToolEntry, other: _Source | ToolEntry) -> str:
    who = " and ".join(f"{s.package} {s.version}".strip() + f" ({s.target})" for s in (one, other))
    return f"two tools are called {name!r}: from {who}. Uninstall one of the packages, or rename its tool."


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown tool {shown!r}{hint or '.'} Registered: {', '.join(known) or 'none'}"
