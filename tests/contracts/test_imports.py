"""Imports go one way, folders import as one namespace, and the front door stays light."""

from __future__ import annotations

import ast
import functools
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import visynth

ROOT = Path(__file__).resolve().parents[2]
# Rooms, and what each may import beside itself and core: only what stands before it.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "networks": set(),
    "data": set(),
    "verdict": set(),
    "generators": {"networks"},
    "metrics": {"verdict"},
    "mixing": {"generators", "data"},
    "render": {"generators"},
    "callbacks": {"metrics", "data"},
    "privacy": {"networks", "generators", "metrics"},
    "federated": {"privacy"},
}
FIRST_FOUR = set(ROOMS) - {"core"}
ROOMS |= {"jobs": FIRST_FOUR, "lightning_modules": FIRST_FOUR, "tabular": {"verdict", "render", "metrics", "privacy"}}
TOP = {"visynth", "visynth.__main__", "visynth.cli", "visynth.lightning"}


def room(module: str) -> str:
    """The first level under visynth; the door for the files at its top and the commands."""
    first = module.split(".")[1] if module not in TOP else "door"
    return "door" if first == "commands" else first


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for folder, prefix in (
        (ROOT / "visynth", "visynth"),
        (ROOT / "lightning_modules", "visynth.lightning_modules"),
        (ROOT / "tabular", "visynth.tabular"),
    ):
        for path in folder.rglob("*.py"):
            name = ".".join([prefix, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.unparse(b.test)
        for n in ast.walk(b)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            known = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            names |= known if len(known) == len(node.names) else {*known, node.module}
    return names


def may(source: str, target: str) -> bool:
    return source in (target, "door") or (target != "door" and (target == "core" or target in ROOMS[source]))


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_one_way(name: str) -> None:
    wrong = [m for m in imported(modules()[name]) if m.startswith("visynth") and not may(room(name), room(m))]
    # The door names public things lazily, as strings, and the version as an attribute.
    assert [m for m in wrong if m not in ("visynth", "visynth.__version__")] == []


def test_the_rules_catch_a_wrong_import() -> None:
    assert not may(room("visynth.data.folder"), room("visynth.metrics.bank"))
    assert not may(room("visynth.jobs.trial.flow"), room("visynth.lightning_modules.classifier"))
    assert not may(room("visynth.core.errors"), room("visynth.data.folder"))
    assert not may(room("visynth.jobs.gate"), room("visynth.cli"))


def test_there_is_no_import_cycle() -> None:
    """Inside rooms too, imports within functions included."""
    known = modules()
    graph = {name: {m for m in imported(path) if m in known and m != name} for name, path in known.items()}
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert graph == {}


def test_the_top_level_is_the_door_alone() -> None:
    assert {name for name, path in modules().items() if path.parent == ROOT / "visynth"} == TOP


def test_nobody_imports_the_folders_by_their_bare_names() -> None:
    files = [
        p
        for folder in ("visynth", "lightning_modules", "tabular", "tests", "scripts")
        for p in (ROOT / folder).rglob("*.py")
    ]
    for path in files:
        assert not {m.split(".")[0] for m in imported(path)} & {"lightning_modules", "tabular", "configs"}, path


def test_packages_on_disk_are_the_packages_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {name for name, path in modules().items() if path.name == "__init__.py"} | {"visynth.configs"}
    assert listed == found


def test_the_namespace_maps_exactly_three_names() -> None:
    assert set(visynth._SourceCheckout.folders) == {"visynth.configs", "visynth.lightning_modules", "visynth.tabular"}
    with pytest.raises(ModuleNotFoundError):
        __import__("visynth.visynth")


def test_subpackages_import_in_a_fresh_process_away_from_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "lightning_modules").mkdir()
    (tmp_path / "lightning_modules" / "__init__.py").write_text("raise RuntimeError('the user has one of their own')")
    code = (
        "import visynth.lightning_modules, visynth.tabular, visynth.configs; print(visynth.lightning_modules.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "visynth.lightning_modules"


def test_classes_of_the_mapped_folders_survive_spawn_and_pickle() -> None:
    import multiprocessing

    from visynth.lightning_modules.classifier import FinetuneLearner

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(type, (FinetuneLearner(),)) is FinetuneLearner
    assert pickle.loads(pickle.dumps(FinetuneLearner)) is FinetuneLearner


def test_public_names_resolve_and_are_sorted() -> None:
    assert visynth.__all__ == sorted(visynth.__all__)
    for name in visynth.__all__:
        assert getattr(visynth, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        visynth.nothing  # noqa: B018


def test_every_built_in_plugin_can_be_loaded() -> None:
    from visynth.core import plugins
    from visynth.core.errors import UsageError

    for group, table in plugins.BUILT_IN.items():
        for name in table:
            assert plugins.load(group, name) is not None
    with pytest.raises(UsageError, match="registered are 'biggan', 'cgan', 'compose'"):
        plugins.load("generators", "nothing")
    with pytest.raises(UsageError, match="plugin group must be one of"):
        plugins.names("nothing")


@pytest.mark.parametrize("group", ["synthesizers", "series"])
def test_arguments_that_a_class_has_not_are_refused_with_those_that_it_has(group: str) -> None:
    from visynth.core import plugins
    from visynth.core.errors import UsageError

    for name in plugins.BUILT_IN[group]:
        with pytest.raises(UsageError, match="has no argument 'widths'; it has"):
            plugins.make(group, name, {"widths": 3})
        assert plugins.make(group, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import visynth",
        "import visynth.cli; visynth.cli.main(['--help'])",
        "import visynth.render.writers",
        "import visynth.verdict.frozen",
        "import visynth.verdict.comparison",
    ],
)
def test_light_modules_import_no_torch(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_both_wrappers_take_the_same_arguments() -> None:
    import inspect
    from dataclasses import fields

    import visynth.lightning
    from visynth.mixing import wrapper as mixing

    ours, theirs = (inspect.signature(c.__new__) for c in (mixing.WithSynthetic, visynth.lightning.WithSynthetic))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]
    assert [(p.name, p.default) for p in ours.parameters.values()][3:] == [
        (f.name, f.default) for f in fields(mixing.Options)
    ]
