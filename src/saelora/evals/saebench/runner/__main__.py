"""Runs SAEBench on one model, in SAEBench's environment.

    python FOLDER/OF/THIS/FILE JOB.json

Started so, Python finds the file beside this one by its bare name. SAEBench's own ``run_eval`` functions do the
measuring and write its own result files; what is replaced is where they get the model (a local folder, through
TransformerLens' bridge, instead of a name on the hub) and, where the job names local data, the texts. Lines that begin
with the job's mark report progress.

JOB: {"mark": text, "model": folder, "saes": [{"hookpoint", "folder"}], "evals": [...], "out": folder, "device",
"dtype", "exclude_special": bool, "sizes": {...},
"data": {"core": file | null, "probing": [file], "scr": file | null} | null}
"""

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from texts import Row, local_probing, read_jsonl, use_local, use_local_pairs

SEED = 42  # SAEBench's
Job = dict[str, Any]  # as above; so is an entry of its SAEs


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
            say(job, "start", name, entry["hookpoint"])
            try:
                why = run(name, job, model, load_sae(entry, job), out / entry["hookpoint"] / name)
            except Exception as error:  # one evaluation that cannot run must not cost the others
                traceback.print_exc()
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if why:
                skipped.append({"eval": name, "hookpoint": entry["hookpoint"], "why": why})
            say(job, "done", name, entry["hookpoint"])
    (out / "skipped.json").write_text(json.dumps(skipped))


def say(job: Job, *words: str) -> None:
    print(job["mark"], *words, flush=True)


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
    sizes, local = job["sizes"], local_probing((job["data"] or {}).get("probing", []))
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
        local = local_probing((job["data"] or {}).get("probing", []))
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


if __name__ == "__main__":
    main(sys.argv[1])
