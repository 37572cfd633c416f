"""saelora generate and chat, as a person or a script meets them."""

import io
import json
import sys
from pathlib import Path

import pytest

from saelora.cli import main
from saelora.use.run import LoadedRun
from saelora.use.screen import printable

SHORT = ("--max-new-tokens", "5", "--quiet")


def with_template(run_folder: Path, workspace, tmp_path: Path) -> str:
    """A copy of the model whose tokenizer knows chats."""
    import shutil

    model = tmp_path / "chatty"
    shutil.copytree(workspace.model, model)
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }} {% endfor %}"
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return str(model)


def test_generate_writes_each_variants_text(run: LoadedRun, run_folder, capsys) -> None:
    assert main(["generate", str(run_folder), "bada lume", *SHORT]) == 0
    shown = capsys.readouterr().out
    for name in ("original", "spliced", "adapted"):
        with run.as_variant(name):
            text = run.generate("bada lume", max_new_tokens=5)
        assert f"{name}:\n{printable(text)}\n" in shown
    assert "adapted_clean" not in shown


def test_generate_as_json_steered_and_sampled(run: LoadedRun, run_folder, capsys) -> None:
    words = ["generate", str(run_folder), "bada", "--variants", "adapted_clean", "spliced", "--steer", "5=+40"]
    assert main([*words, "--steer", "7=x2", "--json", *SHORT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["texts"]) == ["adapted_clean", "spliced"]
    with run.spliced(), run.steer({5: "+40", 7: "x2"}):
        assert found["texts"]["spliced"] == run.generate("bada", max_new_tokens=5)
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--temperature", "9", "--seed", seed, "--json", *SHORT]) == 0
        texts.append(json.loads(capsys.readouterr().out)["texts"])
    assert texts[0] == texts[1] != texts[2]


BAD = {
    "latent out of range": (["generate", "RUN", "bada", "--steer", "64=+1"], "latent 64 is not there"),
    "no edit": (["generate", "RUN", "bada", "--steer", "3=loud"], "steering of latent 3 is 'loud'"),
    "no latent": (["generate", "RUN", "bada", "--steer", "x=+1"], "latent 'x' is no number"),
    "latent twice": (["generate", "RUN", "bada", "--steer", "3=1", "--steer", "3=2"], "steer names latent 3 twice"),
    "hookpoint": (["generate", "RUN", "bada", "--steer", "layers.0:3=1"], "there is no SAE at layers.0.resid_post"),
    "empty prompt": (["generate", "RUN", ""], "prompt: got '', expected text that is not empty"),
    "no prompt": (["generate", "RUN"], "no prompt given"),
    "no run": (["generate", "MODEL", "bada"], "is no run"),
    "no such run": (["chat", "nowhere"], "nowhere does not exist"),
    "variant": (["generate", "RUN", "bada", "--variants", "zero"], "variants: got 'zero', expected one of original"),
    "no template": (["chat", "RUN"], "has no chat template, so that it cannot be talked with"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, run_folder, workspace, capsys) -> None:
    words, said = BAD[name]
    words = [{"RUN": str(run_folder), "MODEL": str(workspace.model)}.get(word, word) for word in words]
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading")]
    assert len(lines) == 1
    assert said in lines[0]


def test_chat_reads_lines_keeps_each_variants_history_and_its_commands(
    run: LoadedRun, run_folder, workspace, tmp_path, capsys, monkeypatch
) -> None:
    lines = "bada\n\n/steer 5=+40\nlume\n/steer 64=0\n/steer off\n/reset\nbada\n/quit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    model = with_template(run_folder, workspace, tmp_path)
    words = ["chat", str(run_folder), "--model", model, "--other-weights", "--variants", "original", "adapted"]
    assert main([*words, "--max-new-tokens", "3", "--json"]) == 0
    shown = capsys.readouterr()
    turns = json.loads(shown.out)["turns"]
    assert [turn["user"] for turn in turns] == ["bada", "lume", "bada"]
    assert [turn["steer"] for turn in turns] == [{}, {"5": "+40"}, {}]
    assert "latent 64 is not there" in shown.err
    for name in ("original", "adapted"):
        first, second, third = (turn["answers"][name] for turn in turns)
        with run.as_variant(name):
            assert first == third == run.generate("<s>user: bada ", max_new_tokens=3)
            with run.steer({5: "+40"}):
                text = f"<s>user: bada <s>assistant: {first} <s>user: lume "
                assert second == run.generate(text, max_new_tokens=3)


def test_chat_refuses_what_the_model_cannot_read_at_once_and_goes_on(
    run_folder, workspace, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("bada " * 80 + "\nbada\n"))
    words = ["chat", str(run_folder), "--model", with_template(run_folder, workspace, tmp_path), "--other-weights"]
    assert main([*words, "--max-new-tokens", "3", "--json"]) == 0
    shown = capsys.readouterr()
    assert "tokens long, the model has 64: /reset" in shown.err
    assert [turn["user"] for turn in json.loads(shown.out)["turns"]] == ["bada"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u009bc\td\né\u202e") == "a[2Jbc\td\né"
