"""Split a model's frozen layers over the processes of a run (FSDP2), for models that do not fit one device."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from saelora.core.group import Group
from saelora.models.anatomy import anatomy_of


def shard_layers(model: nn.Module, device: torch.device, group: Group) -> None:
    """Keep one share of every decoder layer on this device, and bring the rest of the model there whole.

    Adapters stay whole too, so that gradients, clipping and checkpoints are as without sharding: put them on first.
    The model may be on the CPU, since a layer moves as it is split. From here on every forward and backward is
    collective: all processes run them in the same order.
    """
    anatomy = anatomy_of(model)
    mesh = init_device_mesh(device.type, (group.world,))
    adapters = {p for name, p in model.named_parameters() if "lora_" in name}
    for layer in anatomy.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    whole = {p for p in model.parameters() if not isinstance(p, DTensor)}
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)
    fully_shard(anatomy.body, mesh=mesh, ignored_params=whole)  # below one root, layers are fetched ahead of their turn
