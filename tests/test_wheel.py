"""The package as users install it: everything that it reads is in the wheel, and it runs from there."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import tutelage

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/tutelage"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """What a wheel of this checkout puts into an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(ROOT)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_the_wheel(unpacked):
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert files(unpacked / "tutelage") == files(SOURCE)
    assert Path("py.typed") in files(SOURCE)


def test_the_version_is_that_of_the_newest_release_everywhere(unpacked):
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    assert f"\nVersion: {tutelage.__version__}\n" in metadata.read_text(encoding="utf-8")
    assert (cited["version"], str(cited["date-released"])) == releases[0] == (tutelage.__version__, releases[0][1])


def test_the_installed_package_writes_the_demo_and_prepares_it(unpacked, tmp_path):
    """Away from the checkout; recipes and templates come from the wheel."""
    code = """
import sys
from pathlib import Path
import tutelage
from tutelage.cli.main import main
from tutelage.demo.setup import prepare, recipe_for
prepare(Path("demo"), ["classification"])
recipe, overrides = recipe_for(Path("demo"), "classification")
print(tutelage.__file__, flush=True)
sys.argv = ["tutelage", "prepare", str(recipe), *overrides]
main()
"""
    env = os.environ | {"PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked))
    assert list(tmp_path.rglob("prepare/manifest.json"))
