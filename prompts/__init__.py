"""Every text a model is prompted with, as jinja2 templates: one folder per prompt set, one file per place.

A set has `system`, `question`, `overview`, `clip`, `error` and `forced`; an empty rendering means that nothing is
said at that place. No prompt text lives in code, so a set can be compared, replaced and fingerprinted as a whole.

Invariants
1. A value that a template names and the caller did not give raises: nothing is rendered as an empty string by mistake.
2. Values are data: template syntax inside a value is never interpreted.
3. `fingerprint` changes exactly when a template of the set does; trajectories record it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateNotFound

TEMPLATES = ("system", "question", "overview", "clip", "error", "forced")


class PromptError(ValueError):
    """A prompt set or template that does not exist."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("closeup.prompts", "."),
        undefined=StrictUndefined,
        autoescape=False,  # the text goes to a tokenizer, not to a browser
        trim_blocks=True,
        lstrip_blocks=True,
    )


def prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets, sorted."""
    return tuple(sorted({name.split("/")[0] for name in _environment().list_templates(["jinja"]) if "/" in name}))


def render(set_name: str, template: str, /, **values: Any) -> str:
    """The text of one template of a prompt set, without trailing newlines.

    Raises:
        PromptError: no such set or template.
        jinja2.UndefinedError: the template names a value that was not given.
    """
    text: str = _load(set_name, template).render(**values)
    return text.rstrip("\n")


def render_alone(template: str, /, **values: Any) -> str:
    """The text of a template that belongs to no set (`judge`: a judge's question). Raises as `render` does."""
    try:
        text: str = _environment().get_template(f"{template}.jinja").render(**values)
    except TemplateNotFound:
        accepted = ", ".join(sorted(n[:-6] for n in _environment().list_templates(["jinja"]) if "/" not in n))
        raise PromptError(f"no template {template!r} outside the prompt sets; accepted: {accepted}") from None
    return text.rstrip("\n")


@cache
def _load(set_name: str, template: str) -> Any:
    try:
        return _environment().get_template(f"{set_name}/{template}.jinja")
    except TemplateNotFound:
        if set_name not in prompt_sets():
            accepted = ", ".join(prompt_sets())
            raise PromptError(f"no prompt set {set_name!r}; accepted: {accepted}") from None
        raise PromptError(
            f"no template {template!r} in prompt set {set_name!r}; accepted: {', '.join(TEMPLATES)}"
        ) from None


def template_digests(set_name: str) -> dict[str, str]:
    """16 hexadecimal digits of SHA-256 for the source of every template of a prompt set, by the template's name.

    Raises:
        PromptError: no such set.
    """
    return {name: hashlib.sha256(source.encode()).hexdigest()[:16] for name, source in _sources(set_name).items()}


def fingerprint(set_name: str) -> str:
    """16 hexadecimal digits naming the texts of a prompt set: SHA-256 over its templates' names and sources.

    Raises:
        PromptError: no such set.
    """
    digest = hashlib.sha256()
    for name, source in _sources(set_name).items():
        digest.update(f"/{name}.jinja\0{source}\0".encode())
    return digest.hexdigest()[:16]


def _sources(set_name: str) -> dict[str, str]:
    """The texts of a set's templates by name, sorted. Raises `PromptError`."""
    environment = _environment()
    names = [name for name in sorted(environment.list_templates(["jinja"])) if name.startswith(f"{set_name}/")]
    if not names or environment.loader is None:
        raise PromptError(f"no prompt set {set_name!r}; accepted: {', '.join(prompt_sets())}")
    found = {}
    for name in names:
        found[name.removeprefix(f"{set_name}/").removesuffix(".jinja")] = environment.loader.get_source(
            environment, name
        )[0]
    return found
