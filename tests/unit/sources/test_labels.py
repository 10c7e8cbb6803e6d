"""Labels from a table: its columns, the photograph of each row, and everything that is left over."""

import random
import unicodedata

import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.params import Columns
from fieldguide.sources.labels import NO_FILE, NO_ROW, Joined, join_labels, names_of_numbers
from fieldguide.sources.photo_names import Finder, find_files, folder_split
from fieldguide.sources.table import Table, read_table

PHOTOS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def table(*lines: str, where: str = "labels.csv") -> Table:
    return read_table("\n".join(lines).encode(), where)


def columns(**named: str) -> Columns:
    return Columns(**dict.fromkeys(("file", "label", "split", "group"), "") | named)


def join(*lines: str, names: list[str] = PHOTOS, folder: str = "", where: str = "labels.csv", **named: str) -> Joined:
    return join_labels(table(*lines, where=where), names, columns(**named), folder)


def rows(joined: Joined) -> list[list[str]]:
    return joined.rows[["id", "class_name", "split", "group"]].to_numpy().tolist()


def labels(joined: Joined) -> dict[str, str]:
    return dict(joined.rows[["id", "class_name"]].to_numpy().tolist())


# --- photographs ---


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("a.jpg", ["a.jpg", "x/a.jpg"], ["a.jpg"]),
        ("0a1b", ["train/0a1b.jpg"], ["train/0a1b.jpg"]),
        ("v1.2", ["v1.2.jpg"], ["v1.2.jpg"]),
        ("./x/a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("x\\a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("x//a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("x/a", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("x/a.jpg", ["deep/x/a.jpg"], ["deep/x/a.jpg"]),
        ("/home/jo/data/x/a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("C:\\data\\x\\a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg"]),
        ("https://host/photos/a.jpg", ["a.jpg"], ["a.jpg"]),
        ("A.JPG", ["a.jpg"], ["a.jpg"]),
        ("A", ["x/a.jpg"], ["x/a.jpg"]),
        (unicodedata.normalize("NFD", "Äsche.jpg"), ["Äsche.jpg"], ["Äsche.jpg"]),
        (unicodedata.normalize("NFC", "Äsche"), [unicodedata.normalize("NFD", "Äsche.jpg")], None),
        ("a.jpg", ["x/a.jpg", "y/a.jpg"], ["x/a.jpg", "y/a.jpg"]),
        ("a", ["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        ("A.jpg", ["a.jpg", "a.JPG"], ["a.jpg", "a.JPG"]),
        ("train/a.jpg", ["test/a.jpg"], []),
        ("1", ["01.jpg", "11.jpg"], []),
        ("", ["a.jpg"], []),
    ],
)
def test_a_text_finds_the_photographs_that_it_may_name(text: str, names: list[str], found: list[str] | None) -> None:
    assert Finder(names).find(text) == (names if found is None else found)


def test_paths_are_relative_to_the_table_and_stay_below_it() -> None:
    finder = Finder(["train/a.jpg", "test/a.jpg", "test/b.jpg"], "train")
    assert finder.find("a.jpg") == ["train/a.jpg"]
    assert finder.find("b.jpg") == []


def test_folders_that_all_rows_share_are_left_off_if_nothing_fits() -> None:
    finder = Finder(["p/a.jpg", "q/b.jpg"])
    assert find_files(["old/x/a.jpg", "old/x/c.jpg"], finder) == [["p/a.jpg"], []]
    assert find_files(["old/x/a.jpg", "q/b.jpg"], finder) == [[], ["q/b.jpg"]]
    assert find_files(["test/a.jpg", "test/b.jpg"], Finder(["train/a.jpg", "train/b.jpg"])) == [[], []]
    assert find_files(["old/x/a.jpg", "c.jpg"], Finder(["deep/p/a.jpg", "deep/p/b.jpg"])) == [["deep/p/a.jpg"], []]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.jpg", "train"),
        ("x/Test_Images/a.jpg", "test"),
        ("images-val/a.jpg", "valid"),
        ("unlabeled/a.jpg", "unlabelled"),
        ("test.jpg", ""),
        ("images/a.jpg", ""),
        ("trains/a.jpg", ""),
    ],
)
def test_folders_say_the_split(name: str, split: str) -> None:
    assert folder_split(name) == split


# --- columns ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["file,label", "a.jpg,oak", "b.jpg,ash"], {"a.jpg": "oak", "b.jpg": "ash"}),
        (["Image Id;Breed", "a;oak", "b;ash"], {"a.jpg": "oak", "b.jpg": "ash"}),
        (["id,file_name,species", "7,a.jpg,oak", "8,b.jpg,ash"], {"a.jpg": "oak", "b.jpg": "ash"}),
        (["label,id", "007,a", "1e5,b"], {"a.jpg": "007", "b.jpg": "1e5"}),
        (["id,label", "a,NA", "b,null", "c,None"], {"a.jpg": "NA", "b.jpg": "null", "c.jpg": "None"}),
        (["class id,filepaths,labels", "0,a.jpg,oak", "1,b.jpg,ash"], {"a.jpg": "oak", "b.jpg": "ash"}),
        (["label,class_name,id", "0,oak,a", "1,ash,b"], {"a.jpg": "oak", "b.jpg": "ash"}),
        (
            [
                "gbifID\tclass\torder\tfamily\tscientificName\tidentifier",
                "1\tAves\tX\tY\tCorvus corax L.\ta",
                "2\tAves\tX\tY\tPica\tb",
            ],
            {"a.jpg": "Corvus corax L.", "b.jpg": "Pica"},
        ),
        (["id,ash,oak", "a,1,0", "b,0,1", "c,0,0"], {"a.jpg": "ash", "b.jpg": "oak", "c.jpg": ""}),
        (["image,ash,oak,height", "a,1.0,0.0,3.5", "b,0.0,1.0,4"], {"a.jpg": "ash", "b.jpg": "oak"}),
    ],
)
def test_columns_are_found_by_usual_names(lines: list[str], expected: dict[str, str]) -> None:
    assert labels(join(*lines)) == expected


def test_columns_are_used_as_named() -> None:
    joined = join(
        "Bild,Baum,species,Teil", "a,oak,x,val", "b,ash,x,train", "c,oak,x,train", file="Bild", label="baum", split="Teil"
    )
    assert rows(joined) == [["a.jpg", "oak", "valid", ""], ["b.jpg", "ash", "train", ""], ["c.jpg", "oak", "train", ""]]


@pytest.mark.parametrize(
    ("lines", "named", "message"),
    [
        (["Bild,label", "a,oak"], {}, "no column has a usual name of a file .*; set data.columns.file .*: Bild, label"),
        (["file,Baum", "a,oak"], {}, "no column has a usual name of a label .*; set data.columns.label .*: file, Baum"),
        (["file,label", "x,oak", "y,ash"], {}, r"no row names a photograph \(column 'file', for example 'x'\); set"),
        (["file,image,label", "a,b,oak", "b,a,ash"], {}, "columns 'file', 'image' name different photographs; set"),
        (["id,species,breed", "a,oak,x", "b,oak,y"], {}, "columns 'species', 'breed' may be the label, and differ; set"),
        (
            ["id,genus,species", "a,Beta,vulgaris", "b,Sciurus,vulgaris"],
            {},
            "'Beta vulgaris' and 'Sciurus vulgaris' would be one class by column 'species'; add a column with both names; set",
        ),
        (["id,label", "a,oak", "b,ash"], {"label": "kind"}, "no column 'kind'; set data.columns.label .*: id, label"),
        (["id,label,label", "a,oak,x", "b,ash,y"], {"label": "label"}, "2 columns are named 'label'; rename all but one"),
        (["id,label,split,set", "a,x,train,test", "b,y,test,train"], {}, "columns 'split', 'set' may be the split; set"),
        (["id,label,split", "a,oak,0", "b,ash,1"], {}, "column 'split' numbers the splits, .*; replace"),
        (["id,label,split", "a,oak,train", "b,ash,later"], {}, "row 3: 'later' is not a split in column 'split'; use train"),
        (["id,label,split", "a,oak,train", "b,ash,"], {}, "row 3: no split in column 'split'"),
        (["id,label,split", "a,oak,test", "b,ash,test"], {}, r"no labelled photograph is in train \(only test\)"),
        (["id,label,site,event", "a,x,1,1", "b,y,1,2", "c,x,2,1"], {}, "columns 'site', 'event' may be the group, and none"),
        (["id,label", "a,oak", "b,oak"], {}, "only one class .oak.; set data.columns.label"),
        (["id,label", "a,", "b,"], {}, "no photograph has a label; set data.columns.label"),
        (["id,label", "a,oak", "a.jpg,ash"], {}, "rows 2 and 3 give a.jpg two labels, 'oak' and 'ash'; a photograph has"),
        (["id,label,site", "a,oak,1", "a.jpg,oak,2", "b,ash,3"], {}, "rows 2 and 3 give a.jpg two groups, '1' and '2'"),
        (["id,label", 'a,"[""oak"", ""ash""]"', "b,x"], {}, "row 2: .* contains 2 labels, but a photograph has one label here"),
        (["id,label", "a,['oak'; 'ash']", "b,oak|ash", "c,oak", "d,ash"], {}, "row 3: 'oak.ash' contains 2 labels"),
        (["id,ash,oak", "a,1,1", "b,0,1"], {}, r"row 2 has 1 in 2 columns \('ash', 'oak'\), but a photograph has"),
        (["id,label", 'a,"oak\n"', 'b,"as\nh"'], {}, "row 3: 'as.*nh' contains a line break; close the quote before it"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_clear_is_one_line(lines: list[str], named: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"^labels.csv: {message}") as caught:
        join(*lines, **named)
    assert "\n" not in str(caught.value)


def test_a_separator_within_names_is_no_list() -> None:
    assert labels(join("id,label", "a,oak|old", "b,oak", "c,[ash]")) == {"a.jpg": "oak|old", "b.jpg": "oak", "c.jpg": "[ash]"}


# --- rows and photographs that are left over ---


def test_rows_without_a_file_and_photographs_without_a_row_are_named() -> None:
    joined = join("id,label", "a,oak", "b,ash", "z,elm", ",oak")
    assert joined.left_out == (("z", NO_FILE), ("row 5", NO_FILE), ("c.jpg", NO_ROW), ("d.jpg", NO_ROW))
    assert labels(joined) == {"a.jpg": "oak", "b.jpg": "ash"}  # elm is no class
    assert joined.counts() == {NO_FILE: 2, NO_ROW: 2}


def test_rows_that_repeat_are_counted() -> None:
    joined = join("id,label", "a,oak", "a.jpg,Oak", "b,ash")
    assert joined.n_repeated == 1
    assert joined.notes[-1] == "2 classes; 2 photographs with a label, 0 unlabelled; 1 rows repeat another row"
    assert labels(joined) == {"a.jpg": "oak", "b.jpg": "ash"}


def test_a_test_folder_without_rows_is_unlabelled() -> None:
    names = ["train/a.jpg", "train/b.jpg", "train/c.jpg", "test/a.jpg", "test/z.jpg"]
    joined = join("id,label", "a,oak", "b,ash", "z,oak", names=names, where="train.csv")  # z is only in test
    assert rows(joined) == [
        ["test/a.jpg", "", "unlabelled", ""],
        ["test/z.jpg", "", "unlabelled", ""],
        ["train/a.jpg", "oak", "train", ""],
        ["train/b.jpg", "ash", "train", ""],
    ]
    assert joined.left_out == (("z", NO_FILE), ("train/c.jpg", NO_ROW))


def test_a_name_in_two_folders_needs_its_folder() -> None:
    names = ["train/a.jpg", "train/b.jpg", "test/a.jpg"]
    with pytest.raises(UserError, match=r"row 2: 'a' fits 2 photographs \(test/a.jpg, train/a.jpg\); write the path"):
        join("id,label", "a,oak", "b,ash", names=names)
    joined = join("id,label,split", "a,oak,test", "b,ash,train", names=names)
    assert rows(joined) == [["test/a.jpg", "oak", "test", ""], ["train/b.jpg", "ash", "train", ""]]


def test_folders_give_the_splits_that_the_table_does_not() -> None:
    names = ["train/a.jpg", "val/b.jpg", "test/c.jpg"]
    joined = join("id,label", "a,oak", "b,ash", "c,oak", names=names)
    assert joined.rows["split"].tolist() == ["test", "train", "valid"]
    with pytest.raises(
        UserError, match=r"train/a.jpg is in the folder of a split, x/b.jpg is not; move it, or add a column split"
    ):
        join("id,label", "a,oak", "b,ash", names=["train/a.jpg", "x/b.jpg"])


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ("is_training_img", ["1", "0", "1"]),
        ("is_train", ["True", "False", "true"]),
        ("data set", ["Training", "test", "train"]),
        ("subset", ["train_set", "Test set", "train images"]),
    ],
)
def test_spellings_of_splits(column: str, texts: list[str]) -> None:
    joined = join(f"id,label,{column}", *(f"{name},{name},{text}" for name, text in zip("abc", texts, strict=True)))
    assert joined.rows["split"].tolist() == ["train", "test", "train"]


def test_a_column_named_dataset_without_splits_is_not_used_and_named() -> None:
    joined = join("id,label,dataset", "a,oak,museum", "b,ash,museum")
    assert joined.rows["split"].tolist() == ["", ""]
    assert "column 'dataset' contains no names of splits and is not used" in joined.notes


def test_the_group_that_contains_the_others_is_used() -> None:
    lines = ("file_name,category,location,seq_id", "a,oak,L1,s1", "b,ash,L1,s2", "c,ash,L2,s3", "d,oak,L2,")
    assert join(*lines).rows["group"].tolist() == ["L1", "L1", "L2", "L2"]
    assert join(*lines, group="seq_id").rows["group"].tolist() == ["s1", "s2", "s3", ""]
    assert join(*lines, group="none").rows["group"].tolist() == [""] * 4


def test_a_table_of_numbers_and_names_is_known() -> None:
    assert names_of_numbers(table("label,name", "0,oak", "1,ash"), ["0", "1", ""])
    assert not names_of_numbers(table("label,name", "0,oak", "1,oak"), ["0"])
    assert not names_of_numbers(table("label,name", "0,oak"), ["0", "1"])
    assert not names_of_numbers(table("id,label", "a,oak"), ["oak"])
    joined = join_labels(table("id,label", "a,0", "b,1"), PHOTOS, columns(), "", table("label,name", "0,oak", "1,ash"))
    assert labels(joined) == {"a.jpg": "oak", "b.jpg": "ash"}


# --- damage ---


def mutated(content: bytes, source: random.Random) -> bytes:
    """The table with one to three random faults."""
    for _ in range(source.randint(1, 3)):
        place = source.randrange(len(content) + 1)
        lines = content.split(b"\n")
        at = source.randrange(len(lines))
        match source.randrange(12):
            case 0:
                content = content[:place]
            case 1:
                content = content[:place] + b'"' + content[place:]
            case 2:
                content = content[:place] + b"\0" + content[place:]
            case 3:
                content = content.replace(b",", source.choice([b";", b"\t", b"|", b" ", b""]), source.choice([1, 5, -1]))
            case 4:
                lines[0] = source.choice(
                    [b"file,file,label", b"label,label,file", b"file,label,split,file", b"x,y,z", b"", lines[0] + b",label"]
                )
                content = b"\n".join(lines)
            case 5:
                lines[at] = source.choice([b"", b",", lines[at] + b",", lines[at] * 2, lines[at][:3]])
                content = b"\n".join(lines)
            case 6:
                lines[at] += b"x" * 200_000
                content = b"\n".join(lines)
            case 7:
                encoding = source.choice(["utf-16", "utf-16-le", "cp1252", "utf-8-sig", "utf-32"])
                content = content.decode("utf-8", "replace").encode(encoding, "replace")
            case 8:
                content = bytes(source.randrange(256) if source.random() < 0.02 else byte for byte in content)
            case 9:
                content = content.replace(b"\n", source.choice([b"\r\n", b"\r", b"\n\n"]))
            case 10:
                lines.insert(at, lines[source.randrange(len(lines))])
                content = b"\n".join(lines)
            case _:
                content = content.replace(
                    b"oak", source.choice([b"", b"oak|ash", b'"oak', b"'oak", b"o\nak"]), source.choice([1, -1])
                )
    return content


def test_two_hundred_damaged_tables_are_read_in_full_or_refused_in_one_line() -> None:
    names = [f"img/{n:02d}.jpg" for n in range(12)]
    lines = ["file,label,note,split"]
    lines += [f'{n:02d}.jpg,{["oak", "ash", "Bäume"][n % 3]},"a, b",{["train", "test"][n % 4 == 0]}' for n in range(10)]
    whole = "\n".join(lines).encode()
    n_read = 0
    for seed in range(200):
        content = mutated(whole, random.Random(seed))
        try:
            read = read_table(content, "labels.csv")
            joined = join_labels(read, names, columns())
        except UserError as error:
            assert str(error).startswith("labels.csv: ") and "\n" not in str(error) and "\0" not in str(error), seed
            continue
        n_read += 1
        counts = joined.counts()
        assert len(read.rows) == len(joined.rows) + joined.n_repeated + counts[NO_FILE], seed
        assert set(joined.rows["id"]) | {name for name, reason in joined.left_out if reason == NO_ROW} == set(names), seed
        assert len(joined.rows) + counts[NO_ROW] == len(names), seed
        text = content.decode("utf-8", "replace")
        if not content.startswith((b"\xff\xfe", b"\xef\xbb\xbf")) and "\0" not in text and '"o' not in text:
            records = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip(',;\t| "')]
            assert len(records) - 1 == len(read.rows) or "o\nak" in text, (seed, records, read.rows)
    assert 20 < n_read < 180
