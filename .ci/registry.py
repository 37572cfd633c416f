"""Writes the registry of the SAELens that is installed to src/saelora/package_data; then set saes.saelens.KEPT.

python .ci/registry.py
"""

from pathlib import Path

from saelora.saes.saelens import pack, saelens_version

if __name__ == "__main__":
    path = Path(__file__).parents[1] / "src/saelora/package_data/saelens/registry.json.xz"
    path.write_bytes(pack())
    print(f"{path}: SAELens {saelens_version()}")
