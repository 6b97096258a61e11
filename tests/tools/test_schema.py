from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from closeup.tools.base import ToolArgs
from closeup.tools.schema import parameters_schema


class Corner(StrEnum):
    LEFT = "left"
    RIGHT = "right"


class Box(ToolArgs):
    title: str = Field(description="what it is called")
    corner: Corner = Corner.LEFT


class Args(ToolArgs):
    """For readers of the code only."""

    box: Box = Field(description="where to look")
    more: list[Box] = Field(default=[], max_length=3)
    kind: Literal["a", "b"] | None = None
    either: int | str | None = None
    name: str | None = "x"


class Node(BaseModel):
    children: list[Node] = []


def test_references_titles_and_null_are_written_away_and_meaning_stays() -> None:
    box = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "what it is called"},
            "corner": {"type": "string", "enum": ["left", "right"], "default": "left"},
        },
        "required": ["title"],
        "additionalProperties": False,
    }
    schema = parameters_schema(Args)
    properties: dict[str, Any] = schema["properties"]
    assert properties["box"] == {**box, "description": "where to look"}
    assert properties["more"] == {"type": "array", "items": box, "default": [], "maxItems": 3}
    assert properties["kind"] == {"type": "string", "enum": ["a", "b"]}
    assert properties["either"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert properties["name"] == {"type": "string", "default": "x"}
    assert schema["required"] == ["box"] and schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema) and "description" not in schema


def test_a_recursive_type_keeps_its_definition() -> None:
    schema = parameters_schema(Node)
    text = json.dumps(schema)
    assert '"$ref": "#/$defs/Node"' in text and schema["$defs"]["Node"]["properties"]["children"]["type"] == "array"
    assert "title" not in text


def test_no_arguments_at_all() -> None:
    assert parameters_schema(ToolArgs) == {"type": "object", "properties": {}, "additionalProperties": False}
