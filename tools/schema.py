"""From pydantic arguments to a JSON schema a small model can read.

Pydantic's schema is right but noisy: titles that repeat the names, `$ref` into `$defs`, `anyOf` with null for every
optional field. `parameters_schema` removes the noise and keeps the meaning: what the cleaned schema accepts, the
arguments model accepts.

Invariants
1. The result is closed (`additionalProperties` is false), JSON-serialisable and, recursive types apart, free of `$ref`.
2. An optional field reads like any other and is simply not in `required`; null stays accepted by the validator.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_SCHEMA_KEYS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST_KEYS = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAP_KEYS = ("properties", "patternProperties", "$defs")


def parameters_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments (an object), cleaned as the module says."""
    raw = model.model_json_schema()
    definitions = raw.pop("$defs", {})
    raw.pop("description", None)  # the arguments class's docstring is for readers of the code
    schema: dict[str, Any] = _clean(raw, definitions, ())
    result = {"type": "object", "properties": schema.pop("properties", {})}
    if "required" in schema:
        result["required"] = schema.pop("required")
    schema.pop("type", None)
    result.update(schema)
    kept = _references(result)
    if kept:  # recursive types cannot be written out in place
        result["$defs"] = {name: _clean(definitions[name], definitions, tuple(definitions)) for name in definitions}
    return result


def _clean(schema: Any, definitions: dict[str, Any], within: tuple[str, ...]) -> Any:
    """A copy of `schema` without titles, null alternatives and references; `within`: the types being written out."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name in within:
            return {"$ref": schema["$ref"]}
        target = dict(definitions[name]) | {k: v for k, v in schema.items() if k != "$ref"}
        return _clean(target, definitions, (*within, name))
    clean: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title":
            continue
        if key in _MAP_KEYS:
            clean[key] = {name: _clean(part, definitions, within) for name, part in value.items()}
        elif key in _LIST_KEYS:
            clean[key] = [_clean(part, definitions, within) for part in value]
        elif key in _SCHEMA_KEYS:
            clean[key] = _clean(value, definitions, within)
        else:
            clean[key] = value
    clean = _without_null(clean)
    first = {key: clean[key] for key in ("type", "description") if key in clean}
    return first | clean


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Write an optional field as the field itself; its default of null goes, other defaults stay."""
    options = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    if not options or len(options) == len(schema["anyOf"]):
        return schema
    rest = {k: v for k, v in schema.items() if k != "anyOf" and not (k == "default" and v is None)}
    if len(options) > 1:
        return {"anyOf": options, **rest}
    return {**options[0], **rest}


def _references(schema: Any) -> bool:
    if isinstance(schema, dict):
        return "$ref" in schema or any(_references(value) for value in schema.values())
    return isinstance(schema, list) and any(_references(value) for value in schema)
