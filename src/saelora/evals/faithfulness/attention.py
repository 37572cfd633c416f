"""How much attention a model pays to the positions that its SAE leaves alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from saelora.core.numerics import wide
from saelora.evals.faithfulness.result import Attention, AttentionLayer
from saelora.evals.intervals import ratio
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import SIDE_BY_SIDE, Variant
from saelora.models.anatomy import Anatomy, anatomy_of, unwrap


class NoWeightsError(Exception):
    """A model that does not hand out its attention weights; the message says which."""


def attention_to_exempt(
    subject: SplicedModel, rows: Tensor, *, progress: Callable[[int], None] = lambda n_tokens: None
) -> Attention:
    """The share of attention that counted (replaced) positions pay to exempt ones, a mean over heads and positions.

    Rows [n_rows, context] run one at a time, and each layer's weights [n_heads, context, context] are reduced to a
    number before the next layer runs.

    Raises:
        NoWeightsError: the model's attention does not hand out its weights.
    """
    n_layers = anatomy_of(subject.model).n_layers
    sums = {name: np.zeros((len(rows), n_layers)) for name in SIDE_BY_SIDE}
    plan = {variant: subject.student(variant) for variant in SIDE_BY_SIDE}
    students = subject.students(plan.values())
    with _eager(subject.model), subject.batches(students, rows, 1, progress) as each:
        for batch in each:
            for name, student in plan.items():
                with batch.running_as(student):
                    sums[name][batch.start] = _exempt_sums(subject.model, batch.input_ids, batch.mask[0])
    n = subject.token_mask(rows).sum(1).double().tolist()
    by_layer = {name: [ratio(own_RL[:, i].tolist(), n) for i in range(n_layers)] for name, own_RL in sums.items()}
    layers = [AttentionLayer(i, *(by_layer[name][i] for name in SIDE_BY_SIDE)) for i in range(n_layers)]
    over = {name: own_RL.mean(1) for name, own_RL in sums.items()}
    change = ratio((over[Variant.ADAPTED] - over[Variant.SPLICED]).tolist(), n)
    return Attention(layers, {name: ratio(over[name].tolist(), n) for name in SIDE_BY_SIDE}, change, len(rows))


def _exempt_sums(model: nn.Module, ids: Tensor, mask_S: Tensor) -> list[float]:
    """Each layer's sum, over one row's counted queries, of the share of attention on exempt keys."""
    anatomy, found = anatomy_of(model), {}

    def hook(index: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, Tensor) or weights.dim() != 4:
                raise NoWeightsError(f"the attention of layer {index} ({type(module).__name__}) gives no weights")
            share_HS = weights[0][:, :, ~mask_S].sum(-1)
            found[index] = float(wide(share_HS[:, mask_S]).mean(0).sum())

        return keep

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(_attentions(anatomy))]
    try:
        anatomy.body(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(anatomy.n_layers)]


def _attentions(anatomy: Anatomy) -> list[nn.Module]:
    """Each layer's attention module.

    Raises:
        NoWeightsError: a layer whose attention has not been told apart.
    """
    if unknown := [i for i, layout in enumerate(anatomy.layouts) if layout.attn is None]:
        raise NoWeightsError(f"the attention of layer {unknown[0]} is not known: {anatomy.layouts[unknown[0]].refused}")
    return [layer.get_submodule(str(each.attn)) for layer, each in zip(anatomy.layers, anatomy.layouts, strict=True)]


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Attention in plain operations, which alone yields weights, while the context is open.

    An implementation whose name begins with "eager" is one already, and is left as it is.
    """
    configs = {id(m.config): m.config for m in unwrap(model).modules() if hasattr(m, "config")}.values()
    before = [(c, c._attn_implementation) for c in configs if hasattr(c, "_attn_implementation")]
    try:
        for config, implementation in before:  # outer ones first: setting one sets those within it
            config._attn_implementation = implementation if str(implementation).startswith("eager") else "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
