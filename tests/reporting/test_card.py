"""The card beside an adapter: valid front matter, the numbers, and names that stay names."""

import ast
import copy
import re

import yaml

from run_results import MANIFEST, RESULTS, manifest, result
from saelora.reporting.card import adapter_card, card
from saelora.reporting.hub_card import Repository, run_card
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


def of_transcoders(n, *, method="lora", sae_at=None, replacement=None):
    """Manifest and results of a run around n transcoders."""
    one = {**MANIFEST["saes"][0], "architecture": "skip_transcoder"}
    saes = [{**one, "hookpoint": f"layers.{i}.mlp_out"} for i in range(n)]
    if sae_at is not None:
        saes[sae_at]["architecture"] = "topk"
    tuned = [{"hookpoint": sae["hookpoint"], "folder": sae["hookpoint"], "fingerprint": "t"} for sae in saes]
    whole = {**MANIFEST, "saes": saes, "method": method, "tuned_saes": [] if method == "lora" else tuned}
    whole["adapter"] = None if method == "sae" else "a"
    figures = {sae["hookpoint"]: RESULTS["saes"]["layers.1.resid_post"] for sae in saes}
    about = {"saes": saes, **({} if replacement is None else {"replacement": replacement})}
    return manifest(whole), result({**RESULTS, "method": method, "saes": figures, "about": about})


def of_hub(*run):
    return run_card(Repository("me/run", None, None), *run)


def test_cards_say_how_transcoders_were_put_in():
    run = of_transcoders(4, replacement={"mode": "parallel", "add_error": False})
    for text in (card(*run), of_hub(*run)):
        assert "The 4 transcoders, each reading the original's stream (parallel), cost" in text
        assert "| spliced (transcoders in, parallel) |" in text
    front = parts(of_hub(*run))[0]
    named = {each["type"]: each["name"] for each in front["model-index"][0]["results"][0]["metrics"]}
    assert named["ce_sae"].endswith(": spliced (transcoders in, parallel)")
    assert named["ce_adapted"].endswith(": spliced + adapted (parallel)")
    assert "| spliced (transcoders in, parallel): cross entropy" in of_hub(*run)


def test_cards_of_transcoders_speak_of_no_sae():
    for method in ("lora", "lora+sae", "sae"):
        run = of_transcoders(4, method=method)
        for text in (card(*run), of_hub(*run)):
            prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("--sae", "").replace("the SAEs and of", "")
            assert not re.search(r"\bSAEs?\b", prose.partition("## Citation")[0]), text
    hub = of_hub(*of_transcoders(4, method="sae"))
    assert "# Transcoders of `org/model`, trained inside it" in hub
    assert "# Transcoders of `org/model`, trained inside it" in card(*of_transcoders(4, method="sae"))
    assert "# Transcoder of `org/model`, trained inside it" in card(*of_transcoders(1, method="sae"))
    assert "share of the transcoders' cost won back" in hub
    assert "spliced, transcoders finetuned: cross entropy" in hub
    assert "The trained transcoders by SAELens alone" in hub


def test_a_card_of_saes_and_transcoders_names_both():
    text = card(*of_transcoders(3, sae_at=1))
    assert "# `org/model` adapted around its SAEs and transcoders" in text
    assert "work through these\nSAEs and transcoders." in text
    assert "The 3 SAEs and transcoders cost" in text
