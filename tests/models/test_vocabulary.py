import json
import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelora.errors import InputError
from saelora.models.loading import load_model

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 symbols


def made_tokenizer(words=("</s>", *ALPHABET), **special):
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


def saved(folder, tokenizer, n_rows=257, **options):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=n_rows, **sizes, **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def message(ref):
    with pytest.raises(InputError) as caught:
        load_model(ref)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("role", ["bos", "eos", "pad"])
def test_special_token_without_an_embedding_is_refused_with_both_sizes(tmp_path, role):
    tokenizer = made_tokenizer()
    tokenizer.add_special_tokens({f"{role}_token": "<|new|>"})
    assert f"no embedding for its {role} token '<|new|>' (id 257): its tokenizer has 258 tokens, its embedding " in (
        said := message(saved(tmp_path, tokenizer))
    )
    assert "257 rows" in said


def test_remedy_of_resizing_is_true(tmp_path):
    tokenizer = made_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|new|>"})
    folder = saved(tmp_path, tokenizer)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    assert load_model(folder).n_embedded == 258


def test_tokenizer_of_a_larger_model_is_refused(tmp_path):
    assert "its tokenizer has 257 tokens, its embedding 200 rows" in message(saved(tmp_path, made_tokenizer(), 200))


def test_added_token_without_an_embedding_is_borne_until_text_holds_it(tmp_path):
    tokenizer = made_tokenizer()
    tokenizer.add_tokens(["<image>"])
    assert len(load_model(saved(tmp_path, tokenizer)).tokenizer) == 258


def test_padded_embeddings_are_no_fault(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "saelora"):
        assert load_model(saved(tmp_path, made_tokenizer(), 264)).n_embedded == 264
    assert not caplog.records


def test_tokenizer_of_a_far_smaller_model_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "saelora"):
        load_model(saved(tmp_path, made_tokenizer(), 512))
    assert "257 tokens, its embedding 512 rows; is it another model's tokenizer?" in caplog.text


def test_tokenizer_without_words_is_refused(tmp_path):
    assert "has no words" in message(saved(tmp_path, made_tokenizer(words=("</s>",))))


def test_tokenizer_that_fails_at_its_first_use_is_refused(tmp_path):
    ref = saved(tmp_path, made_tokenizer())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": {"is": 5}}))
    assert "cannot encode a text (TypeError" in message(ref)
