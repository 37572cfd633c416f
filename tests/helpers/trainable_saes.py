"""Small SAELens SAEs in float64, and what trains in them moved away from its start."""

from typing import Any

import torch

from saelora.objectives.trainable_sae import TrainableSAE

D_IN, D_SAE, K = 12, 40, 6


def made(kind: str, **options: Any) -> Any:
    """A frozen SAE in float64, no weight of it zero."""
    import sae_lens as lens
    from sae_lens.saes.sae import SAEMetadata

    common: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", **options}
    common["metadata"] = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny")
    architecture, _, variant = kind.partition("-")
    if architecture == "topk":
        common |= {"k": K, "rescale_acts_by_decoder_norm": variant == "rescaled", "apply_b_dec_to_input": not variant}
    names = {"topk": "TopK", "jumprelu": "JumpReLU", "standard": "Standard", "gated": "Gated"}
    config = getattr(lens, names[architecture] + "SAEConfig")(**common)
    sae = getattr(lens, names[architecture] + "SAE")(config)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        drawn = 0.4 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        parameter.data = drawn.abs() if name == "threshold" else drawn
    return sae.eval().requires_grad_(False)


def moved(tuned: TrainableSAE) -> TrainableSAE:
    """With what trains away from where it started."""
    draw = torch.Generator().manual_seed(1)
    for parameter in tuned.tuned_parameters().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return tuned
