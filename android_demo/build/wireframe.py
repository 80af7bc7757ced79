"""Draws the app's one screen from its own resources: ``python3 android_demo/build/wireframe.py``.

Not a screenshot: Android has no part in it. Boxes and words are the layout's, in its order, with
the colours of both themes; sizes and widgets are a sketch. Values in italics are the layout's own
samples (``tools:text``).
"""

import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

DEMO = Path(__file__).resolve().parents[1]
RES = DEMO / "app/src/main/res"
TARGET = DEMO / "screen.svg"
ANDROID = "{http://schemas.android.com/apk/res/android}"
TOOLS = "{http://schemas.android.com/tools}"
WIDTH, PADDING, GAP, CAPTION = 360, 16, 24, 40
LETTER = 0.5
"""Width of a letter, of its size."""
WHAT = (
    "Drawn by build/wireframe.py from layout/main.xml, not by Android;",
    "samples are in italics.",
)


def resource(name: str) -> ET.Element:
    """The root of one of the app's own files."""
    return ET.parse(RES / name).getroot()  # noqa: S314 (it is ours)


def values(name: str) -> dict[str, str]:
    """Names and texts of a resource file."""
    return {each.get("name", ""): (each.text or "").replace("\\'", "'") for each in resource(name)}


def draw() -> str:
    """The screen in both themes, side by side, as SVG."""
    screens, height = [], 0.0
    for number, folder in enumerate(("values", "values-night")):
        body, height = _screen(values(f"{folder}/colors.xml"))
        left = number * (WIDTH + GAP)
        screens.append(f'<g transform="translate({left},{CAPTION})">{body}</g>')
    width = 2 * WIDTH + GAP
    caption = "".join(
        f'<text x="0" y="{15 + 16 * at}" font-size="13" fill="#777777">{escape(line)}</text>'
        for at, line in enumerate(WHAT)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + CAPTION:g}" '
        f'viewBox="0 0 {width} {height + CAPTION:g}" font-family="sans-serif">',
        caption,
        *screens,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _screen(colours: dict[str, str]) -> tuple[str, float]:
    strings, shapes, top = values("values/strings.xml"), [], float(PADDING)
    for view in resource("layout/main.xml")[0]:
        kind = view.tag.rpartition(".")[2]
        name = view.get(f"{ANDROID}text") or view.get(f"{ANDROID}hint") or ""
        words = strings[name.removeprefix("@string/")] if name else view.get(f"{TOOLS}text", "")
        style = view.get("style", "").removeprefix("@style/")
        size = float(view.get(f"{ANDROID}textSize", "16sp").removesuffix("sp"))
        top += 24 if style == "Heading" else 4
        look = 'font-weight="bold"' if style == "Heading" else ""
        if not name:
            look = 'font-style="italic"'
        drawn, height = _view(kind, words, top, colours["ink"], size=size, look=look)
        shapes += drawn
        top += height
    height = top + PADDING
    paper = f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="{colours["paper"]}" '
    return "\n".join([f'{paper}stroke="#888888"/>', *shapes]), height


def _view(
    kind: str, words: str, top: float, ink: str, *, size: float, look: str
) -> tuple[list[str], float]:
    """A widget's shapes, and its height."""
    inner, right = WIDTH - 2 * PADDING, WIDTH - PADDING
    if kind == "DrawView":
        return list(_grid(top, ink)), 280
    if kind == "TextView":
        lines = textwrap.wrap(words, int(inner / (LETTER * size)))
        step = 1.35 * size
        return [
            _text(PADDING, top + step * at + size, line, ink, size=size, look=look)
            for at, line in enumerate(lines)
        ], step * len(lines)
    middle = top + 29
    if kind == "EditText":
        room = int(inner / (LETTER * 14))
        shown = textwrap.shorten(words, room, placeholder=" …")
        line = f'<path d="M{PADDING} {top + 42:g}H{right}" stroke="{ink}" opacity="0.6"/>'
        return [_text(PADDING, middle, shown, ink, look='opacity="0.6"'), line], 48
    if kind == "Switch":
        pill = f'<rect x="{right - 36}" y="{top + 16:g}" width="36" height="16" rx="8" '
        pill += f'fill="none" stroke="{ink}"/>'
        return [_text(PADDING, middle, words, ink), pill], 48
    if kind != "Button":
        raise ValueError(f"{kind}: there is no picture for it; add one to wireframe.py")
    box = f'<rect x="{PADDING}" y="{top + 4:g}" width="{inner}" height="40" rx="3" '
    box += f'fill="{ink}" fill-opacity="0.12"/>'
    name = _text(WIDTH / 2, middle, words.upper(), ink, size=13, look='text-anchor="middle"')
    return [box, name], 48


def _grid(top: float, ink: str) -> Iterator[str]:
    """The square to draw on; a seven is on it."""
    cell = 280 / 8
    for at in range(64):
        row, column = divmod(at, 8)
        on = (row == 1 and 1 < column < 6) or (1 < row < 7 and column == 6 - row // 2)
        yield (
            f'<rect x="{PADDING + cell * column + 1:g}" y="{top + cell * row + 1:g}" '
            f'width="{cell - 2:g}" height="{cell - 2:g}" fill="{"#191919" if on else "#E1E1E1"}" '
            f'stroke="{ink}" stroke-opacity="0.1"/>'
        )


def _text(x: float, y: float, words: str, ink: str, *, size: float = 14, look: str = "") -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{ink}"'
    return f"<text {place}{' ' + look if look else ''}>{escape(words)}</text>"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
