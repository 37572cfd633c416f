"""Folders of finished runs, made up but of the form and size of real ones: every part, and hostile text on request."""

import json
import math
import random
from pathlib import Path
from typing import Any

HOOKPOINT = "layers.12.resid_post"
ARMS = ("base", "sae", "adapted", "adapted_clean")
TEXT = """the of and to in that our we a is for this have be it will with are by not as has on people which their from
 all Congress year government can or must been more world been United States America great peace nation ,. . , ; —
 economy work war new its they but at American so was us these who years every law country"""
WORDS = TEXT.split()
HOSTILE = [
    "<script>document.title='owned';alert(1)</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202eesrever\u202c",
    "x" * 10_000,
    "</script><script>alert(2)</script>",
    "\u200b",
    "\x00\x07",
    "{{ 7*7 }} ${7*7}",
    "\ud800",
    "\n",
    "\u2028",
    "' onmouseover='alert(3)",
]


def estimate(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": round(value, 5), "low": round(value - half, 5), "high": round(value + half, 5)}


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    parts: bool | tuple[str, ...] = True,
    hostile: bool = False,
    rows: int = 3,
    context: int = 96,
) -> Path:
    """A run with every part of its evaluation; ``hostile``: names and texts that try to break out."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    manifest, results = _manifest(draw, hostile), _results(draw, hostile)
    dump(folder / "saelora.json", manifest)
    dump(folder / "results.json", results)
    if parts:
        (folder / "evals").mkdir()
        about = {key: manifest[key] for key in ("model", "saes", "token_policy")}
        made = {
            "tokens": tokens(draw, rows, context, hostile),
            "drift": drift(draw),
            "faithfulness": faithfulness(draw),
            "steering": steering(draw, hostile),
            "capabilities": capabilities(draw),
            "saebench": saebench(draw),
        }
        for name in made if parts is True else parts:
            options = {**manifest["config"], "eval_tokens": 4096, "parts": [name]}
            file = {"part": name, "about": about, "options": options, "environment": manifest["environment"]}
            dump(folder / "evals" / f"{name}.json", {**file, "seconds": 12.3, "result": made[name]})
    return folder


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False))


def _manifest(draw: random.Random, hostile: bool) -> dict[str, Any]:
    ref = HOSTILE[0] if hostile else "smollm2-135m-instruct"
    return {
        "model": {
            "ref": ref,
            "revision": None,
            "fingerprint": "sha256:31f7ab02",
            "model_type": "llama",
            "dtype": "float32",
        },
        "saes": [
            {
                "ref": HOSTILE[1] if hostile else "smollm2-135m-instruct.layers.12.resid_post",
                "hookpoint": "layers.12.resid_post",
                "format": "saelens",
                "architecture": "topk",
                "d_in": 576,
                "d_sae": 4608,
                "revision": None,
                "fingerprint": "sha256:90c2dd17",
            }
        ],
        "token_policy": {"exempt_ids": [1, 2], "first": False, "padding": True},
        "config": {
            "model": ref,
            "data": "sotu",
            "rank": draw.choice([16, 64]),
            "placement": "after",
            "lr": 0.0015,
            "tokens": 25_600,
            "seed": 0,
            "sae": ["x"],
            "betas": [0.9, 0.99],
        },
        "n_documents_trained": 201,
        "environment": {
            "python": "3.11.2",
            "versions": {"saelora": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            "commit": "18b9eb1c0ffee0000000000000000000000000aa",
            "platform": "Linux-6.1-x86_64",
            "device": "x86_64",
            "cpu_count": 2,
            "torch_threads": 2,
        },
        "metrics": {},
    }


def _results(draw: random.Random, hostile: bool) -> dict[str, Any]:
    base, gap, closed = 3.3935, 0.1127, 0.35 + 0.1 * draw.random()
    values = {"base": base, "sae": base + gap, "adapted": base + gap * (1 - closed), "adapted_clean": base + 0.0089}
    results: dict[str, Any] = {f"ce_{arm}": value for arm, value in values.items()} | {"ce_zero": 14.2}
    results |= {"kl_sae": 0.1853, "kl_adapted": 0.1582, "kl_adapted_clean": 0.0265}
    results |= {"top1_sae": 0.778, "top1_adapted": 0.795, "top1_adapted_clean": 0.904}
    results |= {"ce_gap": gap, "gap_closed": closed, "loss_recovered_sae": 0.989, "loss_recovered_adapted": 0.993}
    results["ci95"] = {key: [value - 0.01, value + 0.01] for key, value in results.items()}
    results["ci95"]["gap_closed"] = [closed - 0.043, closed + 0.044]
    results["saes"] = {"layers.12.resid_post": {"fvu": 0.076, "l0": 32.0, "dead_frac": 0.021}}
    results["history"] = [
        {"n_tokens": n, "kl": 0.185 - share * 0.03, "ce": base + gap * (1 - share), "gap_closed": share}
        for n, share in ((6400, 0.19), (12_800, 0.29), (19_200, 0.36), (25_600, closed - 0.01))
    ]
    text = HOSTILE[0] + HOSTILE[2] + HOSTILE[3] if hostile else "what we can do together.\nThat is the work before us."
    results["samples"] = [
        {
            "prompt": "… But the fact that we have those concerns is evidence",
            "original": text,
            "spliced": text,
            "adapted": text,
        }
    ]
    results |= {"n_tokens_trained": 25_600, "n_tokens_evaluated": 21_418}
    return results | {"seconds_training": 231.4, "tokens_per_second": 110.6}


def tokens(draw: random.Random, rows: int, context: int, hostile: bool = False) -> dict[str, Any]:
    strings = [("" if word in ",.;" else " ") + word for word in WORDS] + ["\n", "é"]
    strings += HOSTILE if hostile else []
    vocab = {str(100 + i): text for i, text in enumerate(strings)} | {"1": "<|im_start|>"}
    ids = [int(i) for i in vocab if i != "1"]
    edges = [10 ** (-5 + 6 * i / 50) for i in range(51)]
    bell = [math.exp(-(((math.log10(edge) + 1.1) / 0.7) ** 2)) for edge in edges[:50]]
    groups = [("0–15", 0, 16), ("16–63", 16, 64), ("64–255", 64, 256), ("256–", 256, None)]

    def buckets(names: list[tuple[str, float, float | None]]) -> list[dict[str, Any]]:
        out = []
        for label, low, high in names:
            change = -0.02 - 0.05 * draw.random()
            row = {
                "low": low,
                "high": high,
                "label": label,
                "n": 4000,
                "ce_base": estimate(3.4),
                "ce_sae": estimate(3.5),
            }
            out.append(
                {**row, "ce_adapted": estimate(3.46), "change": estimate(change), "gap_closed": estimate(0.38, 0.08)}
            )
        return out

    quantiles = {
        str(q): round(-0.04 + 2.2 * (q - 0.5) ** 3, 4) for q in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    }

    def passage(row: int, start: int, n: int, focus: int | None) -> dict[str, Any]:
        chosen = [draw.choice(ids) for _ in range(n)]
        if hostile and start == 0:
            chosen[3 : 3 + len(HOSTILE)] = [100 + len(strings) - len(HOSTILE) + i for i in range(len(HOSTILE))]
        if start == 0:
            chosen[0] = 1
        base = [round(draw.expovariate(0.35), 4) for _ in range(n)]
        sae = [round(max(0.0, x + draw.gauss(0.1, 0.5)), 4) for x in base]
        adapted = [round(max(0.0, x - draw.gauss(0.04, 0.25)), 4) for x in sae]
        first = {"base": [None, *base[1:]], "sae": [None, *sae[1:]], "adapted": [None, *adapted[1:]]}
        top = {arm: [None, *(_top(draw, ids, chosen[i]) for i in range(1, n))] for arm in ("base", "sae", "adapted")}
        kl = [None, *(round(draw.expovariate(6), 4) for _ in range(n - 1))]
        counted = [i > 1 for i in range(n)] if start == 0 else [i > 0 for i in range(n)]
        error = [None, *(round(0.02 + draw.expovariate(15), 4) for _ in range(n - 1))]
        made = {"row": row, "start": start, "focus": focus, "ids": chosen, "counted": counted, "ce": first}
        return {**made, "kl": {"sae": kl, "adapted": kl}, "recon_error": error, "top": top}

    return {
        "n_predictions": 21_418,
        "share_helped": estimate(0.56),
        "share_hurt": estimate(0.43),
        "change": {
            "mean": estimate(-0.044),
            "quantiles": quantiles,
            "mean_helped": estimate(-0.21),
            "mean_hurt": estimate(0.17),
        },
        "cost": {"mean": estimate(0.113), "quantiles": {q: -value for q, value in quantiles.items()}},
        "concentration": {"0.01": 0.21, "0.05": 0.5, "0.1": 0.66},
        "histogram": {
            "edges": edges,
            "helped": [round(900 * x) for x in bell],
            "hurt": [round(700 * x) for x in bell],
            "helped_below": 40,
            "hurt_below": 38,
            "helped_above": 0,
            "hurt_above": 1,
        },
        "by_position": buckets(groups),
        "by_frequency": buckets(
            [("rarer than 1 in 100,000", 0, 1e-5), ("1 in 10,000", 1e-5, 1e-4), ("1 in 100", 1e-2, None)]
        ),
        "by_recon_error": buckets([(f"fifth {i}", i, i + 1) for i in range(1, 6)]),
        "frequency_counted_on": "held-out rows",
        "vocab": vocab,
        "recon_error_of": "layers.12.resid_post",
        "passages": {
            "most_helped": [passage(i, 100 + 7 * i, 48, 24) for i in range(5)],
            "most_hurt": [passage(i, 200 + 9 * i, 48, 24) for i in range(5)],
        },
        "text": [passage(i, 0, context, None) for i in range(rows)],
    }


def _top(draw: random.Random, ids: list[int], right: int) -> list[list[Any]]:
    shares = sorted((draw.random() ** 3 for _ in range(5)), reverse=True)
    picked = draw.sample(ids, 5)
    if draw.random() < 0.4:
        picked[0] = right
    total = sum(shares) * 1.3
    return [[i, round(share / total, 4)] for i, share in zip(picked, shares, strict=True)]


def drift(draw: random.Random) -> dict[str, Any]:
    layers = []
    for layer in range(12, 30):
        size = 0.27 + 0.02 * math.sin(layer) + 0.004 * (layer - 12)
        values = {"sae": size, "adapted": size - 0.02 * (layer > 12), "adapted_clean": 0.006 * (layer - 12)}
        measure = {arm: estimate(value, 0.006) for arm, value in values.items()}
        cosine = {arm: estimate(value**2 / 2, 0.002) for arm, value in values.items()}
        long = {arm: estimate(value * 100, 0.6) for arm, value in values.items()}
        row = {"layer": layer, "l2": long, "relative_l2": measure, "cosine_distance": cosine}
        layers.append({**row, "l2_difference": estimate(-2.0, 0.2), "cosine_difference": estimate(-0.005, 0.001)})
    latents = {"identical": True, "max_abs_difference": 0.0, "jaccard": estimate(1.0, 0.0)}
    latents |= {"rate_correlation": estimate(1.0, 0.0), "l0": {"base": 32.0, "adapted": 32.0}}
    latents |= {"fvu": {"base": estimate(0.076), "adapted": estimate(0.076)}}
    return {"n_positions": 21_418, "layers": layers, "latents": {"layers.12.resid_post": latents}}


def faithfulness(draw: random.Random) -> dict[str, Any]:
    def ablation(strength: float) -> list[dict[str, Any]]:
        out = []
        for k in (1, 2, 4, 8, 16, 32):
            rise = strength * k**1.3
            row = {
                "k": k,
                "share": k / 32,
                "rise_sae": estimate(rise, rise * 0.1),
                "rise_adapted": estimate(rise * 1.05, rise * 0.1),
            }
            out.append({**row, "ratio": estimate(1.05, 0.03)})
        return out

    levels = {"base": 0.42, "sae": 0.43, "adapted": 0.425}
    layers = [
        {"layer": i, **{arm: estimate(value + 0.1 * math.sin(i), 0.01) for arm, value in levels.items()}}
        for i in range(30)
    ]
    tampered = {
        "ce_sae": estimate(8.1),
        "ce_adapted": estimate(8.4),
        "rise_sae": estimate(4.6),
        "rise_adapted": estimate(4.94),
    }
    spliced = dict(tampered)
    tampered["reliance"] = estimate(1.07, 0.02)
    return {
        "sae_taken_out": {"ce_base": estimate(3.39), "ce_adapted_clean": estimate(3.4), "harm": estimate(0.009, 0.002)},
        "exempt": {
            "ids": [1, 2],
            "first": False,
            "spliced_too": {**spliced, "excess": estimate(0.001)},
            "n_positions": 42,
            "n_after_first": 3,
            "after_first": {**spliced, "excess": estimate(0.001)},
            "attention_missing": None,
            "attention": {
                "n_rows": 16,
                "change": estimate(-0.005, 0.002),
                "layers": layers,
                "mean": {arm: estimate(value) for arm, value in levels.items()},
            },
        },
        "ablation": {
            "random": ablation(0.01),
            "random_pooled": estimate(1.05),
            "top": ablation(0.05),
            "top_pooled": estimate(1.05),
            "draws": 3,
            "n_alive": 4400,
            "n_predictions": 4096,
        },
        "shuffled": tampered,
        "zeroed": tampered,
        "other_sae": {
            "ref": "other-sae",
            "hookpoint": "layers.12.resid_post",
            "own_fvu": 0.076,
            "own_gap_closed": estimate(0.4, 0.04),
            "fvu": 0.12,
            "ce_sae": estimate(3.6),
            "ce_adapted": estimate(3.55),
            "gap_closed": estimate(0.2, 0.05),
        },
        "ce": {"sae": estimate(3.5), "adapted": estimate(3.46)},
        "gain": estimate(0.04),
        "n_predictions": 21_418,
        "verdict": "reads_sae",
        "why": "tampering with the latents costs the adapted model as much as the spliced one",
    }


def steering(draw: random.Random, hostile: bool = False) -> dict[str, Any]:
    def effect() -> dict[str, Any]:
        at = draw.gauss(0.02, 0.03)
        difference = {"difference_raw": estimate(at, 0.03), "difference_normalised": estimate(at * 2, 0.05)}
        texts = {"base": estimate(0.3, 0.05), "adapted": estimate(0.3 + at, 0.05), **difference}
        tuning = [{"alpha": alpha, "score": 0.1} for alpha in (1, 2, 4)]
        return {"alpha": 4.0, "tuning": tuning, "positives": texts, "negatives": texts}

    latents = []
    for latent in (17, 902, 1450, 4033):
        passages = []
        for _ in range(4):
            words = [" " + draw.choice(WORDS) for _ in range(24)]
            if hostile:
                words[2:4] = [HOSTILE[1], HOSTILE[2]]
            strengths = [0.0] * 20 + [1.2, 6.5, 3.0, 0.0]
            passages.append({"tokens": words, "activations": strengths, "focus": 21})
        text = HOSTILE[4] if hostile else "We must go on with the work."
        sample = {
            "prompt": "The Congress",
            "base": text,
            "base_steered": text,
            "adapted": text,
            "adapted_steered": text,
            "method": "scale",
            "alpha": 4.0,
        }
        own = {"latent": latent, "how": "selected", "selectivity": 0.41, "rate": 0.0123, "max_activation": 6.5}
        n = {"positives": 24, "negatives": 24}
        own |= {"top_passages": passages, "n": n, "n_tuning": n, "unit": 6.5}
        latents.append({**own, "methods": {"scale": effect(), "add": effect()}, "samples": [sample]})
    effects = {"base": estimate(0.3), "adapted": estimate(0.32), "difference_raw": estimate(0.02)}
    pooled = {key: {**effects, "difference_normalised": estimate(0.04)} for key in ("positives", "negatives")}
    return {
        "hookpoint": "layers.12.resid_post",
        "level": 0.9,
        "bos": False,
        "skipped": [{"latent": 5, "why": "latent 5 fires in too few passages"}],
        "corpora": {
            "source": "sotu",
            "divided_by": "documents",
            "window_tokens": 32,
            "passages": {"selection": 16, "tuning": 16, "test": 32},
            "tokens": {"selection": 512, "tuning": 512, "test": 1024},
            "positives": "found",
            "negatives": "found",
        },
        "methods": ["scale", "add"],
        "latents": latents,
        "pooled": {"scale": pooled, "add": pooled},
    }


def capabilities(draw: random.Random) -> dict[str, Any]:
    tasks = []
    for task, metric in (("arc_easy", "acc"), ("hellaswag", "acc_norm"), ("lambada_openai", "acc")):
        scores = {arm: {"value": 0.4 + 0.05 * draw.random(), "stderr": 0.012} for arm in ARMS}
        differences = {
            "adapted_minus_sae": estimate(0.012, 0.01),
            "adapted_clean_minus_base": estimate(-0.002, 0.006),
            "sae_minus_base": estimate(-0.03, 0.012),
        }
        row = {"task": task, "group": None, "metric": metric, "higher_is_better": True, "chance": 0.25}
        tasks.append({**row, "n": 200, "n_shot": 0, "scores": scores, "differences": differences})
    return {"arms": list(ARMS), "tasks": tasks, "limit": 200, "lm_eval": "0.4.9"}


def saebench(draw: random.Random) -> dict[str, Any]:
    core = {"category": "model_performance_preservation", "hookpoint": HOOKPOINT, "measured_once": False}
    probing = {"category": "sae", "hookpoint": HOOKPOINT, "measured_once": True, "can_change": False}
    return {
        "metrics": [
            {"eval": "core", "metric": "ce_loss_score", "base": 0.989, "adapted": 0.993, "can_change": True, **core},
            {
                "eval": "sparse_probing",
                "metric": "sae_top_1",
                "base": 0.71,
                "adapted": 0.71,
                "can_change": False,
                **probing,
            },
        ],
        "cannot_change": ["sparse_probing"],
        "why": "the adapter lies above the SAE, so its latents are the same",
        "skipped": [{"eval": "autointerp", "hookpoint": HOOKPOINT, "why": "asks a paid service"}],
        "data": "sotu",
        "sae_bench": "0.6.0",
        "command": "python -m sae_bench",
    }
