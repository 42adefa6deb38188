#!/usr/bin/env python3
"""Set up the locked environment in .venv and run a task in it. Needs Python >= 3.11 and pip only.

python3 dev.py demo              a population fit of real data, compared with R
python3 dev.py test [ARGS...]    the test suite (ARGS go to pytest)
python3 dev.py lint [--fix]      ruff and pyright
python3 dev.py run CMD...        any command in the environment
python3 dev.py docs              build the documentation into docs/_build/html
python3 dev.py bench [NAME...]   run benchmarks/NAME.py (all without a name)
python3 dev.py lock [--check]    write requirements.lock anew (or compare)
python3 dev.py setup             only set up
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
TOOLS = ROOT / ".tools"
LOCK = ROOT / "requirements.lock"
STAMPS = VENV / ".jaxnlme-stamps"
UV_VERSION = "0.13.8"
LOCKED_EXTRAS = "plot polars arrow calibration numpyro forecast sklearn".split()
EVERYWHERE = (
    "jax jaxlib equinox lineax optimistix jaxtyping numpy".split()
)  # what every process imports
WINDOWS = os.name == "nt"
SCRIPTS = VENV / ("Scripts" if WINDOWS else "bin")
PYTHON = SCRIPTS / ("python.exe" if WINDOWS else "python")


def say(text: str) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def call(command: list, env: dict | None = None, check: bool = True) -> int:
    code = subprocess.call([str(part) for part in command], cwd=ROOT, env=env)
    if code and check:
        sys.exit(code)
    return code


# ---- finding uv, and telling it what pip knows ------------------------------------------------


def find_uv() -> str | None:
    """Return the path of uv: on PATH, in .tools, or installed there now; None if that fails."""
    if os.environ.get("JAXNLME_DEV_NO_UV"):
        return None
    local = TOOLS / "bin" / ("uv.exe" if WINDOWS else "uv")
    found = shutil.which("uv") or (str(local) if local.exists() else None)
    if found:
        return found
    say(f"installing uv {UV_VERSION} into .tools")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(TOOLS), f"uv=={UV_VERSION}"]
    env = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.call(command, cwd=ROOT, env=env) == 0 and local.exists():
        return str(local)
    return None


def pip_settings() -> dict[str, str]:
    """Return what pip's files and environment say: option -> value."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    layers: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in layers:
            try:
                layers[section][option] = str(ast.literal_eval(value))
            except (SyntaxError, ValueError):
                layers[section][option] = value
    return {**layers["global"], **layers["install"], **layers[":env:"]}


def uv_environment() -> dict[str, str]:
    """uv does not read pip's configuration: pass it on as UV_* variables (never printed)."""
    env = dict(os.environ)
    pip = pip_settings()
    words = {name: pip[name].split() for name in pip}
    passed = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(words.get("extra-index-url", [])),
        "UV_FIND_LINKS": ",".join(words.get("find-links", [])),
        "UV_INSECURE_HOST": " ".join(words.get("trusted-host", [])),
        "UV_HTTP_TIMEOUT": pip.get("default-timeout", pip.get("timeout", "")),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "HTTPS_PROXY": pip.get("proxy", ""),
        "HTTP_PROXY": pip.get("proxy", ""),
    }
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        passed["UV_NO_INDEX"] = "1"
    if passed["UV_INDEX"]:
        # pip takes the best version among all indexes.
        passed["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if not os.access(Path.home(), os.W_OK):
        passed["UV_CACHE_DIR"] = str(TOOLS / "uv-cache")
    for name, value in passed.items():
        if value and not env.get(name):
            env[name] = value
    env.setdefault("UV_LINK_MODE", "copy" if WINDOWS else "hardlink")
    env.pop("VIRTUAL_ENV", None)
    return env


# ---- the environment --------------------------------------------------------------------------


def stamp_text(group: str) -> str:
    """Hash of everything that the installation depends on."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform} {group} {ROOT}".encode())
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def done(group: str) -> bool:
    path = STAMPS / group
    return PYTHON.exists() and path.exists() and path.read_text() == stamp_text(group)


def mark(group: str) -> None:
    STAMPS.mkdir(exist_ok=True)
    (STAMPS / group).write_text(stamp_text(group))


def installer(uv: str | None) -> tuple[list, dict[str, str]]:
    """Return the install command (without packages) and its environment."""
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", PYTHON], uv_environment()
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return command, {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}


def make_venv(uv: str | None) -> None:
    if uv:
        if not PYTHON.exists():
            call([uv, "venv", "--quiet", "--python", sys.executable, VENV], uv_environment())
        return
    say("no uv here: using venv and pip with the same lock (slower)")
    has_pip = PYTHON.exists() and subprocess.call(
        [str(PYTHON), "-c", "import pip"], stderr=subprocess.DEVNULL
    )
    if not PYTHON.exists() or has_pip != 0:
        call([sys.executable, "-m", "venv", VENV])


def setup(*groups: str) -> None:
    """Install the lock and the project, then the extra groups; skip what is done."""
    if sys.version_info < (3, 11):
        sys.exit(
            f"dev.py: Python 3.11 or newer is needed, this is {sys.version.split()[0]}. "
            "Run it as python3.11 dev.py, python3.12 dev.py, ..."
        )
    todo = [group for group in groups if not done(group)]
    if done("base") and not todo:
        return
    uv = find_uv()
    make_venv(uv)
    install, env = installer(uv)
    if not done("base"):
        say("installing the locked environment into .venv")
        call([*install, "--require-hashes", "-r", LOCK], env)
        call([*install, "--no-deps", "-e", ROOT], env)
        compile_bytecode()
        mark("base")
    for group in todo:
        say(f"installing the group {group}")
        call([*install, "-c", constraints(), *group_requirements(group)], env)
        mark(group)


def compile_bytecode() -> None:
    """Compile what every process imports: uv leaves that to the first import, which may not write it down."""
    command = [PYTHON, "-m", "compileall", "-q", "-j", "0"]
    found = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([str(PYTHON), "-c", found], text=True).strip())
    folders = [ROOT / "jaxnlme", *(site / name for name in EVERYWHERE if (site / name).exists())]
    call([*command, *folders], check=False)


def constraints() -> Path:
    """Write the lock without hashes, so that extra groups keep the locked versions."""
    lines = [line.rstrip(" \\") for line in LOCK.read_text().splitlines()]
    kept = [line for line in lines if re.match(r"[A-Za-z0-9]", line)]
    TOOLS.mkdir(exist_ok=True)
    path = TOOLS / "constraints.txt"
    path.write_text("\n".join(kept) + "\n")
    return path


def group_requirements(group: str) -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["dependency-groups"][group]


def task_environment(**extra: str) -> dict[str, str]:
    env = dict(os.environ)
    env["PATH"] = str(SCRIPTS) + os.pathsep + env.get("PATH", "")
    env["VIRTUAL_ENV"] = str(VENV)
    env.pop("PYTHONHOME", None)
    return {**env, **{name: env.get(name, value) for name, value in extra.items()}}


# ---- tasks ------------------------------------------------------------------------------------


def demo(args: list[str]) -> int:
    setup()
    return call([PYTHON, "-m", "jaxnlme.demo", *args], task_environment(), check=False)


def test(args: list[str]) -> int:
    setup()
    cache = TOOLS / "test-cache"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sum(item.stat().st_size for item in cache.iterdir()) > 2**29:
        shutil.rmtree(cache)
        cache.mkdir(mode=0o700)
    env = task_environment(
        OPENBLAS_NUM_THREADS="1",  # its threads fight with XLA's
        OMP_NUM_THREADS="1",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES="none",
    )
    whole = all(arg.startswith("-") for arg in args) and not {"-n", "-k", "-m"} & set(args)
    parallel = ["-n", "2", "--dist", "loadfile"] if whole and (os.cpu_count() or 1) > 1 else []
    return call([PYTHON, "-m", "pytest", *parallel, *args], env, check=False)


def lint(args: list[str]) -> int:
    setup()
    env = task_environment(PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    ruff = [PYTHON, "-m", "ruff"]
    if "--fix" in args:
        call([*ruff, "check", "--fix", "."], env)
        call([*ruff, "format", "."], env)
    codes = [
        call([*ruff, "check", "."], env, check=False),
        call([*ruff, "format", "--check", "."], env, check=False),
        call([PYTHON, "-m", "pyright"], env, check=False),
    ]
    return max(codes)


def run(args: list[str]) -> int:
    if not args:
        sys.exit("dev.py run: name a command, for example: python3 dev.py run python -V")
    setup()
    env = task_environment()
    program = shutil.which(args[0], path=env["PATH"])
    if program is None:
        sys.exit(f"dev.py run: {args[0]!r} is neither in .venv nor on PATH")
    return subprocess.call([program, *args[1:]], env=env)


def docs(args: list[str]) -> int:
    setup("docs")
    out = ROOT / "docs" / "_build" / "html"
    command = [PYTHON, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", *args]
    code = call([*command, ROOT / "docs", out], task_environment(), check=False)
    if code == 0:
        say(f"documentation: {(out / 'index.html').relative_to(ROOT)}")
    return code


def bench(args: list[str]) -> int:
    setup("bench")
    known = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))}
    names = [arg for arg in args if not arg.startswith("-")] or list(known)
    options = [arg for arg in args if arg.startswith("-")]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"dev.py bench: no benchmarks/{unknown[0]}.py; there are: {', '.join(known)}")
    env = task_environment(OPENBLAS_NUM_THREADS="1")
    return max([call([PYTHON, known[name], *options], env, check=False) for name in names] or [0])


def lock(args: list[str]) -> int:
    uv = find_uv()
    if uv is None:
        sys.exit("dev.py lock: needs uv, and it could not be installed into .tools")
    TOOLS.mkdir(exist_ok=True)
    fresh = TOOLS / "requirements.lock"
    fresh.unlink(missing_ok=True)
    if "--upgrade" not in args and LOCK.exists():
        shutil.copy(LOCK, fresh)  # uv keeps the versions of an existing output
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--group", "dev"]
    for extra in LOCKED_EXTRAS:
        command += ["--extra", extra]
    if "--upgrade" in args:
        command += ["--upgrade"]
    command += ["pyproject.toml", "-o", str(fresh)]
    env = uv_environment()
    for partial in ("UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        env.pop(partial, None)  # local stores hold a few platforms' files: hashes would be missing
    env["UV_NO_EMIT_INDEX_URL"] = "1"
    call(command, env)
    if "://" in fresh.read_text():
        sys.exit("dev.py lock: the compiled lock holds an address; it must hold only hashes")
    if "--check" in args:
        same = LOCK.exists() and LOCK.read_text() == fresh.read_text()
        say("requirements.lock is current" if same else "requirements.lock is out of date")
        return 0 if same else 1
    shutil.copy(fresh, LOCK)
    return 0


def only_setup(args: list[str]) -> int:
    setup(*args)
    return 0


TASKS = {
    "demo": demo,
    "test": test,
    "lint": lint,
    "run": run,
    "docs": docs,
    "bench": bench,
    "lock": lock,
    "setup": only_setup,
}


def main(args: list[str]) -> int:
    if not args or args[0] not in TASKS:
        print(__doc__)
        return 0 if not args or args[0] in ("-h", "--help", "help") else 2
    return TASKS[args[0]](args[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
