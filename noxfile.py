"""
The checks of this project.  "nox" runs the fast ones, "nox -s NAME" runs one.

CI runs the sessions with --no-venv in an environment that has everything.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, *packages: str) -> None:
    """
    Install packages into the environment of the session.  Do nothing if the session has no
    environment of its own.
    """
    if session.venv_backend != "none":
        session.install(*packages)


@nox.session
def tests(session: nox.Session) -> None:
    """
    Run the tests, two at a time; arguments go to pytest.
    """
    install(session, "-e", ".[test]", "pytest-xdist")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """
    Run ruff, and check the news fragments.
    """
    install(session, "ruff", "towncrier")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """
    Run mypy.
    """
    install(session, "-e", ".[test]", "mypy", "mypy-zope")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """
    Build the documentation into build/docs; a warning is an error.
    """
    install(session, "-e", ".[docs]")
    # Use no saved pages (-E), because some pages depend on the code.
    session.run(
        "sphinx-build", "-E", "-q", "-W", "--keep-going", "-b", "html", "docs", "build/docs"
    )


@nox.session
def interop(session: nox.Session) -> None:
    """
    Run the tests with real clients.  A test is skipped if its client is missing.
    """
    install(session, "-e", ".[test]", "getmail6")
    session.run("python", "-m", "pytest", "-m", "interop", "-rs", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """
    Run the benchmark.  Without arguments, run a short one with pop3svc, twisted.mail and C{limit}.
    """
    install(session, "-e", ".[test]")
    arguments = session.posargs or ["--short", "--servers", "pop3svc,twisted,limit"]
    session.run("python", "-m", "bench", *arguments)
