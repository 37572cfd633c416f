"""The whole method in one file: run a language model through a frozen SAE, and train a small adapter around it.

    python examples/nano.py MODEL SAE TEXT.txt        (a Hugging Face model; a folder with a TopK SAE of SAELens's)

An SAE's reconstruction in place of a model's activation costs cross entropy, since what the SAE misses is missing
above. The layers above are adapted (LoRA) until the model predicts, through the SAE, what the original predicted
without it (arXiv 2501.19406). Model and SAE stay as they are. This needs torch, transformers and peft alone, runs on a
CPU, and computes what `saelora adapt` computes, step by step (tests/jobs/test_nano.py).

Shapes: B rows, S tokens of a row, V vocabulary.
"""

import argparse
import json
import math
import re
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer


class TopKSAE:
    """latents = TopK((x - b_dec) W_enc + b_enc); reconstruction = latents W_dec + b_dec."""

    def __init__(self, folder: Path):
        cfg = json.loads((folder / "cfg.json").read_text())
        odd = cfg.get("rescale_acts_by_decoder_norm") or cfg.get("normalize_activations", "none") != "none"
        hook = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", (cfg.get("metadata") or cfg)["hook_name"])
        if cfg["architecture"] != "topk" or odd or hook is None:
            raise SystemExit(f"{folder} is no plain TopK SAE at resid_post: saelora runs the others")
        self.k, self.layer, self.centred = cfg["k"], int(hook[1]), cfg["apply_b_dec_to_input"]
        self.w = {name: t.float() for name, t in load_file(folder / "sae_weights.safetensors").items()}

    def __call__(self, x: Tensor) -> Tensor:
        shifted = x - self.w["b_dec"] if self.centred else x
        values, indices = (shifted @ self.w["W_enc"] + self.w["b_enc"]).topk(self.k, dim=-1)
        latents = torch.zeros(*x.shape[:-1], len(self.w["W_dec"])).scatter_(-1, indices, values.relu())
        return latents @ self.w["W_dec"] + self.w["b_dec"]


class Splice:
    """A hook on one layer's output. While `on`, the SAE's reconstruction stands there wherever `mask` is True."""

    def __init__(self, model: nn.Module, sae: TopKSAE, exempt_ids: list[int]):
        self.sae, self.exempt, self.on, self.mask = sae, torch.tensor(exempt_ids, dtype=torch.long), False, None
        model.get_decoder().layers[sae.layer].register_forward_hook(self.hook)

    def token_mask(self, ids_BS: Tensor) -> Tensor:
        """Which positions the SAE replaces. BOS, EOS and padding it leaves alone, and the first position of a row,
        whatever stands there: an attention sink, whose norm, hundreds of times any other's, would drown the figures."""
        mask_BS = ~torch.isin(ids_BS, self.exempt)
        mask_BS[:, 0] = False
        return mask_BS

    def hook(self, layer: nn.Module, args: tuple, x: Tensor) -> Tensor:
        return torch.where(self.mask[..., None], self.sae(x), x) if self.on else x

    def logprobs(self, model: nn.Module, ids_BS: Tensor, *, sae: bool, adapter: bool) -> Tensor:
        """Log probabilities [B, S, V] of one of the four models: with or without the SAE, with or without the adapter.
        One set of weights is all four: that the original is still inside is what makes it its own teacher."""
        self.on, self.mask = sae, self.token_mask(ids_BS)
        with nullcontext() if adapter else model.disable_adapter():
            return model(input_ids=ids_BS, use_cache=False).logits.float().log_softmax(-1)


def pack(documents: list[str], tokenizer, context: int) -> Tensor:
    """Rows of token ids [n, context]: documents end to end, EOS after each, and BOS before every row, since models meet
    it there in training. No row is padded: none needs an attention mask."""
    bos, eos = ([] if i is None else [i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    stream = [i for ids in tokenizer(documents, add_special_tokens=False)["input_ids"] for i in [*ids, *eos]]
    body = context - len(bos)
    return torch.tensor([bos + stream[i : i + body] for i in range(0, len(stream) - body + 1, body)])


def add_adapter(model: nn.Module, sae: TopKSAE, rank: int, seed: int) -> nn.Module:
    """LoRA on every linear map of the layers above the SAE: what lies below cannot see it, and the SAE's latents mean
    what they meant. It starts as zero (B = 0), so that training starts from the spliced model; scaling 1."""
    layers = model.get_decoder().layers
    linears = sorted({n.rsplit(".", 1)[-1] for n, m in layers[0].named_modules() if isinstance(m, nn.Linear)})
    above = list(range(sae.layer + 1, len(layers)))
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=linears, layers_to_transform=above))


def train(model: nn.Module, splice: Splice, rows: Tensor, *, batch_rows: int, lr: float, warmup=0.02, clip=1.0):
    """Yield the loss of each step: KL(original || spliced + adapted), nats per token, over the whole vocabulary and all
    tokens of the rows. In this direction the original's probabilities weigh the log ratio: the student must cover what
    the original holds possible, and learns from all of its prediction, not from the one token that came."""
    weights = [p for p in model.parameters() if p.requires_grad]  # of the adapter: PEFT froze the rest
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.0)
    model.eval()  # a student with dropout would chase a teacher without
    for first in range(0, len(rows), batch_rows):
        batch = rows[first : first + batch_rows]
        with torch.no_grad():
            teacher = splice.logprobs(model, batch, sae=False, adapter=False)
        student = splice.logprobs(model, batch, sae=True, adapter=True)
        loss = (teacher.exp() * (teacher - student)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, clip)
        done, share = first / len(rows), len(batch) / len(rows)  # of the run: before this step, in it
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (done + share) / warmup) * (1 - done - share / 2)  # linear to 0
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def evaluate(model: nn.Module, splice: Splice, rows: Tensor) -> dict[str, float]:
    """Cross entropies on held-out rows, nats per counted prediction. A prediction of the next token counts where the
    SAE replaces the position that it is made from: elsewhere the SAE costs nothing, and would only dilute the gap."""
    models = {"base": (False, False), "sae": (True, False), "adapted": (True, True), "adapted_clean": (False, True)}
    total, n = dict.fromkeys(models, 0.0), 0
    for ids_BS in rows.split(2):
        n += int((counts := splice.token_mask(ids_BS)[:, :-1]).sum())
        for name, (sae, adapter) in models.items():
            logp = splice.logprobs(model, ids_BS, sae=sae, adapter=adapter)[:, :-1]
            ce = -logp.gather(-1, ids_BS[:, 1:, None])[..., 0]
            total[name] += ce[counts].double().sum().item()  # sums over one global count: no mean of means
    found = {f"ce_{name}": value / n for name, value in total.items()}
    gap = found["ce_sae"] - found["ce_base"]  # what the splice costs; without a gap there is no share of it to close
    return found | {"gap_closed": (found["ce_sae"] - found["ce_adapted"]) / gap if gap > 0 else math.nan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model"), parser.add_argument("sae", type=Path), parser.add_argument("text", type=Path)
    for name, default in (("tokens", 25_000), ("context", 256), ("batch-rows", 1), ("rank", 64), ("lr", 1.5e-3)):
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model, sae = AutoModelForCausalLM.from_pretrained(args.model).float(), TopKSAE(args.sae)
    exempt = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    documents = [text for text in args.text.read_text().split("\n\n") if text.strip()]
    n = len(documents) * 19 // 20  # whole documents are held out, so that no row is half known
    rows, held_out = (pack(part, tokenizer, args.context) for part in (documents[:n], documents[n:]))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][: args.tokens // args.context]
    splice, model = Splice(model, sae, exempt), add_adapter(model, sae, args.rank, seed=0)
    for loss in train(model, splice, rows, batch_rows=args.batch_rows, lr=args.lr):
        print(f"KL {loss:.4f} nats per token", flush=True)
    print(json.dumps(evaluate(model, splice, held_out[:40]), indent=1))
    model.save_pretrained("nano-adapter")


if __name__ == "__main__":
    main()
