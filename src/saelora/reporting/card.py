"""The README card that stands beside what a run trained."""

import json
import re
from collections.abc import Sequence

from saelora.evals.loss_result import LossResult
from saelora.identity import SAE, PolicyRecord, kind_of
from saelora.manifest import Manifest, TrainedSAE
from saelora.reporting.format import capital, one_line
from saelora.reporting.text import cost, headline, markdown_table, row_starts, warnings


def card(manifest: Manifest, results: LossResult) -> str:
    """The card of a run of any method. Pure function of manifest and results."""
    if manifest.method in ("lora", "lora+sae"):
        return adapter_card(manifest, results)
    return sae_card(manifest, results)


def adapter_card(manifest: Manifest, results: LossResult) -> str:
    """A model card: what it is, what it did, how to load it. Pure function of manifest and results."""
    model, config, tuned = manifest.model, manifest.config, manifest.tuned_saes
    many, spliced = kind_of(*manifest.saes).many, spliced_in(manifest)
    also = f" It belongs to {many} that were trained with it and lie here too." if tuned else ""
    return f"""---
library_name: peft
base_model: {json.dumps(one_line(model.ref), ensure_ascii=False)}
tags: [lora, saelora, sparse-autoencoder]
---
# {code(model.ref)} adapted around its {spliced}

A LoRA adapter (rank {config["rank"]}, placement {code(config["placement"])}) that makes the model work through these
{full_name(manifest)}. It means little without them:

{sae_lines(manifest)}

{measured(manifest, results)}

## Load it

```python
import saelora  # in this folder, or with its path for "."

m = saelora.load(".")  # the model, adapted, through its {spliced}
print(m.generate("Once upon a time"))
{loading_lines(tuned)}```

`saelora evaluate --adapter .` measures it again; `saelora export . --to peft` makes an adapter for other tools.{also}
Method: Chen, Engels, Tegmark, arXiv 2501.19406.
"""


def sae_card(manifest: Manifest, results: LossResult) -> str:
    """The card of SAEs that were trained inside a frozen model. Pure function of manifest and results."""
    model, config = manifest.model, manifest.config
    spliced, lie = spliced_in(manifest), "lie" if len(manifest.saes) > 1 else "lies"
    if manifest.method == "linear":
        what = f"""A low-rank affine map of each reconstruction (rank {config["rank"]}), folded into the decoder of"""
    else:
        what = f"{capital(spliced)} trained further inside the model, against its own predictions, from"
    return f"""---
library_name: saelens
base_model: {json.dumps(one_line(model.ref), ensure_ascii=False)}
tags: [saelora, sparse-autoencoder]
---
# {capital(spliced)} of {code(model.ref)}, trained inside it

{what}

{sae_lines(manifest)}

The model itself is as it was. In the table, "adapted" is the model with the {spliced} that {lie} here.

{measured(manifest, results)}

## Load it

```python
{loading_lines(manifest.tuned_saes)}```

Run in this folder. Its path after `--sae` names it to any command; `saelora evaluate --adapter .` measures it again.
"""


def spliced_in(manifest: Manifest) -> str:
    """What is spliced in, by how many there are: "SAE", "transcoders"."""
    return kind_of(*manifest.saes).of(len(manifest.saes))


def full_name(manifest: Manifest) -> str:
    """What is spliced in, as a card names it first."""
    kind = kind_of(*manifest.saes)
    return "sparse autoencoders" if kind is SAE else kind.many


def sae_lines(manifest: Manifest) -> str:
    """The SAEs of a run, one a line."""
    return "\n".join(
        f"- {code(str(sae.ref))} at {code(sae.hookpoint)}: {sae.architecture}, {sae.d_sae} latents, {sae.fingerprint}"
        for sae in manifest.saes
    )


def measured(manifest: Manifest, results: LossResult) -> str:
    """What was found, with what a reader must know before; and the token policy."""
    policy = manifest.token_policy or PolicyRecord()
    careful = "".join(f"**Careful:** {told}\n\n" for told in warnings(results))
    return f"""{careful}{headline(results)} {cost(results)}

{markdown_table(results)}

Positions left alone: token ids {policy.exempt_ids}\
{_first(int(policy.first))}\
{", padding" if policy.padding else ""}{_massive(policy)}. {row_starts(results)}""".rstrip()


def _first(n: int) -> str:
    return {0: "", 1: ", position 0"}.get(n, f", positions 0 to {n - 1}")


def _massive(policy: PolicyRecord) -> str:
    massive = policy.massive
    if massive is None:
        return ""
    limits = ", ".join(f"{one_line(name)}: {limit:,.4g}" for name, limit in massive.limits.items())
    return f", massive ones (norm above {massive.multiple:g} times the median; {limits})"


def loading_lines(tuned: Sequence[TrainedSAE], root: str = ".") -> str:
    """Lines of Python that load a run's own SAEs; ``root`` is what the run's folder is called."""
    if not tuned:
        return ""
    lines = []
    for entry in tuned:
        folder = root if entry.folder == "." else f"{root}/{one_line(entry.folder)}"
        lines.append(f'sae = SAE.load_from_disk("{folder}")  # {one_line(entry.hookpoint)}')
    return "\n".join(["from sae_lens import SAE", "", *lines, ""])


def code(text: str) -> str:
    """Text as inline code: a name cannot end it, break the line or be read as Markdown."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
