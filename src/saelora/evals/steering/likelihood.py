"""Mean log-probability of texts under a model, steered and not.

Shapes: B texts, S positions, N predictions, D d_model, V d_vocab.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saelora.core.head import Head, head_of
from saelora.core.kl_head import chunk_size
from saelora.core.numerics import wide
from saelora.core.partial import clean_forward, entry_layer, run_from
from saelora.core.splice import TokenMask, splice
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.interventions import Intervention
from saelora.evals.steering.texts import Text
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint

BATCH_TEXTS = 16


def padded(texts: Sequence[Text], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Input ids and attention mask [batch, seq], padded on the right (with ids that the mask hides)."""
    length = max(len(text.ids) for text in texts)
    ids = torch.tensor([[*text.ids, *[text.ids[-1]] * (length - len(text.ids))] for text in texts])
    real = torch.tensor([[True] * len(text.ids) + [False] * (length - len(text.ids)) for text in texts])
    return ids.to(device), real.long().to(device)


@torch.no_grad()
def mean_log_probs(hidden_BSD: Tensor, ids_BS: Tensor, attention_BS: Tensor, head: Head) -> Tensor:
    """Mean log-probability, in nats, of each text's tokens 1, 2, ... given the tokens before them: float64 [batch].

    Position t - 1 predicts token t (the published code compares position t with token t). Logits are formed for a
    chunk of predictions at a time.
    """
    real = attention_BS[:, 1:].bool()
    hidden_ND, label_N1 = hidden_BSD[:, :-1][real], ids_BS[:, 1:][real][:, None]
    chunk = chunk_size(len(head.weight), head.weight.device.type)
    parts = []
    for start in range(0, len(hidden_ND), chunk):
        logits_CV = head.logits(hidden_ND[start : start + chunk])
        label_C1 = label_N1[start : start + chunk]
        parts.append(wide(logits_CV.gather(1, label_C1)[:, 0] - logits_CV.logsumexp(-1)))
    log_probs_N = torch.cat(parts).cpu()
    real = real.cpu()
    sums = torch.zeros(real.shape, dtype=torch.float64)
    sums[real] = log_probs_N
    return sums.sum(1) / real.sum(1)


def log_likelihoods(
    subject: SplicedModel,
    variant: Variant,
    texts: Sequence[Text],
    hookpoint: Hookpoint,
    interventions: Sequence[Intervention],
    steered_tokens: TokenMask,
    *,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> Tensor:
    """``mean_log_probs`` of texts under a variant: float64 [1 + n_interventions, n_texts], un-steered first.

    Everything below the hookpoint is run once for all interventions, since nothing there changes.

    Args:
        variant: base or adapted_clean: the SAE itself is not put in.
        steered_tokens: the positions that an intervention acts on.
        progress: told of tokens, once for each pass over them.
    """
    model = subject.model
    head = head_of(model, subject.student(variant).adapter)
    device = device_of(model)
    entry = entry_layer([hookpoint])
    found = torch.zeros(1 + len(interventions), len(texts), dtype=torch.float64)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    with subject.running_as(variant):
        for start in range(0, len(texts), BATCH_TEXTS):
            picks = by_length[start : start + BATCH_TEXTS]
            ids, attention = padded([texts[i] for i in picks], device)
            clean = clean_forward(model, ids, attention, [entry])
            found[0, picks] = mean_log_probs(clean.hidden, ids, attention, head)
            progress(int(attention.sum()))
            for row, steering in enumerate(interventions, 1):
                with splice(model, {hookpoint: steering}, steered_tokens):
                    hidden = run_from(model, ids, attention, entry, clean.entries.get(entry))
                found[row, picks] = mean_log_probs(hidden, ids, attention, head)
                progress(int(attention.sum()))
    return found
