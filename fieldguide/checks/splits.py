"""Random splits, hold-out and folds, stratified by class; copies of a photograph and groups stay in the same split."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.policies import Finding
from fieldguide.core.errors import UserError
from fieldguide.core.params import SplitCheck

SET_ASIDE = "set aside: split_check.hold_out"  # the reason of the rows of test that the hold-out replaces


def with_groups(frame: pd.DataFrame, pattern: str, findings: list[Finding]) -> pd.DataFrame:
    """The table with groups by the ids, joined with those of `group` if the data have them; adds to `findings`.

    pattern: a regular expression; its first group, or the match if it has none, is equal for ids that belong together.
    """
    if not pattern:
        return frame
    matches = [re.search(pattern, name) for name in frame["id"]]
    by_name = pd.Series([(match[min(1, match.re.groups)] or "") if match else "" for match in matches], index=frame.index)
    if not by_name.any():
        detail = f"split_check.group matches no id, for example not {frame['id'].iloc[0]!r}"
        findings.append(Finding("group pattern", "", "", pattern, detail, "no group"))
    if "group" not in frame:
        return frame.assign(group=by_name)
    pairs = np.concatenate([exact_pairs(frame["group"]), exact_pairs(by_name)])
    components = pd.Series(photographs(len(frame), pairs), index=frame.index)
    named = frame["group"].where(frame["group"].ne(""), by_name)
    names = named[named.ne("")].groupby(components).min()  # two components may have the same name
    names = names.where(~names.duplicated(keep=False), names + " #" + names.index.astype(str))
    return frame.assign(group=components.map(names).fillna("").where(named.ne(""), ""))


def with_folds(frame: pd.DataFrame, policy: SplitCheck, findings: list[Finding]) -> pd.DataFrame:
    """All labelled images drawn again: one of `folds` parts is test, valid comes from the others; adds to `findings`.

    Unreadable images, which no later stage uses, go to train.
    """
    labelled = frame["label"].notna()
    pool = frame[labelled & frame["reason"].eq("")]
    folds = assign_folds(pool, policy.folds, policy.seed)
    rest = pool[folds != policy.fold]
    splits = assign_splits(rest, {"valid": policy.valid_fraction}, policy.seed)
    n_test, n_valid = int((folds == policy.fold).sum()), int((splits == "valid").sum())
    if not n_test or not n_valid:
        raise UserError(
            f"fold {policy.fold} of {policy.folds} has {n_test} test and {n_valid} valid images, but needs both; add images, or"
            " change split_check.folds, split_check.valid_fraction or the groups"
        )
    sizes = kept_together(pool).groupby(pool["class_name"]).nunique()
    for name, n in sizes[sizes < policy.folds].items():
        detail = f"{n} photographs or groups for {policy.folds} folds; some folds have none of it in test"
        findings.append(Finding("fewer than folds", "", str(name), "", detail, "kept"))
    drawn_text = f"{n_test} of {len(pool)} images for test, {n_valid} for valid"
    print(f"fold {policy.fold} of {policy.folds} drawn with seed {policy.seed}: {drawn_text}")
    drawn = splits.reindex(pool.index).fillna("test").reindex(frame.index)
    return frame.assign(split=drawn.fillna(frame["split"].where(~labelled, "train")))


def assign_folds(frame: pd.DataFrame, n_folds: int, seed: int) -> pd.Series:
    """The fold of every row, int64, from 0; each fold gets about the same number of each class, and of rows.

    frame: as for `assign_splits`. A class with fewer photographs (or groups) than folds is in as many folds as it has of them.
    The result depends on ids and seed, not on the order of the rows.
    """
    units = _numbered_units(frame)
    classes, names = pd.factorize(frame["class_name"], sort=True)
    sizes = np.bincount(classes, minlength=len(names)).tolist()
    contents, totals_of_units = _contents(units, classes)
    rank = np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(len(contents))
    per_class = [[0] * n_folds for _ in names]  # images in each fold so far
    totals = [0] * n_folds
    chosen = np.empty(len(contents), np.int64)
    for unit in np.lexsort((rank, -totals_of_units)).tolist():  # the largest first, each where least of its classes is
        content = contents[unit]
        cost = [sum(n * per_class[number][fold] / sizes[number] for number, n in content) for fold in range(n_folds)]
        chosen[unit] = fold = min(range(n_folds), key=list(zip(cost, totals, strict=True)).__getitem__)
        for number, n in content:
            totals[fold] += n
            per_class[number][fold] += n
    return pd.Series(chosen[units], index=frame.index)


def with_splits(frame: pd.DataFrame, policy: SplitCheck) -> pd.DataFrame:
    """Draws valid and test, where the data lack them, from the rows of train and those without a split."""
    fractions = {"test": policy.test_fraction, "valid": policy.valid_fraction}
    absent = {split: fraction for split, fraction in fractions.items() if split not in set(frame["split"])}
    if not absent:
        return frame
    pool = frame[frame["split"].isin(["", "train"])]
    splits = assign_splits(pool, absent, policy.seed)
    counts = splits.value_counts()
    for split, fraction in absent.items():
        if not counts.get(split):
            largest = pool["class_name"].value_counts().max()
            if "group" in pool and pool["group"].ne("").any():
                n_groups = kept_together(pool).nunique()
                raise UserError(
                    f"the data have no {split} split, and none of their {n_groups} groups can be drawn for it without a class"
                    " losing all its train images; make the groups smaller (data.columns.group, split_check.group), or none"
                )
            raise UserError(
                f"the data have no {split} split, and split_check.{split}_fraction is {fraction}, which is less than one image"
                f" of the largest class ({largest} images); add images or increase it"
            )
        print(f"no {split} split in the data: {counts[split]} images drawn for it with seed {policy.seed}")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"]))


def with_hold_out(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draws a share of train as the test split, to tune on; also returns the rows of the test split that it replaces.

    Photographs and groups that are also in valid or test are not drawn, because they are leaks.
    """
    aside = frame[frame["split"] == "test"]
    units = kept_together(frame)
    elsewhere = set(units[frame["split"] != "train"])
    pool = frame[(frame["split"] == "train") & ~units.isin(elsewhere) & frame["reason"].eq("")]
    splits = assign_splits(pool, {"test": policy.hold_out}, policy.seed)
    n_held_out = int((splits == "test").sum())
    if not n_held_out:
        raise UserError(
            f"split_check.hold_out is {policy.hold_out}, less than one image of every class; increase it or set it to 0"
        )
    print(f"held out as test with seed {policy.seed}: {n_held_out} train images; {len(aside)} test images are set aside")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"])).drop(index=aside.index), aside


def assign_splits(frame: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.Series:
    """The split of every row: those in `fractions` get about that share of each class, `train` the rest.

    frame: `class_name`, `id` (no two are equal), `photograph` and, if the data have groups, `group`; rows of a photograph and
    of a group stay together. Each split gets at least one photograph (or group) of a class as long as train keeps more than
    half of them: of 3 the first split has one, of 5 the second too. Each class keeps at least one in train, and so do
    photographs with two class names. The result depends on ids and seed, not on the order of the rows.
    """
    units = _numbered_units(frame)
    classes, names = pd.factorize(frame["class_name"])
    contents, totals = _contents(units, classes)
    is_free = np.ones(len(contents), bool)
    is_free[units[_has_two_names(frame["photograph"], classes)]] = False
    places = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(contents))
    order = places[is_free[places]]
    waiting, sizes = [0] * len(names), np.bincount(classes[is_free[units]], minlength=len(names)).tolist()
    for unit in order.tolist():
        for name, _ in contents[unit]:
            waiting[name] += 1  # units of each class that are in train
    n_units, chosen = waiting.copy(), np.zeros(len(contents), np.int64)
    for number, fraction in enumerate(fractions.values(), start=1):
        least = [int(n > 2 * number) for n in n_units]
        shares = [max(round(fraction * n_rows), one) for n_rows, one in zip(sizes, least, strict=True)]
        wanted = shares.copy()
        by_size = order[np.argsort(totals[order], kind="stable")]
        for fits, candidates in ((_is_mostly_wanted, order), (_has_only_missing_classes, by_size)):
            for unit in candidates[chosen[candidates] == 0].tolist():
                content = contents[unit]
                if fits(content, wanted, shares) and all(waiting[name] > 1 for name, _ in content):
                    chosen[unit] = number
                    for name, n_rows in content:
                        waiting[name] -= 1
                        wanted[name] -= n_rows
    return pd.Series(np.array(["train", *fractions], object)[chosen[units]], index=frame.index, dtype="string")


def kept_together(frame: pd.DataFrame) -> pd.Series:
    """A number for each row, equal for rows of one photograph and of one `group` (individual, location, sequence)."""
    if "group" not in frame:
        return frame["photograph"]
    pairs = [exact_pairs(frame["photograph"].astype(str)), exact_pairs(frame["group"])]
    return pd.Series(photographs(len(frame), np.concatenate(pairs)), index=frame.index)


def _numbered_units(frame: pd.DataFrame) -> np.ndarray:
    """The rows that stay together by a number, from 0 in the order of their smallest ids: int64 `[N]`."""
    order = frame["id"].argsort().to_numpy()
    units = np.empty(len(frame), np.int64)
    units[order] = pd.factorize(kept_together(frame).to_numpy()[order])[0]
    return units


Content = list[tuple[int, int]]  # a unit's classes, and its rows of each


def _contents(units: np.ndarray, classes: np.ndarray) -> tuple[list[Content], np.ndarray]:
    """What each unit contains, and its number of rows; the classes ascend."""
    keys, counts = np.unique(units * (classes.max(initial=0) + 1) + classes, return_counts=True)
    of_unit, of_class = np.divmod(keys, classes.max(initial=0) + 1)
    ends = np.cumsum(np.bincount(of_unit)).tolist()
    parts = list(zip(of_class.tolist(), counts.tolist(), strict=True))
    contents = [parts[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return contents, np.bincount(units)


def _has_two_names(photograph: pd.Series, classes: np.ndarray) -> np.ndarray:
    """Whether the photograph of each row has more than one class: bool `[N]`."""
    numbers = pd.factorize(photograph)[0]
    n_names = pd.DataFrame({"photograph": numbers, "class": classes}).drop_duplicates()["photograph"]
    return np.bincount(n_names)[numbers] > 1 if len(numbers) else np.zeros(0, bool)


def _is_mostly_wanted(content: Content, wanted: list[int], _: list[int]) -> bool:
    """Whether a split still needs at least half of a unit's rows."""
    needed = total = 0
    for name, n_rows in content:
        needed += min(n_rows, max(wanted[name], 0))
        total += n_rows
    return 2 * needed >= total


def _has_only_missing_classes(content: Content, wanted: list[int], shares: list[int]) -> bool:
    """Whether a split has no image of any class of a unit and needs some of each; such a unit is larger than their shares."""
    return all(wanted[name] == shares[name] > 0 for name, _ in content)
