"""Tokenizers as the rows are packed: every text begins with BOS."""

import copy
from typing import Any


def with_bos(tokenizer: Any) -> Any:
    """A copy of a tokenizer that begins every text with BOS, as the rows that adapters learn on do.

    SAEs leave BOS alone. Many tokenizers have a BOS but do not set it; then the first ordinary token becomes what
    attention rests on, with a norm that an SAE has never seen, and scores of a spliced model mean nothing. A tokenizer
    without BOS, or one that sets it already, is copied as it is.
    """
    from tokenizers import processors

    made = copy.deepcopy(tokenizer)
    bos = made.bos_token_id
    backend = getattr(made, "backend_tokenizer", None)
    if bos is None or backend is None or made("a")["input_ids"][:1] == [bos]:
        return made
    template = processors.TemplateProcessing(
        single=f"{made.bos_token} $A",
        pair=f"{made.bos_token} $A {made.bos_token} $B",
        special_tokens=[(made.bos_token, bos)],
    )
    before = backend.post_processor
    backend.post_processor = template if before is None else processors.Sequence([before, template])
    return made
