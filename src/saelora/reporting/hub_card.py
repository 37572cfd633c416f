"""The card of a hub repository: what the hub reads of a run (front matter, model-index), and what people do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from saelora.evals.loss_result import LossResult
from saelora.evals.variant import Variant
from saelora.manifest import Manifest
from saelora.reporting import names
from saelora.reporting.card import code, full_name, loading_lines, measured, sae_lines, spliced_in
from saelora.reporting.format import capital, finite, one_line
from saelora.reporting.text import has_gap

PAPER = "2501.19406"
# what the default model is called on the hub
_ON_HUB = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_REPO = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_FIGURES = {
    "ce": "cross entropy, nats per predicted token",
    "kl": "KL to the original, nats per predicted token",
    "top1": "top-1 agreement with the original",
    "loss_recovered": "loss recovered",
}
_CITATION = """```bibtex
@inproceedings{chen2025lowrank,
  title     = {Low-Rank Adapting Models for Sparse Autoencoders},
  author    = {Chen, Matthew and Engels, Joshua and Tegmark, Max},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  note      = {arXiv:2501.19406}
}
```"""


@dataclass(frozen=True)
class Repository:
    """Where a run lies on the hub, and under which licence (None: none was stated)."""

    name: str
    revision: str | None
    licence: str | None

    @property
    def ref(self) -> str:
        """As ``saelora.load`` takes it."""
        return f"{self.name}@{self.revision.replace('/', '%2F')}" if self.revision else self.name


def run_card(repo: Repository, manifest: Manifest, results: LossResult) -> str:
    """The card of a run of adapt or finetune-sae. Pure function of manifest and results, local paths left out."""
    model, config, tuned = manifest.model, manifest.config, manifest.tuned_saes
    adapter, spliced = manifest.adapter is not None, spliced_in(manifest)
    metrics = _metrics(results)
    head = _front(repo, model.ref, config.get("data"), "peft" if adapter else "saelens", adapter, metrics)
    if adapter:
        what = (
            f"A LoRA adapter (rank {config['rank']}, placement {code(str(config['placement']))}) that makes the model"
        )
        what += f" work through these {full_name(manifest)}. It means little without them"
        title = f"{code(model.ref)} adapted around its {spliced}"
    elif manifest.method == "linear":
        title, what = (
            f"{capital(spliced)} of {code(model.ref)} with a linear map",
            "A low-rank affine map folded into the decoder of",
        )
    else:
        title = f"{capital(spliced)} of {code(model.ref)}, trained inside it"
        what = f"{capital(spliced)} trained further inside the model, against its own predictions, from"
    return f"""{head}# {title}

{what}:

{sae_lines(manifest)}

{measured(manifest, results)}

{_table(results)}

## Use it

```python
import saelora  # pip install saelora

m = saelora.load({repo.ref!r}{_local(manifest)})
print(m.generate("Once upon a time"))
```

{_peft(repo, manifest) if adapter else ""}{_own_saes(repo, manifest) if tuned else ""}{_licence(repo)}{_cite()}"""


def saes_card(
    repo: Repository, config: Mapping[str, Any], saes: Mapping[str, Mapping[str, Any]], alone: str | None
) -> str:
    """The card of a run of train-sae.

    Args:
        saes: folder in the repository -> what its results.json holds.
        alone: the text of the SAE's own card, where it is the only one and lies at the root.
    """
    model = str(config.get("model"))
    metrics = [metric for name, found in saes.items() for metric in _sae_metrics(name, found)]
    head = _front(repo, model, config.get("data"), "saelens", False, metrics)
    if alone is not None:
        body = alone.strip()
    else:
        rows = "\n".join(
            f"| {code(name)} | {_shown(found, 'fvu')} | {_shown(found, 'l0')} | {_shown(found, 'ce_base')} | "
            f"{_shown(found, 'ce_sae')} | {_shown(found, 'loss_recovered_sae')} |"
            for name, found in saes.items()
        )
        body = f"""# SAEs of {code(model)}

Trained with saelora on {one_line(str(config.get("data")))}. Each folder has a card of its own.

| | FVU | L0 | cross entropy | SAE spliced in | loss recovered |
|---|---|---|---|---|---|
{rows}"""
    first = next(iter(saes), "")
    named = "/".join(part for part in (repo.name, first) if part)
    return f"""{head}{body}

## From the hub

`--sae {named}` names it to any command of saelora (pip install saelora); in Python `saelora.load_sae({named!r})`.

{_licence(repo)}{_cite()}"""


def _front(repo: Repository, model: str, data: Any, library: str, adapter: bool, metrics: list[dict[str, Any]]) -> str:
    """YAML between its lines; what is no hub's name is left out of what only takes such names."""
    base = _ON_HUB.get(model, model)
    tags = ["saelora", "sparse-autoencoder", "interpretability", f"arxiv:{PAPER}"]
    front: dict[str, Any] = {"library_name": library, "tags": [*(["lora"] if adapter else []), *tags]}
    if adapter:
        front["pipeline_tag"] = "text-generation"
    if _REPO.match(base):
        front["base_model"] = base
        front |= {"base_model_relation": "adapter"} if adapter else {}
    if repo.licence:
        front["license"] = repo.licence
    name = str(data or "unknown").removeprefix("./")
    if _REPO.match(name) and not str(data).startswith("./"):
        front["datasets"] = [name]
    if metrics:
        dataset = {"name": f"{name}, held out", "type": re.sub(r"[^\w./-]+", "-", name)}
        result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
        front["model-index"] = [{"name": repo.name.partition("/")[2], "results": [result]}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _metrics(results: LossResult) -> list[dict[str, Any]]:
    """What the hub's model-index takes: each figure with its interval."""
    found = []
    for variant, arm in names.of_results(results).items():
        for figure, told in _FIGURES.items():
            found += _metric(results, f"{figure}_{variant}", f"{told}: {arm}")
    if has_gap(results):
        whose = names.possessive(names.spliced_in(results))
        found += _metric(results, "gap_closed", f"share of the {whose} cost won back")
    return found


def _metric(results: LossResult, name: str, told: str) -> list[dict[str, Any]]:
    value = finite(getattr(results, name, None))
    if value is None:
        return []
    interval = results.ci95.get(name)
    args = {} if interval is None else {"args": {"ci95_low": interval[0], "ci95_high": interval[1]}}
    return [{"type": name, "name": told, "value": value, **args}]


def _sae_metrics(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = {"fvu": "fraction of variance unexplained", "l0": "active latents per token"}
    told |= {"ce_base": _FIGURES["ce"] + ", original", "ce_sae": _FIGURES["ce"] + ", spliced"}
    told["loss_recovered_sae"] = "loss recovered"
    where = f"{name}: " if name else ""
    values = {key: finite(found.get(key)) for key in told}
    return [{"type": key, "name": where + told[key], "value": v} for key, v in values.items() if v is not None]


def _table(results: LossResult) -> str:
    """The intervals, which the table of losses has no room for."""
    rows, called = [], names.of_results(results)
    for variant in (Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN):
        for figure, told in _FIGURES.items():
            interval = results.ci95.get(f"{figure}_{variant}")
            value = getattr(results, f"{figure}_{variant}", None)
            if value is not None and interval is not None:
                rows.append(f"| {called[variant]}: {told} | {value:.4f} | {interval[0]:.4f} to {interval[1]:.4f} |")
    return "\n".join(["| | | 95 % interval |", "|---|---|---|", *rows]) if rows else ""


def _local(manifest: Manifest) -> str:
    """What load has to be told where the model lies nowhere that others reach."""
    return ', model="FOLDER OF THE MODEL"' if manifest.model.ref.startswith("./") else ""


def _peft(repo: Repository, manifest: Manifest) -> str:
    """The adapter by PEFT alone, where the base model is one that transformers finds on the hub."""
    ref = manifest.model.ref
    if not _REPO.match(ref):
        return ""
    at = f", revision={manifest.model.revision!r}" if manifest.model.revision else ""
    own = f", revision={repo.revision!r}" if repo.revision else ""
    return f"""The adapter alone, without the {spliced_in(manifest)} that it was made for, loads with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({ref!r}{at})
model = PeftModel.from_pretrained(model, {repo.name!r}{own})
```

"""


def _own_saes(repo: Repository, manifest: Manifest) -> str:
    lines = loading_lines(manifest.tuned_saes, "FOLDER")
    return f"""The trained {spliced_in(manifest)} by SAELens alone, after `hf download {repo.name} --local-dir FOLDER`:

```python
{lines}```

"""


def _licence(repo: Repository) -> str:
    stated = "None is stated for what lies here." if not repo.licence else f"{one_line(repo.licence)}."
    return f"## Licence\n\n{stated} The terms of the base model, of the SAEs and of the text hold beside it.\n\n"


def _cite() -> str:
    return f"## Citation\n\nMade with saelora. Method:\n\n{_CITATION}\n"


def _shown(found: Mapping[str, Any], name: str) -> str:
    value = finite(found.get(name))
    return "" if value is None else f"{value:.4f}"
