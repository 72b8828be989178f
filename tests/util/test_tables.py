from segdet.util.tables import markdown_row, markdown_table, plain_table


def test_markdown_table_aligns_text_left_and_numbers_right() -> None:
    rows = [["run", "model", "map"], ["a|b", "SSD", "0.5"], ["c", "FCN", "-"]]
    assert markdown_table(rows, text_columns=2).splitlines() == [
        "| run  | model | map |",
        "|------|-------|----:|",
        "| a\\|b | SSD   | 0.5 |",
        "| c    | FCN   |   - |",
    ]


def test_markdown_row_escapes_bars() -> None:
    assert markdown_row(["a|b", "c"]) == "| a\\|b | c |"


def test_a_line_end_in_a_cell_does_not_end_the_row() -> None:
    assert markdown_table([["run"], ["a\nb"]]).splitlines() == ["| run |", "|-----|", "| a b |"]


def test_plain_table() -> None:
    assert plain_table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
