"""A table of figures, and the forms in which it is printed: for the terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

from lib.core.errors import printable

MISSING = "-"


class Table(NamedTuple):
    """Columns of words, then groups of figures under a title; None is a figure or a word that is not known.

    `missing` says of a column of words, or of a group's figures by its title, why one may be unknown; `notes` are lines
    below the table.
    """

    words: list[str]
    groups: list[tuple[str, list[str]]]
    rows: list[tuple[list[str | None], list[list[Any]]]]
    missing: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    def headings(self) -> list[str]:
        """One for each column, with its group's title."""
        return [*self.words, *(f"{title} {name}".strip() for title, names in self.groups for name in names)]

    def cells(self) -> list[list[str]]:
        """Every row as text: figures with one decimal."""
        return [
            [MISSING if value is None else value if isinstance(value, str) else f"{value:.1f}" for value in values]
            for values in ([*words, *(value for group in groups for value in group)] for words, groups in self.rows)
        ]

    def remarks(self) -> list[str]:
        """What "-" means wherever one stands in the table, then the notes."""
        unknown = set()
        for words, groups in self.rows:
            unknown |= {name for name, word in zip(self.words, words, strict=True) if word is None}
            unknown |= {title for (title, _), group in zip(self.groups, groups, strict=True) if None in group}
        reasons = dict.fromkeys(reason for name, reason in self.missing.items() if name in unknown)
        return [*(f"{MISSING}: {reason}" for reason in reasons), *self.notes]


def text(table: Table, width: int = 5) -> str:
    """Aligned columns, those of figures of a `width` at least, groups separated by bars."""
    cells = table.cells()
    names = [*table.words, *(name for _, names in table.groups for name in names)]
    n_words = len(table.words)
    widths = [
        max([len(name) if column < n_words else max(width, len(name)), *(len(row[column]) for row in cells)])
        for column, name in enumerate(names)
    ]

    def line(row: list[str]) -> str:
        words = "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:n_words], widths[:n_words], strict=True))
        parts, column = [], n_words
        for _, group in table.groups:
            ends = column + len(group)
            parts.append(" ".join(f"{row[c]:>{widths[c]}}" for c in range(column, ends)))
            column = ends
        return f"{words}  {' | '.join(parts)}".rstrip()

    lines = [line(names), *map(line, cells)]
    if any(title for title, _ in table.groups):
        spans, column = [], n_words
        for title, group in table.groups:
            spans.append(f"{title:<{sum(widths[column : column + len(group)]) + len(group) - 1}}")
            column += len(group)
        indent = sum(widths[:n_words]) + 2 * (n_words - 1)
        lines.insert(0, f"{'':{indent}}  {' | '.join(spans)}".rstrip())
    return "\n".join([*lines, *table.remarks()])


def markdown(table: Table) -> str:
    """A pipe table; remarks follow as paragraphs."""
    rule = ["---"] * len(table.words) + ["--:"] * (len(table.headings()) - len(table.words))
    rows = [table.headings(), rule, *table.cells()]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([*lines, *(f"\n{remark}" for remark in table.remarks())])


_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}"}  # ^^5c is a backslash to TeX
    | {"∞": "$\\infty$", "±": "$\\pm$", "−": "$-$"}
)


def latex(table: Table) -> str:
    """A tabular for the booktabs package; remarks follow as comments."""
    titles = [f"\\multicolumn{{{len(names)}}}{{c}}{{{_escaped(title)}}}" for title, names in table.groups]
    names = [*table.words, *(name for _, names in table.groups for name in names)]
    columns = "l" * len(table.words) + "".join("r" * len(names) for _, names in table.groups)
    head = [f"{'& ' * len(table.words)}{' & '.join(titles)} \\\\"] if any(title for title, _ in table.groups) else []
    body = [" & ".join(map(_escaped, row)) + " \\\\" for row in (names, *table.cells())]
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *head, body[0], "\\midrule", *body[1:], "\\bottomrule"]
    return "\n".join([*lines, "\\end{tabular}", *(f"% {printable(remark)}" for remark in table.remarks())])


def _escaped(cell: str) -> str:
    return MISSING * 2 if cell == MISSING else printable(cell).translate(_TEX)


def spreadsheet_cell(value: Any) -> Any:
    """A value that a spreadsheet shows and does not compute: text that begins as a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and text != MISSING else text


def as_csv(table: Table) -> str:
    """A line of headings and one of each row; what is not known stays empty, remarks are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.headings())
    for row in table.cells():
        words, figures = row[: len(table.words)], row[len(table.words) :]
        cells = [*map(spreadsheet_cell, words), *figures]
        writer.writerow(["" if cell == MISSING else cell for cell in cells])
    return out.getvalue().removesuffix("\n")


FORMS = {"text": text, "markdown": markdown, "latex": latex, "csv": as_csv}


def printed(tables: Iterable[Table], form: str = "text") -> str:
    """Tables below each other; in the terminal's form without a gap."""
    return ("\n" if form == "text" else "\n\n").join(FORMS[form](table) for table in tables)
