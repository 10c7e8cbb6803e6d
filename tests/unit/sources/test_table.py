"""Tables of any origin: every field stays text, and what cannot be read without loss is one line."""

import gzip

import pandas as pd
import pytest

from fieldguide.core.errors import UserError
from fieldguide.sources.layout import is_table
from fieldguide.sources.table import Table, read_table

PLAIN = "file,label\n007,NA\n1e5,Eiche\n"


def fields(table: Table) -> list[list[str]]:
    return [list(table.columns), *table.rows.to_numpy().tolist()]


def read(content: str | bytes) -> Table:
    return read_table(content.encode() if isinstance(content, str) else content, "labels.csv")


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", "|").encode(),
        PLAIN.rstrip().encode(),
        b"\n" + PLAIN.replace("\n", "\n\n").encode(),
        b"sep=;\n" + PLAIN.replace(",", ";").encode(),
        b'"file","label"\n"007","NA"\n"1e5","Eiche"\n',
        b'"file"\t"label"\n"007"\t"NA"\n"1e5"\t"Eiche"\n',
        b"file , label\n007,NA\n1e5,Eiche\n",
        gzip.compress(PLAIN.encode(), mtime=0),
    ],
)
def test_every_encoding_and_delimiter_gives_the_same_texts(content: bytes) -> None:
    assert fields(read(content)) == [["file", "label"], ["007", "NA"], ["1e5", "Eiche"]]


def test_windows_1252_is_read_with_a_note() -> None:
    table = read("file,label\na,Hüterin\n".encode("cp1252"))
    assert fields(table)[1] == ["a", "Hüterin"]
    assert table.notes == ("not UTF-8, read as Windows-1252; if names look wrong, save the table as UTF-8",)


def test_quotes_keep_delimiters_and_line_breaks() -> None:
    table = read('file,label,note\na.jpg,"oak, old","two\nlines"\nb.jpg,"5"" nail",x\n')
    assert fields(table)[1:] == [["a.jpg", "oak, old", "two\nlines"], ["b.jpg", '5" nail', "x"]]


def test_an_export_without_quoting_keeps_its_inches() -> None:
    assert fields(read('id\tlabel\tnote\n1\toak\t"5 inch\n2\tash\t6"\n'))[1:] == [["1", "oak", '"5 inch'], ["2", "ash", '6"']]


def test_rows_are_numbered_as_in_a_spreadsheet_and_short_ones_are_filled() -> None:
    rows = read("file,label,note\na,oak,x\n\nb,ash\n").rows
    assert rows.index.tolist() == [2, 4]
    assert rows.to_numpy().tolist()[1] == ["b", "ash", ""]
    assert all(isinstance(dtype, pd.StringDtype) for dtype in rows.dtypes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a single column"),
        (b"\n\n", "a single column"),
        (b"file,label\n", "contains no row below its header"),
        (b"file\na\nb\n", "a single column, by comma, semicolon or tab"),
        (b"file,label\na,oak,9\n", r"cannot be read \(Expected 2 fields in line 2, saw 3\); fix the quotes or delimiters"),
        (b"file,label,note\na,oak,x\nb,as", "ends within the row 'b,as', after 2 of 3 fields; get the whole table"),
        (b'file,label\na,"oak\nb,ash\n', r"cannot be read \(EOF inside string starting at row 1\)"),
        (b'file,label,x\na,oak,"1\nb,ash,2\nc,ash,3"\n', "row 2: a field in quotes contains 'b,ash,2', which looks like a row"),
        (b"file,label\na,o\0k\n", "line 2 contains NUL characters"),
        (b"file,label\na,\x81\n", "neither UTF-8 nor Windows-1252 .byte 13 is 0x81.; save it as UTF-8"),
        ("file,label\na,ä".encode()[:-1], "not valid UTF-8 at byte 13; download it or save it again"),
        (PLAIN.encode("utf-16")[:-1], "not valid UTF-16-LE"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:-9], "damaged .it ends too early.; download it again"),
        (b"\x1f\x8b" + b"x" * 30, "damaged"),
    ],
)
def test_what_cannot_be_read_without_loss_is_one_line(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"labels.csv: .*{message}"):
        read(content)


def test_tables_are_known_by_their_suffix() -> None:
    assert all(map(is_table, ("labels.csv", "a/B.TSV", "train.csv.gz", "list.txt")))
    assert not any(map(is_table, ("a.jpg", "csv", "labels.xlsx")))
