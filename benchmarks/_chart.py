"""Bar charts as SVG text, written by hand: no plotting library is a dependency of this project."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

ROW, LABEL, BAR, GAP = 22, 250, 420, 34
Panel = tuple[str, Sequence[tuple[str, float, str, bool]]]


def bars(title: str, panels: Sequence[Panel]) -> str:
    """An SVG of panels below each other, each `(heading, bars)`; a bar is `(label, value, text, emphasised)`.

    Values are at least 0; bars of one panel share a scale, panels do not.
    """
    parts, y = [_text(12, 26, title, size=16, weight="bold")], 44
    for heading, rows in panels:
        y += GAP
        parts.append(_text(12, y - 10, heading, weight="bold"))
        most = max((value for _, value, _, _ in rows), default=0) or 1.0
        for label, value, shown, strong in rows:
            width = BAR * value / most
            parts.append(_text(LABEL - 8, y + 15, label, anchor="end"))
            parts.append(
                f'<rect x="{LABEL}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" '
                f'fill="{"#2563eb" if strong else "#9ca3af"}"/>'
            )
            parts.append(_text(LABEL + round(width) + 6, y + 15, shown))
            y += ROW
    size = f'width="{LABEL + BAR + 140}" height="{y + 16}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _text(x: int, y: int, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
