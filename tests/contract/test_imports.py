"""The direction of imports, as declared in pyproject.toml; and the speed that lazy imports buy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_point_one_way() -> None:
    pytest.importorskip("importlinter", reason="import contracts need the extra `dev`")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("heavy", ["torch", "sionna", "cv2", "av", "plotly", "torchmetrics", "scipy", "accelerate"])
def test_help_imports_nothing_heavy(heavy: str) -> None:
    code = (
        "import sys\nfrom semcast.app.cli import main\n"
        f"main(['--help']); main(['compare', '--help'])\nsys.exit({heavy!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
