"""Prediction from a file alone, on a network made by hand whose answers can be worked out; other files are refused."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fieldguide.core.errors import UserError
from fieldguide.core.files import seal
from fieldguide.core.images import UnreadableImage, decode
from fieldguide.onnx.classifier import MAX_BATCH, ONNX_ERRORS, Answer, OnnxClassifier, Prediction, highest
from support import ROOT
from support.mean_colour import (
    METADATA,
    NAMES,
    PX,
    UNKNOWN_BELOW,
    UNSURE_BELOW,
    YELLOW,
    expected_probabilities,
    mean_colour_network,
    save,
    with_taxonomy,
)


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        OnnxClassifier(source)
    text = str(caught.value)
    assert text.startswith(f"{source}: ")
    return text.removeprefix(f"{source}: ")


@pytest.fixture
def classifier(tmp_path: Path) -> OnnxClassifier:
    return OnnxClassifier(save(tmp_path, mean_colour_network()))


@pytest.mark.parametrize("n_images", [1, 2, 7])
def test_probabilities_are_those_worked_out_by_hand(classifier: OnnxClassifier, n_images: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (n_images, PX, PX, 3), dtype=np.uint8)
    found = classifier.probabilities(pixels)
    assert (found.shape, found.dtype) == ((n_images, 4), np.float32)
    assert np.allclose(found, expected_probabilities(pixels), atol=1e-6)


def test_names_size_and_metadata_come_from_the_file(tmp_path: Path) -> None:
    names = ["Schöner Käfer", "孔雀蛺蝶", "c", "d"]
    source = save(tmp_path, mean_colour_network(METADATA | {"class_names": names, "model": "cnn"}))
    classifier = OnnxClassifier(source, n_threads=1)
    assert classifier.class_names == tuple(names)
    assert classifier.image_px == PX
    assert classifier.metadata["model"] == "cnn"
    assert classifier.file_bytes == source.stat().st_size


def test_a_single_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    source = save(tmp_path, mean_colour_network())
    content = bytearray(source.read_bytes())
    for place in np.random.default_rng(0).choice(len(content), 200, replace=False):
        content[place] ^= 1 << int(place) % 8
        source.write_bytes(content)
        assert refusal(source)
        content[place] ^= 1 << int(place) % 8
    source.write_bytes(content)
    assert OnnxClassifier(source, n_threads=1).class_names == NAMES


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    """Pictures of one colour each."""
    return np.stack([np.full((PX, PX, 3), colour, np.uint8) for colour in colours])


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_answers_are_ranked_and_cut_at_k(classifier: OnnxClassifier, make_jpeg: Callable[..., bytes], k: int) -> None:
    encoded = make_jpeg(3, width=90, height=60)
    expected = expected_probabilities(decode(encoded, PX)[None])[0]
    ranked = sorted(range(4), key=lambda index: -expected[index])[:k]
    answers = classifier.predict([encoded], k)[0].answers
    assert [(answer.name, answer.index) for answer in answers] == [(NAMES[index], index) for index in ranked]
    assert [answer.probability for answer in answers] == pytest.approx([expected[index] for index in ranked], abs=1e-6)
    assert all(type(answer.probability) is float and type(answer.index) is int for answer in answers)


def test_a_red_picture_is_red_and_equals_keep_their_order(classifier: OnnxClassifier) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(stream, "JPEG", quality=95, subsampling=0)
    names = [answer.name for answer in classifier.predict([stream.getvalue()])[0].answers]
    assert names == ["RED", "GREEN", "BLUE", "DARK"]


def test_an_answer_is_a_name_a_probability_and_a_number() -> None:
    assert (Answer("RED", 0.5, 2).name, Answer("RED", 0.5, 2).probability, Answer("RED", 0.5, 2).index) == ("RED", 0.5, 2)


def test_files_and_bytes_of_any_number_give_the_same_predictions_in_order(
    classifier: OnnxClassifier, tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    encoded = [make_jpeg(seed) for seed in range(MAX_BATCH + 3)]
    files = [tmp_path / f"{seed}.jpg" for seed in range(len(encoded))]
    for file, content in zip(files, encoded, strict=True):
        file.write_bytes(content)
    expected = expected_probabilities(np.stack([decode(content, PX) for content in encoded]))
    from_bytes, from_files = classifier.predict(encoded), classifier.predict(files)
    assert from_bytes == from_files
    assert [prediction.answers[0].probability for prediction in from_files] == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    ("colour", "verdict"),
    [((255, 0, 0), "sure"), ((220, 210, 210), "unsure"), ((20, 20, 20), "unknown"), ((60, 60, 60), "unsure")],
)
def test_the_verdict_follows_the_thresholds_of_the_file(classifier: OnnxClassifier, colour: tuple, verdict: str) -> None:
    prediction = classifier.predict_pixels(plain(colour))[0]
    assert prediction.known_score == pytest.approx(np.mean(colour) / 255, abs=1e-6)
    expected = "unsure" if prediction.answers[0].probability < UNSURE_BELOW else "sure"
    assert prediction.verdict == ("unknown" if np.mean(colour) / 255 < UNKNOWN_BELOW else expected) == verdict


def test_an_unsure_image_is_told_as_the_narrowest_taxon_that_is_certain(tmp_path: Path) -> None:
    def classifier(**taxa_below: float) -> OnnxClassifier:
        return OnnxClassifier(save(tmp_path, mean_colour_network(with_taxonomy(**taxa_below))))

    pixels = plain(YELLOW, (255, 0, 0), (20, 20, 20))
    red, green = expected_probabilities(pixels)[0][[NAMES.index("RED"), NAMES.index("GREEN")]]
    unsure, sure, unknown = classifier(genus=red + green - 1e-3, family=0.0).predict_pixels(pixels)
    assert (unsure.verdict, sure.verdict, unknown.verdict) == ("unsure", "sure", "unknown")
    assert (unsure.taxon.rank, unsure.taxon.name) == ("genus", "Vanessa")
    assert unsure.taxon.probability == pytest.approx(red + green, abs=1e-6)
    assert sure.taxon is unknown.taxon is None
    (wider,) = classifier(genus=1.01, family=0.0).predict_pixels(plain((120, 150, 160)))
    assert (wider.taxon.rank, wider.taxon.name) == ("family", "Nymphalidae")
    assert classifier().predict_pixels(plain(YELLOW))[0].taxon is None


def test_answers_have_the_names_of_the_taxonomy_and_an_older_file_has_none(tmp_path: Path, classifier: OnnxClassifier) -> None:
    named, old = (
        one.predict_pixels(plain((255, 0, 0)))[0].answers
        for one in (OnnxClassifier(save(tmp_path, mean_colour_network(with_taxonomy()))), classifier)
    )
    assert (named[0].name, named[0].common_name, named[0].scientific_name) == ("RED", "Red admiral", "Vanessa atalanta")
    assert {(one.common_name, one.scientific_name) for one in (*named[1:], *old)} == {("", "")}


@pytest.mark.parametrize("every_map", [False, True], ids=["maps on request", "older file"])
def test_the_activation_is_that_of_the_first_answer_as_a_share_of_its_largest_value(tmp_path: Path, every_map: bool) -> None:
    classifier = OnnxClassifier(save(tmp_path, mean_colour_network(every_map=every_map)))
    assert classifier.has_activation
    pixels = plain((0, 0, 0), (0, 0, 0))
    pixels[0, : PX // 4, -PX // 4 :, 0] = 200  # red in the upper right corner
    pixels[0, -PX // 4 :, : PX // 4, 0] = 100
    first, black = classifier.predict_pixels(pixels, activation=True)
    assert first.answers[0].name == "RED"
    expected = np.zeros((4, 4))
    expected[0, 3], expected[3, 0] = 1, 0.5
    assert first.activation == pytest.approx(expected, abs=1e-6)
    assert first.activation.dtype == np.float32
    assert not black.activation.any()
    assert classifier.predict_pixels(pixels)[0].activation is None


def test_maps_are_computed_of_as_many_of_the_most_probable_classes_as_asked_for(
    classifier: OnnxClassifier, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), dtype=np.uint8)
    (tmp_path / "older").mkdir()
    older = OnnxClassifier(save(tmp_path / "older", mean_colour_network(every_map=True)))
    every, probabilities = older.run(pixels, ["activation", "probabilities"])
    assert every.shape == (5, 4, 4, 4)
    ranked = np.argsort(-probabilities, axis=1)
    for n_maps in range(5):
        (maps,) = classifier.run(pixels, ["activation"], n_maps)
        assert maps.shape == (5, n_maps, 4, 4)
        assert maps == pytest.approx(np.take_along_axis(every, ranked[:, :n_maps, None, None], axis=1), abs=1e-5)
    (unasked,) = classifier.session.run(["activation"], {"images": pixels})  # as others use the file
    assert unasked.shape == (5, 0, 4, 4)
    assert older.predict_pixels(pixels) == classifier.predict_pixels(pixels)
    with pytest.raises(ONNX_ERRORS, match=r"TopK"):
        classifier.run(pixels, ["activation"], 5)  # of four classes


@pytest.mark.parametrize("k", [1, 3, 12, 40])
def test_the_highest_are_those_of_a_full_stable_sort(k: int) -> None:
    random = np.random.default_rng(0)
    for values in (random.random(30), random.integers(0, 4, 30) / 4, np.zeros(30), np.full(30, np.nan)):
        assert highest(values.astype(np.float32), k).tolist() == np.argsort(-values, kind="stable")[:k].tolist()


def test_a_network_that_does_not_tell_where_it_looked_gives_no_activation(tmp_path: Path) -> None:
    classifier = OnnxClassifier(save(tmp_path, mean_colour_network(activation=False)))
    assert not classifier.has_activation
    assert classifier.predict_pixels(plain((255, 0, 0)), activation=True)[0].activation is None


def test_embeddings_are_those_of_the_network(classifier: OnnxClassifier) -> None:
    pixels = plain((255, 0, 0), (20, 40, 60))
    assert classifier.run(pixels, ["embedding"])[0] == pytest.approx(pixels.mean(axis=(1, 2)) / 255, abs=1e-6)


def test_a_model_can_come_as_bytes(tmp_path: Path) -> None:
    source = save(tmp_path, mean_colour_network())
    classifier = OnnxClassifier(source.read_bytes())
    assert classifier.file_bytes == source.stat().st_size
    with pytest.raises(UserError, match="the model: not a usable ONNX model"):
        OnnxClassifier(b"nothing")


def test_a_prediction_is_a_value() -> None:
    assert Prediction((), "sure", 1.0, None) == Prediction((), "sure", 1.0, None)


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\xff\xd8\xff"])
def test_an_unreadable_image_is_refused(classifier: OnnxClassifier, encoded: bytes) -> None:
    with pytest.raises(UnreadableImage, match=r"."):
        classifier.predict([encoded])


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.onnx") == "No such file or directory; create it with: dvc repro export_onnx"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "Is a directory; create it with: dvc repro export_onnx"


@pytest.mark.parametrize("content", [b"", b"no onnx " * 99, bytes(range(256)) * 9], ids=["empty", "text", "bytes"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    expected = r"not a usable ONNX model \((?s:.+)\); create it with: dvc repro -f export_onnx"
    assert re.fullmatch(expected, refusal(tmp_path / "model.onnx"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    source = save(tmp_path, mean_colour_network())
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    assert "create it with: dvc repro -f export_onnx" in refusal(source)


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        (None, "fieldguide"),
        ({}, "class_names"),
        ({"class_names": NAMES}, "image_px"),
        ({"class_names": NAMES, "image_px": PX}, "calibration"),  # as files were before they carried one
        (METADATA | {"calibration": {"unsure_below": 0.5}}, "unknown_below"),
    ],
)
def test_a_model_without_metadata_is_refused(tmp_path: Path, metadata: object, key: str) -> None:
    text = refusal(save(tmp_path, mean_colour_network(metadata)))
    assert text == f"metadata lack '{key}'; create it with: dvc repro -f export_onnx"


@pytest.mark.parametrize("metadata", ["{broken", "", "[]", "7", "null", '"text"', '{"class_names": 7, "image_px": 16}'])
def test_metadata_that_are_not_fieldguides_are_refused(tmp_path: Path, metadata: str) -> None:
    assert "export_onnx" in refusal(save(tmp_path, mean_colour_network(metadata)))


@pytest.mark.parametrize("names", [NAMES[:3], (*NAMES, "EXTRA")], ids=["fewer names", "more names"])
def test_a_number_of_names_other_than_that_of_the_outputs_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert "export_onnx" in refusal(save(tmp_path, mean_colour_network({**METADATA, "class_names": names})))


@pytest.mark.parametrize("image_px", [PX + 1, "16"])
def test_a_size_other_than_that_of_the_input_is_refused(tmp_path: Path, image_px: object) -> None:
    assert "export_onnx" in refusal(save(tmp_path, mean_colour_network({**METADATA, "image_px": image_px})))


def test_a_network_with_other_inputs_is_refused(tmp_path: Path) -> None:
    model = mean_colour_network()
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    assert "export_onnx" in refusal(save(tmp_path, model))


@pytest.mark.parametrize("output", ["probabilities", "embedding", "known_score", "activation"])
def test_a_network_with_an_output_of_another_name_or_missing_is_refused(tmp_path: Path, output: str) -> None:
    model = mean_colour_network()
    place = [value.name for value in model.graph.output].index(output)
    if output != "activation":
        del model.graph.output[place]
        assert "export_onnx" in refusal(save(tmp_path, model))
        return
    model.graph.output[place].name = model.graph.node[-1].output[0] = "other"
    assert "export_onnx" in refusal(save(tmp_path, model))


def test_a_file_with_only_probabilities_is_refused_with_how_to_make_a_new_one(tmp_path: Path) -> None:
    model = mean_colour_network()
    del model.graph.output[1:]
    assert refusal(save(tmp_path, model)).endswith("create it with: dvc repro -f export_onnx")


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save_model(
        mean_colour_network(),
        source,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 0
    source.write_bytes(seal(source.read_bytes()))
    assert re.match(r"not a usable ONNX model \(.*external", refusal(source), re.DOTALL)


def test_predicting_imports_neither_torch_nor_dvc_nor_mlflow(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    save(tmp_path, mean_colour_network())
    (tmp_path / "photo.jpg").write_bytes(make_jpeg())
    script = """
import sys
from pathlib import Path
from fieldguide.onnx.classifier import OnnxClassifier
print(OnnxClassifier(Path("model.onnx")).predict([Path("photo.jpg")], 1)[0].answers[0].name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", script]
    answer, modules = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()
    assert answer in NAMES
    assert {"numpy", "PIL", "onnxruntime"} <= set(modules.split())
    heavy = {"torch", "torchvision", "dvc", "mlflow", "onnx", "pandas", "sklearn", "scipy", "matplotlib", "pydantic"}
    assert heavy.isdisjoint(modules.split())
