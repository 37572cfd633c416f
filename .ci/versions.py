"""Prints what pip is to install, of the libraries whose versions matter most: their newest or lowest allowed ones.

    python .ci/versions.py newest|oldest|installed

Allowed is what pyproject.toml says; there the bounds are, and nowhere else.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

LIBRARIES = ("transformers", "peft", "accelerate", "sae-lens", "datasets", "huggingface-hub", "safetensors")


def requirements(which: str) -> list[str]:
    """Each library as pyproject.toml bounds it ("newest"), at its lower bound ("oldest"), or as it is installed."""
    if which == "installed":
        return [f"{name}=={metadata.version(name)}" for name in LIBRARIES]
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["saelens"]]
    bounds = {re.split(r"[<>=!~ ]", text)[0]: text for text in wanted}
    if which == "newest":
        return [bounds[name] for name in LIBRARIES]
    return [f"{name}=={re.search('>=([^,]+)', bounds[name])[1]}" for name in LIBRARIES]


if __name__ == "__main__":
    print(*requirements(sys.argv[1]), sep="\n")
