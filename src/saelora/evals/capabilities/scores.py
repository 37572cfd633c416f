"""Capabilities by lm-evaluation-harness: the same tasks for the variants of one model, compared document by document.

lm-eval (the extra ``capabilities``) asks and scores; the model it asks is the one in memory, with or without adapter
and SAEs. It does not know that there are any.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from saelora.evals.bos import with_bos
from saelora.evals.capabilities.result import Difference, Score, Task
from saelora.evals.capabilities.tasks import Loaded, quietly
from saelora.evals.estimate import Estimate
from saelora.evals.intervals import UNDEFINED, t_interval
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.records import JsonObject

ARMS = (Variant.BASE, Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN)
DIFFERENCES: dict[Difference, tuple[Variant, Variant]] = {
    "adapted_minus_sae": (Variant.ADAPTED, Variant.SPLICED),
    "adapted_clean_minus_base": (Variant.ADAPTED_CLEAN, Variant.BASE),
    "sae_minus_base": (Variant.SPLICED, Variant.BASE),
}
Samples = dict[tuple[str, Any], dict[Variant, float]]  # (task, document) -> variant -> value


def evaluate_tasks(
    subject: SplicedModel,
    tokenizer: Any,
    loaded: Loaded,
    *,
    arms: Sequence[Variant] = ARMS,
    limit: int | None = None,
    batch_size: int = 8,
    bos: bool = True,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Task]:
    """Scores of each variant on each task, metric by metric.

    Args:
        loaded: the tasks, from ``saelora.evals.capabilities.tasks.load``.
        limit: documents of each task; None is all.
        batch_size: requests a forward pass.
        bos: begin every text with BOS, see ``saelora.evals.bos``; else as the tokenizer does.
        progress: called with numbers of requests answered; there are ``loaded.n_requests(limit)`` an arm.

    Returns:
        One entry a task and metric, groups before their tasks; differences have 95 % t-intervals.
    """
    raw: dict[Variant, JsonObject] = {}
    with same_draws():
        tokenizer = with_bos(tokenizer) if bos else tokenizer
        for name in arms:
            with subject.running_as(name), quietly():
                raw[name] = _ask(subject.model, tokenizer, loaded, limit, batch_size, progress)
        return _rows(raw, loaded)


def _ask(model: Any, tokenizer: Any, loaded: Loaded, limit: int | None, batch: int, progress: Any) -> JsonObject:
    """lm-eval's results for the model as it is now."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        """Without progress bars of its own, and one task at a time.

        lm-eval lets requests of the same tokens share their logits, wherever each is split into context and
        continuation; two tasks on one text then get each other's.
        """

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            answers: dict[int, Any] = {}
            for name in dict.fromkeys(request.task_name for request in requests):
                own = [i for i, request in enumerate(requests) if request.task_name == name]
                asked = super().loglikelihood([requests[i] for i in own], disable_tqdm=True)
                answers |= dict(zip(own, asked, strict=True))
            return [answers[i] for i in range(len(requests))]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    class Answered:
        """lm-eval tells its cache of every answer."""

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            progress(1)

    lm = Model(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
    lm.set_cache_hook(Answered())
    loaded.reset()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    results: dict[str, Any] | None = evaluate(
        lm=lm, task_dict=loaded.tasks, limit=limit, bootstrap_iters=0, log_samples=True
    )
    assert isinstance(results, dict)
    return results


@contextmanager
def same_draws() -> Iterator[None]:
    """Random states are afterwards what they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _rows(raw: Mapping[Variant, JsonObject], loaded: Loaded) -> list[Task]:
    """lm-eval's results of every arm as one table, groups before their tasks."""
    first = next(iter(raw.values()))
    rows = []
    for name in loaded.order:
        scored = first["results"].get(name, {})
        for key in scored:
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not _is_number(scored[key]):
                continue
            samples = _samples(raw, loaded.leaves(name), metric, filter_name)
            scores = {a: _score(r["results"][name], metric, filter_name, samples, a) for a, r in raw.items()}
            row = Task(
                task=name,
                metric=metric if filter_name == "none" else key,
                n=_count(first, loaded.leaves(name)),
                n_shot=_shots(first, name, loaded),
                scores=scores,
                differences={
                    label: _difference(samples, scores, pair)
                    for label, pair in DIFFERENCES.items()
                    if set(pair) <= raw.keys()
                },
                chance=_chance(first, loaded.leaves(name), metric, samples),
                higher_is_better=first["higher_is_better"].get(name, {}).get(metric),
                group=loaded.group_of(name),
                subtasks=loaded.children(name),
            )
            rows.append(row)
    return rows


def _samples(raw: Mapping[Variant, JsonObject], leaves: Sequence[str], metric: str, filter_name: str) -> Samples:
    """Every document's value in every arm; documents without a plain number are left out."""
    found: Samples = {}
    for name, results in raw.items():
        for task in leaves:
            for sample in results["samples"].get(task, []):
                value = sample.get(metric)
                if sample["filter"] == filter_name and _is_number(value):
                    found.setdefault((task, sample["doc_id"]), {})[name] = float(value)
    return {where: values for where, values in found.items() if len(values) == len(raw)}


def _score(results: JsonObject, metric: str, filter_name: str, samples: Samples, name: Variant) -> Score:
    """A score with the standard error of its mean over documents, where it is one."""
    value = float(results[f"{metric},{filter_name}"])
    values = np.array([sample[name] for sample in samples.values()])
    stderr = None
    if len(values) > 1 and math.isclose(values.mean(), value, rel_tol=1e-6, abs_tol=1e-9):
        stderr = float(values.std(ddof=1) / math.sqrt(len(values)))
    return {"value": value if math.isfinite(value) else None, "stderr": stderr}


def _difference(samples: Samples, scores: Mapping[Variant, Score], pair: tuple[Variant, Variant]) -> Estimate:
    """Mean over documents of one variant's value less another's: only where both scores are such means."""
    if any(scores[name]["stderr"] is None for name in pair):
        return UNDEFINED.copy()
    return t_interval([values[pair[0]] - values[pair[1]] for values in samples.values()], level=0.95)


def _chance(results: JsonObject, leaves: Sequence[str], metric: str, samples: Samples) -> float | None:
    """Expected accuracy of guessing, where documents are right or wrong and have choices."""
    if not metric.startswith("acc") or any(v not in (0, 1) for values in samples.values() for v in values.values()):
        return None
    if any(results["configs"].get(task, {}).get("output_type") != "multiple_choice" for task in leaves):
        return None
    choices = [len(sample["filtered_resps"]) for task in leaves for sample in results["samples"].get(task, [])]
    return float(np.mean([1 / n for n in choices])) if choices and all(choices) else None


def _count(results: JsonObject, leaves: Sequence[str]) -> int:
    return sum(int(results["n-samples"][task]["effective"]) for task in leaves)


def _shots(results: JsonObject, name: str, loaded: Loaded) -> int | None:
    found = {results["n-shot"].get(task) for task in loaded.leaves(name)}
    return found.pop() if len(found) == 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number)
