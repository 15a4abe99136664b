import html.parser

import pytest

from vlaa_jax.evaluation.tables import Table, html_table, markdown_table, text_table

TABLE = Table(
    "Held-out",
    ["kind", "before", "gain", "rule"],
    [["all", "40.2", "+21.7 [19.6, 23.8]", "3 or 4"], ["mcq|a", "8.0", "-", "no"]],
    "n = 1,200",
)


@pytest.mark.quick
def test_on_a_terminal():
    assert text_table(TABLE) == (
        "Held-out\n"
        "kind   before                gain  rule\n"
        "-----  ------  ------------------  ------\n"
        "all      40.2  +21.7 [19.6, 23.8]  3 or 4\n"
        "mcq|a     8.0                   -  no\n"
        "n = 1,200"
    )


@pytest.mark.quick
def test_in_a_readme():
    assert markdown_table(TABLE) == (
        "**Held-out**\n\n"
        "| kind | before | gain | rule |\n"
        "| --- | ---: | ---: | --- |\n"
        "| all | 40.2 | +21.7 [19.6, 23.8] | 3 or 4 |\n"
        "| mcq\\|a | 8.0 | - | no |\n\n"
        "n = 1,200"
    )


@pytest.mark.quick
def test_in_a_page():
    page = html_table(Table("a < b", ["kind", "n"], [["<b>", "1"]]))
    texts: list[str] = []
    parser = html.parser.HTMLParser()
    parser.handle_data = texts.append
    parser.feed(page)
    assert texts == ["a < b", "kind", "n", "<b>", "1"]
    assert "<td class='number'>1</td>" in page and "<td>&lt;b&gt;</td>" in page


@pytest.mark.quick
def test_without_rows():
    assert text_table(Table("", ["kind", "n"], [])) == "kind  n\n----  -"


@pytest.mark.quick
def test_a_short_row_is_refused():
    with pytest.raises(ValueError, match=r"table 'x': 1 cells in the row \['a'\], 2 columns"):
        Table("x", ["kind", "n"], [["a"]])
