"""The shape of the package, read from its sources: who knows a family, how large things are, that no imports circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fluxserve"
PAGE = PACKAGE.parent / "docs" / "architecture.md"

FAMILY_WORDS = re.compile(
    r"(?i)(?<![a-z])(t5(xxl)?|clip(_l)?|qwen\w*|siglip|bfl|(double|single)_blocks|double_stream|single_stream"
    r"|flux[ ._-]?[123]\w*|flux|schnell|dev|klein|kontext|krea|z[ _-]?image)(?![a-z])"
)
ALLOWED = {
    "config.py": "the default model's names in the help of MODEL",
    "cli/pull.py": "the default models' names in the help of MODEL",
    "weights/hub/fetch.py": "the command to type for files that need no account",
    "weights/hub/pull.py": "a smaller file to fetch instead",
    "pipeline/metadata.py": "the mark that the reference implementation writes into pictures",
    "weights/synthetic/write.py": "the layout that single files have, as scripts/make_checkpoint calls it",
}
"""Modules that may say a family's word, and why."""

ATTRIBUTES, FUNCTION_LINES, FILES = 14, 40, 15


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    """Strings that stand as statements: docstrings of modules, classes, functions and fields."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def words(path: Path) -> Iterator[str]:
    """Every name and every string of a module, but for docstrings."""
    tree = tree_of(path)
    skipped = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value
        for field in ("name", "id", "attr", "arg", "module", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield word


@pytest.mark.parametrize("path", [p for p in modules() if "models" not in p.relative_to(PACKAGE).parts], ids=name_of)
def test_only_models_knows_a_family(path: Path) -> None:
    told = [word for word in words(path) if FAMILY_WORDS.search(word)]
    assert not told or name_of(path) in ALLOWED, told


def test_the_words_of_families_are_seen() -> None:
    for word in (
        "T5",
        "t5_blocks",
        "clip_l",
        "double_blocks.0",
        "FLUX.1",
        "flux1",
        "schnell",
        "the dev licence",
        "Qwen3",
    ):
        assert FAMILY_WORDS.search(word), word
    for word in ("device", "development", "clipped", "influx", "fluxserve", "FluxserveError", "eclipse"):
        assert not FAMILY_WORDS.search(word), word


def test_every_exception_is_needed() -> None:
    needed = {name_of(path) for path in modules() if any(FAMILY_WORDS.search(word) for word in words(path))}
    assert needed >= ALLOWED.keys()


def imports(path: Path) -> set[str]:
    """The package's modules that one imports, at its head or inside a function; not those for type checkers alone."""
    known = {dotted(other): other for other in modules()}
    tree = tree_of(path)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner <= known.keys() else {node.module, *inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known} - {dotted(path)}


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_imports_circle_lazy_ones_included() -> None:
    graph = {dotted(path): imports(path) for path in modules()}
    while free := [name for name, needed in graph.items() if not needed]:
        for name in free:
            del graph[name]
        graph = {name: needed - set(free) for name, needed in graph.items()}
    assert not graph


def test_rooms_hold_few_files() -> None:
    folders = {path.parent for path in modules()}
    counts = {name_of(folder): len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > FILES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}: {node.name}"
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


def _declares(node: ast.ClassDef) -> bool:
    """Whether a class only says what there is: options, what goes over the wire, schemas, protocols, metrics."""
    bases = {ast.unparse(base).split("[")[0] for base in node.bases}
    frozen = any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    return frozen or bool(bases & {"Protocol", "BaseModel", "BaseSettings", "TypedDict"}) or node.name == "Metrics"


def _attributes(node: ast.ClassDef) -> set[str]:
    own = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for inner in ast.walk(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                own.add(target.attr)
    return own


def test_what_does_something_has_few_attributes() -> None:
    crowded = {
        f"{name_of(path)}: {node.name}": len(_attributes(node))
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and not _declares(node) and len(_attributes(node)) > ATTRIBUTES
    }
    assert crowded == {}


STEPS = re.compile(r"`([\w/]+\.py)` `([\w.]+)`")
"""A file and what is in it, as the page names them."""

FILES_OF_A_REQUEST = 20


def life_of_a_request() -> list[tuple[str, str]]:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("## The life of a request")[2].partition("\n## ")[0]
    return STEPS.findall(" ".join(section.split()))


@pytest.mark.parametrize(("file", "name"), life_of_a_request())
def test_each_step_of_a_requests_life_is_where_the_page_says(file: str, name: str) -> None:
    body = tree_of(PACKAGE / file).body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, ast.stmt) and getattr(node, "name", None) == part]
        assert found, f"{file} has no {name}"
        body = getattr(found[0], "body", [])


def test_a_request_is_followed_through_few_files() -> None:
    files = {file for file, _ in life_of_a_request()}
    assert 8 <= len(files) <= FILES_OF_A_REQUEST
