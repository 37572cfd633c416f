"""Students of one model, by method: what trains (adapter, affine map, SAE), and how it is optimised."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from saelora.assemble import Assembled
from saelora.core.lora import layers_of, lora_config, unreached
from saelora.core.splice import SAE, Splice
from saelora.core.transcoding import transcoder_in
from saelora.jobs import adapt
from saelora.jobs.training_options import ADAPTED, AdapterConfig, StudentConfig, recipe_of
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.trainable_sae import Part, TrainableSAE
from saelora.objectives.trainable_transcoder import trainable


def adapter_config(config: AdapterConfig, assembled: Assembled) -> PeftConfig:
    """PEFT's configuration of the adapter."""
    found: PeftConfig = lora_config(
        assembled.loaded.model,
        layers_of(config.placement, assembled.saes, assembled.anatomy.n_layers),
        rank=config.rank,
        alpha=config.rank if config.alpha is None else config.alpha,
        dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init=config.init,
        replaced=[hookpoint.layer for hookpoint, sae in assembled.sae_modules.items() if transcoder_in(sae)],
    )
    return found


def reach(config: StudentConfig, assembled: Assembled) -> str | None:
    """A line on what an adapter cannot reach in the layers; None where it reaches nearly all, or there is none."""
    if not isinstance(config, AdapterConfig) or config.method not in ADAPTED:
        return None
    names, share = unreached(assembled.loaded.model, adapter_config(config, assembled).target_modules)  # type: ignore[attr-defined]
    if share > 0.95:
        return None
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (
        f"LoRA reaches {share:.0%} of the layers' weights; left as they are: {', '.join(names[:4])}{more}, "
        "which are no linear modules of their own to PEFT"
    )


def add_adapter(model: Any, config: adapt.Config, assembled: Assembled, name: str = "default") -> Any:
    """The model (None: the assembled one, bare) with one more fresh adapter, its weights drawn from the seed."""
    from peft import PeftModel, get_peft_model

    peft_config = adapter_config(config, assembled)
    torch.manual_seed(config.seed)
    if isinstance(model, PeftModel):
        model.add_adapter(name, peft_config)
    else:
        model = get_peft_model(assembled.loaded.model, peft_config, adapter_name=name)
    peft_config.base_model_name_or_path = assembled.loaded.ref  # not the path of this machine's cache
    return model


def trainable_saes(config: StudentConfig, assembled: Assembled) -> dict[Hookpoint, TrainableSAE]:
    """The SAEs with what the method trains of them; none where it leaves them as they are.

    Raises:
        InputError: it cannot be trained in an SAE of this kind.
    """
    if config.method == "lora":
        return {}
    part: Part = "linear" if config.method == "linear" else config.part
    rank = config.rank if config.method == "linear" else 1
    return {
        hookpoint: trainable(sae, part, rank=rank, seed=config.seed) for hookpoint, sae in assembled.sae_modules.items()
    }


def student_model(model: nn.Module | None, config: StudentConfig, assembled: Assembled, name: str) -> nn.Module:
    """The model (None: the assembled one, bare) with the adapter of one more student, where its method has one."""
    if isinstance(config, AdapterConfig) and config.method in ADAPTED:
        model = add_adapter(model, config, assembled, name)
    return assembled.loaded.model if model is None else model


def open_branch(model: nn.Module, config: StudentConfig, assembled: Assembled, name: str, stack: ExitStack) -> Branch:
    """The branch of a student whose adapter is in the model, with its splice opened on the stack."""
    saes: dict[Hookpoint, SAE] = {**assembled.sae_modules, **trainable_saes(config, assembled)}
    return Branch(name, stack.enter_context(assembled.splice(model, saes)), recipe_of(config))


@contextmanager
def frozen_and_tuned(
    model: nn.Module, assembled: Assembled, tuned: Mapping[Hookpoint, SAE]
) -> Iterator[tuple[Splice, Splice | None]]:
    """The splice of the SAEs as they came, and where some were trained that of the adapted model; both open."""
    with ExitStack() as stack:
        spliced = stack.enter_context(assembled.splice(model))
        own = {**assembled.sae_modules, **tuned}
        yield spliced, stack.enter_context(assembled.splice(model, own)) if tuned else None


def add_student(
    model: nn.Module | None, config: StudentConfig, assembled: Assembled, name: str, stack: ExitStack
) -> tuple[nn.Module, Branch]:
    """Put one student of ``config.method`` into a model, and open its splice.

    Students of one model can be of any methods. One exception: an SAE at attn_z hooks a linear layer, which an adapter
    there would wrap. In a model with such SAEs, add the students with adapters first.

    Args:
        model: what the call before returned; None: the assembled model, bare.
        config: options of adapt or finetune-sae.
        name: of the branch, and of the adapter where the method has one.
        stack: closes the splice.

    Returns:
        The model with all adapters so far, and the branch. Adapter and affine map are drawn from the seed.

    Raises:
        InputError: the method does not fit SAE or model.
    """
    model = student_model(model, config, assembled, name)
    return model, open_branch(model, config, assembled, name, stack)
