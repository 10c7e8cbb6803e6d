"""Embeddings that are kept by content: the same bytes with them and without, and nothing that was not asked for."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldguide.core import caches
from fieldguide.core.paths import features_cache
from fieldguide.network import features
from fieldguide.network.features import KnownFeatures, known_features
from fieldguide.network.inference import batches_of, embed, views
from fieldguide.network.loader import Resident
from fieldguide.network.models import Classifier, build

PX, N, BATCH = 24, 21, 8
CPU, FP32 = torch.device("cpu"), torch.float32


class Watched(Resident):
    """Images of noise, and how many of them were asked for."""

    def __init__(self, numbers: Sequence[int], px: int = PX) -> None:
        images = [
            torch.randint(0, 256, (3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(k)) for k in numbers
        ]
        digests = np.array([f"{k:064x}".encode() for k in numbers], "S64")
        super().__init__(torch.stack(images).contiguous(memory_format=torch.channels_last), digests)
        self.n_asked = 0

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for rows, pixels in zip(batches, super().batches(batches), strict=True):
            self.n_asked += len(rows)
            yield pixels


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["fieldnet", "timm/tf_efficientnet_lite0"])
def model(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    return build(request.param, 3, PX).to(memory_format=torch.channels_last).eval()


def embedded(model: Classifier, source: Watched, batch_size: int = BATCH, dtype: torch.dtype = FP32) -> bytes:
    return embed(model, source, torch.arange(len(source)), batch_size, dtype, PX).numpy().tobytes()


def files() -> list[Path]:
    return sorted(features_cache().glob("*"))


def test_a_second_training_computes_nothing_and_has_the_same_bytes(model: Classifier) -> None:
    first, second = Watched(range(N)), Watched(range(N))
    assert embedded(model, first) == embedded(model, second)
    assert (first.n_asked, second.n_asked) == (N, 0)


@pytest.mark.parametrize("before", [range(5), range(20, 2, -1), [40, 3, 41, 17]], ids=["fewer", "another order", "others too"])
def test_what_is_known_of_other_images_changes_no_byte(model: Classifier, before: Sequence[int]) -> None:
    expected = embedded(model, Watched(range(N)))
    files()[0].unlink()
    embedded(model, Watched(before))
    source = Watched(range(N))
    assert embedded(model, source) == expected
    assert source.n_asked == N - len(set(before) & set(range(N)))


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-9], lambda content: content[:-1] + bytes([content[-1] ^ 1])]
)
def test_a_damaged_file_is_not_used(model: Classifier, damage: Callable[[bytes], bytes]) -> None:
    expected = embedded(model, Watched(range(N)))
    files()[0].write_bytes(damage(files()[0].read_bytes()))
    source = Watched(range(N))
    assert embedded(model, source) == expected
    assert source.n_asked == N


def test_without_a_folder_to_write_into_it_is_only_slower(model: Classifier) -> None:
    expected = embedded(model, Watched(range(N)))
    files()[0].unlink()
    features_cache().rmdir()
    features_cache().write_text("not a folder")
    assert embedded(model, Watched(range(N))) == expected


def test_other_weights_sizes_batches_and_code_have_a_file_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("cnn", 3).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.features.parameters()).add_(1e-6)
        model_with_other_head = copy.deepcopy(model)
        model_with_other_head.head.weight.add_(1)
    keys = [features._key(*arguments) for arguments in ((model, PX, 8, FP32), (other, PX, 8, FP32), (model, PX + 1, 8, FP32))]
    keys += [features._key(model, PX, 9, FP32), features._key(model, PX, 8, torch.bfloat16)]
    monkeypatch.setattr(caches, "version", lambda package: "another")
    keys.append(features._key(model, PX, 8, FP32))
    monkeypatch.setattr(caches, "import_closure", lambda script, root: {script})
    keys.append(features._key(model, PX, 8, FP32))
    monkeypatch.setattr(features, "device_name", lambda device: "cpu, 99 threads")
    keys.append(features._key(model, PX, 8, FP32))
    assert len(set(keys)) == len(keys)
    assert features._key(model_with_other_head, PX, 8, FP32) == keys[-1]


def test_pixels_of_another_size_are_prepared_and_not_kept(model: Classifier) -> None:
    large, rows = Watched(range(N), 2 * PX), torch.arange(N)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return (images[:, :, ::2, ::2].float() / 255).contiguous(memory_format=torch.channels_last)

    found = embed(model, large, rows, BATCH, FP32, PX, prepare)
    expected = embed(model, Resident(large.images[:, :, ::2, ::2]), rows, BATCH, FP32, PX)
    assert torch.equal(found, expected)
    assert files() == []


@pytest.mark.parametrize("known_before", [0, 8, 13, N])
def test_an_evaluation_takes_and_adds_what_a_training_knows(model: Classifier, known_before: int) -> None:
    """13: a batch of which some images are known is computed whole."""
    without = list(views(model, Watched(range(N)), batches_of(N, BATCH), CPU, "none", BATCH))
    if known_before:
        embedded(model, Watched(range(known_before)))
    source = Watched(range(N))
    known = known_features(model, source, PX, BATCH, FP32, begin=True)
    found = list(views(model, source, batches_of(N, BATCH), CPU, "none", BATCH, known))
    known.save()
    for one, other in zip(without, found, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert source.n_asked == N - known_before // BATCH * BATCH * (known_before < N) - N * (known_before == N)
    again = Watched(range(N))
    embedded(model, again)
    assert again.n_asked == 0


def test_an_evaluation_of_a_network_that_no_training_left_features_of_keeps_nothing(model: Classifier) -> None:
    known = known_features(model, Watched(range(N)), PX, BATCH, FP32, begin=False)
    list(views(model, Watched(range(N)), batches_of(N, BATCH), CPU, "none", BATCH, known))
    known.save()
    assert files() == []


def test_mirror_images_are_computed(model: Classifier) -> None:
    embedded(model, Watched(range(N)))
    source = Watched(range(N))
    known = known_features(model, source, PX, BATCH, FP32, begin=False)
    assert known.has(torch.arange(N)).all()
    seen = list(views(model, source, batches_of(N, BATCH), CPU, "mirror", BATCH, known))
    assert source.n_asked == N and seen[0][0].shape == (2, BATCH, 3)


def test_the_files_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch_size in (2, 3, 4):
        embedded(build("cnn", 3).eval(), Watched(range(N)), batch_size)
    assert len(files()) == 3
    newest = max(files(), key=lambda file: file.stat().st_mtime)
    monkeypatch.setattr(features, "MAX_BYTES", 2 * newest.stat().st_size)
    embedded(build("cnn", 3).eval(), Watched(range(N)), 5)
    assert len(files()) == 2 and newest in files()
    monkeypatch.setattr(features, "MAX_FILE_BYTES", 100)
    before = files()
    embedded(build("cnn", 3).eval(), Watched(range(N)), 6)
    assert files() == before


def test_images_without_digests_are_not_kept() -> None:
    known = KnownFeatures()
    known.add(torch.arange(3), torch.zeros(3, 5))
    known.save()
    assert not known.has(torch.arange(3)).any() and files() == []
