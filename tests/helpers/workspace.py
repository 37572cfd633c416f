"""A tiny workspace on disk: a llama that has learned its text a little, a real tokenizer, documents, and an SAE."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from saelora.cli import main

D_MODEL, N_LAYERS, D_SAE, K, CONTEXT = 32, 4, 64, 8, 32
HOOKPOINT = "layers.1.resid_post"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
COMMON = {"context": CONTEXT, "validation_fraction": 0.2, "eval_tokens": 12 * CONTEXT, "batch_rows": 2, "device": "cpu"}
# lr is far above what a real model wants: a few dozen steps on a tiny one must show
ADAPT = {**COMMON, "tokens": 60 * CONTEXT, "rank": 4, "lr": 1e-2, "history_points": 2, "history_tokens": 4 * CONTEXT}


@dataclass(frozen=True)
class Workspace:
    """Paths of the parts; commands run on them in this process."""

    root: Path
    model: Path
    data: Path
    sae: Path

    def adapt(self, out: Path | str, *flags: str, **options: Any) -> int:
        """Exit code of ``saelora adapt`` with small settings; None leaves an option out."""
        given = {"sae": self.sae, "data": self.data, "out": out, **ADAPT, **options}
        return main(["adapt", str(self.model), *as_flags(given), *flags])

    def train_sae(self, out: Path | str, *flags: str, **options: Any) -> int:
        return main(["train-sae", *self.train_sae_flags(out, **options), *flags])

    def train_sae_flags(self, out: Path | str, **options: Any) -> list[str]:
        own = {"hookpoint": "layers.1.resid_post", "tokens": 120 * CONTEXT, "d_sae": D_SAE, "k": K, "batch_tokens": 64}
        given = {"data": self.data, "out": out, **COMMON, **own, **options}
        return [str(self.model), *as_flags(given)]


def as_flags(options: dict[str, Any]) -> list[str]:
    """Keyword options as they are written on a command line; a list repeats its flag."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                words += ["--" + name.replace("_", "-"), str(item)]
    return words


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr was told, which is the one line of a refusal."""
    said = capsys.readouterr().err
    assert said.startswith("saelora: ")
    assert said.count("\n") == 1
    return said


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_workspace(root: Path) -> Workspace:
    texts = _texts()
    data = root / "text"
    data.mkdir(parents=True)
    for i, text in enumerate(texts[:30]):
        (data / f"{i:02d}.txt").write_text(text)
    (data / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[30:]))
    tokenizer = _tokenizer(texts)
    model = _model(tokenizer, texts)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return Workspace(root, root / "model", data, write_sae(root / "sae", layer=1))


def write_sae(folder: Path, *, layer: int, d_in: int = D_MODEL, seed: int = 0) -> Path:
    """A TopK SAE in SAELens's format, its decoder the transpose of its encoder."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, d_in, generator=draw), dim=1)
    return save_sae(folder, directions.T, directions, K, layer)


def perfect_sae(folder: Path, *, layer: int) -> Path:
    """An SAE that gives back its input exactly: one latent for each sign of each dimension."""
    signs = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    return save_sae(folder, signs.T, signs, len(signs), layer)


def save_sae(folder: Path, encoder: torch.Tensor, decoder: torch.Tensor, k: int, layer: int) -> Path:
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post", model_name="tiny")
    sae = TopKSAE(TopKSAEConfig(d_in=decoder.shape[1], d_sae=decoder.shape[0], k=k, metadata=metadata))
    with torch.no_grad():
        sae.W_enc.copy_(encoder)
        sae.W_dec.copy_(decoder)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    sae.save_model(folder)
    return folder


def write_transcoder(folder: Path, *, layer: int, reads: str = "mlp.hook_in", d_in: int = D_MODEL) -> Path:
    """A skip transcoder in SAELens's format with small random weights."""
    from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

    cfg = SkipTranscoderConfig(d_in=d_in, d_sae=D_SAE, d_out=d_in, apply_b_dec_to_input=False)
    cfg.metadata.hook_name, cfg.metadata.hook_name_out = f"blocks.{layer}.{reads}", f"blocks.{layer}.hook_mlp_out"
    cfg.metadata.model_name = "tiny"
    transcoder, draw = SkipTranscoder(cfg), torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
        transcoder.b_enc -= 1.3  # some latents fire in some texts only
    transcoder.save_model(folder)
    return folder


def recipe_of(workspace: Workspace, **changed: Any) -> dict[str, Any]:
    sae = {"hookpoint": [HOOKPOINT], "d_sae": 64, "k": 8, "batch_rows": 8, "batch_tokens": 64}
    return {
        "title": "tiny",
        "base": {
            "model": str(workspace.model), "data": str(workspace.data), "context": CONTEXT, "device": "cpu",
            "validation_fraction": 0.2, "eval_tokens": 8 * CONTEXT, "batch_rows": 2,
        },
        "seeds": [0],
        "evaluations": 2,
        "tune": {"tokens": 4 * CONTEXT, "eval_tokens": 4 * CONTEXT},
        "saes": {
            "local": {**sae, "tokens": 32 * CONTEXT, "checkpoints": [0.5, 1.0]},
            "e2e": {**sae, "objective": "e2e", "tokens": 16 * CONTEXT, "lr": [1e-3, 1e-2]},
        },
        "methods": {
            "lora": {"from": "local", "rank": 4, "tokens": 12 * CONTEXT, "lr": [1e-6, 1e-2]},
            "lora-all": {"from": "local@1.0", "rank": 4, "placement": "all", "tokens": 8 * CONTEXT},
            "linear": {"method": "linear", "from": "local@1.0", "rank": 4, "tokens": 8 * CONTEXT},
            "both": {"method": "lora+sae", "from": "local@1.0", "rank": 4, "tokens": 8 * CONTEXT},
            "finetune": {"method": "finetune-sae", "from": str(workspace.sae), "tokens": 8 * CONTEXT},
        },
        **changed,
    }  # fmt: skip


def short_tasks(folder: Path) -> Path:
    """The tasks of examples/ with passages that fit the tiny model's 64 positions."""
    shutil.copytree(Path(__file__).parents[2] / "examples" / "tasks", folder)
    rows = [json.loads(line) for line in (folder / "sotu.jsonl").read_text().splitlines()][:5]
    for row in rows:
        row["passage"] = " ".join(row["passage"].split()[:3])
        row["choices"] = [" ".join(choice.split()[:3]) for choice in row["choices"]]
    (folder / "sotu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _texts() -> list[str]:
    """40 documents of made-up words; each word is followed by one of three others, so there is something to learn."""
    draw = random.Random(0)
    syllables = [c + v for c in "bdfglmnprst" for v in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(120)]
    after = {word: draw.choices(words, k=3) for word in words}
    texts = []
    for i in range(40):
        word, said = draw.choice(words), []
        for _ in range(200 + 5 * i):
            said.append(word)
            word = draw.choice(after[word])
        texts.append(" ".join(said) + ".")
    return texts


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _model(tokenizer: Any, texts: list[str]) -> Any:
    """A llama, trained for a moment: a splice that costs nothing, or less, would leave nothing to win back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    ids = torch.tensor(tokenizer(" ".join(texts))["input_ids"])
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        batch = rows[torch.arange(step * 16, step * 16 + 16) % len(rows)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
