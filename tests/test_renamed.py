"""Import paths of version 0.1 keep working, with a warning; the functions have their names for themselves."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import warnings
from importlib import resources

import pytest

import fewgen
from fewgen.renamed import FROM_API, MODULES, new_path

# What docs/architecture.md of version 0.1 says of the packages that moved: a public name of each file.
DOCUMENTED = {
    "fewgen.benchmark.candidates": "make_generator",
    "fewgen.benchmark.references.copies": "Copies",
    "fewgen.distill": "make_student",
    "fewgen.distill.teacher": "ProtoNet",
    "fewgen.evaluate": "evaluate_images RealSide Evaluation ImageEncoder make_image_encoder vendi_score",
    "fewgen.evaluate.aligned": "alignment_test class_retention",
    "fewgen.evaluate.features": "ImageEncoder ClassifierFeatures make_image_encoder class_predictor",
    "fewgen.evaluate.copying": "Aligner tail_test c_t",
    "fewgen.evaluate.distances": "frechet_distance kernel_test",
    "fewgen.evaluate.diversity": "vendi_score collapse_share",
    "fewgen.evaluate.matching": "match_images",
    "fewgen.evaluate.perceptual": "lpips_distance",
    "fewgen.evaluate.planner": "required_episodes",
    "fewgen.evaluate.quality": "ssim psnr",
    "fewgen.evaluate.usefulness": "measure_usefulness",
    "fewgen.generate": "GenerationRequest GeneratedImages image_seeds noise uniform image_rngs grid sharpen",
    "fewgen.training.seeds": "derive_seed",
}


@pytest.fixture
def forgotten(monkeypatch):
    """Let the old paths be imported anew, and put everything back."""
    for name in [name for name in sys.modules if new_path(name)]:
        monkeypatch.delitem(sys.modules, name)
    before = dict(vars(fewgen))
    yield
    for name in [name for name in sys.modules if new_path(name)]:
        del sys.modules[name]
    for name in set(vars(fewgen)) - set(before):
        delattr(fewgen, name)


@pytest.mark.parametrize("old", MODULES)
def test_each_old_module_gives_the_objects_of_the_new_one(old, forgotten):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MODULES[old]};") as caught:
        module = importlib.import_module(old)
    assert any(str(w.message).startswith(f"{old} is now") for w in caught)
    new = importlib.import_module(MODULES[old])
    names = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(new, name) for name in names)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


@pytest.mark.parametrize("old", DOCUMENTED)
def test_documented_names_are_where_they_were(old, forgotten):
    with pytest.warns(DeprecationWarning, match="is now"):
        module = importlib.import_module(old)
    for name in DOCUMENTED[old].split():
        assert hasattr(module, name), (old, name)


@pytest.mark.parametrize("name", FROM_API)
def test_names_that_left_the_api(name):
    with pytest.warns(DeprecationWarning, match=f"fewgen.api.{name} is now fewgen.{name};"):
        assert getattr(importlib.import_module("fewgen.api"), name) is getattr(fewgen, name)


@pytest.mark.filterwarnings("ignore:.*is now:DeprecationWarning")
def test_a_name_that_never_was_is_an_error(forgotten):
    with pytest.raises(ImportError):
        importlib.import_module("fewgen.evaluator")
    with pytest.raises(ImportError):
        importlib.import_module("fewgen.evaluate.no_such_file")
    with pytest.raises(AttributeError):
        _ = importlib.import_module("fewgen.api").no_such_name


def in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_warning_names_the_line_of_the_import_and_the_function_stays_callable():
    warned = in_a_fresh_process(
        "import fewgen\n"
        "from fewgen.evaluate import vendi_score\n"
        "import fewgen.evaluate.distances as old, fewgen.evaluation.distances as new\n"
        "assert old.kernel_test is new.kernel_test\n"
        "from fewgen.evaluate import distances\n"
        "assert distances.kernel_test is new.kernel_test and callable(vendi_score)\n"
        "import inspect\n"
        "assert list(inspect.signature(fewgen.evaluate).parameters)[:2] == ['images', 'data']\n"
        "from fewgen.errors import FewgenError\n"
        "try: fewgen.evaluate('no such run')\n"
        "except FewgenError as error: assert 'no such run' in str(error), error\n"
        "else: raise SystemExit('nothing raised')\n"
    )
    assert "<string>:2: DeprecationWarning: fewgen.evaluate is now fewgen.evaluation;" in warned


def test_public_functions_are_functions_with_their_signature_and_nothing_heavy_is_loaded():
    warned = in_a_fresh_process(
        "import sys, types, inspect, fewgen\n"
        "assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)\n"
        "functions = [n for n in fewgen.__all__ if n[0].islower() and n != 'plan_training']\n"
        "assert {'evaluate', 'generate', 'benchmark', 'distill'} < set(functions)\n"
        "for name in functions:\n"
        "    found = getattr(fewgen, name)\n"
        "    assert type(found) is types.FunctionType, name\n"
        "    kinds = {p.kind for p in inspect.signature(found).parameters.values()}\n"
        "    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}, name\n"
        "assert list(inspect.signature(fewgen.evaluate).parameters)[:3] == ['images', 'data', 'holdout']\n"
    )
    assert "is now" not in warned
    assert inspect.getdoc(fewgen.evaluate)


def test_the_package_says_that_it_has_types():
    assert resources.files("fewgen").joinpath("py.typed").is_file()
    assert set(fewgen.__all__) <= set(dir(fewgen))


def test_nothing_of_our_own_uses_an_old_path():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for name in ("cli.main", "api", "comparison", "distillation.distilling", "evaluation", "runs"):
            importlib.import_module(f"fewgen.{name}")
