"""Runs SAEBench on one model: a script of its own, since SAEBench needs an environment of its own.

    python runner.py JOB.json

It imports nothing of saelora. SAEBench's own ``run_eval`` functions do the measuring and write its own result files;
what is replaced is where they get the model (a local folder, through TransformerLens' bridge, instead of a name on
the hub) and, where the job names local data, the texts. Lines that begin with MARK report progress.

JOB: {"model": folder, "saes": [{"hookpoint", "folder"}], "evals": [...], "out": folder, "device", "dtype",
"exclude_special": bool, "sizes": {...}, "data": {"core": file | null, "probing": [file], "scr": file | null} | null}
"""

import json
import logging
import os
import sys
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

MARK = "@saelora"
SEED = 42  # SAEBench's
Job = dict[str, Any]  # as above; so is an entry of its SAEs
Row = dict[str, Any]  # of a local data file: text, label, attribute, split


def main(path: str) -> None:
    os.environ["JAXTYPING_DISABLE"] = "1"  # its checks of shapes reject what its own callers pass
    job = json.loads(Path(path).read_text())
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # SAEBench writes "artifacts" into the working folder
    model = boot(job)
    skipped = []
    for entry in job["saes"]:
        for name in job["evals"]:
            say("start", name, entry["hookpoint"])
            try:
                why = run(name, job, model, load_sae(entry, job), out / entry["hookpoint"] / name)
            except Exception as error:  # one evaluation that cannot run must not cost the others
                traceback.print_exc()
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if why:
                skipped.append({"eval": name, "hookpoint": entry["hookpoint"], "why": why})
            say("done", name, entry["hookpoint"])
    (out / "skipped.json").write_text(json.dumps(skipped))


def say(*words: str) -> None:
    print(MARK, *words, flush=True)


def boot(job: Job) -> Any:
    """The model of a local folder as TransformerLens has it, weights unprocessed."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = TransformerBridge.boot_transformers(
        job["model"], device=job["device"], dtype=getattr(torch, job["dtype"]), tokenizer=tokenizer
    )
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def load_sae(entry: Job, job: Job) -> Any:
    import torch
    from sae_lens import SAE

    sae = SAE.load_from_disk(entry["folder"], device=job["device"])
    try:
        sae.fold_W_dec_norm()  # SAEBench ablates and compares latents of unit decoder rows
    except NotImplementedError:
        print("the rows of W_dec are left as they are: this architecture does not allow rescaling", flush=True)
    return sae.to(device=job["device"], dtype=getattr(torch, job["dtype"])).eval().requires_grad_(False)


def run(name: str, job: Job, model: Any, sae: Any, out: Path) -> str | None:
    """One evaluation; returns why it gave no result, or None."""
    out.mkdir(parents=True, exist_ok=True)
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        why = {"core": core, "sparse_probing": probing, "scr": scr, "tpp": scr, "absorption": absorption}[name](
            job, model, sae, out, name
        )
    finally:
        logging.getLogger().removeHandler(complaints)
    if why is None and not list(out.rglob("*_eval_results.json")):
        why = complaints.last or "SAEBench wrote no result; see the log"
    return why


class Complaints(logging.Handler):
    """SAEBench logs what went wrong and carries on; the last such line is kept."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = " ".join(record.getMessage().split())[:300]


class Loaded:
    """Stands where SAEBench asks HookedTransformer for a model by name."""

    def __init__(self, model: Any):
        self.model = model

    def from_pretrained_no_processing(self, name: str, **options: Any) -> Any:
        return self.model


def core(job: Job, model: Any, sae: Any, out: Path, name: str) -> None:
    import sae_bench.evals.core.main as module

    sizes, data = job["sizes"], (job["data"] or {}).get("core")
    module.HookedTransformer = Loaded(model)
    if data:
        module.ActivationsStore = store_on(read_jsonl(data), module.ActivationsStore)
    module.multiple_evals(
        [("saelora", sae)],
        n_eval_reconstruction_batches=sizes["core_batches"],
        n_eval_sparsity_variance_batches=sizes["core_variance_batches"],
        eval_batch_size_prompts=sizes["core_batch"],
        compute_featurewise_density_statistics=True,  # without both of these it cannot write its result file
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=job["exclude_special"],
        context_size=sizes["context"],
        output_folder=str(out),
        dtype=job["dtype"],
        device=job["device"],
        force_rerun=True,
    )


def store_on(rows: list[Row], kind: Any) -> Any:
    """SAELens' store of activations, fed with rows of local data instead of a hub data set."""
    from datasets import Dataset

    class Store:
        @staticmethod
        def from_sae(model: Any, sae: Any, **options: Any) -> Any:
            options["dataset"] = Dataset.from_list(rows)
            options.pop("dataset_trust_remote_code", None)
            return kind.from_sae(model, sae, **options)

    return Store


def probing(job: Job, model: Any, sae: Any, out: Path, name: str) -> str | None:
    import sae_bench.evals.sparse_probing.main as module
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    module.HookedTransformer = Loaded(model)
    sizes, local = job["sizes"], local_probing(job)
    if job["data"] and not local:
        return "the data folder holds no probing.jsonl"
    config = SparseProbingEvalConfig(
        model_name="model", llm_dtype=job["dtype"], llm_batch_size=sizes["batch"], sae_batch_size=sizes["batch"],
        context_length=sizes["context"], probe_train_set_size=sizes["train"], probe_test_set_size=sizes["test"],
        random_seed=SEED,
    )  # fmt: skip
    config.dataset_names = use_local(local, module, config, "probe_train_set_size", "probe_test_set_size")
    module.run_eval(config, [("saelora", sae)], job["device"], str(out), force_rerun=True, save_activations=False,
                    artifacts_path=str(out / "artifacts"))  # fmt: skip
    return None


def scr(job: Job, model: Any, sae: Any, out: Path, name: str) -> str | None:
    import sae_bench.evals.scr_and_tpp.main as module
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    module.HookedTransformer = Loaded(model)
    sizes = job["sizes"]
    config = ScrAndTppEvalConfig(
        model_name="model", llm_dtype=job["dtype"], llm_batch_size=sizes["batch"], sae_batch_size=sizes["batch"],
        context_length=sizes["context"], train_set_size=sizes["train"], test_set_size=sizes["test"],
        perform_scr=name == "scr", random_seed=SEED,
    )  # fmt: skip
    config.n_values = [n for n in config.n_values if n <= sae.cfg.d_sae]
    if name == "tpp":
        local = local_probing(job)
        if job["data"] and not local:
            return "the data folder holds no probing.jsonl"
        config.dataset_names = use_local(local, module, config, "train_set_size", "test_set_size")
    elif job["data"]:
        if not job["data"].get("scr"):
            return "the data folder holds no scr.jsonl"
        use_local_pairs(read_jsonl(job["data"]["scr"]), module, config)
    module.run_eval(config, [("saelora", sae)], job["device"], str(out), force_rerun=True, save_activations=False,
                    artifacts_path=str(out / "artifacts"))  # fmt: skip
    return None


def absorption(job: Job, model: Any, sae: Any, out: Path, name: str) -> str | None:
    from sae_bench.evals.absorption import common

    # it keeps trained probes inside its own package, by the model's name: another model's would be taken for this one's
    common.RESULTS_DIR = out / "artifacts"
    common.PROBES_DIR = out / "artifacts" / "probes"
    import sae_bench.evals.absorption.main as module
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    module.HookedTransformer = Loaded(model)
    model.cfg.model_name = "model"
    for function in (common.load_or_train_probe, common.load_probe, common.load_probe_data_split_or_train,
                     common.load_probe_data_split):  # fmt: skip
        rebind(function, "probes_dir", common.PROBES_DIR)
    config = AbsorptionEvalConfig(model_name="model", llm_dtype=job["dtype"], llm_batch_size=job["sizes"]["batch"])
    config.precalc_k_sparse_probe_sae_acts = True
    module.run_eval(config, [("saelora", sae)], job["device"], str(out), force_rerun=True)
    if not list(out.rglob("*_eval_results.json")):
        return (
            f"SAEBench found first-letter features for fewer than {config.min_feats_for_eval} letters in this model "
            f"(it recommends 2B parameters or more)"
        )
    return None


def rebind(function: Any, argument: str, value: Any) -> None:
    """Give an argument another default value."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = list(function.__defaults__)
    defaults[names.index(argument) - len(names)] = value
    function.__defaults__ = tuple(defaults)


def read_jsonl(path: str) -> list[Row]:
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def local_probing(job: Job) -> dict[str, list[Row]]:
    """{name: rows} of the local probing files."""
    return {Path(file).stem: read_jsonl(file) for file in (job["data"] or {}).get("probing", [])}


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


if __name__ == "__main__":
    main(sys.argv[1])
