"""Architecture rules, checked on the syntax trees of all modules.

Each rule is a function that returns a module's violations. Every rule is checked on the project,
and on small examples that violate it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from search.core.config import SweepConfig
from trainables.assignment import Assignment, Message
from trainables.core.optim import OptimConfig
from trainables.methods.registry import METHODS
from trainables.report import Report
from trainables.trial import TaskSpec, TrialConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "spaces", "trainables")

Rule = Callable[["Module"], list[str]]


@dataclass(frozen=True)
class Import:
    """One imported module or name, as `package.module.name`."""

    target: str
    line: int
    for_types: bool
    """Whether it is under `if TYPE_CHECKING`."""

    def of(self, *packages: str) -> bool:
        return any(self.target == p or self.target.startswith(f"{p}.") for p in packages)


@dataclass(frozen=True)
class Module:
    """A source file."""

    path: str
    """Path relative to the repository, with slashes."""
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @cached_property
    def imports(self) -> list[Import]:
        """All imports at any depth, including those inside functions."""
        for_types = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for statement in node.body
            for inner in ast.walk(statement)
        }
        found = []
        for node in ast.walk(self.tree):
            match node:
                case ast.Import(names=names):
                    targets = [alias.name for alias in names]
                case ast.ImportFrom(module=module, names=names, level=0):
                    targets = [f"{module}.{alias.name}" for alias in names]
                case ast.ImportFrom():
                    targets = ["<relative>"]
                case ast.Call(
                    func=ast.Attribute(attr="import_module") | ast.Name(id="__import__"), args=args
                ):
                    constant = args[0].value if args and isinstance(args[0], ast.Constant) else None
                    targets = [constant if isinstance(constant, str) else "<dynamic>"]
                case _:
                    continue
            found += [Import(target, node.lineno, id(node) in for_types) for target in targets]
        return found


def read(path: str, source: str) -> Module:
    return Module(path, ast.parse(source))


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return tuple(read(p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8")) for p in paths)


def test_there_is_something_to_check() -> None:
    assert {module.package for module in modules()} == set(PACKAGES)
    assert len(modules()) > 30


# --- imports -------------------------------------------------------------------------------------

BELOW = {"search": (), "spaces": ("search",), "trainables": ("search", "spaces")}
"""What each package must not import: search -> spaces -> trainables."""


def one_way(module: Module) -> list[str]:
    """Imports are absolute and go one way; nothing imports tests or benchmarks."""
    forbidden = (*BELOW[module.package], "tests", "benchmarks", "<relative>", "<dynamic>")
    return [f"{i.line} imports {i.target}" for i in module.imports if i.of(*forbidden)]


PARTS = {
    "search": (
        *("core", "papers", "selection", "ledger", "evaluation", "tracking", "reporting"),
        *("terminal", "exporting", "execution", "driver", "reproduction"),
    ),
    "trainables": ("core", "images", "data", "backbones", "methods"),
}
"""The parts of a package, from the bottom up. The modules above them connect them: the commands in
`search`, and the trainer and its parts in `trainables`."""


def floor(name: str) -> tuple[int, int]:
    """The layer of a module: its package, and its part of the package."""
    package, _, rest = name.partition(".")
    parts = PARTS.get(package, ())
    part = rest.split(".")[0]
    height = parts.index(part) if part in parts else len(parts)
    return ("trainables", "spaces", "search").index(package), height


@cache
def loads() -> dict[str, frozenset[str]]:
    """Every module -> the modules of the project that it imports, including inside functions."""
    known = {module.name for module in modules()}
    found = {}
    for module in modules():
        targets = set()
        for imported in module.imports:
            parent = imported.target.rpartition(".")[0]
            targets |= {name for name in (imported.target, parent) if name in known}
        # A package's own `__init__` is loaded with its modules and imports none of them.
        packages = {name for name in targets if any(n.startswith(f"{name}.") for n in known)}
        found[module.name] = frozenset(targets - packages - {module.name})
    return found


def reachable(name: str, graph: Mapping[str, frozenset[str]]) -> set[str]:
    """All modules that `name` loads, directly or indirectly."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        for target in graph[ahead.pop()] - seen:
            seen.add(target)
            ahead.append(target)
    return seen


def upward(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """Modules that directly or indirectly load a higher module or themselves."""
    return [
        f"{name} loads {target}"
        for name in graph
        for target in sorted(reachable(name, graph))
        if floor(target) > floor(name) or target == name
    ]


def test_modules_load_only_what_is_below_them() -> None:
    assert upward(loads()) == []


def test_an_indirect_upward_import_and_a_cycle_are_seen() -> None:
    assert upward(
        {
            "search.core.a": frozenset({"search.core.b"}),
            "search.core.b": frozenset({"search.ledger.c"}),
            "search.ledger.c": frozenset(),
        }
    ) == ["search.core.a loads search.ledger.c", "search.core.b loads search.ledger.c"]
    assert upward({"spaces.a": frozenset({"spaces.b"}), "spaces.b": frozenset({"spaces.a"})})
    assert upward(
        {
            "trainables.data.a": frozenset({"trainables.trainer"}),
            "trainables.trainer": frozenset(),
        }
    )


def parts_apart(module: Module) -> list[str]:
    """A part imports only the parts below it."""
    above = [
        f"{package}.{part}"
        for package, parts in PARTS.items()
        for part in parts
        if package == module.package and floor(f"{package}.{part}") > floor(module.name)
    ]
    return [f"{i.line} imports {i.target}" for i in module.imports if i.of(*above)]


@pytest.mark.parametrize("package", PARTS)
def test_every_part_has_its_place(package: str) -> None:
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(PARTS[package])


METHOD_MODULES = {method.__module__ for method in METHODS.values()}


def methods_apart(module: Module) -> list[str]:
    """Only the registry and the packages above import single methods; shared modules import
    none."""
    if not module.path.startswith("trainables/methods/") or module.path.endswith("registry.py"):
        return []
    others = METHOD_MODULES - {module.name} | {"trainables.methods.registry"}
    return [f"{i.line} imports {i.target}" for i in module.imports if i.of(*others)]


SERVED = "search/exporting/served.py"
"""The code of an exported MLflow model."""
ANYWHERE = ("search/", "trainables/")
HOMES: dict[str, tuple[str, ...]] = {
    "torch": ANYWHERE,
    "numpy": ANYWHERE,
    "pyarrow": (
        *("search/evaluation/", "search/reporting/", "trainables/core/", "trainables/data/"),
        *("trainables/encoded_task.py", "trainables/view.py"),
    ),
    "safetensors": ANYWHERE,
    "PIL": ("search/evaluation/examples.py", "search/example.py", SERVED, "trainables/images/"),
    "scipy": ("search/evaluation/statistics.py", "trainables/data/benchmarks/"),
    "sklearn": ("trainables/data/",),
    "open_clip": ("trainables/backbones/open_clip.py",),
    "huggingface_hub": ("trainables/backbones/open_clip.py",),
    "pydantic": ("search/core/config.py", "trainables/core/records.py", "trainables/trial.py"),
    "pydantic_core": ("search/core/config.py", "trainables/core/records.py", "trainables/trial.py"),
    "annotated_types": (
        *("search/evaluation/record.py", "search/selection/record.py"),
        *("search/papers/schema.py", "trainables/core/records.py"),
    ),
    "filelock": ("trainables/core/store.py", "trainables/core/files.py"),
    "ray": ("search/", "trainables/trainable.py"),
    "optuna": ("search/",),
    # Tracking, the registry, and the exported model's flavour with the code that it includes.
    "mlflow": (
        "search/tracking/",
        *(f"search/exporting/{name}.py" for name in ("check", "formats", "registry")),
        SERVED,
    ),
    "pandas": ("search/api.py", "search/exporting/check.py", "search/exporting/formats.py", SERVED),
    "sqlalchemy": ("search/ledger/study_mirror.py", "search/tracking/uri.py"),
    "onnxruntime": ("search/exporting/check.py",),
    "plotly": ("search/reporting/page.py", "search/reporting/live.py"),
    "jinja2": ("search/reporting/page.py",),
    "markupsafe": ("search/reporting/page.py",),
    "rich": ("search/",),
    "yaml": ("search/core/sweep_file.py",),
    "shtab": ("search/completion.py",),
}
"""Which files may import a dependency."""
TYPES_ONLY: dict[str, tuple[str, ...]] = {"optuna": ("spaces/",), "mlflow": ("search/",)}
"""Other files that may import it for the type checker only."""


def at_home(module: Module) -> list[str]:
    """Each third-party dependency is imported only by its home."""
    found = []
    for package, homes in HOMES.items():
        for i in module.imports:
            allowed = homes + (TYPES_ONLY.get(package, ()) if i.for_types else ())
            if i.of(package) and not module.path.startswith(allowed):
                found.append(f"{i.line} imports {i.target}")
    return found


def has_a_home(module: Module) -> list[str]:
    """Every third-party package has a home in `HOMES`."""
    known = {*HOMES, *PACKAGES, *sys.stdlib_module_names, "tools", "tests", "benchmarks"}
    names = ((i, i.target.split(".")[0]) for i in module.imports)
    return [f"{i.line} imports {i.target}" for i, n in names if n not in known and n[0] != "<"]


def travels_alone(module: Module) -> list[str]:
    """The code of an exported model imports nothing from this project, because its users do not
    have it. Neither does the check of exports in a fresh process, at module level."""
    if module.path == SERVED:
        return [f"{i.line} imports {i.target}" for i in module.imports if i.of(*PACKAGES)]
    if module.path != "search/exporting/check.py":
        return []
    own = [node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    at_top = Module(module.path, ast.Module(list(own), [])).imports
    return [f"{i.line} imports {i.target}" for i in at_top if i.of(*PACKAGES)]


# --- safety --------------------------------------------------------------------------------------

RUNS_CODE = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")


def no_pickle(module: Module) -> list[str]:
    """Reading a file never runs code."""
    found = [f"{i.line} imports {i.target}" for i in module.imports if i.of(*RUNS_CODE)]
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        callee = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if callee == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno} torch.load without weights_only=True")
        if callee in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"{node.lineno} {callee} without allow_pickle=False")
        runs = callee in ("eval", "exec") and ast.unparse(node) != "exec('')"
        if runs or callee in ("pd.read_pickle", "pandas.read_pickle"):
            found.append(f"{node.lineno} calls {callee}")
    return found


MUTABLE_CALLS = {
    "list",
    "dict",
    "set",
    "bytearray",
    "defaultdict",
    "Counter",
    "deque",
    "OrderedDict",
}
MUTATORS = {
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "add", "discard"),
    *("update", "setdefault", "popitem", "appendleft", "popleft"),
}


def no_global_state(module: Module) -> list[str]:
    """Module-level tables are dict literals and never modified; everything else is immutable."""
    found, tables = [], set()
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {t.id for t in targets if isinstance(t, ast.Name)}
            tables |= names
            callee = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
            if names != {"__all__"} and (
                isinstance(
                    node.value, ast.List | ast.Set | ast.ListComp | ast.SetComp | ast.DictComp
                )
                or callee.split(".")[-1] in MUTABLE_CALLS
            ):
                found.append(f"{node.lineno} {', '.join(sorted(names))} is mutable")
    for node in ast.walk(module.tree):
        match node:
            case ast.Global(names=names):
                found.append(f"{node.lineno} global {', '.join(names)}")
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                if name in tables:
                    found.append(f"{node.lineno} changes {name}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)):
                if name in tables and attr in MUTATORS:
                    found.append(f"{node.lineno} changes {name}")
            case ast.AugAssign(target=ast.Name(id=name)):
                if name in tables:
                    found.append(f"{node.lineno} changes {name}")
    return found


# --- documentation -------------------------------------------------------------------------------


def _definitions(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public classes, functions and methods by dotted name, without those inside functions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _definitions(node.body, prefix)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _classes(module: Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}


@cache
def _project_classes() -> dict[str, ast.ClassDef]:
    return {name: node for module in modules() for name, node in _classes(module).items()}


def _inherits_words(owner: str, method: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a base class in the project documents the method: `help` shows that docstring."""
    for base in classes[owner].bases if owner in classes else ():
        name = ast.unparse(base).split(".")[-1]
        if name not in classes:
            continue
        for node in classes[name].body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name == method
                and ast.get_docstring(node)
            ):
                return True
        if _inherits_words(name, method, classes):
            return True
    return False


def documented(module: Module) -> list[str]:
    """Every module that is not empty and everything public has a docstring; a method may inherit
    that of its base class."""
    classes = _project_classes() | _classes(module)
    found = []
    if module.tree.body and not ast.get_docstring(module.tree):
        found.append("1 the module")
    for name, node in _definitions(module.tree.body):
        decorators = {ast.unparse(d) for d in node.decorator_list}
        if any(d.endswith((".setter", "overload")) for d in decorators):
            continue
        owner, _, method = name.rpartition(".")
        inherited = _inherits_words(owner.rpartition(".")[2], method, classes)
        if not ast.get_docstring(node) and not inherited:
            found.append(f"{node.lineno} {name}")
    return found


def fields_documented(module: Module) -> list[str]:
    """Every field of a public dataclass or named tuple has its own docstring."""
    found = []
    for name, node in _definitions(module.tree.body):
        if not isinstance(node, ast.ClassDef):
            continue
        record = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        if not record and "NamedTuple" not in {ast.unparse(b) for b in node.bases}:
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            match statement:
                case ast.AnnAssign(target=ast.Name(id=field), annotation=annotation):
                    private = field.startswith("_") or "ClassVar" in ast.unparse(annotation)
                    text = after.value if isinstance(after, ast.Expr) else None
                    if not private and not (
                        isinstance(text, ast.Constant) and isinstance(text.value, str)
                    ):
                        found.append(f"{statement.lineno} {name}.{field}")
    return found


RULES: tuple[Rule, ...] = (
    one_way,
    parts_apart,
    methods_apart,
    at_home,
    has_a_home,
    travels_alone,
    no_pickle,
    no_global_state,
    documented,
    fields_documented,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    breaches = [f"{module.path}:{found}" for module in modules() for found in rule(module)]
    assert breaches == [], rule.__doc__


BASE = '"""M."""\nclass A:\n    """A."""\n'
CHILD = '\nclass B(A):\n    """B."""\n    def f(self): pass'
SPACE, SEARCH = "spaces/new.py", "search/new.py"
METHOD, DATA = "trainables/methods/new.py", "trainables/data/new.py"
TYPED = (
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from optuna.trial import BaseTrial"
)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (one_way, DATA, "from spaces.base import Space"),
        (one_way, DATA, "import search"),
        (one_way, DATA, "def f():\n    from search.files import read_json"),
        (one_way, SPACE, "from search.core.config import SweepConfig"),
        (one_way, SPACE, "import importlib\nimportlib.import_module('search.core.config')"),
        (one_way, SPACE, "import importlib\nimportlib.import_module(name)"),
        (one_way, SPACE, "__import__('search')"),
        (one_way, SPACE, "from ..search import config"),
        (one_way, SEARCH, "from tests.search.conftest import Sweep"),
        (parts_apart, "search/ledger/new.py", "from search.evaluation.record import Score"),
        (parts_apart, "search/execution/new.py", "def f():\n    import search.driver.sweep"),
        (methods_apart, METHOD, "from trainables.methods.taskres import TaskRes"),
        (methods_apart, METHOD, "import trainables.methods.masking.rmt"),
        (methods_apart, METHOD, "from trainables.methods.masking import rmt"),
        (methods_apart, METHOD, "from trainables.methods.registry import METHODS"),
        (at_home, DATA, "import ray"),
        (at_home, "trainables/trainer.py", "from ray import tune"),
        (at_home, SEARCH, "import mlflow.pyfunc"),
        (at_home, "search/exporting/model.py", "import mlflow"),
        (at_home, SPACE, "import optuna"),
        (at_home, SPACE, "def f():\n    from optuna.trial import FixedTrial"),
        (at_home, METHOD, TYPED),
        (at_home, "trainables/backbones/new.py", "import open_clip"),
        (has_a_home, DATA, "import lightning"),
        (travels_alone, SERVED, "def f():\n    from trainables.core.storage import Storage"),
        (travels_alone, "search/exporting/check.py", "from trainables.core.storage import Storage"),
        (no_pickle, SEARCH, "import pickle"),
        (no_pickle, SEARCH, "from cloudpickle import dumps"),
        (no_pickle, DATA, "torch.load(path)"),
        (no_pickle, DATA, "torch.load(path, weights_only=False)"),
        (no_pickle, DATA, "np.load(path)"),
        (no_pickle, DATA, "eval(text)"),
        (no_global_state, DATA, "CACHE = []"),
        (no_global_state, DATA, "SEEN: set[str] = set()"),
        (no_global_state, DATA, "NAMES = {'a', 'b'}"),
        (no_global_state, DATA, "SQUARES = {i: i * i for i in range(3)}"),
        (no_global_state, DATA, "import collections\nC = collections.defaultdict(list)"),
        (no_global_state, DATA, "TABLE = {}\ndef f(k, v):\n    TABLE[k] = v"),
        (no_global_state, DATA, "TABLE = {}\ndef f(k):\n    del TABLE[k]"),
        (no_global_state, DATA, "TABLE = {}\ndef f(k, v):\n    TABLE.setdefault(k, v)"),
        (no_global_state, DATA, "COUNT = 0\ndef f():\n    global COUNT\n    COUNT += 1"),
        (documented, DATA, "X = 1"),
        (documented, DATA, "'''M.'''\ndef f(): pass"),
        (documented, DATA, "'''M.'''\nclass C:\n    '''C.'''\n    def f(self): pass"),
        (documented, DATA, "'''M.'''\nclass C: pass"),
        (documented, DATA, f"{BASE}    def f(self): pass{CHILD}"),
        (fields_documented, DATA, "@dataclass(frozen=True)\nclass C:\n    '''C.'''\n    x: int"),
        (
            fields_documented,
            DATA,
            "@dataclass\nclass C:\n    '''C.'''\n    x: int = 1\n    y: int = 2\n    '''Y.'''",
        ),
        (fields_documented, DATA, "class C(NamedTuple):\n    '''C.'''\n    x: int"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_breach_is_seen(rule: Rule, path: str, source: str) -> None:
    assert rule(read(path, source))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (one_way, SEARCH, "from trainables.trial import TrialConfig\nimport spaces.base"),
        (one_way, SPACE, "from trainables.trial import TrialConfig\nimport searchlight"),
        (parts_apart, "search/evaluation/new.py", "from search.core.results import Result"),
        (parts_apart, "search/ledger/new.py", "import search.core.lock, search.core.config"),
        (parts_apart, SEARCH, "from search.execution.searcher import StudySearcher"),
        (methods_apart, METHOD, "from trainables.methods.masking.masks import purity"),
        (
            methods_apart,
            "trainables/methods/masking/rmt.py",
            "from trainables.methods.masking.layers import x",
        ),
        (at_home, SPACE, TYPED),
        (has_a_home, DATA, "import json, torch"),
        (at_home, DATA, "from trainables.backbones.open_clip import open_clip\nimport rayleigh"),
        (
            travels_alone,
            "search/exporting/check.py",
            "def f():\n    import trainables.core.storage",
        ),
        (no_pickle, DATA, "torch.load(path, weights_only=True)"),
        (no_global_state, DATA, "TABLE = {'a': 1}\ndef f():\n    found = {}\n    found['b'] = 2"),
        (no_global_state, DATA, "NAMES = frozenset({'a'})\n__all__ = ['NAMES']"),
        (documented, DATA, ""),
        (documented, DATA, f'{BASE}    def f(self):\n        """F."""{CHILD}'),
        (documented, DATA, "'''M.'''\ndef f():\n    '''F.'''\n    def inner(): pass"),
        (fields_documented, DATA, "class C:\n    x: int"),
        (
            fields_documented,
            DATA,
            "@dataclass\nclass C:\n    '''C.'''\n    x: int\n    '''X.'''\n    _y: int = 0",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_keeps_the_rule_is_no_breach(rule: Rule, path: str, source: str) -> None:
    assert rule(read(path, source)) == []


# --- records and tests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        *(method.Config for method in METHODS.values()),
        *(OptimConfig, TaskSpec, TrialConfig, SweepConfig, Assignment, Message, Report),
    ],
    ids=lambda record: record.__name__,
)
def test_records_are_frozen(record: type) -> None:
    assert dataclasses.is_dataclass(record)
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_every_module_has_a_test_that_names_it_or_its_user() -> None:
    """A module is covered if a test names it (or runs it with `-m`), or names a module that imports
    it. This lenient check finds modules that were added without any test."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    words = {word for text in texts for word in re.findall(r"[\w.]+", text)}
    found = {word for word in words if word.startswith(tuple(f"{p}." for p in PACKAGES))}
    named = {
        module.name
        for module in modules()
        if any(word == module.name or word.startswith(f"{module.name}.") for word in found)
    }
    used = {
        target
        for module in modules()
        if module.name in named
        for i in module.imports
        for target in (i.target, i.target.rpartition(".")[0])
    }
    forgotten = [m.name for m in modules() if m.tree.body and m.name not in named | used]
    # A package's `__init__` contains at most its docstring.
    assert [name for name in forgotten if not (ROOT / name.replace(".", "/")).is_dir()] == []
