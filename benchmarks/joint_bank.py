"""Many students in one pass: their rows lie behind one another in one batch, their adapters are batched products.

The package's ``Distill`` runs branches one after another, which a small model on a GPU pays for in launches. Here the
students of one rank go through the frozen layers together. Everything else is the package's: the model, the token mask,
``TrainableSAE``, the prefix, the KL head. ``joint.py --check`` compares each arm with ``Distill`` training it alone.

Shapes: S students, B rows, T context, D d_model, R rank.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from joint_arms import LATE, Arm, factor
from torch import Tensor, nn

from saelora.assemble import Assembled, autocast_dtype
from saelora.core.head import head_of
from saelora.core.kl_head import kl_heads
from saelora.core.lora import layers_of
from saelora.core.partial import CleanPass, cache_outputs, clean_forward, run_from
from saelora.errors import InputError
from saelora.evals.loss_sums import LossSums
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.saes.processing import is_centred


class BankLinear(nn.Module):
    """A frozen linear layer, plus each student's own low-rank product on its own rows while a lot is active."""

    def __init__(self, base: nn.Linear, key: str, bank: "Bank"):
        super().__init__()
        self.base, self.key = base, key
        object.__setattr__(self, "bank", bank)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        lot = self.bank.active
        if lot is None or not lot.rank:
            return out
        down_SRI, up_SOR = lot.factors[self.key]
        low = torch.bmm(x.reshape(lot.size, -1, x.shape[-1]), down_SRI.transpose(1, 2)) * lot.scaling
        return out + torch.bmm(low, up_SOR.transpose(1, 2)).view(out.shape).to(out.dtype)


class Student:
    """An arm's weights, optimiser and, where it has one, running mean."""

    def __init__(self, arm: Arm, by_layer: Sequence[nn.Parameter], sae: TrainableSAE | None):
        self.arm, self.sae = arm, sae
        self.adapter = list(by_layer)
        self.tuned = list(sae.tuned_parameters().values()) if sae is not None else []
        n = max(1, len(self.adapter) - 1)
        alone = [([p], arm.lr * (1 + arm.slope * (1 - 2 * i / n))) for i, p in enumerate(self.adapter)]
        self.groups = alone if arm.slope else [(self.adapter, arm.lr)] if self.adapter else []  # weights, peak rate
        self.windows = [arm.adapter_window] * len(self.groups)
        if self.tuned:
            self.groups, self.windows = [*self.groups, (self.tuned, arm.sae_lr)], [*self.windows, arm.sae_window]
        self.recipe = DistillRecipe()
        self.optimizer = self._optimizer() if self.groups else None
        self.pending = self.n_averaged = 0
        self.mean: list[Tensor] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        betas = (self.recipe.betas[0], self.recipe.betas[1])
        fused = self.weights[0].device.type in ("cuda", "cpu")
        groups = [{"params": weights, "lr": peak} for weights, peak in self.groups]
        return torch.optim.AdamW(groups, betas=betas, weight_decay=self.recipe.weight_decay, fused=fused)

    @property
    def weights(self) -> list[nn.Parameter]:
        return [*self.adapter, *self.tuned]

    def update(self, progress: float, share: float) -> None:
        """After a batch's backward pass: an optimiser step where one is due, and the mean."""
        arm, last = self.arm, progress + 1.5 * share > 1
        self.pending += 1
        if self.optimizer is None or (self.pending < (arm.late_batches if progress >= LATE else 1) and not last):
            return
        grads = [p.grad for p in self.weights]
        there = [grad for grad in grads if grad is not None]
        if self.pending > 1:
            torch._foreach_div_(there, float(self.pending))
        self.pending = 0
        for group, (weights, peak), window in zip(self.optimizer.param_groups, self.groups, self.windows, strict=True):
            now = factor(arm, window, progress, share)
            group["lr"] = peak * (now or 0.0)
            for p in weights if now is None else ():
                p.grad = None  # neither clipped with the others nor updated
        nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        self.optimizer.step()
        for p, grad in zip(self.weights, grads, strict=True):
            p.grad = grad
        torch._foreach_zero_(there)
        if arm.average and progress >= 1 - arm.average:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        self.n_averaged += 1
        now = [p.detach() for p in self.weights]
        if self.n_averaged == 1:
            self.mean = [p.clone() for p in now]
        else:
            torch._foreach_lerp_(self.mean, now, 1 / self.n_averaged)

    def state_dict(self) -> dict[str, Any]:
        """All that its next step depends on; tensors and plain values."""
        weights = [p.detach() for p in self.weights]
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        own = {"pending": self.pending, "n_averaged": self.n_averaged, "mean": self.mean}
        grads = [p.grad for p in self.weights]
        return {"weights": weights, "optimizer": optimizer, "grads": grads, **own}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p, weight, grad in zip(self.weights, state["weights"], state["grads"], strict=True):
            p.copy_(weight)
            if p.grad is None or grad is None:
                p.grad = grad
            else:
                p.grad.copy_(grad)  # an adapter's is a part of its lot's
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.pending, self.n_averaged, self.mean = state["pending"], state["n_averaged"], state["mean"]

    @torch.no_grad()
    def finish(self) -> None:
        """What is measured from here on is the mean, where the arm has one."""
        for p, mean in zip(self.weights, self.mean, strict=False):
            p.copy_(mean)


class Lot:
    """Students that go through the model together: of one rank and scaling, or without an adapter.

    Those without have adapters that are zero and stay so.
    """

    def __init__(self, bank: "Bank", arms: Sequence[Arm], seed: int):
        first = max(arms, key=lambda arm: arm.rank)
        self.size, self.rank, self.scaling = len(arms), first.rank, first.scaling
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        by_layer: list[list[nn.Parameter]] = [[] for _ in arms]
        generator = torch.Generator().manual_seed(seed)
        for layer, names in bank.shapes.items() if self.rank else ():
            sizes = [self.rank * size for pair in names.values() for size in pair]
            flat = torch.zeros(self.size, sum(sizes), device=bank.device)
            grad = torch.zeros_like(flat)
            weights, grads = flat.split(sizes, 1), grad.split(sizes, 1)
            for i, (name, (d_in, d_out)) in enumerate(names.items()):
                shapes = ((self.size, self.rank, d_in), (self.size, d_out, self.rank))
                down, up = (w.view(s) for w, s in zip(weights[2 * i : 2 * i + 2], shapes, strict=True))
                drawn = torch.rand(self.rank, d_in, generator=generator)  # as PEFT draws A; the same for all arms
                down.copy_((2 * drawn - 1) / d_in**0.5)
                down, up = (t.detach().requires_grad_() for t in (down, up))
                down.grad, up.grad = (g.view(s) for g, s in zip(grads[2 * i : 2 * i + 2], shapes, strict=True))
                self.factors[f"{layer}.{name}"] = (down, up)
            for s in range(self.size):
                if arms[s].rank:
                    parameter = nn.Parameter(flat[s])
                    parameter.grad = grad[s]
                    by_layer[s].append(parameter)
        saes = [None if arm.part is None else TrainableSAE(bank.sae, arm.part).to(bank.device) for arm in arms]
        self.students = [Student(arm, each, sae) for arm, each, sae in zip(arms, by_layer, saes, strict=True)]


class Bank:
    """A frozen model with one SAE, whose layers above take many students' rows at once while ``installed``."""

    def __init__(self, assembled: Assembled):
        ((self.hookpoint, found),) = assembled.saes.items()
        self.sae, self.model, self.token_mask = found.sae, assembled.loaded.model, assembled.token_mask
        if self.hookpoint.site != "resid_post" or self.token_mask.massive or is_centred(self.sae, self.hookpoint):
            raise InputError("this benchmark needs an SAE at a resid_post, not centred, and no massive positions")
        self.anatomy, self.layer = assembled.anatomy, self.hookpoint.layer
        self.device, self.autocast_dtype = self.model.device, autocast_dtype(assembled.loaded)
        self.head = head_of(self.model)
        self.active: Lot | None = None
        layers = layers_of("after", [self.hookpoint], self.anatomy.n_layers)
        quarters = {self.layer + (self.anatomy.n_layers - self.layer) * i // 4 for i in (1, 2, 3)}
        self.bridged = sorted(quarters - {self.layer})  # where an arm's "bridge" looks
        self.linears = {
            f"{i}.{name}": self.anatomy.layers[i].get_submodule(name) for i in layers for name in self.anatomy.linears()
        }
        self.shapes: dict[int, dict[str, tuple[int, int]]] = {i: {} for i in layers}
        for key, linear in self.linears.items():
            layer, _, name = key.partition(".")
            self.shapes[int(layer)][name] = (linear.in_features, linear.out_features)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The layers' linears take the active lot's adapters, for as long as this context is open."""
        with ExitStack() as stack:
            for key, linear in self.linears.items():
                layer, _, name = key.partition(".")
                parent = self.anatomy.layers[int(layer)].get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], BankLinear(linear, key, self))
                stack.callback(setattr, parent, name.rpartition(".")[2], linear)
            yield

    def autocast(self) -> Any:
        dtype = self.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def teacher(self, ids_BT: Tensor, bridged: bool = False) -> CleanPass:
        with self.autocast():
            return clean_forward(self.model, ids_BT, None, [self.layer, *(self.bridged if bridged else ())])

    def given(self, ids_BT: Tensor, clean: CleanPass) -> tuple[Tensor, Tensor]:
        """What the SAE is given, and the mask of the positions that it replaces."""
        mask_BT = self.token_mask(ids_BT)
        x_BTD = clean.entries[self.layer]
        return torch.where(mask_BT.unsqueeze(-1), x_BTD, 0).float(), mask_BT

    def entries(self, lot: Lot, ids_BT: Tensor, clean: CleanPass) -> Tensor:
        """The residual [S * B, T, D] that the layers above begin with: each student's own where it is replaced."""
        x_BTD = clean.entries[self.layer]
        given_BTD, mask_BT = self.given(ids_BT, clean)
        latents = frozen = None
        out = []
        for student in lot.students:
            if student.sae is None:
                frozen = _reconstruct(self.sae, given_BTD) if frozen is None else frozen
                recon = frozen
            elif student.sae.part == "decoder":  # the encoder is the frozen one: its latents are all such arms'
                latents = student.sae.encode(given_BTD).detach() if latents is None else latents
                recon = student.sae.decode(latents)
            else:
                recon = student.sae.decode(student.sae.encode(given_BTD))
            out.append(torch.where(mask_BT.unsqueeze(-1), recon.to(x_BTD.dtype), x_BTD))
        return torch.cat(out)

    def hidden(self, lot: Lot, ids_BT: Tensor, clean: CleanPass) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Each student's final hidden states [B, T, D], and all of them [S, B, T, D] above the bridged layers."""
        kept: dict[int, Tensor] = {}
        bridged = self.bridged if any(student.arm.bridge for student in lot.students) else ()
        self.active = lot
        try:
            with self.autocast(), cache_outputs(self.anatomy, kept, bridged):
                stored = self.entries(lot, ids_BT, clean)
                h = run_from(self.model, ids_BT.repeat(lot.size, 1), None, self.layer, stored)
        finally:
            self.active = None
        return list(h.chunk(lot.size)), {i: k.unflatten(0, (lot.size, -1)) for i, k in kept.items()}

    def gradients(self, lot: Lot, ids_BT: Tensor, clean: CleanPass) -> list[Tensor]:
        """Add to the gradients of each student; returns each one's KL per token."""
        hidden, kept = self.hidden(lot, ids_BT, clean)
        heads = kl_heads([h.flatten(0, 1) for h in hidden], clean.hidden.flatten(0, 1), self.head)
        losses = [head.kl / ids_BT.numel() for head in heads]
        found = [loss.detach() for loss in losses]
        for i, student in enumerate(lot.students):
            for layer, states in kept.items() if student.arm.bridge else ():
                aim = clean.entries[layer].float()
                error = (states[i].float() - aim).square().sum(-1) / aim.square().sum(-1).clamp_min(1e-12)
                losses[i] = losses[i] + student.arm.bridge / len(kept) * error.mean()
        torch.stack(losses).sum().backward()
        return found

    @torch.no_grad()
    def measure(self, lots: Iterable[Lot], rows: Tensor, cleans: list[CleanPass], batch_rows: int) -> LossSums:
        """Sums over the counted predictions of each row: ce_base, and ce, kl and top1 of each arm under its name."""
        found: list[LossSums] = []
        for lot in lots:
            sums = LossSums()
            for batch, clean in zip(rows.split(batch_rows), cleans, strict=True):
                ids = batch.to(self.device)
                hidden, _ = self.hidden(lot, ids, clean)
                flat, labels = [h[:, :-1].flatten(0, 1) for h in hidden], ids[:, 1:]
                heads = kl_heads(flat, clean.hidden[:, :-1].flatten(0, 1), self.head, labels_N=labels.flatten())
                values = {"ce_base": heads[0].ce_teacher_N}
                for student, head in zip(lot.students, heads, strict=True):
                    name = student.arm.name
                    values |= {f"ce_{name}": head.ce_student_N, f"kl_{name}": head.kl_N, f"top1_{name}": head.top1_N}
                shaped = {name: v.view(labels.shape) for name, v in values.items() if v is not None}
                sums.update(self.token_mask(ids)[:, :-1], shaped)
            found.append(sums)
        first = found[0]
        for more in found[1:]:
            first.sums |= more.sums
        return first

    @torch.no_grad()
    def same_latents(self, student: Student, ids_BT: Tensor, clean: CleanPass) -> float:
        """Latents active before and after training, by those active before or after (Jaccard), on some rows."""
        if student.sae is None:
            return 1.0
        given_BTD, mask_BT = self.given(ids_BT, clean)
        with self.autocast():
            before = TrainableSAE(self.sae, student.sae.part).to(self.device).encode(given_BTD)[mask_BT] != 0
            after = student.sae.encode(given_BTD)[mask_BT] != 0
        return float((before & after).sum() / (before | after).sum())


def _reconstruct(sae: Any, given_BTD: Tensor) -> Tensor:
    reconstruct = getattr(sae, "reconstruct", None)
    found: Tensor = sae.decode(sae.encode(given_BTD)) if reconstruct is None else reconstruct(given_BTD)
    return found
