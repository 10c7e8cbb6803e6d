"""A map of the embeddings in two dimensions, on which similar images lie together."""

import numpy as np
import pandas as pd

from fieldguide.labels.judging import SEED, unit_vectors

MAX_POINTS = 2000  # images on the map; time grows with them
N_COMPONENTS, PERPLEXITY, N_STEPS = 30, 30, 500
COLUMNS = ["x", "y", "class_name", "split", "file", "kind"]


def label_map(vectors: np.ndarray, rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The table metrics/label_map.csv: the place of each image (t-SNE, van der Maaten and Hinton 2008).

    All findings are among them. kind: that of the finding in `label_errors`, or empty.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    kinds = dict(zip(table["sha256"][::-1], table["kind"][::-1], strict=True))  # the first of an image counts
    kind = pd.Series([kinds.get(sha256, "") for sha256 in rows["sha256"]], index=rows.index, dtype="string")
    order = np.random.Generator(np.random.Philox(key=[SEED, 3])).permutation(len(rows))
    chosen = np.sort(order[np.argsort(kind.eq("").to_numpy()[order], kind="stable")][:MAX_POINTS])
    some = unit_vectors(vectors, chosen)
    if len(chosen) < 3:
        places = np.zeros((len(chosen), 2))
    else:
        components = PCA(min(N_COMPONENTS, *some.shape), random_state=SEED).fit_transform(some)
        perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", max_iter=N_STEPS, random_state=SEED).fit_transform(components)
    part = rows.iloc[chosen]
    found = part[["class_name", "split"]].assign(x=places[:, 0].round(2), y=places[:, 1].round(2), file=part["id"], kind=kind)
    return found[COLUMNS]
