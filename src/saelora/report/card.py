"""The README card that stands beside an adapter."""

import json
import re
from typing import Any

from saelora.report.text import cost, headline, markdown_table, one_line


def adapter_card(manifest: dict[str, Any], results: dict[str, Any]) -> str:
    """A model card: what it is, what it did, how to load it. Pure function of manifest and results."""
    model, saes, config = manifest["model"], manifest["saes"], manifest["config"]
    sae_lines = "\n".join(
        f"- {_code(s['ref'])} at {_code(s['hookpoint'])}: {s['architecture']}, {s['d_sae']} latents, {s['fingerprint']}"
        for s in saes
    )
    return f"""---
library_name: peft
base_model: {json.dumps(one_line(model["ref"]), ensure_ascii=False)}
tags: [lora, saelora, sparse-autoencoder]
---
# {_code(model["ref"])} adapted around its SAE

A LoRA adapter (rank {config["rank"]}, placement {_code(config["placement"])}) that makes the model work through these
sparse autoencoders. It means little without them:

{sae_lines}

{headline(results)} {cost(results)}

{markdown_table(results)}

Positions left alone by the SAE: token ids {manifest["token_policy"]["exempt_ids"]}\
{", position 0" if manifest["token_policy"]["first"] else ""}\
{", padding" if manifest["token_policy"]["padding"] else ""}.

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("BASE MODEL")  # {one_line(model["ref"])}
model = PeftModel.from_pretrained(model, "THIS FOLDER")     # the adapter alone; splice the SAE in with saelora.splice
```

`saelora evaluate --adapter THIS_FOLDER` measures it again. Method: Chen, Engels, Tegmark, arXiv 2501.19406.
"""


def _code(text: str) -> str:
    """Text as inline code: a name cannot end it, break the line or be read as Markdown."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
