"""The layout holds: imports point one way, public names are what they say, registries are whole, rooms stay small."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lcnn_analyze
import lcnn_core

ROOT = Path(__file__).parent.parent
PACKAGES = {"lcnn_core": lcnn_core, "lcnn_analyze": lcnn_analyze}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A room may import its own line and the lines above, at run time.
ORDER = {
    "lcnn_core": """
        errors files activations chunked cores
        spec
        functional counting factors meta
        layers
        models
        convert describe health checkpoint plain onnx engine
        data
        train compress
        transfer
    """,
    "lcnn_analyze": """
        codec spectrum cost latency study
        comparison search
        report crosscheck
        render inputs
        analysis bench
        documents
        cli __main__
    """,
}
UPWARD = {("lcnn_analyze.report", "lcnn_analyze.render"): "a Report shows itself in a notebook, as HTML"}

# Third-party packages and the only rooms that import them.
ONLY_IN = {
    "typer": ["lcnn_analyze.cli"],
    "click": [],  # typer brings its own
    "rich": ["lcnn_analyze.cli", "lcnn_analyze.render", "lcnn_analyze.bench"],
    "matplotlib": ["lcnn_analyze.render"],
    "jinja2": ["lcnn_analyze.render"],
    "pandas": ["lcnn_analyze.report"],
    "fvcore": ["lcnn_analyze.crosscheck"],
    "sklearn": ["lcnn_core.data"],
    "safetensors": ["lcnn_core.checkpoint"],
    "yaml": ["lcnn_analyze.cli"],
    "optuna": ["lcnn_analyze.search"],
    "sqlalchemy": ["lcnn_analyze.search"],  # Optuna's
}
# Up to describe the analyzer holds modules; after it there is no torch.
TORCH_IN_ANALYZER = ["inputs", "crosscheck", "latency", "bench", "documents", "cli"]

LINES_PER_FILE = 400
LINES_PER_FUNCTION = 40
LONG = {"lcnn_analyze/render/plots.py:_draw": "one panel, one call of matplotlib after the other"}
"""``path:function`` or ``path`` -> the reason why it may be longer."""

REGISTRIES = {
    "lcnn_core": "DATASETS FORMATS FORMULAS INPUTS LAYERS METHODS MODELS OPTIMIZERS SCHEDULES",
    "lcnn_analyze": "CONVENTIONS METRICS RENDERERS TOOLS",
}


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    module: str
    name: str | None
    """None for ``import module``."""
    runtime: bool
    """False under ``if TYPE_CHECKING:``."""
    local: bool
    """Inside a function."""

    @property
    def importer(self) -> str:
        """The room that imports: lcnn_core.layers for lcnn_core/layers/conv.py, lcnn_core for its __init__."""
        return room(".".join(self.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))

    @property
    def imported(self) -> str:
        """The room, or third-party package, that is imported."""
        if self.module in PACKAGES and self.name is not None:
            home = room_of_public_name(PACKAGES[self.module], self.name)
            return f"{self.module}.{home}" if home else self.module
        return room(self.module)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module} {self.name or ''}".rstrip()


def room(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.split(".")[0] in PACKAGES else 1])


def room_of_public_name(package: ModuleType, name: str) -> str | None:
    if (ROOT / package.__name__ / f"{name}.py").exists() or (ROOT / package.__name__ / name).is_dir():
        return name
    home = package._HOME.get(name)
    return home.split(".")[0] if home else None


def read_imports(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, runtime: bool, local: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, None, runtime, local)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the package's name"
            for alias in node.names:
                yield Import(path, node.lineno, str(node.module), alias.name, runtime, local)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        local = local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, runtime and not guarded, local)

    yield from walk(ast.parse(path.read_text()), True, False)


@cache
def imports() -> list[Import]:
    return [found for path in SOURCES for found in read_imports(path)]


def order(package: str) -> dict[str, int]:
    lines = ORDER[package].strip().splitlines()
    return {f"{package}.{name}": rank for rank, line in enumerate(lines) for name in line.split()}


# Imports


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_place_in_the_order(package):
    rooms = {room(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES}
    rooms = {name for name in rooms if name.startswith(f"{package}.") and not name.endswith(".__init__")}
    assert rooms <= set(order(package)), "place the new room in ORDER"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    ranks = order(package)
    upward = [
        str(found)
        for found in imports()
        if found.runtime
        and {found.importer, found.imported} <= set(ranks)
        and (found.importer, found.imported) not in UPWARD
        and ranks[found.imported] > ranks[found.importer]
    ]
    assert not upward


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_each_other_in_no_circle(package):
    ranks = order(package)
    needs: dict[str, set[str]] = {name: set() for name in ranks}
    for found in imports():
        pair = (found.importer, found.imported)
        if found.runtime and set(pair) <= set(ranks) and pair not in UPWARD and found.importer != found.imported:
            needs[found.importer].add(found.imported)
    while leaves := {name for name, others in needs.items() if not others & set(needs)}:
        needs = {name: others for name, others in needs.items() if name not in leaves}
    assert not needs


def test_exceptions_are_still_needed():
    pairs = {(found.importer, found.imported) for found in imports() if found.runtime}
    assert set(UPWARD) <= pairs


def test_the_library_does_not_know_the_analyzer():
    assert not [str(f) for f in imports() if f.importer.startswith("lcnn_core") and f.module.startswith("lcnn_analyze")]


def test_the_library_hides_no_circle_in_a_function():
    core = [f for f in imports() if f.importer.startswith("lcnn_core")]
    assert not [str(f) for f in core if f.local and f.module.startswith("lcnn")]


def public_import(found: Import) -> bool:
    """``from lcnn_core import X``, or ``from lcnn_core.models import X`` of a room that is public as a whole."""
    if found.module == "lcnn_core":
        return found.name is None or found.name in lcnn_core.__all__
    whole = found.module.removeprefix("lcnn_core.") in lcnn_core._MODULES
    return whole and found.name in import_module(found.module).__all__


def test_the_analyzer_uses_public_names_only():
    analyzer = [f for f in imports() if f.importer.startswith("lcnn_analyze")]
    wrong = [str(f) for f in analyzer if f.module.split(".")[0] == "lcnn_core" and not public_import(f)]
    for path in SOURCES:
        if path.is_relative_to(ROOT / "lcnn_analyze"):
            for node in ast.walk(ast.parse(path.read_text())):
                whole = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lcnn_core"
                if whole and node.attr not in lcnn_core.__all__:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses {ast.unparse(node)}")
    assert not wrong


@pytest.mark.parametrize("package", ONLY_IN)
def test_third_party_packages_stay_in_their_rooms(package):
    found = [f for f in imports() if f.module.split(".")[0] == package]
    assert not [str(f) for f in found if f.importer not in ONLY_IN[package]]


def test_the_analyzer_has_no_torch_after_describe():
    rooms = {f"lcnn_analyze.{name}" for name in TORCH_IN_ANALYZER}
    assert not [
        str(f)
        for f in imports()
        if f.runtime and room(f.module) == "torch" and f.importer.startswith("lcnn_analyze") and f.importer not in rooms
    ]


def loaded_after(code: str) -> set[str]:
    """Top-level packages in memory after ``code`` ran in a fresh process."""
    script = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


HEAVY = {"torch", "numpy", "typer", "click", "matplotlib", "pandas", "rich", "jinja2", "fvcore", "sklearn"}
NOT_IN_CORE = HEAVY - {"torch", "numpy"}
SAME_NAME = sorted(set(lcnn_core._HOME) & set(lcnn_core._HOME.values()))


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import lcnn_core, lcnn_analyze", HEAVY),
        ("from lcnn_core import LookupConfig, ModelSpec, ConfigError, count_layer", HEAVY),
        ("import lcnn_analyze.cost, lcnn_analyze.spectrum, lcnn_analyze.codec", {"torch", "typer", "matplotlib"}),
        ("import lcnn_analyze.report, lcnn_analyze.render", {"torch", "typer", "matplotlib", "pandas"}),
        ("import lcnn_analyze.bench.bench", {"sympy", "matplotlib", "onnxruntime", "openvino"}),  # sympy: of inductor
    ],
)
def test_what_a_fresh_process_loads(code, forbidden):
    assert not loaded_after(code) & forbidden


@pytest.mark.parametrize("first", ["", "".join(f"import lcnn_core.{name}\n" for name in SAME_NAME)])
def test_every_public_name_in_a_fresh_process(first):
    """No import order puts a room in the place of its function, and the whole library needs none of the drawing."""
    assert {"describe", "convert", "train"} <= set(SAME_NAME)
    everything = ", ".join(lcnn_core.__all__)
    check = "".join(f"assert callable({name}) and lcnn_core.{name} is {name}\n" for name in SAME_NAME)
    loaded = loaded_after(f"{first}import lcnn_core\nfrom lcnn_core import {everything}\n{check}")
    assert "torch" in loaded
    assert not loaded & NOT_IN_CORE


# Public names


def public(package: str) -> list[Any]:
    return [pytest.param(package, name, id=f"{package}.{name}") for name in PACKAGES[package].__all__]


PUBLIC = [case for package in PACKAGES for case in public(package)]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_name_exists_and_says_what_it_is(package, name):
    value = getattr(PACKAGES[package], name)
    if package == "lcnn_core" and name in lcnn_core._MODULES:
        assert inspect.ismodule(value)
    else:
        home = import_module(f"{package}.{PACKAGES[package]._HOME[name]}")
        assert value is getattr(home, name)
        assert name in getattr(home, "__all__", [name]), f"{home.__name__}.__all__ lacks it"
        assert not name.startswith("_")
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        text = inspect.getdoc(value) or ""
        assert text, "no docstring"
        assert not text.startswith(f"{name}("), "the docstring that dataclass makes up"


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_what_type_checkers_see(package):
    guarded = [f for f in imports() if f.path == ROOT / package / "__init__.py" and not f.runtime]
    seen = {str(f.name): f.module.removeprefix(package).removeprefix(".") for f in guarded}
    assert sorted(seen) == PACKAGES[package].__all__ == dir(PACKAGES[package])
    assert {name: home for name, home in seen.items() if home} == PACKAGES[package]._HOME
    assert len(seen) == len(guarded)


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_names_are_refused_as_python_does(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = PACKAGES[package].nonsense


# Registries


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in REGISTRIES.items() for name in names.split()]
)
def test_registries_are_public_filled_and_documented(package, name):
    registry = getattr(PACKAGES[package], name)
    assert registry
    assert all(type(key) is type(next(iter(registry))) for key in registry)
    for key, entry in registry.items():
        if isinstance(key, str):
            assert key == key.strip() != ""
        if name != "OPTIMIZERS":  # their names say it: torch's own
            text = getattr(entry, "doc", None) or inspect.getdoc(entry)
            assert text, f"{name}[{key!r}] does not say what it is"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_registry_is_walked(package):
    dicts = [name for name in PACKAGES[package].__all__ if isinstance(getattr(PACKAGES[package], name), dict)]
    assert sorted(set(dicts) - {"ALIASES"}) == REGISTRIES[package].split()


# Size


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of each function's body, its docstring left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - body[0].lineno + 1


def test_files_and_functions_stay_small():
    files = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    functions = dict(item for path in SOURCES for item in function_lengths(path))
    long = {name for name, lines in files.items() if lines > LINES_PER_FILE}
    long |= {name for name, lines in functions.items() if lines > LINES_PER_FUNCTION}
    assert long == set(LONG), "split what is new here, or list it with its reason; take out what is short again"
    assert all(LONG.values())


def test_every_file_says_what_it_is():
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in SOURCES}
    assert not [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
