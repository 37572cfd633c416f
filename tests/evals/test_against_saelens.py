"""The numbers are SAELens's: ``sae_lens.evals.run_evals`` on the same model, SAE, rows and token policy.

SAELens runs on a TransformerBridge around a copy of the same weights, so hook names, masks and sums are all its own.
Two of its conventions are its own too: its KL takes in each row's last position, which predicts nothing, and its zero
ablation zeroes exempt positions as well, where ours spares them.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from families import BOS, EOS, PAD, VOCAB
from model_text import written_by
from saelora.core.splice import TokenMask, TokenPolicy
from saelora.evals.loss import evaluate_loss
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint

N_ROWS, CONTEXT, BATCH = 6, 12, 2
REPLACE_ALL = TokenMask(exempt_padding=False)
CLOSE: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5}


@dataclass(frozen=True)
class Case:
    """One model, SAE and set of rows, as both projects see them."""

    model: nn.Module
    bridge: Any
    tokenizer: Any
    hookpoint: Hookpoint
    sae: Any
    rows: Tensor

    def saelens(self, exclude: Any, context: int = CONTEXT) -> dict[str, float]:
        """What run_evals finds on the first ``context`` tokens of the rows, its groups of metrics merged."""
        from datasets import Dataset
        from sae_lens.evals import get_eval_everything_config, run_evals
        from sae_lens.training.activation_scaler import ActivationScaler
        from sae_lens.training.activations_store import ActivationsStore

        store = ActivationsStore.from_sae(
            self.bridge,
            self.sae,
            Dataset.from_dict({"tokens": self.rows[:, :context].tolist()}),
            context_size=context,
            store_batch_size_prompts=BATCH,
            total_tokens=1,
        )
        n_batches = N_ROWS // BATCH
        found, features = run_evals(
            self.sae,
            store,
            self.bridge,
            ActivationScaler(),
            get_eval_everything_config(BATCH, n_batches, n_batches),
            exclude_special_tokens=exclude,
        )
        dead = [density == 0 for density in features["feature_density"]]
        merged = {name: value for group in found.values() for name, value in group.items()}
        return {**merged, "dead_frac": sum(dead) / len(dead)}

    def saelora(self, token_mask: TokenMask) -> dict[str, Any]:
        found = evaluate_loss(self.model, {self.hookpoint: self.sae}, token_mask, self.rows)
        return {**found, **found["saes"][str(self.hookpoint)]}


def _template() -> Tensor:
    """BOS first, EOS and BOS inside some rows, so that policies differ in every sum."""
    rows = torch.full((N_ROWS, CONTEXT), 3)
    rows[:, 0] = BOS
    for row, column in ((0, 4), (2, 2), (2, 7), (5, 9)):
        rows[row, column : column + 2] = torch.tensor([EOS, BOS])
    return rows


def _tokenizer(folder: Path) -> Any:
    """One token a word, loaded from a folder: the bridge loads it again from there."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _sae(hookpoint: Hookpoint, d_in: int, topk: bool) -> Any:
    """SAELens's own class with random weights, three of its 48 latents dead."""
    from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        hook_name=hookpoint.tl_name, hook_head_index=None, context_size=CONTEXT, prepend_bos=False, model_name="tiny"
    )
    reshape = "hook_z" if hookpoint.site == "attn_z" else "none"
    common: dict[str, Any] = {"d_in": d_in, "d_sae": 48, "metadata": metadata, "reshape_activations": reshape}
    sae: Any = TopKSAE(TopKSAEConfig(**common, k=6)) if topk else StandardSAE(StandardSAEConfig(**common))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        sae.b_enc[:3] = -1e4
    return sae.eval().requires_grad_(False)


@pytest.fixture(
    scope="module",
    params=[
        ("llama", Hookpoint(1), False),
        ("llama", Hookpoint(2, "attn_z"), False),
        ("gpt2", Hookpoint(2, "mlp_out"), True),
    ],
    ids=["llama-resid_post-standard", "llama-attn_z-standard", "gpt2-mlp_out-topk"],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    from transformer_lens.model_bridge import TransformerBridge

    family, hookpoint, topk = request.param
    model = copy.deepcopy(families.tiny(family)).float()
    tokenizer = _tokenizer(tmp_path_factory.mktemp("tokenizer"))
    bridge = TransformerBridge.boot_transformers(
        family, hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    sae = _sae(hookpoint, anatomy_of(model).width(hookpoint), topk)
    if hookpoint.site == "attn_z":
        sae.turn_off_forward_pass_hook_z_reshaping()  # both evaluators hand it merged heads
    return Case(model, bridge, tokenizer, hookpoint, sae, written_by(model, _template()))


def _check_common(ours: dict[str, Any], theirs: dict[str, float], kl: dict[str, float]) -> None:
    assert ours["ce_base"] == pytest.approx(theirs["ce_loss_without_sae"], **CLOSE)
    assert ours["ce_sae"] == pytest.approx(theirs["ce_loss_with_sae"], **CLOSE)
    assert ours["kl_sae"] == pytest.approx(kl["kl_div_with_sae"], **CLOSE)
    assert 1 - ours["fvu"] == pytest.approx(theirs["explained_variance"], **CLOSE)
    assert ours["l0"] == pytest.approx(theirs["l0"], **CLOSE)
    assert ours["dead_frac"] == pytest.approx(theirs["dead_frac"])
    assert ours["dead_frac"] > 0
    assert ours["kl_sae"] > 0.05  # this SAE does something


def test_every_position_spliced_gives_saelens_numbers(case):
    """exclude_special_tokens=False: all of it agrees, zero ablation and its scores included."""
    ours, theirs = case.saelora(REPLACE_ALL), case.saelens(False)
    kl = case.saelens(False, CONTEXT - 1)  # without the last positions, which predict nothing
    _check_common(ours, theirs, kl)
    assert ours["n_tokens_evaluated"] == N_ROWS * (CONTEXT - 1)
    assert ours["ce_zero"] == pytest.approx(theirs["ce_loss_with_ablation"], **CLOSE)
    assert ours["kl_zero"] == pytest.approx(kl["kl_div_with_ablation"], **CLOSE)
    assert ours["ce_zero"] > ours["ce_base"]
    assert ours["loss_recovered_sae"] == pytest.approx(theirs["ce_loss_score"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("exclude", [[BOS, EOS], True], ids=["bos and eos by id", "special tokens of the tokenizer"])
# SPEC 4.6
def test_special_tokens_spared_gives_saelens_numbers(case, exclude):
    """Exempt positions bypass the SAE and leave every mean; zero ablation is compared only where all is replaced."""
    token_mask = TokenMask((BOS, EOS)) if exclude is not True else TokenPolicy().resolve(case.tokenizer)
    ours, theirs = case.saelora(token_mask), case.saelens(exclude)
    kl = case.saelens(exclude, CONTEXT - 1)
    _check_common(ours, theirs, kl)
    everywhere = case.saelora(REPLACE_ALL)
    assert abs(ours["ce_sae"] - everywhere["ce_sae"]) > 1e-4  # the policy matters here
    assert abs(ours["fvu"] - everywhere["fvu"]) > 1e-4


# SPEC 4.6
def test_zero_ablation_that_spares_special_tokens_differs_from_saelens_unmasked_one(case):
    """The documented difference: comparing loss_recovered across the two needs a policy without exemptions."""
    ours, theirs = case.saelora(TokenMask((BOS, EOS))), case.saelens([BOS, EOS])
    assert abs(ours["ce_zero"] - theirs["ce_loss_with_ablation"]) > 3e-4
