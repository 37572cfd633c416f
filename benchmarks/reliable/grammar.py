"""What can be wrong with an option, a file or a value: the terminals of the inputs' grammar."""

import copy
import json
import random
from pathlib import Path
from typing import Any

NOT_A_NUMBER = ("many", "", "1,5x", "0x1g", "None", "[1]", "½", "1e", "++1", "{}", "nan")
NOT_A_WORD = ("abacus", "", "NONE ", "lora+", "é", "None", "1", "[]", "../x")
# options that are numbers: values that none of them can be, besides what is no number
BELOW: dict[str, tuple[str, ...]] = {
    "rank": ("0", "-1", "2.5", "inf"),
    "alpha": ("nan", "inf", "-inf"),
    "dropout": ("-0.1", "1.5", "nan"),
    "lr": ("-1", "nan", "inf", "-inf"),
    "warmup": ("-0.1", "1.5", "nan"),
    "decay": ("-0.1", "1.5", "nan"),
    "weight_decay": ("-1", "nan", "inf"),
    "clip": ("-1", "nan"),
    "tokens": ("-5", "0", "1.5", "inf"),
    "eval_tokens": ("-5", "1.5", "inf"),
    "history_tokens": ("-5", "1.5", "inf"),
    "context": ("0", "1", "-4", "65", "100000", "2.5"),
    "eval_context": ("0", "1", "-4", "65"),
    "batch_rows": ("0", "-2", "1.5"),
    "validation_fraction": ("0", "1", "1.5", "-0.2", "nan"),
    "checkpoint_seconds": ("-1", "nan"),
    "history_points": ("-1", "1.5"),
    "samples": ("-1", "1.5"),
    "seed": ("1.5", "99999999999999999999999", "-99999999999999999999999"),
    "d_sae": ("0", "-1", "1.5"),
    "expansion": ("0", "-1", "1.5"),
    "k": ("0", "-1", "65", "1.5"),
    "batch_tokens": ("0", "-1"),
    "passes": ("0", "-1"),
    "dead_after_tokens": ("-1", "1.5"),
    "aux_coefficient": ("-1", "nan"),
    "l1_coefficient": ("-1", "nan"),
    "l0_coefficient": ("-1", "nan"),
    "text_rows": ("-1", "1.5"),
    "passages": ("-1", "1.5"),
    "ablation_tokens": ("-1", "1.5"),
}
WORDS: dict[str, tuple[str, ...]] = {
    "method": NOT_A_WORD,
    "part": NOT_A_WORD,
    "schedule": NOT_A_WORD,
    "loss": NOT_A_WORD,
    "objective": NOT_A_WORD,
    "dtype": ("int8", *NOT_A_WORD),
    "save_dtype": ("int8", *NOT_A_WORD),
    "sparse_decode": NOT_A_WORD,
    "device": ("abacus", "cuda:99", "cpu:x", ""),
    "init": ("pissa", "loftq", ""),
    "placement": ("middle", "layers:", "layers:9", "layers:3-1", "layers:a", "after,all", ""),
    "exempt": ("bso", "BOS ", "-1", "1.5", "first,last", ""),
    "hookpoint": ("layers.9.resid_post", "layers.1.nose", "layers.-1.resid_post", "1", "", "blocks.x.hook_resid_post"),
    "track": ("abacus", "None,", ""),
    "architecture": ("relu", *NOT_A_WORD),
    "variant": ("k=0", "q=1", "k", "=", "lr=x", "architecture=relu", "k=999"),
    "parts": ("lose", "tokens,drift", "", "ALL"),
    "start": ("./no/such/sae", ""),
}


def misspelt(draw: random.Random, known: set[str]) -> str:
    """A flag that no command has, near one that it has."""
    while True:
        word = list(draw.choice(sorted(known)))
        at = draw.randrange(len(word))
        word[at] = draw.choice("abcdefghijklmnopqrstuvwxyz_0")
        if draw.random() < 0.4:
            del word[draw.randrange(len(word))]
        flag = "".join(word).replace("_", "-")
        if flag.replace("-", "_") not in known and flag.strip("-") and not flag.startswith(("-", "h", "no-", "v")):
            return f"--{flag}"


def spoilt_value(draw: random.Random, name: str) -> str:
    """A value that the option of this name cannot have."""
    if name in BELOW:
        return draw.choice([value for value in (*NOT_A_NUMBER, *BELOW[name]) if not (name == "alpha" and value == "")])
    return draw.choice(WORDS[name])


def spoilt_json(draw: random.Random, value: Any) -> Any:
    """A copy of plain data with one place of it deleted, renamed, or of another kind."""
    made = copy.deepcopy(value)
    places = list(_places(made))
    if not places:
        return draw.choice([None, 3, "x", []])
    box, key = draw.choice(places)
    deed = draw.random()
    if deed < 0.3:
        del box[key]
    elif deed < 0.4 and isinstance(box, dict):
        box[f"{key}x"] = box.pop(key)
    else:
        other = [None, True, -1, 0, 1e308, "x", "", [], {}, [[]], {"a": 1}, "nan", 2**70, [1, "a"]]
        box[key] = draw.choice([each for each in other if type(each) is not type(box[key]) or each != box[key]])
    return made


def _places(value: Any) -> Any:
    """Every (container, key) in plain data."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(pairs):
        yield value, key
        yield from _places(below)


def cut(draw: random.Random, path: Path) -> None:
    """Truncate a file, more or less."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.choice([0, 1, 7, 8, 9, len(data) // 2, max(0, len(data) - 1)])])


def noise(draw: random.Random, path: Path) -> None:
    """Put random bytes in a file's place."""
    path.write_bytes(draw.randbytes(draw.choice([1, 16, 500])))


def flip(draw: random.Random, path: Path, within: int = 200) -> None:
    """Change a byte near the beginning, where formats have their headers."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(min(within, len(data)))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def respell_json(draw: random.Random, path: Path) -> None:
    """Write a JSON file with something in it spoilt."""
    path.write_text(json.dumps(spoilt_json(draw, json.loads(path.read_text()))))


def break_text(draw: random.Random, path: Path) -> None:
    """Make a text file of a format no text of that format."""
    text = path.read_text()
    broken = ("{", text[: len(text) // 2] + "\x00", "[" + text, text + "}", "- - :\n\t- {", "\ufeff" + text[1:])
    path.write_text(draw.choice(broken))
