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


COLOURS = ("#2563eb", "#dc2626", "#6b7280", "#059669", "#d97706", "#7c3aed")


def lines(title: str, curves: dict[str, list[tuple[float, float]]], x_name: str, y_name: str) -> str:
    """An SVG of curves `name -> (x, y) points` over shared axes; y from 0 to 1."""
    width, height, left, top, legend = 640, 320, 60, 50, 150
    most = max((x for points in curves.values() for x, _ in points), default=1.0)
    least = min((x for points in curves.values() for x, _ in points), default=0.0)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (width - left) * (x - least) / max(1e-9, most - least), top + height * (1 - y)

    parts = [_text(12, 26, title, size=16, weight="bold")]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(least, tick)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{width}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(_text(left - 8, round(y) + 4, f"{tick:.2f}", anchor="end"))
    for tick in (least, (least + most) / 2, most):
        parts.append(_text(round(at(tick, 0)[0]), top + height + 20, f"{tick:.0f}", anchor="middle"))
    parts.append(_text((left + width) // 2, top + height + 40, x_name, anchor="middle"))
    parts.append(_text(12, top - 10, y_name))
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y_legend = top + 20 + 22 * number
        parts.append(f'<rect x="{width + 16}" y="{y_legend - 10}" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(width + 36, y_legend - 3, name))
    size = f'width="{width + legend}" height="{top + height + 56}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"
