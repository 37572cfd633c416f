"""The card beside an adapter: valid front matter, the numbers, and names that stay names."""

import ast
import copy
import re

import yaml

from run_results import MANIFEST, manifest, result
from saelora.reporting.card import adapter_card
from saelora.reporting.text import headline, markdown_table

HOSTILE = 'evil`|\n---\nlicense: other\n# Title\n```\nimport os\n<script>x</script> ": [}'


def parts(card: str) -> tuple[dict, str]:
    _, front, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def python_in(card: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    return blocks[0]


def test_card_holds_the_results_and_what_they_are_about():
    front, body = parts(adapter_card(manifest(), result()))
    assert front["base_model"] == "org/model"
    assert front["library_name"] == "peft"
    assert headline(result()) in body
    assert markdown_table(result()) in body
    for told in ("`org/sae` at `layers.1.resid_post`: topk, 64 latents, sha256:12", "rank 8", "[1, 2], padding."):
        assert told in body


def test_hostile_names_stay_names():
    hostile = copy.deepcopy(MANIFEST)
    hostile["model"]["ref"] = hostile["saes"][0]["ref"] = HOSTILE
    card = adapter_card(manifest(hostile), result())
    front, body = parts(card)
    assert front == {**parts(adapter_card(manifest(), result()))[0], "base_model": " ".join(HOSTILE.split())}
    plain = parts(adapter_card(manifest(), result()))[1]
    assert body.count("\n") == plain.count("\n")  # no name made a line of its own
    calls = [ast.dump(node) for node in ast.parse(python_in(card)).body]
    assert calls == [ast.dump(node) for node in ast.parse(python_in(adapter_card(manifest(), result()))).body]
    name = " ".join(HOSTILE.split())
    outside = re.sub(r"````.*?````", "", body.replace(f"# {name}", ""))  # inline code, and the comment in the example
    assert "<script>" not in outside
    assert "|" not in outside.replace(markdown_table(result()), "")
