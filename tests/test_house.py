"""The house rules: what may import what, how large things may grow, where words may stand. One law a function;
each is run over the project, and over a bad snippet that it must catch."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FLOORS = {"model": 1, "client": 2, "hardware": 2, "metering": 2, "sandbox": 2, "store": 2, "computing": 3}
FLOORS |= {"cloud": 4, "twin": 4, "console": 5, "services": 5, "app": 5, "cli": 6}
CLIENTS_ONLY = {"cli", "console", "services"}
ALLOWED_OVER: dict[str, str] = {}
"""`path` or `path::name` over the soft limits (400 lines, 50 lines) -> why. Better empty."""
BROAD_EXCEPT = {"src/dure/hardware/inventory.py": "a driver may raise anything; the others go on"}
"""Files where `except Exception` may stand -> why: a loop's edge, or around a vendor's SDK."""
VENDORS = {name: name for name in ("furiosa", "deepx", "hyperaccel", "tenstorrent", "vllm")}
VENDORS |= {"rebellions": "rebellions|rbln", "mobilint": "mobilint|mblt|mbltml", "gaudi": "gaudi|habana"}
VENDORS |= {"nvidia": "(py)?nvml|nvidia|cuda", "amd": "amd|amdsmi|rocm", "llama_cpp": r"x?llama[._-]?cpp"}
VENDOR_HOMES = ("src/dure/hardware/drivers/", "src/dure/computing/engines/", "src/dure/computing/toolchains/")
PARTS = (*VENDOR_HOMES, "/policies/")
BUILT_IN_ERRORS = {"Exception", "BaseException", "RuntimeError", "ValueError", "OSError", "TypeError", "KeyError"}
FORBIDDEN = r"(?<![\w.}>*)-])/(work|opt/(wheels|pypi)|tmp/(lab|brief|house)|root)\b|\bpypi[.]org|\bpythonhos[t]ed"
FORBIDDEN += r"|\bnpmjs[.]|\bdeb[.]debian|\bartifac[t]ory|(?i:\bclaud[e]\b|\banthropi[c])"
TEXT = {".py", ".md", ".toml", ".txt", ".sh", ".html", ".in", ".json", ".csv", ".yaml", ".yml", ""}


class File:
    """One text file; `path` from the root, with slashes."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.ours = path.startswith("src/dure/") and path.endswith(".py")
        parts = path.removeprefix("src/").removesuffix(".py").split("/")
        self.package = parts[-1] == "__init__"
        self.module = ".".join(parts[:-1] if self.package else parts)
        self.room = parts[1] if self.ours and len(parts) > 2 else ""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text if self.path.endswith(".py") else "", self.path)

    def imports(self, within: ast.AST | None = None) -> Iterator[tuple[int, str, str]]:
        """(line, module, name or "") of each import, relative ones resolved."""
        for node in ast.walk(within or self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                here = self.module.split(".")
                base = here[: len(here) - node.level + self.package] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                yield from ((node.lineno, module, alias.name) for alias in node.names)

    def calls(self, pattern: str) -> Iterator[ast.Call]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and re.fullmatch(pattern, ast.unparse(node.func)):
                yield node


Law = Callable[[Sequence[File]], Iterator[str]]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def read_tree() -> list[File]:
    """Every text file of the project; caches, builds and the virtual environment left out."""
    skip = re.compile(r"(^|/)(\.(?!ci/|gitignore)|build/|dist/|__pycache__|[^/]*\.egg-info)")
    paths = (p for top in ROOT.iterdir() if not skip.search(top.name + "/") for p in (top, *top.rglob("*")))
    found = {p.relative_to(ROOT).as_posix(): p for p in paths if p.is_file() and p.suffix in TEXT}
    return [File(name, path.read_text("utf-8")) for name, path in sorted(found.items()) if not skip.search(name)]


def imports_go_down(files: Sequence[File]) -> Iterator[str]:
    for file in (f for f in files if f.ours):
        for line, module, name in file.imports():
            parts = f"{module}.{name}".split(".") if module == "dure" else module.split(".")
            target = parts[1] if parts[0] == "dure" and len(parts) > 1 else ""
            if target not in FLOORS or target == file.room:
                continue
            down = FLOORS[target] < FLOORS.get(file.room, 0)
            if not down or (file.room in CLIENTS_ONLY and target not in {"client", "model"}):
                yield f"{file.path}:{line} {file.room or 'dure'} imports {target}"
        if file.room and file.room not in FLOORS:
            yield f"{file.path} is in no known room"


def imports_have_no_cycle(files: Sequence[File]) -> Iterator[str]:
    modules = {f.module for f in files if f.ours}
    graph: dict[str, set[str]] = {}
    for file in (f for f in files if f.ours):
        edges = {f"{m}.{n}" if f"{m}.{n}" in modules else m for _, m, n in file.imports()}
        graph[file.module] = (edges & modules) - {file.module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " -> ".join(error.args[1])


def imports_stand_at_the_top(files: Sequence[File]) -> Iterator[str]:
    for file in (f for f in files if f.ours):
        top = {id(node) for node in file.tree.body}
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top:
                yield from (f"{file.path}:{n} {m}" for n, m, _ in file.imports(node) if m.split(".")[0] == "dure")
            elif "TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", "")):
                yield f"{file.path} TYPE_CHECKING"
        for call in file.calls(r"(importlib\.)?import_module|__import__"):
            if re.match(r"f?['\"]dure", ast.unparse(call.args[0]) if call.args else ""):
                yield f"{file.path}:{call.lineno} imports dure by a call"


def vendor_words_stay_in_their_files(files: Sequence[File]) -> Iterator[str]:
    for file in (f for f in files if f.ours and not (f.package and f.path.startswith(VENDOR_HOMES))):
        for owner, words in VENDORS.items():
            if file.path.startswith(VENDOR_HOMES) and file.path.rsplit("/", 1)[1].startswith(owner):
                continue
            for number, line in enumerate(file.text.splitlines(), 1):
                if re.search(rf"(?i)(?<![a-z0-9])({words})(?![a-z0-9])", line):
                    yield f"{file.path}:{number} names {owner}"


def environment_is_read_in_one_place(files: Sequence[File]) -> Iterator[str]:
    reads = re.compile(r"\bos\.(environb?|getenvb?)\b|from os import .*(environ|getenv)")
    readers: dict[str, list[str]] = {}
    for file in (f for f in files if f.ours):
        for top in (t for t in file.tree.body if reads.search(ast.unparse(t))):
            place = "cli" if file.room == "cli" else file.path
            readers.setdefault(place, []).append(f"{file.path}::{getattr(top, 'name', 'module')}")
    for place, where in readers.items():
        if place not in {"cli", "src/dure/app/settings.py"} or len(where) > 1:
            yield f"environment read by {', '.join(where)}"


def sizes(files: Sequence[File]) -> Iterator[tuple[str, int, int, int]]:
    """(what, its size, soft limit, hard limit)"""
    for file in (f for f in files if f.path.endswith(".py")):
        yield file.path, len(file.text.splitlines()), 400, 600
        for node in ast.walk(file.tree):
            name = f"{file.path}::{getattr(node, 'name', '')}"
            if isinstance(node, FUNCTIONS):
                yield name, (node.end_lineno or 0) - node.lineno + 1, 50, 70
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                yield f"{name} parameters", len(names) - (names[:1] in (["self"], ["cls"])), 6, 6
            elif isinstance(node, ast.ClassDef):
                most = 6 if any("Protocol" in ast.unparse(base) for base in node.bases) else 15
                methods = [n for n in node.body if isinstance(n, FUNCTIONS) and "property" not in ast.unparse(n)[:9]]
                yield f"{name} methods", len(methods), most, most


def nothing_grows_too_large(files: Sequence[File]) -> Iterator[str]:
    for what, size, soft, hard in sizes(files):
        if size > hard or (size > soft and what not in ALLOWED_OVER):
            yield f"{what}: {size} > {soft if what not in ALLOWED_OVER else hard}"


def errors_are_few(files: Sequence[File]) -> Iterator[str]:
    classes = [n for f in files if f.ours for n in ast.walk(f.tree) if isinstance(n, ast.ClassDef)]
    errors: set[str] = set()
    for _ in classes:
        known = BUILT_IN_ERRORS | errors
        errors |= {c.name for c in classes if any(ast.unparse(b).rsplit(".", 1)[-1] in known for b in c.bases)}
    if len(errors) > 15:
        yield f"{len(errors)} error classes: {', '.join(sorted(errors))}"


def broad_excepts_are_named(files: Sequence[File]) -> Iterator[str]:
    """One that ends in a bare `raise` cleans up and hides nothing."""
    for file in (f for f in files if f.ours and f.path not in BROAD_EXCEPT):
        for node in (n for n in ast.walk(file.tree) if isinstance(n, ast.ExceptHandler)):
            caught = ast.unparse(node.type) if node.type else "Exception"
            if re.search(r"\b(Base)?Exception\b", caught) and ast.unparse(node.body[-1]) != "raise":
                yield f"{file.path}:{node.lineno} except {caught}"


def names_say_what_things_are(files: Sequence[File]) -> Iterator[str]:
    vague = re.compile(r"(?i)manager|handler|helper|utils|util$")
    for file in (f for f in files if f.path.endswith(".py")):
        nodes = [n for n in ast.walk(file.tree) if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
        for name in (Path(file.path).stem, *(n.name for n in nodes)):
            if vague.search(name):
                yield f"{file.path} {name}"


def no_test_sleeps(files: Sequence[File]) -> Iterator[str]:
    """A pause inside a loop polls a condition; any other is a guess about time."""
    for file in (f for f in files if f.path.startswith("tests/")):
        loops = [n for n in ast.walk(file.tree) if isinstance(n, ast.While | ast.For | ast.AsyncFor)]
        polls = {id(n) for loop in loops for n in ast.walk(loop)}
        for call in file.calls(r"((time|asyncio)\.)?sleep"):
            if id(call) not in polls and [ast.unparse(a) for a in call.args] != ["0"]:
                yield f"{file.path}:{call.lineno} {ast.unparse(call)}"


def only_programs_print(files: Sequence[File]) -> Iterator[str]:
    programs = re.compile(r"^if __name__ == .__main__.:", re.M)
    for file in (f for f in files if f.ours and f.room not in {"cli", "app"} and not programs.search(f.text)):
        yield from (f"{file.path}:{call.lineno} print" for call in file.calls("print"))


def modules_say_what_they_are_for(files: Sequence[File]) -> Iterator[str]:
    for file in (f for f in files if f.path.endswith(".py") and not f.path.startswith("tests/")):
        if file.text.strip() and not ast.get_docstring(file.tree):
            yield f"{file.path} has no docstring"


def everything_is_documented(files: Sequence[File]) -> Iterator[str]:
    docs = "\n".join(f.text for f in files if f.path.startswith("docs/") or "/" not in f.path)
    for file in (f for f in files if f.ours):
        folder, stem = file.path.rsplit("/", 1)[0] + "/", Path(file.path).stem
        port = re.fullmatch(r"engine|driver|toolchain|policy|__init__|.*_server", stem)
        if folder.endswith(PARTS) and not port and f"`{stem}`" not in docs:
            yield f"{file.path}: `{stem}` is not in docs"
        if file.room == "cli" or file.path == "src/dure/app/settings.py":
            texts = {n.value for n in ast.walk(file.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            yield from (f"{t} is not in docs" for t in texts if re.fullmatch(r"DURE_[A-Z_]+", t) and t not in docs)
        for node in (n for n in ast.walk(file.tree) if file.room == "cli" and isinstance(n, FUNCTIONS)):
            for mark in re.finditer(r"\w+\.command\((?:'([^']+)')?", " ".join(map(ast.unparse, node.decorator_list))):
                verb = mark[1] or node.name.strip("_").replace("_", "-")
                if not re.search(rf"\bdure (\w+ )?{verb}\b", docs):
                    yield f"{file.path}: dure {verb} is not in docs"


def no_forbidden_words(files: Sequence[File]) -> Iterator[str]:
    for file in files:
        for number, line in enumerate(file.text.splitlines(), 1):
            if found := re.search(FORBIDDEN, line):
                yield f"{file.path}:{number} {found[0]}"


def everything_is_locked(files: Sequence[File]) -> Iterator[str]:
    texts = {f.path: f.text for f in files}
    project = tomllib.loads(texts["pyproject.toml"])
    runtime = project["project"]["dependencies"] + project["build-system"]["requires"]
    dev = [r for extra in project["project"].get("optional-dependencies", {}).values() for r in extra]
    for lock, wanted in {"requirements/runtime.txt": runtime, "requirements/dev.txt": runtime + dev}.items():
        text = texts.get(lock, "")
        pins = re.findall(r"^([\w.-]+)==(\S+).*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", text, re.M)
        yield from (f"{lock}: {name} has no hash" for name, _, hashes in pins if not hashes)
        yield from (f"{lock}: {m}" for m in re.findall(r".*(?:://|--(?:extra-)?index|--find-links).*", text))
        for need in map(Requirement, wanted):
            versions = [v for name, v, _ in pins if name.lower() == need.name.lower()]
            if not versions or not all(need.specifier.contains(v, prereleases=True) for v in versions):
                yield f"{lock}: {need} is not locked ({versions or 'absent'})"


LOCKED = '[project]\ndependencies = ["a>=2"]\n[build-system]\nrequires = []\n'
BAD: list[tuple[Law, str, str]] = [
    (imports_go_down, "src/dure/model/a.py", "from dure.store import log"),
    (imports_go_down, "src/dure/store/a.py", "from dure.hardware.b import c"),
    (imports_go_down, "src/dure/cli/a.py", "from dure import computing"),
    (imports_go_down, "src/dure/twin/a.py", "import dure.cloud"),
    (imports_go_down, "src/dure/attic/a.py", ""),
    (imports_have_no_cycle, "src/dure/model/__init__.py", "from dure.model import a"),
    (imports_stand_at_the_top, "src/dure/cloud/a.py", "def f():\n    from dure.model import chip"),
    (imports_stand_at_the_top, "src/dure/cloud/a.py", "from ..model import b\nif b:\n    from ..model import chip"),
    (imports_stand_at_the_top, "src/dure/cloud/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING: pass"),
    (imports_stand_at_the_top, "src/dure/cloud/a.py", "import_module(f'dure.{x}')"),
    (vendor_words_stay_in_their_files, "src/dure/cloud/a.py", "x = 'Furiosa'"),
    (vendor_words_stay_in_their_files, "src/dure/hardware/drivers/nvidia.py", "import amd_smi"),
    (environment_is_read_in_one_place, "src/dure/store/a.py", "import os\nx = os.environ['A']"),
    (environment_is_read_in_one_place, "src/dure/cli/a.py", "def f(): os.environ\ndef g(): os.getenv('A')"),
    (nothing_grows_too_large, "bench/a.py", "\n" * 401),
    (nothing_grows_too_large, "tests/test_a.py", "def f():\n" + "    x = 1\n" * 50),
    (nothing_grows_too_large, "src/dure/store/a.py", "def f(a, b, c, d, *, e, f, g): ..."),
    (nothing_grows_too_large, "src/dure/store/a.py", "class A:\n" + "    def f(self): ...\n" * 16),
    (nothing_grows_too_large, "src/dure/store/a.py", "class A(Protocol):\n" + "    def f(self): ...\n" * 7),
    (
        errors_are_few,
        "src/dure/a.py",
        "".join(f"class E{i}({f'E{i - 1}' if i else 'OSError'}): ...\n" for i in range(16)),
    ),
    (broad_excepts_are_named, "src/dure/store/a.py", "try: ...\nexcept (OSError, Exception): ..."),
    (broad_excepts_are_named, "src/dure/store/a.py", "try: ...\nexcept: ..."),
    (names_say_what_things_are, "src/dure/store/a.py", "class LogManager: ..."),
    (names_say_what_things_are, "src/dure/store/utils.py", ""),
    (no_test_sleeps, "tests/test_a.py", "import time\ntime.sleep(1)"),
    (only_programs_print, "src/dure/store/a.py", "print(1)"),
    (modules_say_what_they_are_for, "src/dure/store/a.py", "x = 1"),
    (everything_is_documented, "src/dure/hardware/drivers/abacus.py", ""),
    (everything_is_documented, "src/dure/cli/a.py", "x = 'DURE_X'"),
    (everything_is_documented, "src/dure/cli/a.py", "app.add_typer(k, name='key')\n@k.command()\ndef make(): ..."),
    (no_forbidden_words, "docs/a.md", "see /wor\x6b/main"),
    (everything_is_locked, "pyproject.toml", LOCKED),
]
LAWS = list(dict.fromkeys(law for law, _, _ in BAD))


@pytest.mark.parametrize("law", LAWS)
def test_the_project_keeps(law: Law) -> None:
    assert not (found := list(law(read_tree()))), "\n" + "\n".join(found)


@pytest.mark.parametrize(("law", "path", "text"), BAD)
def test_a_breach_is_caught(law: Law, path: str, text: str) -> None:
    other = File("src/dure/model/a.py", '"""A."""\nfrom dure.model import __init__ as x\nimport dure.model\n')
    assert list(law([File(path, text), other]))
    good = File("src/dure/hardware/drivers/__init__.py", '"""All drivers."""\nfrom dure.model.a import nvidia\n')
    assert law is everything_is_locked or not list(law([good]))
