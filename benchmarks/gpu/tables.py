"""A table of figures, and its form in docs/performance.md."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """Rows of a measurement under their column names."""

    title: str
    columns: tuple[str, ...]
    rows: list[list]

    def markdown(self) -> str:
        """The table under its title."""
        rows = [self.columns, ["---"] * len(self.columns), *(map(_cell, row) for row in self.rows)]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return str(value)
