"""What every test shares: a fixed seed, one torch thread, repeatable property tests, and a way to forbid skips."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

# Property tests draw the same examples on every run and every machine, and a slow machine fails none of them.
# `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")

# One thread, in the commands that tests start as here: the shapes are small, sums keep their order, and `pytest -n 2`
# does not oversubscribe two cores.
os.environ["OMP_NUM_THREADS"] = "1"


# Tables as wide as in a pipe, whatever terminal the tests run in.
os.environ["COLUMNS"] = "140"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="fail the run when a test was skipped (used by CI)")


LONGEST = ("test_readme", "test_sweep", "test_engine_models", "test_cli_train_methods", "test_compress")
"""Files that take a worker longest, in this order; they go first, so that none is left to one worker at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now need not be searched by every gc.collect() of a test


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = terminal.stats.get("skipped", []) if terminal else []
    if skipped and session.config.getoption("fail_on_skip"):
        for report in skipped:
            terminal.write_line(f"skipped, but --fail-on-skip was given: {report.nodeid} {report.longrepr}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch  # here: the process that hands tests out to others starts three seconds earlier without it

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``lcnn quickstart`` leaves behind, run once; what it printed is beside it in stdout.txt."""
    base = tmp_path_factory.getbasetemp()
    scratch = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quickstart"  # one for all workers
    with FileLock(f"{scratch}.lock"):
        if not scratch.exists():
            scratch.mkdir()
            with (scratch / "stdout.txt").open("w") as out:
                command = [sys.executable, "-m", "lcnn_analyze", "quickstart"]
                subprocess.run(command, cwd=scratch, stdout=out, check=True)
    return scratch / "lcnn-quickstart"
