"""SAEs that are one torch file: Qwen Scope's and Goodfire's, as SAELens and as plain arithmetic have them."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from saelora.errors import InputError
from saelora.saes.loading import load_sae

D_IN, D_SAE, K = 6, 1024, 5
QWEN, GOODFIRE = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5", "Llama-3.1-8B-Instruct-SAE-l19.pth"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_SAE, D_IN), "W_dec": (D_IN, D_SAE), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


def qwen(folder: Path, layer: int = 3, **more: Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**tensors(), **more}, folder / f"layer{layer}.sae.pt")
    return folder / f"layer{layer}.sae.pt"


def goodfire(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    t = tensors()
    names = {"encoder_linear.weight": "W_enc", "encoder_linear.bias": "b_enc"}
    names |= {"decoder_linear.weight": "W_dec", "decoder_linear.bias": "b_dec"}
    torch.save({name: t[key] for name, key in names.items()}, folder / GOODFIRE)
    return folder / GOODFIRE


def qresearch(folder: Path) -> Path:
    path = goodfire(folder)
    state = {name.replace("_linear", ""): tensor for name, tensor in torch.load(path, weights_only=True).items()}
    torch.save(state, folder / (name := "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"))
    path.unlink()
    return folder / name


def test_qresearchs_names_of_the_same_tensors_are_read(tmp_path: Path) -> None:
    loaded = load_sae(str(qresearch(tmp_path)), dtype=torch.float64)
    torch.testing.assert_close(loaded.sae.encode(inputs()), plain(inputs(), k=None)[0], rtol=1e-12, atol=1e-12)
    assert loaded.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def inputs() -> Tensor:
    return torch.randn(4, 7, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain(x: Tensor, *, k: int | None) -> tuple[Tensor, Tensor]:
    t = {name: tensor.double() for name, tensor in tensors().items()}
    latents = (x @ t["W_enc"].T + t["b_enc"]).relu()
    if k is not None:
        kept = latents.topk(k, dim=-1)
        latents = torch.zeros_like(latents).scatter(-1, kept.indices, kept.values)
    return latents, latents @ t["W_dec"].T + t["b_dec"]


@pytest.mark.parametrize("where", ["file", "folder"])
@pytest.mark.parametrize(("kind", "k", "layer"), [("qwen_scope", K, 3), ("goodfire", None, 19)])
def test_the_arithmetic_is_the_plain_one(tmp_path: Path, kind: str, k: int | None, layer: int, where: str) -> None:
    path = qwen(tmp_path / QWEN) if kind == "qwen_scope" else goodfire(tmp_path)
    loaded = load_sae(str(path if where == "file" else path.parent), dtype=torch.float64)
    latents, recon = plain(inputs(), k=k)
    found = loaded.sae.encode(inputs())
    torch.testing.assert_close(found, latents, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loaded.sae.decode(found), recon, rtol=1e-12, atol=1e-12)
    assert (loaded.format, str(loaded.hookpoint)) == (kind, f"layers.{layer}.resid_post")
    assert loaded.model_name == ("Qwen/Qwen3-1.7B-Base" if k else "meta-llama/Llama-3.1-8B-Instruct")


def test_saelens_own_loaders_give_the_same_from_the_registrys_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes import SAE

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    storage = tmp_path / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    wide = {name: tensor.repeat(32, 1) if name == "W_enc" else tensor for name, tensor in tensors().items()}
    wide |= {"W_dec": tensors()["W_dec"].repeat(1, 32), "b_enc": torch.randn(32 * D_SAE)}
    qwen(storage / "snapshots" / COMMIT, 2, **wide)
    monkeypatch.setitem(loaders.QWEN_SCOPE_MODEL_INFO, "Qwen3-1.7B-Base", ("tiny", D_IN))
    theirs = SAE.from_pretrained("qwen-scope-3-1.7b-base-w32k-l50", "layer2", device="cpu", dtype="float32")
    x = inputs().float()
    for ref in ("qwen-scope-3-1.7b-base-w32k-l50/layer2", f"{repo}/layer2.sae.pt", repo):
        ours = load_sae(ref)
        torch.testing.assert_close(ours.sae.encode(x), theirs.encode(x))
        torch.testing.assert_close(ours.sae.decode(ours.sae.encode(x)), theirs.decode(theirs.encode(x)))
        assert (ours.format, str(ours.hookpoint), ours.revision) == ("qwen_scope", "layers.2.resid_post", COMMIT)


def test_of_several_layers_one_is_to_be_named(tmp_path: Path) -> None:
    qwen(tmp_path / QWEN, 3), qwen(tmp_path / QWEN, 11)
    with pytest.raises(InputError, match=r"holds 2 SAEs, one a layer: name one, such as .*/layer3\.sae\.pt"):
        load_sae(str(tmp_path / QWEN))


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("elsewhere", {}, "does not tell how many latents are active"),
        (QWEN.replace("W1K", "W2K"), {}, "has 1024 latents, and its repository's name says 2048"),
        (QWEN, {"gain": torch.ones(3)}, "has gain"),
        (QWEN, {"b_dec": torch.ones(6, dtype=torch.int64)}, "holds torch.int64"),
        (QWEN, {"b_dec": torch.ones(7)}, "b_dec is torch.float32 of shape"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path, name: str, more: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_sae(str(qwen(tmp_path / name, **more)))
