"""Draws the app's screen from its own layout file: ``python3 android_demo/build/draw_layout.py``.

Nothing here is Android: boxes and texts are placed one below the other as ``layout/main.xml`` lists
them, with the app's own texts and colours; sizes are guesses of what Android's Material theme does.
Texts that the app fills in when it runs stand in angle brackets.
"""

from pathlib import Path
from textwrap import wrap
from xml.etree import ElementTree
from xml.sax.saxutils import escape

DEMO = Path(__file__).parents[1]
RES = DEMO / "app/src/main/res"
ANDROID = "{http://schemas.android.com/apk/res/android}"
WIDTH, PADDING, LINE, CHARACTERS = 360, 16, 20, 46
CAPTION = "Drawn from layout/main.xml by build/draw_layout.py, not by Android."
FILLED = {"answer": "the three likeliest digits, with percentages", "known": "drawings by digit",
          "learnt": "accuracy before and after", "battery": "battery level, charging or not",
          "energy": "joules of training, estimated", "left": "updates, bytes, epsilon spent",
          "node_key": "the phone's public key", "joined": "joined, or alone",
          "trouble": "the last failure in the background"}  # fmt: skip


def main() -> None:
    """Writes both drawings."""
    for night in (False, True):
        path(night=night).write_text(drawing(night=night))


def path(*, night: bool) -> Path:
    """Where a drawing lies."""
    return DEMO / f"layout-{'dark' if night else 'light'}.svg"


def drawing(*, night: bool) -> str:
    """The screen as SVG."""
    texts = _values("values/strings.xml")
    colours = _values(f"values{'-night' if night else ''}/colors.xml")
    ink, y, parts = colours["ink"], PADDING, []
    (column,) = parsed("layout/main.xml")
    for view in column:
        body, height = _view(view, texts, ink, y)
        parts += body
        y += height + 8
    lines = [*wrap(CAPTION, CHARACTERS + 8)]
    parts += [_text(line, ink, y + 14 + 14 * n, size=11) for n, line in enumerate(lines)]
    height = y + 14 * len(lines) + PADDING
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            'font-family="sans-serif">',
            f"<title>{escape(CAPTION)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="{colours["paper"]}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _view(
    view: ElementTree.Element, texts: dict[str, str], ink: str, y: int
) -> tuple[list[str], int]:
    kind, inner = view.tag.rpartition(".")[2], WIDTH - 2 * PADDING
    said = next(
        (view.get(ANDROID + name) for name in ("text", "hint", "contentDescription")
         if view.get(ANDROID + name)),
        None,
    )  # fmt: skip
    name = (view.get(ANDROID + "id") or "").rpartition("/")[2]
    text = texts[said.partition("/")[2]] if said else f"<{FILLED[name]}>"
    lines = wrap(text, CHARACTERS)
    height = LINE * len(lines)
    if kind == "DrawView":
        return [_box(y, inner, 280, ink), *_lines(lines, ink, y + 140)], 280
    if kind == "Button":
        return [
            _box(y, inner, height + 20, ink, radius=4),
            *_lines(lines, ink, y + 10),
        ], height + 20
    if kind == "EditText":
        under = y + height + 10
        rule = f'<path d="M{PADDING} {under}h{inner}" stroke="{ink}" opacity="0.5"/>'
        return [*_lines(lines, ink, y, opacity=0.6), rule], height + 14
    if kind == "Switch":
        knob = f'<circle cx="{WIDTH - PADDING - 28}" cy="{y + 12}" r="9" fill="{ink}"/>'
        track = f'<rect x="{WIDTH - PADDING - 36}" y="{y + 4}" width="36" height="16" rx="8" '
        return [*_lines(lines, ink, y), f'{track}fill="{ink}" opacity="0.3"/>', knob], height + 8
    return _lines(lines, ink, y), height


def _lines(lines: list[str], ink: str, y: int, opacity: float = 1.0) -> list[str]:
    return [_text(line, ink, y + 15 + LINE * n, opacity=opacity) for n, line in enumerate(lines)]


def _text(text: str, ink: str, y: int, *, size: int = 14, opacity: float = 1.0) -> str:
    at = f'x="{PADDING}" y="{y}" font-size="{size}" fill="{ink}"'
    return f'<text {at} opacity="{opacity}">{escape(text)}</text>'


def _box(y: int, width: int, height: int, ink: str, radius: int = 0) -> str:
    at = f'x="{PADDING}" y="{y}" width="{width}" height="{height}" rx="{radius}"'
    return f'<rect {at} fill="none" stroke="{ink}" opacity="0.5"/>'


def _values(name: str) -> dict[str, str]:
    """Texts or colours by name."""
    return {each.attrib["name"]: (each.text or "").replace("\\'", "'") for each in parsed(name)}


def parsed(name: str) -> ElementTree.Element:
    """One of the app's resources."""
    return ElementTree.parse(RES / name).getroot()  # noqa: S314 (the app's own file)


if __name__ == "__main__":
    main()
