"""The files around the code: lock, package data, dev.py's reading of pip's configuration."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import jaxnlme as jn

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PINS = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())


@pytest.fixture
def dev() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_holds_versions_and_hashes_and_no_address() -> None:
    assert "://" not in LOCK
    assert not [pin for pin in PINS if "==" not in pin or "--hash=sha256:" not in pin]


def test_the_lock_serves_every_platform_and_python() -> None:
    """A lock compiled from a local store of wheels has one hash where others have dozens."""
    for name in ("numpy", "jaxlib", "scipy", "ml-dtypes", "polars-runtime-32", "pyarrow"):
        found = [pin for pin in PINS if pin.startswith(f"{name}==")]
        assert found, name
        assert all(pin.count("--hash") >= 8 for pin in found), name
    jax = [pin for pin in PINS if pin.startswith("jax==")]
    assert any("0.10.2 ; python_full_version < '3.12'" in pin for pin in jax)
    assert len(jax) == 2


def test_the_lock_holds_every_direct_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in ("plot", "polars", "arrow", "calibration", "numpyro", "forecast", "sklearn"):
        wanted += extras[extra]
        assert extra in extras["all"][0]
    locked = {pin.partition("==")[0] for pin in PINS}
    names = {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower() for text in wanted}  # type: ignore[index]
    assert names <= locked


def test_the_installed_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("jaxnlme") == jn.__version__


def test_pip_configuration_is_passed_on_to_uv(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        dev,
        "pip_settings",
        lambda: {
            "index-url": "https://index/simple",
            "extra-index-url": "https://a/simple\nhttps://b/simple",
            "find-links": "/wheels /more",
            "cert": "/etc/cert.pem",
            "no-index": "true",
        },
    )
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE", "UV_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    env = dev.uv_environment()
    assert env["UV_DEFAULT_INDEX"] == "https://index/simple"
    assert env["UV_INDEX"] == "https://a/simple https://b/simple"
    assert env["UV_FIND_LINKS"] == "/wheels,/more"
    assert env["SSL_CERT_FILE"] == "/etc/cert.pem"
    assert env["UV_NO_INDEX"] == "1"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen/simple")
    assert dev.uv_environment()["UV_DEFAULT_INDEX"] == "https://chosen/simple"


def test_pip_settings_read_files_and_environment(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file/simple\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/from/environment.pem")
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    monkeypatch.setattr(sys, "executable", _python_with_pip())
    settings = dev.pip_settings()
    assert settings["index-url"] == "https://file/simple"
    assert settings["cert"] == "/from/environment.pem"
    assert settings["timeout"] == "9"  # the environment wins over the file


def _python_with_pip() -> str:
    import subprocess

    for python in (sys.executable, getattr(sys, "_base_executable", ""), "python3"):
        if (
            python
            and subprocess.run([python, "-m", "pip", "-V"], capture_output=True).returncode == 0
        ):
            return python
    pytest.skip("no interpreter with pip here")


def test_an_unknown_task_prints_the_help(dev: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert dev.main(["tset"]) == 2
    assert "python3 dev.py test" in capsys.readouterr().out
