"""A run as one object: what it generates is what transformers generates under hooks written down by hand."""

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saelora
import workspace as ws
from saelora.core.lora import disabled
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.use.run import LoadedRun
from saelora.use.steering import Add, Clamp, Scale
from tiny_saes import hooks_in

PROMPT, OTHER = "bada lume", "re"
WHERE = parse_hookpoint(ws.HOOKPOINT)
VARIANTS = {
    "original": (False, False),
    "spliced": (True, False),
    "adapted": (True, True),
    "adapted_clean": (False, True),
}


@contextmanager
def by_hand(run: LoadedRun, variant: str, edits: dict[int, Any] | None = None) -> Iterator[None]:
    """Hooks on the layer, which know a position by counting: BOS is never replaced, padding does not matter."""
    with_sae, with_adapter = VARIANTS[variant]
    sae: Any = run.saes[WHERE]

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        latents = sae.encode(x)
        edited = latents.clone()
        for latent, change in (edits or {}).items():
            edited[..., latent] = change(edited[..., latent])
        if with_sae:
            new = sae.decode(edited)
        else:
            new = x + (edited - latents) @ sae.W_dec
        return (
            (torch.where(state["mask"].unsqueeze(-1), new, x), *output[1:])
            if not isinstance(output, Tensor)
            else (torch.where(state["mask"].unsqueeze(-1), new, x))
        )

    state: dict[str, Tensor] = {}
    special = torch.tensor([run.tokenizer.bos_token_id, run.tokenizer.eos_token_id, run.tokenizer.pad_token_id])

    def ids(_module: Any, args: Any, kwargs: Any) -> None:
        state["mask"] = ~torch.isin(kwargs["input_ids"], special)

    anatomy = anatomy_of(run.model)
    handles = [anatomy.body.register_forward_pre_hook(ids, with_kwargs=True)]
    if with_sae or edits:
        handles.append(anatomy.layers[WHERE.layer].register_forward_hook(hook))
    with ExitStack() as stack:
        if not with_adapter:
            stack.enter_context(disabled(run.model))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def written(run: LoadedRun, variant: str, ids: list[int], edits: Any = None, cached: bool = True, n: int = 8) -> str:
    with by_hand(run, variant, edits):
        given = torch.tensor([ids])
        made = run.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=n, do_sample=False, use_cache=cached
        )
    return str(run.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


def ids_of(run: LoadedRun, text: str) -> list[int]:
    return [run.tokenizer.bos_token_id, *run.tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_is_transformers_own_under_hooks_by_hand(run, variant) -> None:
    expected = [written(run, variant, ids_of(run, text)) for text in (PROMPT, OTHER)]
    with run.as_variant(variant):
        assert [run.generate(text, max_new_tokens=8) for text in (PROMPT, OTHER)] == expected
        assert run.generate([PROMPT, OTHER], max_new_tokens=8) == expected  # padded on the left
        assert run.generate([PROMPT], max_new_tokens=8, use_cache=False) == expected[:1]
        assert "".join(run.stream(PROMPT, max_new_tokens=8)) == expected[0]


def test_variants_differ(run) -> None:
    found = {}
    for name in VARIANTS:
        with run.as_variant(name):
            found[name] = run.logits(PROMPT)
    names = list(VARIANTS)
    for i, one in enumerate(names):
        assert all((found[one] - found[other]).abs().max() > 1e-3 for other in names[i + 1 :])
    assert torch.equal(run.logits(PROMPT), found["adapted"])  # what holds outside all contexts


STEERED = {5: Add(2.0), 11: Scale(3.0), 23: Clamp(0.0), 40: Add(-1.5)}
SAME = {5: "+2", "11": "x3", 23: 0, (ws.HOOKPOINT, 40): "-1.5"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_several_steered_latents_equal_a_hook_by_hand_at_each_decoded_token(run, variant) -> None:
    ids = torch.tensor([ids_of(run, PROMPT)])
    with by_hand(run, variant, STEERED), torch.no_grad():
        expected = run.model(input_ids=ids).logits
    text = written(run, variant, ids[0].tolist(), STEERED)
    uncached = written(run, variant, ids[0].tolist(), STEERED, cached=False)
    with run.as_variant(variant):
        plain = run.logits(ids)
        for given in (STEERED, SAME):
            with run.steer(given):
                torch.testing.assert_close(run.logits(ids), expected, rtol=1e-4, atol=1e-4)
                assert run.generate(PROMPT, max_new_tokens=8) == text == uncached
                assert run.generate([OTHER, PROMPT], max_new_tokens=8)[1] == text
        assert (plain - expected).abs().max() > 1e-2
        assert torch.equal(run.logits(ids), plain)


def test_nested_steering_acts_on_what_the_outer_one_left(run) -> None:
    with run.steer({5: "+2"}), run.steer({5: "x3"}):
        nested = run.logits(PROMPT)
    edits = {5: lambda a: 3 * (a + 2)}
    with by_hand(run, "adapted", edits), torch.no_grad():
        expected = run.model(input_ids=torch.tensor([ids_of(run, PROMPT)])).logits
    torch.testing.assert_close(nested, expected, rtol=1e-4, atol=1e-4)


def test_latents_are_the_saes_own(run) -> None:
    ids = torch.tensor([ids_of(run, PROMPT)])
    with by_hand(run, "original"), torch.no_grad():
        x = run.model(input_ids=ids, output_hidden_states=True).hidden_states[WHERE.layer + 1]
    dense = run.saes[WHERE].encode(x)[0]
    for name in ("original", "spliced"):  # the SAE sees the clean stream in both
        with run.as_variant(name):
            before = run.logits(ids)
            found = run.latents(PROMPT)
            assert torch.equal(run.logits(ids), before)
        assert found.variant == name
        assert [each.token_id for each in found] == ids[0].tolist()
        assert [each.replaced for each in found] == [False, *[True] * (len(found) - 1)]
        assert found.at(ws.HOOKPOINT)[0].active == ()
        for each in found.at(WHERE)[1:]:
            row = dense[each.index]
            assert {f.latent for f in each.active} == set(row.nonzero().flatten().tolist())
            values = [f.activation for f in each.active]
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx([float(row[f.latent]) for f in each.active], rel=1e-4)
    with run.steer({3: 0.25}):
        assert all(0.25 in [f.activation for f in each.active] for each in list(run.latents(PROMPT))[1:])


def state_of(run: LoadedRun) -> Any:
    layers = [
        (m._disable_adapters, list(m._active_adapter)) for m in run.model.modules() if hasattr(m, "_active_adapter")
    ]
    modes = [m.training for m in run.model.modules()]
    return hooks_in(run.model), layers, modes, run.variant, {n: p.clone() for n, p in run.model.named_parameters()}


def same(one: Any, other: Any) -> bool:
    return one[:4] == other[:4] and all(torch.equal(p, other[4][n]) for n, p in one[4].items())


def test_nested_variants_restore_and_errors_leave_the_model_as_it_was(run) -> None:
    before, expected = state_of(run), run.logits(PROMPT)
    with run.original():
        clean = run.logits(PROMPT)
        with run.adapted(), run.steer({1: "+3"}):
            assert not torch.allclose(run.logits(PROMPT), expected)
            with run.adapted_clean():
                assert run.variant == "adapted_clean"
        with run.adapted():
            assert torch.equal(run.logits(PROMPT), expected)
        assert torch.equal(run.logits(PROMPT), clean)
    with pytest.raises(KeyError), run.spliced(), run.steer({1: "+3"}):
        raise KeyError
    with pytest.raises(InputError), run.spliced():
        run.generate(PROMPT, no_such_option=3)
    assert same(state_of(run), before)
    assert torch.equal(run.logits(PROMPT), expected)


def test_a_stream_that_is_left_ends_and_leaves_the_model_as_it_was(run) -> None:
    before = state_of(run)
    stream = run.stream(PROMPT, max_new_tokens=40)
    next(stream)
    with pytest.raises(InputError, match="stream of this model is still open"):
        run.logits(PROMPT)
    stream.close()
    assert same(state_of(run), before)
    with run.original():
        left = run.stream(PROMPT, max_new_tokens=40)
        next(left)
    assert same(state_of(run), before)
    assert run.generate(PROMPT, max_new_tokens=2)


def test_the_model_called_directly_is_the_variant_whose_context_is_open(run) -> None:
    ids = torch.tensor([ids_of(run, PROMPT)])
    with torch.no_grad():
        with run.spliced():
            assert torch.equal(run.model(input_ids=ids).logits, run.logits(ids))
        with run.adapted_clean():
            clean = run.logits(ids)
        assert torch.equal(run.model(input_ids=ids).logits, clean)  # outside all: the adapter, no hooks


def test_several_prompts_sequences_and_transformers_own_options(run) -> None:
    assert isinstance(run.generate([PROMPT], max_new_tokens=2), list)
    assert len(run.generate(PROMPT, max_new_tokens=2, num_beams=2, num_return_sequences=2)) == 2
    raw = run.generate(PROMPT, max_new_tokens=2, return_dict_in_generate=True, output_scores=True)
    assert len(raw.scores) <= 2
    torch.manual_seed(3)
    one = run.generate(PROMPT, max_new_tokens=12, temperature=5.0)
    torch.manual_seed(3)
    assert one == run.generate(PROMPT, max_new_tokens=12, temperature=5.0, do_sample=True)
    assert one != run.generate(PROMPT, max_new_tokens=12)


BAD = {
    "empty": (lambda m: m.generate(""), "the prompt is empty"),
    "no prompts": (lambda m: m.generate([]), "the prompt is list"),
    "chat without template": (lambda m: m.generate([{"role": "user", "content": "x"}]), "has no chat template"),
    "token id": (lambda m: m.logits([1, 99_999]), "token id 99999 is not one of the model's"),
    "latent": (lambda m: m.steer({64: "+1"}), "latent 64 is not there: .* has latents 0 to 63"),
    "edit": (lambda m: m.steer({1: "loud"}), "steering of latent 1 is 'loud', expected [+]4 or -4"),
    "negative number": (lambda m: m.steer({1: -2}), r"say '-2' \(text\) or Add\(-2\)"),
    "infinite": (lambda m: m.steer({1: Add(float("inf"))}), "steering of latent 1"),
    "hookpoint": (lambda m: m.steer({"layers.2.resid_post:1": 0}), "there is no SAE at layers.2.resid_post"),
    "variant": (lambda m: m.as_variant("zero"), "no variant 'zero': expected one of original"),
    "twice": (lambda m: m.steer({1: 0, "1": 1}), "latent 1 is steered twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(run, name) -> None:
    call, said = BAD[name]
    with pytest.raises(InputError, match=said) as caught:
        call(run)
    assert "\n" not in str(caught.value)


def test_chat_messages_go_through_the_tokenizers_template(run) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }} {% endfor %}"
    own = copy.copy(run)
    own.tokenizer = copy.deepcopy(run.tokenizer)
    own.tokenizer.chat_template = template
    said = [{"role": "user", "content": "bada"}]
    assert own.generate(said, max_new_tokens=4) == run.generate("<s>user: bada ", max_new_tokens=4)
    assert own.generate([said, said], max_new_tokens=4) == 2 * [own.generate(said, max_new_tokens=4)]


def test_it_shows_itself_with_everything_escaped(run) -> None:
    assert "[adapted]" in repr(run)
    own = copy.copy(run)
    own.run = type(run.run)("<b>ref</b>", run.run.folder, run.run.manifest)
    assert "<b>ref" not in own._repr_html_()
    latents = run.latents("bada")
    html = type(latents)(latents.variant, ["<i>"] * len(latents), *list(vars(latents).values())[2:])._repr_html_()
    assert "<i>" not in html
    assert "&lt;i&gt;" in html


def test_what_is_no_run_is_refused(workspace, tmp_path: Path) -> None:
    for ref, said in (
        (tmp_path / "nowhere" / "at" / "all", "does not exist: expected the folder of a run"),
        (workspace.model, "is no run: expected a folder"),
        (workspace.sae, "is no run"),
        (workspace.data / "more.jsonl", "is a file"),
        ("", "no run given"),
    ):
        with pytest.raises(InputError, match=said):
            saelora.load(ref)


def test_weights_that_the_run_was_not_made_with_are_refused(run_folder, workspace, tmp_path: Path) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=1, seed=7)
    with pytest.raises(InputError, match="was made with SAE"):
        saelora.load(run_folder, sae=[str(other)])
    forced = saelora.load(run_folder, sae=[str(other)], other_weights=True)
    assert re.search("made with", " ".join(forced.about.other_weights))
    assert forced.hookpoints == (Hookpoint(1),)


def test_a_run_of_train_sae_is_loaded_in_its_model_without_adapter(workspace, tmp_path: Path) -> None:
    assert workspace.train_sae(tmp_path / "trained", "--quiet") == 0
    loaded = saelora.load(tmp_path / "trained")
    assert loaded.variants == ("original", "spliced")
    assert (loaded.variant, loaded.hookpoints) == ("spliced", (Hookpoint(1),))
    spliced = loaded.logits(PROMPT)
    with loaded.original():
        assert (loaded.logits(PROMPT) - spliced).abs().max() > 1e-3
    with pytest.raises(InputError, match="has no variant 'adapted': expected one of original, spliced"):
        loaded.adapted()
    assert loaded.report().name == "README.md"


def test_a_stream_that_nobody_reads_any_more_ends(run: LoadedRun) -> None:
    before = hooks_in(run.model)
    for _ in run.stream(PROMPT, max_new_tokens=30):
        break
    assert hooks_in(run.model) == before
    assert run.generate(PROMPT, max_new_tokens=2)


def test_prompts_of_several_lengths_have_the_logits_that_each_has_alone(run: LoadedRun) -> None:
    """Of a model that learnt its positions, where padding that counts would show."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=run.model.config.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    other = copy.copy(run)
    other.model = GPT2LMHeadModel(config).eval()
    other._adapter = None
    with other.original():
        together = other.logits([PROMPT, OTHER])
        for row, prompt in zip(together, (PROMPT, OTHER), strict=True):
            alone = other.logits(prompt)[0]
            torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="attention_mask belongs to ids"):
        run.logits(PROMPT, attention_mask=torch.ones(1, 2))


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_saes_that_scale_their_input_are_steered_where_they_are_not_spliced_in(run: LoadedRun, kind: str) -> None:
    """Two reconstructions of one input, of SAEs whose scale a decoding uses up."""
    sae: Any = copy.deepcopy(run.saes[WHERE])
    sae = getattr(sae, "sae", sae)
    sae.cfg.normalize_activations = kind
    other = copy.copy(run)
    other._given, other._tuned = {WHERE: sae}, {}
    with other.original():
        plain = other.logits(PROMPT)
        with other.steer({3: "+0"}):
            torch.testing.assert_close(other.logits(PROMPT), plain)
        with other.steer({3: "+9"}):
            assert not torch.allclose(other.logits(PROMPT), plain)
        assert other.latents(PROMPT).at()


def test_a_model_that_learnt_its_positions_is_asked_for_no_more(run: LoadedRun) -> None:
    """There is nothing to look up beyond them: on a GPU that would be the end of the process."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(
        vocab_size=run.model.config.vocab_size, n_positions=16, n_embd=16, n_layer=1, n_head=2, **special
    )
    other = copy.copy(run)
    other.model = GPT2LMHeadModel(config).eval()
    other._adapter = None
    ids = list(range(5, 15))
    never = {"suppress_tokens": [1]}  # no end before the last token
    with other.original():
        whole = other.generate(ids, max_new_tokens=7, return_dict_in_generate=True, **never)
        assert whole.sequences.shape[1] == 17  # the last one is not read
        assert other.generate(ids, return_dict_in_generate=True, **never).sequences.shape[1] == 17
        for asked in ({"max_new_tokens": 8}, {"max_length": 18}):
            for given in (asked, {"generation_config": GenerationConfig(**asked)}):
                with pytest.raises(InputError, match=r"10 tokens of prompt and 8 to generate are more .* 16 posit"):
                    other.generate(ids, **given)
        for call in (other.logits, other.latents, other.generate):
            with pytest.raises(InputError, match="17 tokens are more than the model's 16 positions"):
                call([5] * 17)
    assert run.logits([5] * 100).shape[1] == 100  # rotary positions are computed


def test_temperatures_and_texts_that_nothing_can_be_made_of_are_refused(run: LoadedRun) -> None:
    for call in (run.generate, lambda *given, **options: list(run.stream(*given, **options))):
        with pytest.raises(InputError, match="temperature is 1e-40, expected 1e-05 or more"):
            call(PROMPT, temperature=1e-40)
    assert run.generate(PROMPT, temperature=1e-5, max_new_tokens=3) == run.generate(PROMPT, max_new_tokens=3)
    for call in (run.generate, run.logits, run.latents, run.stream):
        with pytest.raises(InputError, match=r"the prompt has half a character at 2 \('\\ud800'\)"):
            call("ba\ud800")


def test_a_latent_of_several_saes_is_asked_for_in_words_that_work(several: LoadedRun) -> None:
    first = next(iter(several.saes))
    with pytest.raises(InputError, match=rf"latent 'layers.1.mlp_out/9' is no number: .* as in {first}:3"):
        several.steer({"layers.1.mlp_out/9": "+1"})
    with pytest.raises(InputError, match=rf"latent 9 could be of \d SAEs .* as in {first}:9"):
        several.steer({9: "+1"})
    several.steer({f"{first}:9": "+1"})


def test_several_hookpoints_are_steered_each_by_its_own_name(several: LoadedRun) -> None:
    """Against hooks by hand: three SAEs of one layer and one of the next, at its input, attention, MLP and output."""
    ids = torch.tensor([ids_of(several, PROMPT)])
    edits = {("layers.1.attn_z", 3): "+1", ("layers.1.mlp_out", 9): "+2", ("layers.2.resid_post", 5): "-1"}
    layer = anatomy_of(several.model).layers
    sites = {
        "layers.1.resid_pre": (layer[1], "input"),
        "layers.1.attn_z": (layer[1].self_attn.o_proj, "input"),
        "layers.1.mlp_out": (layer[1].mlp, "output"),
        "layers.2.resid_post": (layer[2], "output"),
    }
    mask = (ids != several.tokenizer.bos_token_id).unsqueeze(-1)

    def changed(name: str, x: Tensor) -> Tensor:
        sae: Any = several.saes[parse_hookpoint(name)]
        latents = sae.encode(x)
        for (where, latent), edit in edits.items():
            if where == name:
                latents[..., latent] += float(edit)
        return torch.where(mask, sae.decode(latents), x)

    handles = []
    for name, (module, side) in sites.items():
        if side == "input":
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, kwargs, name=name: (
                        ((changed(name, args[0]), *args[1:]), kwargs)
                        if args
                        else (args, {**kwargs, "hidden_states": changed(name, kwargs["hidden_states"])})
                    ),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda _module, _args, out, name=name: changed(name, out)))
    with torch.no_grad():
        expected = several.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    plain = several.logits(ids)
    with several.steer(edits):
        torch.testing.assert_close(several.logits(ids), expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2
    assert set(map(str, several.latents(PROMPT).hookpoints)) == sites.keys()
    with pytest.raises(InputError, match="latent 3"):
        several.steer({3: "+1"})  # of which SAE?


def test_transcoders_are_loaded_watched_and_steered(workspace: ws.Workspace, tmp_path: Path) -> None:
    """Against a hook by hand in the MLP's place."""
    saes = [ws.write_transcoder(tmp_path / f"layer-{i}", layer=i) for i in (1, 2)]
    out = tmp_path / "run"
    assert workspace.adapt(out, "--quiet", sae=saes, tokens=4 * ws.CONTEXT) == 0
    run = saelora.load(out)
    ids = torch.tensor([ids_of(run, PROMPT)])
    mask = (ids != run.tokenizer.bos_token_id).unsqueeze(-1)
    where = parse_hookpoint("layers.1.mlp_out")

    def in_its_place(hookpoint: Hookpoint, edit: float) -> Any:
        transcoder: Any = run.saes[hookpoint]

        def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
            latents = transcoder.encode(args[0])
            latents[..., 7] += edit
            made = transcoder.decode(latents) + transcoder.skip(args[0])
            return torch.where(mask, made, output)

        return hook

    layers = anatomy_of(run.model).layers
    handles = [layers[h.layer].mlp.register_forward_hook(in_its_place(h, 3.0 * (h == where))) for h in run.hookpoints]
    with torch.no_grad():
        expected = run.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    plain = run.logits(ids)
    with run.steer({(where, 7): "+3"}):
        torch.testing.assert_close(run.logits(ids), expected, rtol=1e-4, atol=1e-4)
        made = run.generate(PROMPT, max_new_tokens=6)
        assert made == run.generate(PROMPT, max_new_tokens=6, use_cache=False)
        assert all(7 in [each.latent for each in token.active] for token in run.latents(PROMPT).at(where)[1:])
    assert (plain - expected).abs().max() > 1e-2


def test_centred_saes_are_steered_on_activations_without_their_mean(run: LoadedRun) -> None:
    """In a model whose norms take the mean off, so that what becomes of it is nothing to its logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1}
    small = {"n_positions": 64, "n_embd": ws.D_MODEL, "n_layer": 3, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=run.model.config.vocab_size, **small, **special)).eval()
    with torch.no_grad():
        model.transformer.wte.weight.add_(0.3)  # a mean that an SAE would see
    sae: Any = copy.deepcopy(run.saes[WHERE])
    sae = getattr(sae, "sae", sae)
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    other = copy.copy(run)
    other.model, other._adapter, other._given, other._tuned = model, None, {WHERE: sae}, {}
    ids = torch.tensor([ids_of(run, PROMPT)])
    mask = (ids != run.tokenizer.bos_token_id).unsqueeze(-1)

    def expected(centred: bool) -> Tensor:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0]
            latents = sae.encode(x - x.mean(-1, keepdim=True) if centred else x)
            latents[..., 5] += 2
            made = torch.where(mask, sae.decode(latents), x)
            return made if isinstance(output, Tensor) else (made, *output[1:])

        handle = model.transformer.h[WHERE.layer].register_forward_hook(hook)
        with torch.no_grad():
            found = model(input_ids=ids).logits
        handle.remove()
        return found

    right, wrong = expected(True), expected(False)
    with other.spliced(), other.steer({5: "+2"}):
        torch.testing.assert_close(other.logits(ids), right, rtol=1e-4, atol=1e-4)
        assert (other.logits(ids) - wrong).abs().max() > 1e-2
