"""What the terminal shows, as a picture that loads nothing from elsewhere."""

from __future__ import annotations

import io
import re

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

COLORS = [(255, 138, 128), (111, 211, 155), (240, 190, 90), (110, 168, 254), (199, 146, 234), (99, 205, 182)]
NIGHT = TerminalTheme(
    (19, 19, 18),
    (236, 234, 229),
    [(48, 47, 44), *COLORS, (236, 234, 229)],
    [(70, 68, 63), *COLORS, (255, 255, 255)],
)


def terminal_svg(shown: RenderableType, *, title: str, width: int) -> str:
    """An SVG of a terminal of so many columns that shows `shown`."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown)
    svg = console.export_svg(title=title, theme=NIGHT, unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "ui-monospace, DejaVu Sans Mono, monospace")
