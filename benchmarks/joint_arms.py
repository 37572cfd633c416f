"""What the arms of ``joint.py`` are: which weights train, at which rates, and what each idea changes."""

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Literal

from saelora.objectives.trainable_sae import Part
from saelora.train.optim import lr_factor

COOLDOWN = 0.4  # share of a run in which the schedule "1-sqrt" falls
LATE = 0.5  # share of a run after which "late batches" are larger


@dataclass(frozen=True)
class Arm:
    """One student: an adapter above the SAE, a part of the SAE, or both; all trained on KL to the clean model."""

    name: str
    rank: int = 0  # of the adapter; 0: none
    rslora: bool = False
    lr: float = 0.0  # peak, of the adapter
    part: Part | None = None
    sae_lr: float = 0.0
    schedule: Literal["linear", "cosine", "constant", "1-sqrt"] = "linear"
    adapter_window: tuple[float, float] = (0.0, 1.0)  # share of the run in which it trains
    sae_window: tuple[float, float] = (0.0, 1.0)
    average: float = 0.0  # the weights measured are the mean over so large a last share of the steps
    late_batches: int = 1  # in the second half, one update for so many batches
    slope: float = 0.0  # adapter's rate by layer: times 1 + slope at the lowest, falling evenly to 1 - slope at the top
    bridge: float = 0.0  # weight of the mean squared error to the clean residual, relative to its square, above

    @property
    def scaling(self) -> float:
        """What the adapter's product is multiplied by; alpha is the rank."""
        return sqrt(self.rank) if self.rslora else 1.0

    def rates(self) -> tuple[float, float]:
        return self.lr, self.sae_lr


def factor(arm: Arm, window: tuple[float, float], progress: float, share: float) -> float | None:
    """The share of the peak rate for the step that begins at ``progress``; None outside the window."""
    first, last = window
    if not first <= progress < last:
        return None
    inside, step = (progress - first) / (last - first), share / (last - first)
    if arm.schedule != "1-sqrt":
        return lr_factor(min(inside, 1.0), step, schedule=arm.schedule, warmup=0.02)
    falling = max(0.0, min(1.0, (inside + step / 2 - (1 - COOLDOWN)) / COOLDOWN))
    return lr_factor(inside, step, schedule="constant", warmup=0.02) * (1 - sqrt(falling))


LORA_RATES = (3e-4, 7e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
SAE_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 4e-3)
JOINT_RATES = ((7e-4, 1.5e-3), (5e-5, 1.5e-4, 5e-4))  # adapter, decoder


def grids() -> dict[str, list[Arm]]:
    """Each method's candidates; the three that are compared have six each."""
    lora = [Arm(f"lora@{lr:g}", rank=64, lr=lr) for lr in LORA_RATES]
    sae = [Arm(f"sae@{lr:g}", part="sae", sae_lr=lr) for lr in SAE_RATES]
    decoder = [Arm(f"decoder@{lr:g}", part="decoder", sae_lr=lr) for lr in (5e-4, 1.5e-3, 5e-3)]
    pairs = [(a, d) for a in JOINT_RATES[0] for d in JOINT_RATES[1]]
    joint = [Arm(f"joint@{a:g},{d:g}", rank=64, lr=a, part="decoder", sae_lr=d) for a, d in pairs]
    pairs = [(7e-4, 1e-4), (1.5e-3, 3e-4)]
    whole = [Arm(f"joint-sae@{a:g},{d:g}", rank=64, lr=a, part="sae", sae_lr=d) for a, d in pairs]
    return {"lora": lora, "sae": sae, "decoder": decoder, "joint": joint, "joint-sae": whole}


@dataclass(frozen=True)
class Idea:
    """Fields of an arm that an idea sets, and the factor on the adapter's rate that goes with them."""

    fields: dict[str, Any] = field(default_factory=dict)
    lr: float = 1.0

    def of(self, arm: Arm, name: str) -> Arm | None:
        """The arm with the idea; None where it has not what the idea is about."""
        needs_adapter = {"rank", "rslora", "adapter_window", "slope"} & self.fields.keys()
        if (needs_adapter and not arm.rank) or ("sae_window" in self.fields and not (arm.part and arm.rank)):
            return None
        return replace(arm, name=name, lr=arm.lr * self.lr, **self.fields)


IDEAS: dict[str, Idea] = {
    "cosine": Idea({"schedule": "cosine"}),
    "1-sqrt": Idea({"schedule": "1-sqrt"}),
    "average of the last quarter": Idea({"average": 0.25}),
    "constant, average of the last half": Idea({"schedule": "constant", "average": 0.5}),
    "rank 256": Idea({"rank": 256}, 0.5),
    "rsLoRA 256": Idea({"rank": 256, "rslora": True}),
    "rsLoRA 256, rate / 4": Idea({"rank": 256, "rslora": True}, 0.25),
    "rsLoRA 256, rate / 16": Idea({"rank": 256, "rslora": True}, 1 / 16),
    "late batches x 4": Idea({"late_batches": 4}),
    "rate higher in low layers": Idea({"slope": 0.7}),
    "rate higher in high layers": Idea({"slope": -0.7}),
    "bridge 0.1": Idea({"bridge": 0.1}),
    "bridge 1": Idea({"bridge": 1.0}),
    "decoder first": Idea({"sae_window": (0.0, 0.4), "adapter_window": (0.3, 1.0)}),
    "decoder early": Idea({"sae_window": (0.0, 0.5)}),
    "adapter first": Idea({"adapter_window": (0.0, 0.7), "sae_window": (0.3, 1.0)}),
}
