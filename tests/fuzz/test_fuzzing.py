"""Every target fuzzed for a minute: an input that breaks a handler fails the test and is named."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

SECONDS = 60
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris, the fuzzer, has wheels for Python 3.11 on Linux x86-64 only",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_of_fuzzing_breaks_nothing(name: str, tmp_path: Path) -> None:
    """Slow: a minute each, so that inputs are found that are several changes away from a valid one."""
    command = [sys.executable, "-m", "tests.fuzz.run", name]
    options = ["--seconds", str(SECONDS), "--finds", str(tmp_path)]
    found = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS * 5,
    )
    finds = [f"{path.name}: {path.read_bytes()[:2000].hex()}" for path in tmp_path.iterdir()]
    assert found.returncode == 0 and not finds, "\n".join(
        [found.stdout[-2000:], found.stderr[-2000:], *finds]
    )


def test_the_fuzzer_notices_a_broken_handler(tmp_path: Path) -> None:
    """It runs, is guided, and ends with an error where an input breaks a rule."""
    code = (
        "import sys, tests.fuzz.run as run\n"
        "def broken(data):\n"
        "    assert not data.startswith(b'\\x00\\x00')\n"
        "    return True\n"
        "run.TARGETS['exchange'] = broken\n"
        f"sys.argv = ['fuzz', 'exchange', '--seconds', '20', '--finds', {str(tmp_path)!r}]\n"
        "run.main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and "AssertionError" in found.stdout
    assert [path.name for path in tmp_path.iterdir()]
