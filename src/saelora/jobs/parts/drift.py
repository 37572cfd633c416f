"""--parts drift: how far the layers run from the original's, and whether the latents fire as before."""

from typing import Any

from saelora.evals.drift import measure_drift
from saelora.jobs.parts import Subject


def run(subject: Subject, config: Any) -> dict[str, Any]:
    """Distances of every layer's output and the latents' firing; see saelora.evals.drift."""
    with subject.console.progress("drift", subject.rows.numel()) as bar:
        found = measure_drift(
            subject.model,
            subject.spliced,
            subject.token_mask,
            subject.rows,
            autocast=subject.autocast,
            progress=bar.advance,
            adapted=subject.adapted,
        )
    return {**found, "trained": subject.trained}
