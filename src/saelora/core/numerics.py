"""Sums over tokens in float64, and the one FVU that is made of them.

Training's own figures are of one chunk at hand, in float32 about that chunk's mean (``saelora.sae_training``): they are
no differences of large sums.
"""

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor


def wide(x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A tensor in float64, which Apple's GPUs lack: from there it comes to the CPU first."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@dataclass(frozen=True)
class ErrorSums:
    """What n tokens' vectors x and their reconstructions come to; those of parts add up.

    Args:
        x_D: sum of the vectors.
        squares: sum of |x|^2.
        error: sum of |x - recon|^2.
    """

    n: int | Shaped[Tensor, ""]
    x_D: Float[Tensor, " D"]
    squares: Float[Tensor, ""]
    error: Float[Tensor, ""]

    def __add__(self, more: "ErrorSums") -> "ErrorSums":
        return ErrorSums(self.n + more.n, self.x_D + more.x_D, self.squares + more.squares, self.error + more.error)

    def __sub__(self, part: "ErrorSums") -> "ErrorSums":
        """Those of the tokens that are not in ``part``."""
        return ErrorSums(self.n - part.n, self.x_D - part.x_D, self.squares - part.squares, self.error - part.error)

    def cpu(self) -> "ErrorSums":
        """A copy that can be sent to another process."""
        return ErrorSums(self.n, self.x_D.cpu(), self.squares.cpu(), self.error.cpu())

    @property
    def variation(self) -> Float[Tensor, ""]:
        """The vectors' squared distances from their mean, summed over tokens and dimensions."""
        return self.squares - self.x_D.square().sum() / self.n

    @property
    def fvu(self) -> Float[Tensor, ""]:
        """Fraction of variance unexplained: the error over the variation."""
        return self.error / self.variation
