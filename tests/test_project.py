"""Promises about the project itself: pinned versions, no torchvision, no pickles."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
UNSAFE_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib.load"}
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    lines = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines if not line.startswith("fewgen")]


def pins(python: str) -> dict[str, str]:
    """Versions that constraints.txt fixes for one Python; each package exactly once."""
    environment = {**default_environment(), "python_version": python, "python_full_version": python + ".0"}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is pinned twice for Python {python}"
        found[name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_inside_its_range(python: str) -> None:
    fixed = pins(python)
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in fixed, f"{name} is not in constraints.txt for Python {python}"
        assert requirement.specifier.contains(fixed[name], prereleases=True), (requirement, fixed[name])
    assert fixed["torch"] == "2.13.0"


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for requirement in declared():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, str(requirement)


def test_nothing_needs_torchvision() -> None:
    refused = {"torchvision", "timm", "lpips", "torch-fidelity", "clean-fid", "open-clip-torch"}
    assert not refused & {canonicalize_name(requirement.name) for requirement in declared()}
    for python in PYTHONS:
        assert not refused & set(pins(python))


def test_extras_and_script() -> None:
    assert set(project()["optional-dependencies"]) >= {"text", "app", "export", "dev", "all"}
    assert project()["scripts"] == {"fewgen": "fewgen.cli.main:main"}
    assert project()["requires-python"] == ">=3.10,<3.14"


def test_changelog_and_citation_name_the_version() -> None:
    assert f"version: {project()['version']}" in (ROOT / "CITATION.cff").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def unsafe(source: str) -> list[str]:
    """Return what in a piece of code could run foreign code while it reads a file."""
    found = []
    tree = ast.parse(source)
    safe_loaders = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in safe_loaders for base in node.bases):
            safe_loaders = safe_loaders | {node.name}  # a loader derived from the safe one
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module in UNSAFE_IMPORTS:
                found.append(f"imports {module}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if called == "torch.load" and not _is_constant(keywords.get("weights_only"), True):
            found.append("torch.load without weights_only=True")
        reads_numpy = called in {"np.load", "numpy.load"}
        if (reads_numpy or "allow_pickle" in keywords) and not _is_constant(
            keywords.get("allow_pickle"), False
        ):
            found.append("allow_pickle=False is missing")
        if re.fullmatch(r"yaml\.(unsafe_load|full_load|unsafe_load_all|full_load_all)", called):
            found.append(called)
        if called in {"yaml.load", "yaml.load_all"}:
            loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
            if loader is None or ast.unparse(loader) not in safe_loaders:
                found.append("yaml.load without a safe loader")
        if called in {"eval", "exec", "joblib.load"}:
            found.append(called)
    return found


def _is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_reads_pickles_or_runs_files(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "class Loose(yaml.Loader): pass\nyaml.load(f, Loader=Loose)",
        "yaml.full_load(f)",
        "eval(text)",
    ],
)
def test_negative_control_the_check_sees_unsafe_code(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_negative_control_safe_code_passes() -> None:
    assert (
        unsafe(
            "torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.load(f, yaml.SafeLoader)"
        )
        == []
    )


def test_importing_the_data_folder_does_not_import_heavy_libraries() -> None:
    code = "import sys, fewgen.data; print(sorted({'matplotlib', 'sklearn', 'scipy', 'transformers'} & set(sys.modules)))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert shown.stdout.strip() == "[]"
