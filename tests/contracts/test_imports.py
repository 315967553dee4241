"""Imports go one way, folders import as one namespace, and the front door stays light."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import visynth

ROOT = Path(__file__).resolve().parents[2]
CORE = {
    "generator",
    "manifest",
    "report",
    "report_page",
    "seeds",
    "balance",
    "plugins",
    "errors",
    "distributed",
    "files",
    "folders",
    "members",
    "pictures",
}
PARTS = {"networks", "data", "metrics", "render", "compose", "privacy", "callbacks"}
ALLOWED = {"render": {"data"}, "callbacks": {"metrics", "data"}, "compose": {"networks"}}
DOOR = {"cli", "commands", "__main__", "__init__", "lightning"}


def layer(module: str) -> str:
    first = module.split(".")[1] if "." in module else "__init__"
    if first in CORE:
        return "core"
    if first in PARTS:
        return first
    if first in ("lightning_modules", "tabular"):
        return first
    return "door" if first in DOOR else "jobs"


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
            names |= {
                f"{node.module}.{alias.name}" if node.module == "visynth" else node.module for alias in node.names
            }
    return names


def may(source: str, target: str) -> bool:
    if target == "core" or source in (target, "door"):
        return True
    if source == "core" or target in ("lightning_modules", "tabular", "door"):
        return False
    if source in PARTS:
        return target in ALLOWED.get(source, set())
    if source == "lightning_modules":
        return target in PARTS
    if source == "tabular":
        return target in ("privacy", "metrics")
    return target in PARTS or target == "jobs"  # jobs


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_one_way(name: str) -> None:
    wrong = [m for m in imported(modules()[name]) if m.startswith("visynth") and not may(layer(name), layer(m))]
    # The door names public things lazily, as strings, and the version as an attribute.
    assert [m for m in wrong if m != "visynth.__version__"] == []


def test_the_rules_catch_a_wrong_import() -> None:
    assert not may(layer("visynth.data.folder"), layer("visynth.metrics.features"))
    assert not may(layer("visynth.trial"), layer("visynth.lightning_modules.classifier"))
    assert not may(layer("visynth.errors"), layer("visynth.data.folder"))


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
    from visynth import plugins
    from visynth.errors import UsageError

    for group, table in plugins.BUILT_IN.items():
        for name in table:
            assert plugins.load(group, name) is not None
    with pytest.raises(UsageError, match="registered are 'biggan', 'cgan', 'compose'"):
        plugins.load("generators", "nothing")
    with pytest.raises(UsageError, match="plugin group must be one of"):
        plugins.names("nothing")


@pytest.mark.parametrize(
    "code",
    [
        "import visynth",
        "import visynth.cli; visynth.cli.main(['--help'])",
        "import visynth.render.writers",
        "import visynth.metrics.frozen",
        "import visynth.comparison",
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
    from visynth.data import mixing

    ours, theirs = (inspect.signature(c.__new__) for c in (mixing.WithSynthetic, visynth.lightning.WithSynthetic))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]
    assert [(p.name, p.default) for p in ours.parameters.values()][3:] == [
        (f.name, f.default) for f in fields(mixing.Options)
    ]
