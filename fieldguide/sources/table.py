"""A table of any origin as rows of text: encodings, delimiters and quotes of spreadsheets, competitions and exports.

Every field keeps its text: "007", "1e5" and "NA" are names here, not numbers or gaps.
"""

import codecs
import csv
import io
import re
import unicodedata
import zlib
from dataclasses import dataclass

import pandas as pd

from fieldguide.core.errors import UserError

DELIMITERS = (",", ";", "\t", "|")
SHOWN = 60  # characters of a field in a message
MAX_BYTES = 1 << 30  # of a table
SNIFFED = 1 << 16  # characters from which the delimiter is recognised
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
NARROW, WIDE = 0.1, 0.4  # shares of NUL bytes in even and odd places of UTF-16 in Latin script


@dataclass(frozen=True)
class Table:
    """The rows of a table as text. The index of `rows` is the number of the row, as spreadsheets count: the header is row 1."""

    where: str
    columns: tuple[str, ...]
    rows: pd.DataFrame  # columns 0, 1, ...
    notes: tuple[str, ...] = ()

    def listing(self) -> str:
        """The names of the columns for a message."""
        names = [quoted(name)[1:-1] or "(no name)" for name in self.columns[:20]]
        return ", ".join(names) + (f" and {len(self.columns) - 20} more" if self.columns[20:] else "")


def quoted(text: str) -> str:
    """A field of a table in quotes for a message in one line, shortened."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")


def read_table(content: bytes, where: str) -> Table:
    """The table in `content`; `where` names it in messages.

    Raises `UserError` for a table that cannot be read without loss: a wrong encoding, NUL characters, rows of different
    lengths, a quote that is not closed, and for a single column or no row.
    """
    text, notes = decode(_unpack(content, where), where)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{where}: line {line} contains NUL characters; save the table again as CSV in UTF-8")
    text = re.sub(r"\r\n?", "\n", text).lstrip("\n")
    own = re.match(r"sep=(.)\n", text)  # a spreadsheet's own first line
    text = text[own.end() :] if own else text
    delimiter = own[1] if own else find_delimiter(text, where)
    _refuse_cut_row(text, delimiter, where)
    frame = _parse(text, delimiter, where)
    columns = tuple(unicodedata.normalize("NFC", name).strip() for name in frame.iloc[0])
    rows = frame.iloc[1:]
    rows = rows[rows.apply(lambda column: column.ne("")).any(axis="columns")]
    if rows.empty:
        raise UserError(f"{where}: contains no row below its header; use a table with a row for each photograph")
    return Table(where, columns, rows.set_axis(rows.index + 1), notes)


def _unpack(content: bytes, where: str) -> bytes:
    """The content of a gzip file, or `content`; raises `UserError` for damage and for more than `MAX_BYTES`."""
    if content.startswith(b"\x1f\x8b"):
        stream = zlib.decompressobj(wbits=31)
        try:
            content = stream.decompress(content, MAX_BYTES + 1)
        except zlib.error as error:
            raise UserError(f"{where}: damaged ({error}); download it again") from error
        if not stream.eof and len(content) <= MAX_BYTES:
            raise UserError(f"{where}: damaged (it ends too early); download it again")
    if len(content) > MAX_BYTES:
        raise UserError(f"{where}: more than {MAX_BYTES / 1e9:.1f} GB; keep only the columns that data.columns names")
    return content


def decode(content: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """The text, and a note where the encoding is a guess: UTF-8, UTF-16, or else Windows-1252.

    Raises `UserError` for bytes that are none of them, and for UTF-8 that ends within a character.
    """
    mark, encoding = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), (b"", ""))
    encoding = encoding or _unmarked_utf16(content[:4096])
    try:
        return content[len(mark) :].decode(encoding or "utf-8"), ()
    except UnicodeDecodeError as error:
        if encoding or (error.reason == "unexpected end of data" and error.start > len(content) - 4):
            name = encoding.upper() or "UTF-8"
            raise UserError(f"{where}: not valid {name} at byte {error.start}; download it or save it again") from error
    try:
        return content.decode("cp1252"), ("not UTF-8, read as Windows-1252; if names look wrong, save the table as UTF-8",)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: neither UTF-8 nor Windows-1252 (byte {error.start} is 0x{content[error.start]:02x}); save it as UTF-8"
        ) from error


def _unmarked_utf16(head: bytes) -> str:
    even, odd = (head[start::2].count(0) / max(len(head) // 2, 1) for start in (0, 1))
    return "utf-16-le" if even < NARROW and odd > WIDE else "utf-16-be" if odd < NARROW and even > WIDE else ""


def find_delimiter(text: str, where: str) -> str:
    """The delimiter by which most of the first lines have as many fields as the header; raises `UserError` without any."""
    lines = text[:SNIFFED].split("\n")
    lines = [line for line in (lines[:-1] if len(text) > SNIFFED and lines[1:] else lines) if line]
    best, score = "", (0.0, 1)
    for delimiter in DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        except csv.Error:  # a field longer than its limit
            continue
        if widths and widths[0] > 1:
            score, best = max((score, best), ((widths.count(widths[0]) / len(widths), widths[0]), delimiter))
    if not best:
        raise UserError(
            f"{where}: a single column, by comma, semicolon or tab; use a table with columns of the file and the label"
        )
    return best


def _parse(text: str, delimiter: str, where: str) -> pd.DataFrame:
    """All fields, the header in row 0; text in quotes may contain the delimiter."""
    unquoted = False
    if delimiter == "\t":  # exports of museums do not quote: a quote there is an inch
        widths = {line.count("\t") for line in text.rstrip("\n").split("\n")}
        unquoted = len(widths) == 1
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=None,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
            quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
            on_bad_lines="error",
            low_memory=False,
        ).fillna("")
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{where}: empty; use a table with a row for each photograph") from error
    except (pd.errors.ParserError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{where}: cannot be read ({reason}); fix the quotes or delimiters of that row") from error
    if unquoted:
        return frame.apply(lambda column: column.map(_unquoted))
    if len(frame) < text.rstrip("\n").count("\n") + 1:
        _refuse_swallowed_rows(frame, delimiter, where)
    return frame


def _refuse_cut_row(text: str, delimiter: str, where: str) -> None:
    """Raises `UserError` for a last row that has neither all fields nor an end: the table was cut."""
    header, last = text.partition("\n")[0], text.rpartition("\n")[2]
    width, n_fields = header.count(delimiter) + 1, last.count(delimiter) + 1
    if last and n_fields < width and '"' not in header + last:
        raise UserError(f"{where}: ends within the row {quoted(last)}, after {n_fields} of {width} fields; get the whole table")


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def _refuse_swallowed_rows(frame: pd.DataFrame, delimiter: str, where: str) -> None:
    """Raises `UserError` for a quoted field with a line that looks like a row: a quote that is not closed hides rows."""
    for column in frame.columns:
        several = frame[column][frame[column].str.contains("\n", regex=False)]
        for row, field in several.items():
            for line in field.split("\n")[1:]:
                if line.count(delimiter) >= len(frame.columns) - 1:
                    raise UserError(
                        f"{where}: row {int(str(row)) + 1}: a field in quotes contains {quoted(line)}, which looks like a row;"
                        " close the quote, or remove the line break"
                    )
