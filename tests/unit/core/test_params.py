"""`params.yaml`: what stands in it is read as DVC reads it, and whatever is wrong with it is one line before any work."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from fieldguide.core.errors import UserError
from fieldguide.core.params import Params, read_params
from support import ROOT
from support.settings import PARAMS, TEXT, changed

BIG = "1e+400"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], Path]:
    """`written(text)`: a folder, gone into, whose params.yaml is `text`."""

    def write(text: str | bytes) -> Path:
        (tmp_path / "params.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        monkeypatch.chdir(tmp_path)
        return tmp_path / "params.yaml"

    return write


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a typed section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def yaml_leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a parsed file."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from yaml_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def message(text: str | bytes, written: Callable[[str | bytes], Path]) -> str:
    """What is said against a file, with no path before its name."""
    written(text)
    with pytest.raises(UserError) as caught:
        read_params()
    return str(caught.value)


def test_the_repositorys_file_is_read_with_the_values_that_dvc_reads() -> None:
    reference = dict(yaml_leaves(YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))))
    read = dict(yaml_leaves(read_params(ROOT / "params.yaml").model_dump(mode="json")))
    assert read == reference


def test_every_known_key_stands_in_the_file_and_no_other() -> None:
    assert sorted(key for key, _ in yaml_leaves(YAML(typ="safe").load(TEXT))) == sorted(leaves(Params))


def test_every_key_with_a_value_carries_a_comment_with_its_meaning() -> None:
    lines = [line for line in TEXT.splitlines() if re.match(r" +\w+: *[^ #]", line)]
    assert len(lines) == len(list(leaves(Params)))
    assert [line for line in lines if not re.search(r" # \w.{2,}", line)] == []


def test_every_section_says_who_reads_it() -> None:
    for section in Params.model_fields:
        line = next(line for line in TEXT.splitlines() if line.startswith(f"{section}:"))
        assert re.search(r"# (read by: \w+|no stage depends on it)", line), line


@pytest.mark.parametrize("value", ["1e-05", "1E-05", "1.5e-3", "1.e-1", ".5", "5.", "+0.5", "1e+0", "1", "1e-300"])
def test_a_number_is_read_as_dvc_reads_it(written: Callable[[str], Path], value: str) -> None:
    text = changed("train.lr", value)
    assert read_params(written(text)).train.lr == YAML(typ="safe").load(text)["train"]["lr"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.lr", "-1", "train.lr must be in (0, 10], got -1"),
        ("train.lr", "0", "train.lr must be in (0, 10], got 0"),
        ("train.lr", "10.01", "train.lr must be in (0, 10], got 10.01"),
        ("train.lr", ".nan", "train.lr must be in (0, 10], got nan"),
        ("train.lr", ".inf", "train.lr must be in (0, 10], got inf"),
        ("train.lr", BIG, "train.lr must be in (0, 10], got inf"),
        ("train.lr", '"0.1"', "train.lr must be in (0, 10], got '0.1'"),
        ("train.lr", "true", "train.lr must be in (0, 10], got True"),
        ("train.lr", "null", "train.lr must be in (0, 10], got None"),
        ("train.lr", "[0.1]", "train.lr must be in (0, 10], got [0.1]"),
        ("train.momentum", "1", "train.momentum must be in [0, 1), got 1"),
        ("train.epochs", "0", "train.epochs must be an integer in [1, 10000], got 0"),
        ("train.epochs", "12.0", "train.epochs must be an integer in [1, 10000], got 12.0"),
        ("train.epochs", "yes", "train.epochs must be an integer in [1, 10000], got True"),
        ("train.loader", "disk", "train.loader must be one of auto, resident, streaming, got 'disk'"),
        ("train.memory_share", "0", "train.memory_share must be in (0, 1], got 0"),
        ("train.decode_px", "15", "train.decode_px must be an integer in [16, 1024], got 15"),
        ("train.size_start", "1.5", "train.size_start must be in [0.1, 1], got 1.5"),
        ("train.size_growth", "1.1", "train.size_growth must be in [0, 1], got 1.1"),
        ("train.accumulate", "0", "train.accumulate must be an integer in [1, 1024], got 0"),
        ("train.optimizer", "lion", "train.optimizer must be one of sgd, adam, adamw, muon, got 'lion'"),
        ("train.schedule", "step", "train.schedule must be one of constant, cosine, one_cycle, exponential, got 'step'"),
        ("train.hold", "-0.1", "train.hold must be in [0, 1], got -0.1"),
        ("train.lr_start", "2", "train.lr_start must be in [0, 1], got 2"),
        ("train.lr_end", "2", "train.lr_end must be in [0, 1], got 2"),
        ("train.lr_decay", "0", "train.lr_decay must be in (0, 1], got 0"),
        ("train.lr_decay", "1.1", "train.lr_decay must be in (0, 1], got 1.1"),
        ("train.head_epochs", "-1", "train.head_epochs must be an integer in [0, 10000], got -1"),
        ("train.head_lr", "0", "train.head_lr must be in (0, 10], got 0"),
        ("train.backbone_lr", "1.1", "train.backbone_lr must be in [0, 1], got 1.1"),
        ("train.layer_decay", "0", "train.layer_decay must be in (0, 1], got 0"),
        ("train.ema", "1", "train.ema must be in [0, 1), got 1"),
        ("train.clip_norm", "-1", "train.clip_norm must be in [0, 1000000], got -1"),
        ("train.class_weights", "rare", "train.class_weights must be one of equal, balanced, got 'rare'"),
        ("train.sampling", "random", "train.sampling must be one of shuffle, square_root, balanced or in [0, 1], got 'random'"),
        ("train.compile", "1", "train.compile must be true or false, got 1"),
        ("augment.scale", "1", "augment.scale must be in [0, 1), got 1"),
        ("augment.translate", "1.1", "augment.translate must be in [0, 1], got 1.1"),
        ("augment.shear_degrees", "61", "augment.shear_degrees must be in [0, 60], got 61"),
        ("augment.perspective", "-0.1", "augment.perspective must be in [0, 1], got -0.1"),
        ("augment.perspective_distortion", "1", "augment.perspective_distortion must be in [0, 1), got 1"),
        ("augment.hue", "0.6", "augment.hue must be in [0, 0.5], got 0.6"),
        ("augment.blur", "1.1", "augment.blur must be in [0, 1], got 1.1"),
        ("augment.blur_sigma_max", "0.1", "augment.blur_sigma_max must be in (0.1, 10], got 0.1"),
        ("augment.erase", "1.1", "augment.erase must be in [0, 1], got 1.1"),
        ("augment.erase_area_max", "0.02", "augment.erase_area_max must be in (0.02, 1), got 0.02"),
        ("augment.mixup", "1.1", "augment.mixup must be in [0, 1], got 1.1"),
        ("augment.cutmix", "-0.1", "augment.cutmix must be in [0, 1], got -0.1"),
        ("augment.mix_until", "1.1", "augment.mix_until must be in [0, 1], got 1.1"),
        ("model.weights", '""', "model.weights must be text in quotes, got ''"),
        ("model.weights", "3", "model.weights must be text in quotes, got 3"),
        ("model.name", "timm/", "model.name must be text in quotes, got 'timm/'"),
        ("model.name", "hub/resnet18", "model.name must be text in quotes, got 'hub/resnet18'"),
        ("model.image_px", "15", "model.image_px must be an integer in [16, 1024], got 15"),
        ("model.image_px", "1025", "model.image_px must be an integer in [16, 1024], got 1025"),
        ("data.sample.train_images", "0", "data.sample.train_images must be an integer in [1, 1000000], got 0"),
        ("train.seed", "-1", "train.seed must be an integer in [0, 2147483647], got -1"),
        ("train.seed", "2147483648", "train.seed must be an integer in [0, 2147483647], got 2147483648"),
        ("train.best_by", "top5", "train.best_by must be one of accuracy, loss, got 'top5'"),
        ("split_check.leaks", "ignore", "split_check.leaks must be one of report, drop, fail, got 'ignore'"),
        ("data.path", "12", "data.path must be text in quotes, got 12"),
        ("data.path", "null", "data.path must be text in quotes, got None"),
        ("runtime.workers", "0", "runtime.workers must be an integer in [1, 256] or auto, got 0"),
        ("runtime.workers", "many", "runtime.workers must be an integer in [1, 256] or auto, got 'many'"),
        ("benchmark.batch_sizes", "[]", "benchmark.batch_sizes must be a list, each an integer in [1, 65536], got []"),
        ("benchmark.batch_sizes", "[1, 0]", "benchmark.batch_sizes must be a list, each an integer in [1, 65536], got 0"),
        ("benchmark.batch_sizes", "8", "benchmark.batch_sizes must be a list, each an integer in [1, 65536], got 8"),
        ("benchmark.batch_sizes", '["8"]', "benchmark.batch_sizes must be a list, each an integer in [1, 65536], got '8'"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_range(
    written: Callable[[str], Path], key: str, value: str, said: str
) -> None:
    assert message(changed(key, value), written) == f"params.yaml: {said}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", "10"),
        ("train.momentum", "0"),
        ("train.seed", "2147483647"),
        ("model.image_px", "16"),
        ("model.image_px", "1024"),
        ("model.name", "timm/resnet18.a1_in1k"),
        ("model.name", "vgg16"),
        ("model.weights", "imagenet"),
        ("model.weights", "models/pretrained.safetensors"),
        ("train.accumulate", "1024"),
        ("train.memory_share", "1"),
        ("train.size_growth", "1"),
        ("train.warmup", "1"),
        ("train.lr_decay", "1"),
        ("train.backbone_lr", "0"),
        ("train.ema", "0"),
        ("train.clip_norm", "1000000"),
        ("augment.hue", "0.5"),
        ("augment.mixup", "1"),
        ("runtime.workers", "256"),
        ("benchmark.batch_sizes", "[1]"),
        ("data.path", '"/photos/my folder"'),
    ],
)
def test_the_ends_of_a_range_are_taken(written: Callable[[str], Path], key: str, value: str) -> None:
    text = changed(key, value)
    read = dict(yaml_leaves(read_params(written(text)).model_dump(mode="json")))
    assert read[key] == dict(yaml_leaves(YAML(typ="safe").load(text)))[key]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train.head_epochs": "2"},
            "train.head_epochs is 2, but model.weights is none; set weights, or set head_epochs to 0",
        ),
        (
            {"train.freeze": "0.5"},
            "train.freeze is 0.5, but model.weights is none; set weights, or set freeze to 0",
        ),
        (
            {"train.warmup": "0.6", "train.hold": "0.5"},
            "train.warmup (0.6) plus train.hold (0.5) must be at most 1",
        ),
        (
            {"train.optimizer": "adam", "train.weight_decay": "1.0"},
            "train.weight_decay must be in [0, 0.1] with train.optimizer adam, which adds it to the gradient,"
            " got 1.0; 0.0005 is usual, and adapt train.lr to the optimizer",
        ),
        (
            {"split_check.group": "'(IMG'"},
            "split_check.group is not a regular expression (missing ), unterminated subpattern at position 0), got '(IMG'",
        ),
        (
            {"split_check.folds": "5", "split_check.hold_out": "0.2"},
            "split_check.hold_out is 0.2, but split_check.folds is 5; set one of them to 0",
        ),
        ({"split_check.folds": "5", "split_check.fold": "5"}, "split_check.fold (5) must be less than split_check.folds (5)"),
        ({"split_check.fold": "1"}, "split_check.fold (1) must be less than split_check.folds (0)"),
    ],
)
def test_keys_that_contradict_each_other_are_named(written: Callable[[str], Path], changes: dict[str, str], said: str) -> None:
    text = TEXT
    for key, value in changes.items():
        text = changed(key, value, text)
    assert message(text, written) == f"params.yaml: {said}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model.weights": "imagenet", "train.head_epochs": "5", "train.epochs": "5"},
        {"model.weights": "imagenet", "train.head_epochs": "10", "train.epochs": "1"},
        {"model.weights": "imagenet", "train.freeze": "0.5"},
        {"model.weights": "imagenet", "train.freeze": "blocks.2"},
        {"train.warmup": "0.5", "train.hold": "0.5"},
        {"split_check.folds": "2", "split_check.fold": "1", "split_check.group": "'(IMG_[0-9]+)_burst'"},
    ],
)
def test_keys_that_just_agree_are_taken(written: Callable[[str], Path], changes: dict[str, str]) -> None:
    text = TEXT
    for key, value in changes.items():
        text = changed(key, value, text)
    read = dict(yaml_leaves(read_params(written(text)).model_dump(mode="json")))
    assert {key: read[key] for key in changes} == {
        key: value for key, value in yaml_leaves(YAML(typ="safe").load(text)) if key in changes
    }


def test_an_unknown_key_is_named_with_those_that_are_known(written: Callable[[str], Path]) -> None:
    assert message(changed("model.name", "cnn\n  depth: 4"), written) == (
        "params.yaml: model.depth is not a known key; known keys: "
        + ", ".join(Params.model_fields["model"].annotation.model_fields)
    )
    assert message(TEXT + "modle:\n  name: cnn\n", written) == (
        "params.yaml: modle is not a known key; known keys: " + ", ".join(Params.model_fields)
    )


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5", "2024-01-01"])
def test_a_key_that_is_no_text_is_named(written: Callable[[str], Path], key: str) -> None:
    known = ", ".join(Params.model_fields)
    assert re.fullmatch(rf"params\.yaml: .+ is not a known key; known keys: {known}", message(f"{TEXT}{key}: 2\n", written))
    nested = message(changed("model.name", f"cnn\n  {key}: 4"), written)
    assert re.fullmatch(r"params\.yaml: model\..+ is not a known key; known keys: name, weights, image_px", nested)


@pytest.mark.parametrize("key", ["? [a, b]\n", "? {a: b}\n", "{a: b}"])
def test_a_key_that_is_a_list_or_section_is_one_line(written: Callable[[str], Path], key: str) -> None:
    assert message(f"{TEXT}{key}: 2\n", written).startswith("params.yaml")


def test_a_missing_key_or_section_is_named(written: Callable[[str], Path]) -> None:
    without = re.sub(r"^  lr: .*\n", "", TEXT, flags=re.M)
    assert without != TEXT
    assert message(without, written) == "params.yaml: train.lr is missing; add it"
    assert message(TEXT[: TEXT.index("\nruntime:")], written) == "params.yaml: runtime is missing; add it"


def test_further_faults_are_counted(written: Callable[[str], Path]) -> None:
    text = changed("train.lr", "-1").replace("\n  momentum: 0.95 ", "\n  momentum: 9 ")
    assert message(text, written) == "params.yaml: train.lr must be in (0, 10], got -1 (and 1 more)"


def test_a_key_given_twice_is_refused_with_its_line(written: Callable[[str], Path]) -> None:
    n_lines = TEXT.count("\n")
    assert message(TEXT + "model:\n  name: cnn\n", written) == (
        f"params.yaml, line {n_lines + 1}: duplicate key 'model'; correct the file"
    )
    text = changed("train.lr", "0.1\n  lr: 0.2")
    line = text.splitlines().index(next(line for line in text.splitlines() if line.startswith("  lr: 0.2"))) + 1
    assert message(text, written) == f"params.yaml, line {line}: duplicate key 'lr'; correct the file"


@pytest.mark.parametrize(
    ("text", "got"), [("", "None"), ("# only a comment\n", "None"), ("- 1\n", r"[1]"), ("hello\n", "'hello'")]
)
def test_a_file_without_sections_is_one_line(written: Callable[[str], Path], text: str, got: str) -> None:
    assert message(text, written) == f"params.yaml: the file must be a section with keys, got {got}"


@pytest.mark.parametrize(("value", "got"), [("3", "3"), ("", "None"), ("[]", r"[]")])
def test_a_section_without_keys_is_one_line(written: Callable[[str], Path], value: str, got: str) -> None:
    text = TEXT[: TEXT.index("\nruntime:")] + f"\nruntime: {value}\n"
    assert message(text, written) == f"params.yaml: runtime must be a section with keys, got {got}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: [1\n", r", line 2: expected ',' or '\]', but got '<stream end>'; correct the file"),
        (b"a:\n\tb: 1\n", r", line 2: found character '\\t' that cannot start any token; correct the file"),
        (b"a: 1\n---\nb: 2\n", r", line 2: but found another document; correct the file"),
        (
            b"a: !!python/object:os.system x\n",
            r", line 1: could not determine a constructor for the tag '.*'; correct the file",
        ),
        (b"# caf\xe9\n", r": not valid YAML \('utf-8' codec can't decode byte 0xe9 .*\); correct the file"),
        (b"a: \x00\n", r": not valid YAML \(unacceptable character #x0000: .*\); correct the file"),
        (b"a: 2024-02-30\n", r".*day is out of range for month.*; correct the file"),  # a date to YAML
    ],
)
def test_what_is_no_yaml_is_one_line(written: Callable[[bytes], Path], text: bytes, said: str) -> None:
    assert re.fullmatch(rf"params\.yaml{said}", message(text, written), flags=re.S)


@pytest.mark.parametrize("text", ["\ufeff" + TEXT, TEXT.replace("\n", "\r\n")], ids=["byte order mark", "CRLF"])
def test_what_editors_on_windows_write_is_read(written: Callable[[bytes], Path], text: str) -> None:
    assert read_params(written(text.encode())) == PARAMS


def test_a_missing_file_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_params()
    assert str(caught.value) == ("params.yaml: No such file or directory; run in the project folder or restore the file")


def test_what_is_recorded_of_an_address_has_no_secret(written: Callable[[str], Path]) -> None:
    """Runs, report and model card are given `model_dump`."""
    params = read_params(written(changed("data.path", "https://me:pass@example.org/a.zip?token=t&v=2")))
    assert params.data.path == "https://me:pass@example.org/a.zip?token=t&v=2"
    assert params.model_dump(mode="json")["data"]["path"] == "https://example.org/a.zip?v=2"
    assert params.data.model_dump()["path"] == "https://example.org/a.zip?v=2"


def test_params_cannot_be_changed_once_read() -> None:
    params = read_params(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="Instance is frozen"):
        params.train.lr = 0.5
    with pytest.raises(ValidationError, match="Instance is frozen"):
        params.model = None
    assert params.benchmark.batch_sizes.__class__ is tuple


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("auto", None)])
def test_workers_are_the_number_given_or_one_a_core(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None
) -> None:
    params = read_params(written(changed("runtime.workers", value)))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 3, 5, 7}, raising=False)
    assert params.runtime.n_workers == (expected or 5)
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert params.runtime.n_workers == (expected or 6)
    monkeypatch.setattr("os.cpu_count", lambda: None)  # where the system does not tell
    assert params.runtime.n_workers == (expected or 1)
