"""Hook of mkdocs: pages that are made while the site is built, each from its one source.

The repository's own pages (README, SPEC, ...), the command line's options from the parser, notebooks, the API's names
from ``saelora.__all__``, and files outside docs/ that pages link to. Nothing of it is committed.
"""

import argparse
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

import saelora
from saelora import cli

ROOT = Path(__file__).parents[1]
# the repository's pages, and where they stand in the site
OWN = {"README.md": "index.md", "SPEC.md": "reference/spec.md", "CONTRIBUTING.md": "contributing.md"}
OWN |= {"CHANGELOG.md": "changelog.md"}
SOURCES = {place: source for source, place in OWN.items()}
_LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"#:]+)(#[^)\s\"]*)?(?=[)\"])")
_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add what is made."""
    made = {place: (ROOT / source).read_text("utf-8") for source, place in OWN.items()}
    made["reference/cli.md"] = command_line()
    made["reference/api.md"] = api()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook(path)
        files.append(File.generated(config, f"files/notebooks/{path.name}", abs_src_path=str(path)))
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for place, text in pages.items():
        for source in sorted(outside(text, place)):
            if files.get_file_from_path(f"files/{source}") is None:
                files.append(File.generated(config, f"files/{source}", abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they hold in the repository -> as they hold in the site."""
    place = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        source = target_of(match[2], place)
        if source is None:
            return match[0]
        goal = site_place(source)
        return f"{match[1]}{relative(goal, place)}{match[3] or ''}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def target_of(link: str, place: str) -> str | None:
    """The file of the repository that a link of a page means; None where it is no file there."""
    source = SOURCES.get(place, f"docs/{place}")
    found = (ROOT / source).parent / link
    found = Path(*found.parts).resolve()
    if not found.is_file() or not found.is_relative_to(ROOT):
        return None
    return found.relative_to(ROOT).as_posix()


def site_place(source: str) -> str:
    """Where a file of the repository stands in the site."""
    if source in OWN:
        return OWN[source]
    if source.startswith("notebooks/"):
        return source.removesuffix(".ipynb") + ".md"
    return source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}"


def outside(text: str, place: str) -> set[str]:
    """Files of the repository, none of them in docs/ or a page of ours, that a page links to."""
    found = {target_of(match[2], place) for match in _LINK.finditer(_FENCE.sub("", text))}
    return {each for each in found if each is not None and site_place(each) == f"files/{each}"}


def relative(goal: str, place: str) -> str:
    """A path in the site as seen from a page."""
    here, there = PurePosixPath(place).parent.parts, PurePosixPath(goal).parts
    common = 0
    while common < min(len(here), len(there) - 1) and here[common] == there[common]:
        common += 1
    return "/".join([*[".."] * (len(here) - common), *there[common:]])


def command_line() -> str:
    """Every command with its options, as the parser has them."""
    lines = [
        "# Command line",
        "",
        "Made from the parser while this page was built; `saelora COMMAND --help` says the same.",
    ]
    lines += ["Every option can stand in a YAML file too (`--config FILE`), with `_` or `-`.", ""]
    for name, about in cli.JOBS.items():
        parser = argparse.ArgumentParser(prog=f"saelora {name}", add_help=False)
        cli.add_options(parser, cli.module_of(name).Config)
        lines += [f"## saelora {name}", "", f"{about[0].upper()}{about[1:]}.", ""]
        for group in parser._action_groups:
            if group._group_actions:
                lines += [f"**{group.title}**" if group.title else "", "", "| option | what it is |", "|---|---|"]
                for action in group._group_actions:
                    lines.append(f"| {_shown(action)} | {_cell((action.help or '').replace('%%', '%'))} |")
                lines.append("")
    return "\n".join(lines)


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar}`{' ...' if action.nargs == '*' else ''}"
    if isinstance(action, argparse.BooleanOptionalAction):
        return " ".join(f"`{flag}`" for flag in action.option_strings)
    value = {"+": f"{action.metavar} ...", "?": f"[{action.metavar}]"}.get(str(action.nargs), f"{action.metavar}")
    return f"<code>{action.option_strings[0]} {_cell(value)}</code>"


def _cell(text: str) -> str:
    """Text for a cell of a table, with nothing in it that Markdown or HTML reads."""
    return re.sub(r"[*_<>\[\]|`]", lambda m: f"&#{ord(m[0])};", text)


def api() -> str:
    """The public names, each with its docstring."""
    pages = ["# Python", "", "What `import saelora` gives. Commands take the options of the command line by keyword:"]
    pages += ["`saelora.adapt(model=..., sae=[...], data=..., out=...)`; they are listed [there](cli.md).", ""]
    return "\n".join(
        [*pages, *(f"::: saelora.{name}\n" for name in saelora.__all__), "::: saelora.use.run.LoadedRun\n"]
    )


def notebook(path: Path) -> str:
    """A notebook's cells as a page, with a link to the notebook itself."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    lines = []
    for cell in cells:
        text = "".join(cell["source"])
        lines.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*lines[:1], f"[The notebook itself](../files/notebooks/{path.name})", *lines[1:]]) + "\n"
