"""What the pages tell a reader to type and to open is there: verbs, options, modules, make targets, files."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from infra.cli import build

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "pipeline", "rl", "actors", "infra", "tests", "docs")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",  # of a version that is not released: it tells of today
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md"),  # a log tells of its day
    *sorted((ROOT / "models" / "weights").glob("*/README.md")),
]
SCRIPTS = sorted((ROOT / "infra" / "gpu_host").rglob("*.sh"))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMAND = r"([^`\n;|&#]*)"
"""The rest of a command: it ends with its line, code span, pipe or comment."""


def ids(path: Path) -> str:
    """A page by its place in the repository."""
    return str(path.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    """A page, its continued lines joined."""
    return re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))


@cache
def spans(page: Path) -> list[str]:
    """The words of a page's code spans."""
    found = re.findall(r"`([^`\n]+)`", text_of(page))
    return [word.rstrip(":.") for span in found for word in re.split(r"[\s,;()=]+", span)]


@cache
def files() -> frozenset[str]:
    """Every file of the folders of ours, and those beside them."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return frozenset(str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts)


@cache
def options() -> dict[tuple[str, ...], set[str]]:
    """The options of every verb, and of every verb of a group."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name, command in get_command(build()).commands.items():  # type: ignore[attr-defined]
        for words, each in {
            (name,): command,
            **{(name, below): one for below, one in getattr(command, "commands", {}).items()},
        }.items():
            found[words] = {
                o for parameter in each.params for o in (*parameter.opts, *parameter.secondary_opts)
            }
    return found


def with_imports(path: str) -> str:
    """The text of a module and of those of ours that it imports: options may be declared there."""
    source = (ROOT / path).read_text(encoding="utf-8")
    ours = re.findall(rf"^from ((?:{'|'.join(FOLDERS)})\.[\w.]+) import", source, re.MULTILINE)
    places = [f"{module.replace('.', '/')}.py" for module in ours]
    return "\n".join([source, *((ROOT / p).read_text(encoding="utf-8") for p in places if p in files())])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """A path in a code span is that of a file or folder of the repository, a bare program one of its names."""
    folders = {str(folder) for name in files() for folder in Path(name).parents}
    names = {Path(name).name for name in files()}
    wrong = []
    for word in spans(page):
        whole = word.rstrip("/")
        if re.match(rf"({'|'.join(FOLDERS)})/", word) and not re.search(r"[^\w./-]|/[A-Z]+$", word):
            wrong += [] if whole in files() or whole in folders else [word]
        elif re.fullmatch(r"[\w-]+\.(py|sh)", word):
            wrong += [] if word in names else [word]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_verbs_that_a_page_shows_take_its_options(page: Path) -> None:
    """A `dysra` command names a verb that there is, and no option that it lacks."""
    wrong = []
    for verb, rest in re.findall(r"(?<![\w/.:-])dysra ([a-z][a-z-]*)" + COMMAND, text_of(page)):
        below = (verb, *rest.split()[:1])
        known = options().get(below, options().get((verb,)))
        if known is None:
            wrong.append(f"dysra {verb}")
        else:
            wrong += [f"dysra {verb}{rest}: {each}" for each in OPTION.findall(rest) if each not in known]
    assert wrong == []


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=ids)
def test_modules_that_a_page_runs_take_its_options(page: Path) -> None:
    """A module behind `python -m` is there and its text has every option that the page gives it."""
    wrong = []
    ours = rf"((?:{'|'.join(FOLDERS)})\.[\w.]*\w)"
    for module, rest in re.findall(rf"python3? -m {ours}" + COMMAND, text_of(page)):
        place = module.replace(".", "/")
        path = next((name for name in (f"{place}.py", f"{place}/__main__.py") if name in files()), None)
        if path is None:
            wrong.append(module)
            continue
        source = with_imports(path)
        for each in OPTION.findall(rest):
            # Some are made of names: add_argument(f"--{name}").
            made = 'f"--{' in source and re.search(rf"\b{each[2:].replace('-', '_')}\b", source)
            wrong += [] if f'"{each}"' in source or made else [f"{module}: {each}"]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_targets_that_a_page_shows_are_there(page: Path) -> None:
    """`make` targets in code are those of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    fenced = "\n".join(text_of(page).split("```")[1::2])
    shown = re.findall(r"^make ([a-z][a-z-]*)", fenced, re.MULTILINE)
    shown += re.findall(r"`make ([a-z][a-z-]*)[` ]", text_of(page))
    assert [each for each in shown if each not in targets] == []


@pytest.mark.parametrize("words", [words for words in options() if len(words) == 2], ids=" ".join)
def test_verbs_of_a_group_are_documented(words: tuple[str, str]) -> None:
    """The handbook's table names every verb of a group in the group's row."""
    table = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in table if line.startswith("| ") and f"`{words[0]}`" in line)
    assert f"`{words[1]}`" in row
