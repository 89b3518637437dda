"""Every command and every Python example of the README runs as it stands, in order, in one scratch folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INSTALLS = "pip install"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line.split("&&")[-1].strip() if line.startswith(INSTALLS) else line for line in lines if line]


@pytest.fixture(scope="module")
def folder(quickstart: Path) -> Path:
    """The scratch folder in which the quickstart ran, once for the whole session."""
    return quickstart.parent


def run(arguments: str | list[str], folder: Path) -> None:
    done = subprocess.run(
        arguments, cwd=folder, shell=isinstance(arguments, str), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_first_two_commands_install_and_run_and_install_and_test():
    first, second = [line for block in blocks("bash") for line in block.splitlines()][:2]
    assert re.fullmatch(r"pip install \. && lcnn quickstart", first)
    assert re.fullmatch(r"pip install '\.\[.*\]' && pytest", second)


@pytest.mark.parametrize("command", [c for c in commands() if c not in ("lcnn quickstart", "pytest")])
def test_command_runs(command: str, folder: Path):
    run(command, folder)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_python_example_runs(code: str, folder: Path):
    run([sys.executable, "-c", code], folder)


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []
