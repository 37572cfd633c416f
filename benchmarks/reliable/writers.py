"""Good SAE folders of every format, and a good GGUF file, for the inputs to be spoilt."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def sae_folders(root: Path, d_in: int, d_sae: int, k: int) -> None:
    """One SAE in SAELens's, Gemma Scope's, Llama Scope's, sparsify's and dictionary_learning's format each."""
    import sae_files as write

    draw = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=draw), dim=1)
    weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": torch.zeros(d_sae)}
    weights |= {"b_dec": torch.zeros(d_in), "threshold": torch.full((d_sae,), 0.1)}
    write.write_saelens(root / "saelens", weights, d_in=d_in, d_sae=d_sae)
    write.write_gemma_scope(root / "gemma_scope", weights)
    write.write_llama_scope(root / "llama_scope", weights, d_model=d_in, d_sae=d_sae)
    shape = {"activation_dim": d_in, "dict_size": d_sae, "k": k}
    state = {**write.linear_names(weights, "b_dec"), "threshold": torch.tensor(0.1), "k": torch.tensor(k)}
    write.write_dictionary_learning(root / "dictionary_learning", "AutoEncoderTopK", state, **shape)
    folder = root / "layers.1"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({"d_in": d_in, "num_latents": d_sae, "k": k, "activation": "topk"}))
    names = {"encoder.weight": decoder, "encoder.bias": weights["b_enc"], "W_dec": decoder, "b_dec": weights["b_dec"]}
    save_file({name: tensor.clone() for name, tensor in names.items()}, folder / "sae.safetensors")


def model_gguf(path: Path) -> None:
    """A llama of two layers as llama.cpp would write it."""
    from small_gguf import save_gguf

    save_gguf(path)
