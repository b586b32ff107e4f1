"""Tables in every form: the same cells, what is missing explained, nothing that breaks the form."""

from __future__ import annotations

import csv

import pytest

from lib.evaluation.tables import FORMS, Table, printed

TABLE = Table(
    ["", "split"],
    [("image to text", ["R@1", "R@5"]), ("", ["RSUM"])],
    [(["VSE∞, 5_a", "test"], [[12.34, 100], [300.06]]), (["b|c & d", None], [[None, "1.0 ± 0.2"], [None]])],
    {"split": "nobody said", "": "not published"},
    ("a note",),
)


def test_text_is_aligned_and_says_why_something_is_missing():
    title, head, first, second, *remarks = FORMS["text"](TABLE).splitlines()
    assert title.split() == ["image", "to", "text", "|"]
    assert head.split() == ["split", "R@1", "R@5", "|", "RSUM"]
    assert first.split() == ["VSE∞,", "5_a", "test", "12.3", "100.0", "|", "300.1"]
    assert second.split() == ["b|c", "&", "d", "-", "-", "1.0", "±", "0.2", "|", "-"]
    assert head.rindex("|") == first.rindex("|") == second.rindex("|")
    assert remarks == ["-: nobody said", "-: not published", "a note"]


def test_markdown_has_as_many_cells_in_every_row():
    lines = FORMS["markdown"](TABLE).split("\n\n")[0].splitlines()
    assert {line.count("|") for line in lines} == {6}
    assert lines[0] == "|  | split | image to text R@1 | image to text R@5 | RSUM |"
    assert lines[1] == "| --- | --- | --: | --: | --: |"
    assert lines[3] == "| b/c & d | - | - | 1.0 ± 0.2 | - |"
    assert FORMS["markdown"](TABLE).endswith("\n\n-: nobody said\n\n-: not published\n\na note")


def test_latex_escapes_what_it_reads_as_commands():
    lines = FORMS["latex"](TABLE).splitlines()
    assert lines[0] == "\\begin{tabular}{llrrr}" and "\\end{tabular}" in lines
    assert lines[2] == "& & \\multicolumn{2}{c}{image to text} & \\multicolumn{1}{c}{} \\\\"
    assert "VSE$\\infty$, 5\\_a & test & 12.3 & 100.0 & 300.1 \\\\" in lines
    assert "b|c \\& d & -- & -- & 1.0 $\\pm$ 0.2 & -- \\\\" in lines
    assert lines[-1] == "% a note"


def test_no_cell_and_no_remark_makes_tex_read_a_command_or_a_spreadsheet_compute():
    hostile = ["^^5cinput{x}", "~\\input{x}", "=1+1", "@SUM(A1)", "+1", "-2+3", "a\n\\input{x}"]
    rows = [([name, "test"], [[1.0, 2.0], [3.0]]) for name in hostile]
    table = TABLE._replace(rows=rows, notes=("x\n\\input{y}",))
    tex = FORMS["latex"](table)
    assert "\\input" not in tex.replace("\\textbackslash{}", "").replace("?\\input{y}", "") and "^^" not in tex
    assert all(line.startswith("%") for line in tex.splitlines() if "input{y}" in line)
    names = [row[0] for row in csv.reader(FORMS["csv"](table).splitlines())][1:]
    assert not any(name.startswith(("=", "+", "-", "@")) or "\n" in name for name in names) and len(names) == len(
        hostile
    )


def test_csv_is_read_back_and_what_is_missing_is_empty():
    rows = list(csv.reader(FORMS["csv"](TABLE).splitlines()))
    assert rows == [
        ["", "split", "image to text R@1", "image to text R@5", "RSUM"],
        ["VSE∞, 5_a", "test", "12.3", "100.0", "300.1"],
        ["b|c & d", "", "", "1.0 ± 0.2", ""],
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_table_without_gaps_explains_nothing(form):
    whole = TABLE._replace(rows=TABLE.rows[:1], notes=())
    assert "nobody said" not in printed([whole], form) and "not published" not in printed([whole], form)
    assert printed([whole, whole], form).count("300.1") == 2
