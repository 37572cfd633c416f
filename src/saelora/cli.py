"""The command line: subcommands -> jobs. Parsing only."""

import argparse
import difflib
import errno
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from saelora.config import Configuration, build, read_yaml
from saelora.errors import InputError, SomeFailed, on_one_line, out_of_memory
from saelora.flags import add_options
from saelora.openmp import yielding_to_others
from saelora.reporting.outcome import DIVERGED

JOBS = {
    "demo": "the whole job on a real model, in minutes, without account or GPU",
    "adapt": "low-rank adapt a model around its SAEs; or a linear map, or adapter and SAE together",
    "finetune-sae": "train SAEs further inside the frozen model, against its own predictions",
    "evaluate": "measure what SAEs cost a model, and what an adapter buys back",
    "train-sae": "train SAEs on a model's activations",
    "sweep": "adapters over a grid of ranks, SAEs, layers, models; what can share a pass does",
    "compare": "every way to make a model work through its SAE, at matched cost: one table, figures, words",
    "report": "one HTML page of a run, or of several side by side: figures, text token by token, provenance",
    "figure": "a figure for a paper: PDF, SVG or PNG at a column's width, and its numbers as CSV",
    "generate": "continue a prompt by a run's original, spliced and adapted model side by side; steer latents",
    "export": "a run for other tools: merged model, PEFT adapter, SAELens SAE, GGUF; tried on both sides",
    "chat": "talk with a run's original, spliced and adapted model; steer latents",
    "open": "a page to play with a run in the browser: compare variants, look at latents, steer them",
    "push": "a run to the Hugging Face Hub: what was trained, results, card; private unless told otherwise",
    "serve": "answer OpenAI's API with a run's variants, on this machine",
}
# what is done with a finished run is in saelora.use, the rest in saelora.jobs
USES = ("generate", "chat", "export", "open", "push", "serve")

DIVERGED_CODE = 3
_FULL, _CLOSED, _NO_PATH = "free some disk space", "choose a place that you may write to", "check the path"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _CLOSED),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), _NO_PATH),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 bad input, 3 done but diverged, 128 + signal when interrupted.

    Of several processes the main one prints the results, and the first to fail says why.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with yielding_to_others():
        return _main(argv)


def _main(argv: list[str]) -> int:
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to programmers; python -W default shows them
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return _run(argv, _complain)
    from saelora.train import distributed

    def complain(text: str) -> None:
        if distributed.first_to_report():
            _complain(text)

    try:
        code = _run(argv, complain)
    except Exception as error:
        if distributed.lost_a_peer(error):
            complain(f"another process of this run has ended: {on_one_line(error)}")
            return distributed.leave(InputError.exit_code)
        traceback.print_exc()
        code = 1
    return distributed.leave(code)


def _run(argv: list[str], complain: Callable[[str], None]) -> int:
    from saelora.train.interrupt import Interrupted

    kind: type[Configuration] = Configuration
    try:
        parser, module, kind = _parser(argv)
        parsed, unknown = parser.parse_known_args(argv)
        flags = vars(parsed)
        if unknown:
            raise InputError(_unrecognised(unknown[0], flags["command"], kind))
        command = flags.pop("command")
        files = flags.pop("config", None) or []
        as_json = flags.pop("json", False)
        config = build(kind, {**_recorded(files, kind), **flags}, "the command line")
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what is shown on the way is no JSON
            result = getattr(module, command.replace("-", "_"))(config)
        if os.environ.get("RANK", "0") != "0":
            return 0
        _print(result, module, as_json)
        return DIVERGED_CODE if result.get("status") == DIVERGED else 0
    except SomeFailed as error:
        _print(error.results, module, as_json)
        for line in str(error).splitlines():
            complain(line)
        return error.exit_code
    except InputError as error:
        complain(str(error))
        return error.exit_code
    except Interrupted as stop:
        complain(str(stop))
        return stop.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        complain(f"{error.filename or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}")
        return InputError.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain(f"memory ran out ({on_one_line(error, 100)}): {_less_memory(kind)}")
        return InputError.exit_code


def _less_memory(kind: type[Configuration]) -> str:
    """What to do where memory ran out, with the options that the command has."""
    there = kind.model_fields
    flags = ["--" + name.replace("_", "-") for name in ("batch_rows", "context", "eval_context") if name in there]
    where = ", ".join(flags) or ("batch_rows or context in the recipe" if "recipe" in there else "")
    lower = f"lower {where}, or " if where else ""
    resumed = "; a run that had begun goes on from its last checkpoint with --resume" if "resume" in there else ""
    return f"{lower}free some{resumed}"


def _print(result: Any, module: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    elif hasattr(module, "render"):
        print(module.render(result))


def _recorded(files: list[str], kind: type[Configuration]) -> dict[str, Any]:
    """The options of the YAML file that --config names, if it does; checked, since what is wrong is in that file."""
    if len(files) > 1:
        raise InputError(f"--config is given {len(files)} times: give one file; flags override it")
    values = read_yaml(Path(files[0])) if files else {}
    build(kind, values, files[0] if files else "")
    return values


def _complain(text: str) -> None:
    print(f"saelora: {text}", file=sys.stderr)


def _unrecognised(word: str, command: str, kind: type[Configuration]) -> str:
    known = ["--" + name.replace("_", "-") for name in kind.model_fields]
    near = difflib.get_close_matches(word.split("=")[0], known, n=1) if word.startswith("-") else []
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unrecognised argument {word!r}; {hint}see saelora {command} --help"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see {self.prog} --help")


def module_of(command: str) -> Any:
    """Where a command, its ``Config`` and its ``render`` are."""
    return importlib.import_module(f"saelora.{'use' if command in USES else 'jobs'}.{command.replace('-', '_')}")


def _parser(argv: list[str]) -> tuple[argparse.ArgumentParser, Any, type[Configuration]]:
    """The parser with the options of the one command that is asked for: importing every job would take seconds."""
    parser = _Parser(
        prog="saelora",
        description="Run a causal language model through its sparse autoencoders (SAEs), and low-rank adapt it so that "
        "the spliced model predicts what the original predicted.",
        epilog="saelora COMMAND --help lists a command's options with defaults and units.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module, kind = None, Configuration
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, text in JOBS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        if name == asked:
            module = module_of(name)
            kind = module.Config
            add_options(sub, kind)
            sub.add_argument(
                "--config", metavar="FILE", action="append", help="YAML file of these options (flags override it)"
            )
            sub.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    return parser, module, kind


def _version() -> str:
    from importlib.metadata import version

    return f"saelora {version('saelora')}"


if __name__ == "__main__":
    sys.exit(main())
