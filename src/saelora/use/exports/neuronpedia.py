"""--to neuronpedia: latents with top activations, density and top logits, as Neuronpedia's package uploads them."""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from saelora.errors import InputError
from saelora.manifest import version_of
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.use.directions import logit_weights
from saelora.use.exports import policy
from saelora.use.exports.activations import Activations, Example, collect
from saelora.use.exports.target import Export
from saelora.use.run import LoadedRun

SCRIPT, PACKAGE = "upload.py", "neuronpedia"
BATCH = 128  # features, the most that its package takes at once
LOGITS = 10
_SHORT = {"resid_post": "res", "resid_pre": "res-pre", "mlp_out": "mlp", "attn_out": "att", "attn_z": "att-z"}
_CHECKED = 3  # rows that are computed again


def export(loaded: LoadedRun, folder: Path, dtype: str, text: Any) -> Export:
    """Run the SAEs on held-out rows, write a file for each 128 latents, and read all by Neuronpedia's package."""
    if text is None or not text.data:
        raise InputError("--to neuronpedia takes activations from held-out text: give --eval-tokens above 0")
    from saelora.assemble import validation_rows

    found = collect(loaded, validation_rows(text, loaded.loaded))
    model = _model_id(loaded)
    for hookpoint, seen in found.items():
        _write(folder, model, hookpoint, seen, logit_weights(loaded, hookpoint))
    (folder / SCRIPT).write_text(_script(loaded, model), encoding="utf-8")
    n = next(iter(found.values())).n_tokens
    difference = {"of activations, beside saelora.load's latents": _checked(loaded, found)}
    notes = [
        f"Activations, in the variant {loaded.variant}, on {n:,} held-out tokens that SAEs replace; positions that the "
        "token policy spares have activation 0 and count in no density. --eval-tokens takes more.",
        "Top logits are the unembedding's rows times the decoder's row, with the final norm's gain; of attn_z and of "
        "modules whose output a norm follows there are none.",
        f"`{SCRIPT}` uploads by the neuronpedia package (NEURONPEDIA_API_KEY), to {model} and sources "
        f"{', '.join(_source(loaded, each) for each in found)}; it was not sent anywhere.",
    ]
    if version_of(PACKAGE) is None:
        return Export(difference, [*notes, f"Not read by the {PACKAGE} package, which is not installed."])
    difference["of what its package sends"] = _sent(folder)
    return Export(difference, notes)


def _model_id(loaded: LoadedRun) -> str:
    return Path(loaded.base).name.lower().removesuffix(".gguf")


def _set_of(loaded: LoadedRun, hookpoint: Hookpoint) -> str:
    width = loaded.sizes[hookpoint]
    size = f"{width // 1024}k" if width % 1024 == 0 else str(width)
    return f"saelora-{_SHORT.get(hookpoint.site, hookpoint.site.replace('_', '-'))}-{size}"


def _source(loaded: LoadedRun, hookpoint: Hookpoint) -> str:
    """As Neuronpedia names an SAE: its layer and its set."""
    return f"{hookpoint.layer}-{_set_of(loaded, hookpoint)}"


def _write(folder: Path, model: str, hookpoint: Hookpoint, seen: Activations, logits: Any) -> None:
    """The bodies that the package's upload_batch sends, one a file."""
    source = _source(seen.loaded, hookpoint)
    (folder / source).mkdir()
    for start in range(0, seen.d_sae, BATCH):
        latents = range(start, min(start + BATCH, seen.d_sae))
        tops, bottoms = (None, None) if logits is None else _top(logits(latents), seen.loaded.tokenizer)
        features = []
        for i, latent in enumerate(latents):
            features.append(
                {
                    "index": latent,
                    "density": seen.density(latent),
                    "activations": [_activation(example) for example in seen.examples(latent)],
                    "explanations": [],
                    "topLogits": None if tops is None else tops[i],
                    "bottomLogits": None if bottoms is None else bottoms[i],
                }
            )
        body = {"modelId": model, "source": source, "features": features}
        text = json.dumps(body, ensure_ascii=False)
        (folder / source / f"batch-{start // BATCH}.json").write_text(text, encoding="utf-8")


def _activation(example: Example) -> dict[str, Any]:
    none = {"quantileMax": None, "quantileMin": None, "quantileFraction": None}  # they are the strongest ones
    return {"tokens": example.tokens, "values": example.values, **none}


def _top(weights: torch.Tensor, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """The tokens that each latent [n, vocabulary] raises and lowers most."""
    sides, decoded = [], cache(lambda i: str(tokenizer.decode([i])))
    for sign in (1, -1):
        values, ids = (sign * weights).topk(min(LOGITS, weights.shape[1]), dim=-1)
        rows = zip((sign * values).tolist(), ids.tolist(), strict=True)
        sides.append(
            [[{"token": decoded(i), "value": float(f"{v:.5g}")} for v, i in zip(*row, strict=True)] for row in rows]
        )
    return sides[0], sides[1]


def _checked(loaded: LoadedRun, found: dict[Hookpoint, Activations]) -> float:
    """The largest difference between what was written of a row and the latents of that row alone, of a few rows."""
    worst = 0.0
    for hookpoint, seen in found.items():
        rows: dict[int, Any] = {}
        for latent in seen.firing():
            for example in seen.examples(latent)[:1]:
                if example.row not in rows:
                    if len(rows) == _CHECKED:
                        continue
                    own = loaded.latents(seen.rows[example.row].tolist()).at(hookpoint)
                    rows[example.row] = [{each.latent: each.activation for each in token.active} for token in own]
                there = rows[example.row][example.start : example.start + len(example.values)]
                pairs = [(token.get(latent, 0.0), value) for token, value in zip(there, example.values, strict=True)]
                scale = max(1.0, *(abs(a) for a, _ in pairs))
                worst = max(worst, *(abs(a - b) / scale for a, b in pairs))
    if worst > 1e-3:
        raise InputError(f"activations of held-out rows differ by {worst:.3g} from those of saelora.load: report this")
    return worst


def _sent(folder: Path) -> float:
    """What the package would send of each file, beside the file; InputError where it is something else."""
    from neuronpedia.requests.feature_request import FeatureRequest

    features = runpy.run_path(str(folder / SCRIPT))["features"]

    class Kept(FeatureRequest):  # type: ignore[misc]
        def send_request(self, **given: Any) -> Any:
            return given["json"]

    for path in sorted(folder.glob("*/batch-*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        if Kept(api_key="none").upload_batch(body["modelId"], body["source"], features(path)) != body:
            raise InputError(f"the {PACKAGE} package sends something else than {path.name} holds: report this")
    return 0.0


def _script(loaded: LoadedRun, model: str) -> str:
    sets = sorted({_set_of(loaded, hookpoint) for hookpoint in loaded.hookpoints})
    layers = anatomy_of(loaded.model).n_layers
    return f'''"""Upload these latents to Neuronpedia by its own package: python {SCRIPT} [--model-id ID] [--new-model]

pip install neuronpedia; the key in NEURONPEDIA_API_KEY. --new-model makes the model there; give its name there where it
has it. {policy.in_words(loaded)}
"""

import argparse
import json
from pathlib import Path

from neuronpedia.np_activation import Activation
from neuronpedia.np_feature import Feature, Logit
from neuronpedia.np_model import Model
from neuronpedia.np_source_set import SourceSet
from neuronpedia.requests.feature_request import FeatureRequest

HERE = Path(__file__).parent
MODEL, LAYERS, SETS = {model!r}, {layers}, {sets}


def features(path):
    """The latents of one file."""
    body = json.loads(path.read_text(encoding="utf-8"))
    place = (body["modelId"], body["source"])
    found = []
    for each in body["features"]:
        sides = (each["topLogits"], each["bottomLogits"])
        top, bottom = (None if side is None else [Logit(**one) for one in side] for side in sides)
        seen = [Activation(*place, each["index"], **one) for one in each["activations"]]
        found.append(Feature(*place, each["index"], each["density"], top, bottom, [], seen))
    return found


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-id", default=MODEL)
    parser.add_argument("--new-model", action="store_true")
    given = parser.parse_args(words)
    if given.new_model:
        Model.new(given.model_id, LAYERS)
    for name in SETS:
        SourceSet.new(name, given.model_id)
    for path in sorted(HERE.glob("*/batch-*.json")):
        FeatureRequest().upload_batch(given.model_id, path.parent.name, features(path))


if __name__ == "__main__":
    main()
'''
