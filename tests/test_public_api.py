"""What `import jaxtransfer` gives: the documented names, and nothing slow."""

import re
import subprocess
import sys
from pathlib import Path

import jaxtransfer as jt

ROOT = Path(__file__).parent.parent


def exported() -> set[str]:
    return {
        name
        for name in jt.__all__
        if not name.startswith("_") and not type(getattr(jt, name)).__name__ == "module"
    }


def test_the_exports_are_exactly_the_documented_names():
    documented = re.findall(r"^\| `jt\.(\w+)` \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert exported() == set(documented)


def test_every_export_has_a_docstring():
    assert [name for name in exported() if not (getattr(jt, name).__doc__ or "").strip()] == []


def test_readme_names_exist():
    used = set(re.findall(r"\bjt\.(\w+)", (ROOT / "README.md").read_text()))
    assert {name for name in used if not hasattr(jt, name)} == set()


def test_a_name_is_imported_when_it_is_asked_for():
    code = "import sys, jaxtransfer as jt; print('jax' in sys.modules); jt.load; print(dir(jt))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, names = run.stdout.splitlines()
    assert before == "False" and "finetune" in names


def test_import_loads_nothing_slow():
    slow = ("orbax", "tensorflow_datasets", "grain", "sklearn", "matplotlib", "PIL", "scipy.stats")
    code = (
        "import sys, jax, flax.linen, optax; before = set(sys.modules); import jaxtransfer as jt; "
        "[getattr(jt, name) for name in jt.__all__]; "
        f"print([m for m in {slow!r} if m in sys.modules and m not in before])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"
