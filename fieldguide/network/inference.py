"""Pixels to logits, without augmentation; shared by validation, evaluation and the comparison with ONNX."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

from fieldguide.core.artifacts import SplitScore
from fieldguide.network.device import autocast
from fieldguide.network.features import KnownFeatures, known_features
from fieldguide.network.loader import Source
from fieldguide.network.models import Classifier

N_VIEWS = {"none": 1, "mirror": 2}  # forward passes per image of each test-time augmentation


@torch.inference_mode()
def predict(
    model: Classifier,
    source: Source,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[torch.Tensor]:
    """Logits of all images in their order, batch by batch: float32 `[B, K]` on the device."""
    model.eval()
    for pixels in pixels_of(source, batches_of(len(source), batch_size), device):
        with autocast(device, dtype):
            logits = model(pixels).float()
        yield logits


@torch.inference_mode()
def views(
    model: Classifier,
    source: Source,
    batches: Sequence[torch.Tensor],
    device: torch.device,
    tta: str,
    batch_size: int = 0,
    known: KnownFeatures | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits `[V, B, K]` and embeddings `[V, B, F]` of each batch of row numbers, float32 on the device.

    The first view is the image itself; `tta` mirror adds its mirror image. batch_size: images of each forward pass, at least
    those of the largest batch. known: embeddings of the first view, to which those that are computed are added; used with one
    view only.
    """
    model.eval()
    known = known if known and N_VIEWS[tta] == 1 else KnownFeatures()
    unknown = [rows for rows in batches if not known.has(rows).all()]
    pixels, batch_size = pixels_of(source, unknown, device), max(batch_size, *map(len, batches), 0)
    for rows in batches:
        if known.has(rows).all():
            embeddings = [known.take(rows).to(device)]
        else:
            image = next(pixels)
            embeddings = [features_of(model, view, batch_size) for view in (image, image.flip(3))[: N_VIEWS[tta]]]
            known.add(rows, embeddings[0])
        yield torch.stack([model.head(embedding) for embedding in embeddings]), torch.stack(embeddings)


@torch.inference_mode()
def embed(
    model: Classifier,
    source: Source,
    rows: torch.Tensor,
    batch_size: int,
    dtype: torch.dtype,
    image_px: int,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The embeddings of rows of a source, int64 `[M]` on the CPU: float32 `[M, F]`, on the model's device.

    prepare: converts a batch whose images are not of `image_px` to float `[B, 3, image_px, image_px]`, 0..1. Embeddings that
    an earlier training computed are not computed again (`features`).
    """
    model.eval()
    device = model.head.weight.device
    known = known_features(model, source, image_px, batch_size, dtype, begin=True)
    embeddings = torch.empty(len(rows), model.head.in_features, device=device)
    is_known = torch.from_numpy(known.has(rows))
    if is_known.any():
        embeddings[is_known.to(device)] = known.take(rows[is_known]).to(device)
    places = torch.nonzero(~is_known).flatten().split(batch_size) if not is_known.all() else ()
    with tqdm(total=len(rows), initial=int(is_known.sum()), unit="image", desc="embed", disable=None) as progress:
        for place, images in zip(places, source.batches([rows[place] for place in places]) if places else (), strict=True):
            pixels = prepare(images) if prepare and images.shape[-1] != image_px else scaled(images, device)
            with autocast(device, dtype):
                computed = features_of(model, pixels, batch_size).float()
            embeddings[place.to(device)] = computed
            known.add(rows[place], computed)
            progress.update(len(place))
    known.save()
    return embeddings


def features_of(model: Classifier, pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The embeddings of at most `batch_size` images, float `[B, 3, H, W]` in 0..1: `[B, F]`.

    The forward pass has `batch_size` images, so that an image's embedding does not depend on their number.
    """
    scaled_pixels = (pixels - model.pixel_mean) / model.pixel_std
    if lacking := batch_size - len(pixels):
        scaled_pixels = F.pad(scaled_pixels, (0, 0, 0, 0, 0, 0, 0, lacking)).contiguous(memory_format=torch.channels_last)
    return model.features(scaled_pixels)[: len(pixels)]


class Embeddings:
    """A `Source` of embeddings instead of images: float32 `[N, F]` on a device."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for rows in batches:
            yield self.vectors.index_select(0, rows.to(self.vectors.device, non_blocking=True))


def batches_of(n_images: int, batch_size: int) -> Sequence[torch.Tensor]:
    """The row numbers of all images in their order, int64, in batches; the last batch may be smaller."""
    return torch.arange(n_images).split(batch_size) if n_images else ()


def pixels_of(source: Source, batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Float `[B, 3, H, W]` in 0..1, channels last."""
    for images in source.batches(batches):
        yield scaled(images, device)


def scaled(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 `[B, 3, H, W]` as float in 0..1, channels last, on the device."""
    return images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


def scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats), and 1 if the prediction is right, of each image: float32 `[B, 2]`."""
    return torch.stack([F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(1) == targets).float()], dim=1)


def score(each: torch.Tensor) -> SplitScore:
    """The means of the `scores` of all images."""
    loss, accuracy = each.double().mean(dim=0).tolist()
    return SplitScore(loss=loss, accuracy=accuracy)
