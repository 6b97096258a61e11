"""`closeup tools`: every tool, its schema and the package it came from."""

from __future__ import annotations

import json
import sys
from typing import Any

from closeup.tools.registry import tool_entries


def run(*, as_json: bool) -> int:
    """Print the registry; returns the exit code."""
    entries = tool_entries()
    if as_json:
        rows = [{**e.tool.spec(), "package": e.package, "version": e.version} for e in entries.values()]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("tool", "arguments", "what it does", "package", show_lines=True)
    for name, entry in entries.items():
        spec = entry.tool.spec()["function"]
        table.add_row(name, _arguments(spec["parameters"]), spec["description"], f"{entry.package} {entry.version}")
    Console().print(table)
    return 0


def _arguments(parameters: dict[str, Any]) -> str:
    required = set(parameters.get("required", ()))
    return "\n".join(
        f"{name}{'' if name in required else '?'}: {_type(schema)}"
        for name, schema in parameters.get("properties", {}).items()
    )


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
