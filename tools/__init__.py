"""closeup.tools: typed tools, the registry and frames by time. Imports without torch; names load when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from closeup.tools.base import Answer, Tool, ToolArgs, ToolContext, ToolError, ToolResult
    from closeup.tools.call import ToolTimeout, run_tool
    from closeup.tools.registry import (
        DuplicateTool,
        PluginWarning,
        ToolEntry,
        UnknownTool,
        register_tool,
        registered_tools,
        tool_entries,
    )
    from closeup.tools.rules import ToolRules
    from closeup.tools.testing import check_tool
    from closeup.tools.video import Clip, Video

__all__ = [
    "Answer",
    "Clip",
    "DuplicateTool",
    "PluginWarning",
    "Tool",
    "ToolArgs",
    "ToolContext",
    "ToolEntry",
    "ToolError",
    "ToolResult",
    "ToolRules",
    "ToolTimeout",
    "UnknownTool",
    "Video",
    "check_tool",
    "register_tool",
    "registered_tools",
    "run_tool",
    "tool_entries",
]

_MODULES = {
    "base": ("Answer", "Tool", "ToolArgs", "ToolContext", "ToolError", "ToolResult"),
    "call": ("ToolTimeout", "run_tool"),
    "registry": (
        "DuplicateTool",
        "PluginWarning",
        "ToolEntry",
        "UnknownTool",
        "register_tool",
        "registered_tools",
        "tool_entries",
    ),
    "rules": ("ToolRules",),
    "testing": ("check_tool",),
    "video": ("Clip", "Video"),
}
_LAZY = {name: f"closeup.tools.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'closeup.tools' has no attribute {name!r}; it has: {', '.join(__all__)}")
