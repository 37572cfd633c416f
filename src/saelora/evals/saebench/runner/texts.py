"""Local texts in the place of the hub's data sets: how SAEBench is given them, and how many of them it can use."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # of a local data file: text, label, attribute, split


def read_jsonl(path: str) -> list[Row]:
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def local_probing(files: list[str]) -> dict[str, list[Row]]:
    """{name: rows} of the local probing files."""
    return {Path(file).stem: read_jsonl(file) for file in files}


def split_rows(rows: list[Row]) -> list[list[Row]]:
    """Training and test rows: as "split" says, else every fifth row tests."""
    named = [row.get("split") or ("test" if i % 5 == 4 else "train") for i, row in enumerate(rows)]
    return [[row for row, part in zip(rows, named, strict=True) if part == wanted] for wanted in ("train", "test")]


def by_label(rows: list[Row], n_each: int) -> dict[str, list[str]]:
    """{label: n_each texts}, in the file's order; labels with fewer are left out."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[str(row["label"])].append(row["text"])
    return {label: found[:n_each] for label, found in sorted(texts.items()) if len(found) >= n_each}


def set_sizes(rows: list[Row], train: int, test: int) -> tuple[int, ...]:
    """The largest balanced set sizes, at most as asked: SAEBench takes half of a set from each label."""
    sizes = []
    for part, asked in zip(split_rows(rows), (train, test), strict=True):
        counts = Counter(str(row["label"]) for row in part)
        sizes.append(min(asked, 2 * min(counts.values(), default=0)))
    return tuple(sizes)


def use_local(local: dict[str, list[Row]], module: Any, options: Any, train_name: str, test_name: str) -> list[str]:
    """Have SAEBench read local rows by label, and return the data sets' names; without any, its own."""
    if not local:
        return [*options.dataset_names]
    import sae_bench.sae_bench_utils.dataset_info as info
    import sae_bench.sae_bench_utils.dataset_utils as utils

    found = [set_sizes(rows, getattr(options, train_name), getattr(options, test_name)) for rows in local.values()]
    train, test = (min(sizes) for sizes in zip(*found, strict=True))
    setattr(options, train_name, train)
    setattr(options, test_name, test)

    def read(name: str, n_train: int, n_test: int, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        rows_train, rows_test = split_rows(local[name])
        return by_label(rows_train, n_train // 2), by_label(rows_test, n_test // 2)

    utils.get_multi_label_train_test_data = read
    for name, rows in local.items():
        info.chosen_classes_per_dataset[name] = sorted({str(row["label"]) for row in rows})
        if hasattr(module, "COLUMN2_VALS_LOOKUP"):
            module.COLUMN2_VALS_LOOKUP[name] = ("", "")
    return list(local)


def quadrants(rows: list[Row]) -> dict[tuple[str, str], list[str]]:
    """{(label, attribute): texts} for two labels and two attributes.

    Raises:
        ValueError: other numbers of them.
    """
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        texts[str(row["label"]), str(row["attribute"])].append(row["text"])
    labels, attributes = sorted({pair[0] for pair in texts}), sorted({pair[1] for pair in texts})
    if len(labels) != 2 or len(attributes) != 2:
        raise ValueError(f"scr.jsonl has {len(labels)} labels and {len(attributes)} attributes, expected two of each")
    return {(label, attribute): texts[label, attribute] for label in labels for attribute in attributes}


def pair_sizes(rows: list[Row], train: int, test: int) -> tuple[int, ...]:
    """The largest set sizes, at most as asked: four quadrants alike, twice as many where label and attribute agree."""
    sizes = []
    for part, asked in zip(split_rows(rows), (train, test), strict=True):
        found = quadrants(part)
        (first, second), (one, two) = sorted({p[0] for p in found}), sorted({p[1] for p in found})
        agree = min(len(found[first, one]), len(found[second, two]))
        each = min((agree - 1) // 2, len(found[first, two]), len(found[second, one]))
        sizes.append(min(asked, 4 * max(each, 0)))
    return tuple(sizes)


def use_local_pairs(rows: list[Row], module: Any, options: Any) -> None:
    """Have SAEBench remove a spurious correlation between the labels and attributes of local rows."""
    import pandas as pd
    import sae_bench.evals.scr_and_tpp.dataset_creation as creation
    import sae_bench.sae_bench_utils.dataset_info as info

    name = "scr"
    labels, attributes = (sorted({str(row[key]) for row in rows}) for key in ("label", "attribute"))
    options.train_set_size, options.test_set_size = pair_sizes(rows, options.train_set_size, options.test_set_size)
    columns = {"text_column_name": "text", "column1_name": "label", "column2_name": "attribute"}
    mappings = {"column1_mapping": dict(zip(labels, labels, strict=True))}
    mappings["column2_mapping"] = dict(zip(attributes, attributes, strict=True))
    info.dataset_metadata[name] = columns | mappings
    frames = [pd.DataFrame(part).astype({"label": str, "attribute": str}) for part in split_rows(rows)]

    by_classes = creation.get_train_test_data

    def read(
        dataset_name: str,
        spurious_corr: bool,
        n_train: int,
        n_test: int,
        seed: int,
        column1_vals: Any = None,
        column2_vals: Any = None,
    ) -> Any:
        if not spurious_corr:
            return by_classes(dataset_name, False, n_train, n_test, seed)
        made = (
            creation.get_spurious_corr_data(frame, column1_vals, column2_vals, name, n // 4, seed)
            for frame, n in zip(frames, (n_train, n_test), strict=True)
        )
        return tuple(made)

    creation.get_train_test_data = read
    module.COLUMN2_VALS_LOOKUP[name] = tuple(attributes)
    options.dataset_names = [name]
    options.column1_vals_lookup = {name: [tuple(labels)]}
