"""What a terminal shows after everything that was written to it, for the few control sequences that rich uses."""

from __future__ import annotations

import io
import re

PIECE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen(io.StringIO):
    """A terminal as wide as need be: lines that are written whole stay whole."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines on the screen, without spaces and empty lines at their ends."""
        rows, row, column = [""], 0, 0
        for match in PIECE.finditer(self.getvalue()):
            count, control = match[1], match[2]
            if control == "A":
                row -= int(count or 1)
            elif control == "K":
                rows[row] = ""
            elif match[0] == "\r":
                column = 0
            elif match[0] == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif control is None:
                rows[row] = rows[row][:column].ljust(column) + match[0] + rows[row][column + len(match[0]) :]
                column += len(match[0])
        return [line.rstrip() for line in "\n".join(rows).rstrip().split("\n")]
