"""Every script of examples/ runs from any folder and prints what its page promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# One line each whose digits are known from elsewhere: R's log-likelihoods and MATLAB's page.
# own_model and many_fits have no outside source; their lines were printed once and pin the script.
EXPECTED = {
    "theoph": "log-likelihood   -177.0223 -176.9918",
    "co2_covariates": "  log-likelihood -186.8383   df 10",
    "own_model": "predicted after 24 h: 2.16 mg/L",
    "many_fits": "200 of 200 fits converged",
    "matlab_indometh": "beta     [ 2.8277  0.7729  0.4606 -1.3459]",
    "pbg_nested": "  log-likelihood -145.2294",
    "glm_claims": "Log-likelihood:              -184.371   AIC:                           388.742",
    "glm_custom_family": "AIC 981.29 (gumbel), 1003.42 (gaussian)",
    "calibration_climate": "converged: True",
    "calibration_hare_lynx": "converged: True",
    "calibration_eight_schools": "log evidence -31.3",
    "calibration_expensive": "the emulator's posterior is the model's",
}
SLOW = {
    "many_fits",
    "glm_claims",
    "glm_custom_family",
    "calibration_climate",
    "calibration_hare_lynx",
    "calibration_eight_schools",
}


def test_every_example_has_an_expected_line() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in EXPECTED]
)
def test_example_runs_and_prints_its_line(name: str, tmp_path: Path) -> None:
    """Warnings are shown, not raised; the compilation cache is that of the test run."""
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, "-W", "default", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(EXPECTED[name]) for line in done.stdout.splitlines()), done.stdout
    shown = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert not [line for line in shown if "persistent compilation cache" not in line], done.stderr
    if name == "theoph":
        picture = (tmp_path / "demo_output" / "theoph.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000  # an empty canvas of this size has about 5 kB
