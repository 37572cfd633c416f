"""lm-eval on the model in memory: scores against plain forwards, arms apart, and nothing left behind."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import families
from families import BOS
from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.bos import with_bos
from saelora.evals.capabilities import tasks as lm_tasks
from saelora.evals.capabilities.scores import ARMS
from saelora.evals.capabilities.scores import evaluate_tasks as scored
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, saes_at

pytest.importorskip("lm_eval", reason="the extra capabilities is not installed")


def evaluate_tasks(model, spliced, *args, **options):
    return to_json(scored(SplicedModel(model, spliced, SPARE_SPECIAL), *args, **options))


TASK = """\
task: {name}
custom_dataset: !function docs.load
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: {target}
target_delimiter: " "
num_fewshot: 0
metric_list:
{metrics}
metadata:
  version: 1.0
"""
LOADER = """\
import json
from pathlib import Path

def evaluate_tasks(*args, **options):
    return to_json(scored(*args, **options))


def load(**options):
    from datasets import Dataset

    return {"test": Dataset.from_list(json.loads(Path(__file__).with_name("docs.json").read_text()))}
"""
MEAN = "  - metric: {}\n    aggregation: {}\n    higher_is_better: true"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, families.VOCAB)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(0)

    def words(n: int) -> str:
        return " ".join(f"w{draw.randrange(4, families.VOCAB)}" for _ in range(n))

    docs = [
        {"text": words(draw.randint(3, 9)), "choices": [words(draw.randint(1, 3)) for _ in range(3)], "answer": i % 3}
        for i in range(30)
    ]
    (tmp_path / "docs.json").write_text(json.dumps(docs))
    (tmp_path / "docs.py").write_text(LOADER)
    choice = TASK.format(
        name="tiny_choice", kind="multiple_choice", target="answer", metrics=MEAN.format("acc", "mean")
    )
    (tmp_path / "choice.yaml").write_text(choice)
    last = TASK.format(
        name="tiny_last",
        kind="loglikelihood",
        target='" {{choices[0]}}"',
        metrics=MEAN.format("perplexity", "perplexity"),
    )
    (tmp_path / "last.yaml").write_text(last.replace('doc_to_choice: "{{choices}}"\n', ""))
    (tmp_path / "group.yaml").write_text(
        "group: tiny_group\ntask: [tiny_choice]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
        "metadata:\n  version: 1.0\n"
    )
    return tmp_path


@pytest.fixture
def adapted(fresh):
    model = fresh("llama")
    model = get_peft_model(model, lora_config(model, [2, 3], rank=4, alpha=8)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def loaded(folder: Path, *names: str, fewshot: int | None = None) -> lm_tasks.Loaded:
    return lm_tasks.load(names, lm_tasks.find(names, str(folder)), fewshot)


def spliced_in(model):
    return splice(model, saes_at(anatomy_of(model), [Hookpoint(1)]), SPARE_SPECIAL)


def log_likelihood(model, tokenizer, text: str, continuation: str) -> float:
    """Of one continuation, alone in its batch, with BOS in front."""
    before = [BOS, *tokenizer(text)["input_ids"]]
    after = tokenizer(continuation)["input_ids"]
    logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(after)), after].sum())


def test_accuracy_is_that_of_plain_forwards_in_every_arm(adapted, tokenizer, folder) -> None:
    docs = json.loads((folder / "docs.json").read_text())
    with spliced_in(adapted) as spliced:
        rows = evaluate_tasks(adapted, spliced, tokenizer, loaded(folder, "tiny_choice"), batch_size=4)
        right = {}
        for name in ARMS:
            with SplicedModel(adapted, spliced, SPARE_SPECIAL).running_as(name):
                scores = [[log_likelihood(adapted, tokenizer, d["text"], c) for c in d["choices"]] for d in docs]
            best = [max(range(3), key=row.__getitem__) for row in scores]
            right[name] = [float(b == d["answer"]) for b, d in zip(best, docs, strict=True)]
    [row] = rows
    assert (row["task"], row["metric"], row["n"], row["n_shot"]) == ("tiny_choice", "acc", 30, 0)
    assert row["chance"] == pytest.approx(1 / 3)
    for name in ARMS:
        assert row["scores"][name]["value"] == pytest.approx(sum(right[name]) / 30)
    change = row["differences"]["adapted_minus_sae"]
    assert change["value"] == pytest.approx((sum(right["adapted"]) - sum(right["sae"])) / 30)
    assert change["low"] < change["value"] < change["high"]


def test_a_score_that_is_no_mean_differs_between_clean_and_spliced_but_has_no_interval(
    adapted, tokenizer, folder
) -> None:
    docs = json.loads((folder / "docs.json").read_text())
    with spliced_in(adapted) as spliced:
        [row] = evaluate_tasks(adapted, spliced, tokenizer, loaded(folder, "tiny_last"), batch_size=4)
        with SplicedModel(adapted, spliced, SPARE_SPECIAL).running_as(Variant.SPLICED):
            mean = sum(log_likelihood(adapted, tokenizer, d["text"], d["choices"][0]) for d in docs) / len(docs)
    assert row["scores"]["sae"]["value"] == pytest.approx(float(torch.tensor(-mean).exp()), rel=1e-5)
    assert row["scores"]["base"]["value"] != pytest.approx(row["scores"]["sae"]["value"], rel=1e-2)
    assert row["scores"]["adapted"]["value"] != pytest.approx(row["scores"]["sae"]["value"], rel=1e-2)
    assert row["differences"]["adapted_minus_sae"] == {"value": None, "low": None, "high": None}


def test_tasks_on_one_text_score_together_as_they_do_alone(adapted, tokenizer, folder) -> None:
    """The same tokens, split into context and continuation at another place: lm-eval would mix up their logits."""
    end = TASK.format(
        name="tiny_end",
        kind="loglikelihood",
        target='" {{choices[0].split()[-1]}}"',
        metrics=MEAN.format("perplexity", "perplexity"),
    ).replace('doc_to_choice: "{{choices}}"\n', "")
    end = end.replace('"{{text}}"', "\"{{text}} {{choices[0].split()[:-1] | join(' ')}}\"")
    (folder / "end.yaml").write_text(end)
    with spliced_in(adapted) as spliced:
        [alone] = evaluate_tasks(adapted, spliced, tokenizer, loaded(folder, "tiny_end"), arms=[Variant.BASE])
        both = evaluate_tasks(
            adapted, spliced, tokenizer, loaded(folder, "tiny_choice", "tiny_end"), arms=[Variant.BASE]
        )
    together = next(row for row in both if row["task"] == "tiny_end")
    assert together["scores"]["base"]["value"] == pytest.approx(alone["scores"]["base"]["value"], rel=1e-9)


def test_a_group_comes_before_its_tasks_with_its_own_score(adapted, tokenizer, folder) -> None:
    with spliced_in(adapted) as spliced:
        rows = evaluate_tasks(
            adapted, spliced, tokenizer, loaded(folder, "tiny_group"), arms=(Variant.BASE, Variant.SPLICED)
        )
    assert [(row["task"], row["group"]) for row in rows] == [("tiny_group", None), ("tiny_choice", "tiny_group")]
    assert rows[0]["subtasks"] == ["tiny_choice"]
    assert rows[0]["differences"] == rows[1]["differences"]
    assert rows[0]["n"] == 30


def test_limit_and_progress_count_what_is_asked(adapted, tokenizer, folder) -> None:
    tasks, asked = loaded(folder, "tiny_choice"), []
    with spliced_in(adapted) as spliced:
        rows = evaluate_tasks(
            adapted, spliced, tokenizer, tasks, limit=5, progress=asked.append, arms=(Variant.BASE, Variant.SPLICED)
        )
    assert rows[0]["n"] == 5
    assert sum(asked) == 2 * tasks.n_requests(5) == 2 * 5 * 3


@pytest.mark.usefixtures("unchecked")  # beartype draws from random which items of a container it checks
def test_nothing_is_printed_and_random_states_and_modes_stay(adapted, tokenizer, folder, capfd) -> None:
    adapted.train()
    tasks = loaded(folder, "tiny_choice")
    random.seed(5)
    torch.manual_seed(5)
    expected = (random.Random(5).random(), torch.rand(1, generator=torch.Generator().manual_seed(5)).item())
    with spliced_in(adapted) as spliced:
        evaluate_tasks(adapted, spliced, tokenizer, tasks, limit=2, arms=(Variant.SPLICED,))
    assert capfd.readouterr().out == ""
    assert (random.random(), torch.rand(1).item()) == expected
    assert adapted.training
    assert tokenizer("w5")["input_ids"] == [5]


def test_with_bos_sets_it_once(tokenizer) -> None:
    begun = with_bos(tokenizer)
    assert begun("w5 w6")["input_ids"] == [BOS, 5, 6]
    assert with_bos(begun)("w5 w6")["input_ids"] == [BOS, 5, 6]
    assert begun("w5", add_special_tokens=False)["input_ids"] == [5]


def test_an_unknown_task_names_the_nearest(folder, monkeypatch) -> None:
    from lm_eval import tasks

    own = tasks.TaskManager  # lm-eval's own thousands take half a minute to index
    monkeypatch.setattr(tasks, "TaskManager", lambda **options: own(**{**options, "include_defaults": False}))
    with pytest.raises(InputError, match=r"'tiny_choise' is not known .* did you mean tiny_choice"):
        lm_tasks.find(["tiny_choise"], str(folder))


def test_a_folder_that_is_none_is_refused(folder) -> None:
    with pytest.raises(InputError, match="is no folder"):
        lm_tasks.find(["tiny_choice"], str(folder / "docs.json"))


def test_names_may_be_joined_by_commas_and_must_be_there() -> None:
    assert lm_tasks.task_names(["mmlu,hellaswag", "arc_easy", "mmlu"]) == ["mmlu", "hellaswag", "arc_easy"]
    with pytest.raises(InputError, match="--tasks"):
        lm_tasks.task_names([","])


def test_without_the_extra_the_remedy_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'saelora\[capabilities\]'"):
        lm_tasks.check_installed()
