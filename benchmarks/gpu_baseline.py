"""Seconds of another checkout's training step, for gpu.py --baseline: in a process of its own, with that code alone.

    python benchmarks/gpu_baseline.py CHECKOUT SHAPE ROWS CONTEXT ROUNDS DEVICE

Prints one line of JSON: the seconds of each round, the first dropped. The checkout's own benchmarks/setting.py says
what a step is; the shapes are those of here.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace


def main(checkout: str, shape: str, rows: int, context: int, rounds: int, device: str) -> list[float]:
    here = str(Path(__file__).parent)
    if not Path(checkout, "src", "saelora").is_dir():
        raise SystemExit(f"{checkout} is no checkout of saelora")
    elsewhere = [place for place in sys.path if place != here]
    sys.path = [f"{checkout}/src", f"{checkout}/benchmarks", *elsewhere, here]
    import setting as settings
    import shapes
    from measure import seconds

    settings._SAES = shapes.SAES
    settings._random_model = shapes.random_model
    args = SimpleNamespace(shape=shape, device=device, dtype="auto", sae_kind="topk")
    setting = settings.make(args, rows, context)
    ours = settings.Ours(setting, "after", [64])
    return [seconds(lambda: ours.step(setting.rows), setting.device) for _ in range(rounds + 1)][1:]


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(given[0], given[1], *map(int, given[2:5]), given[5])))
