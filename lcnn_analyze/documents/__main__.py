"""``python -m lcnn_analyze.documents NAME [-o FOLDER]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lcnn_analyze.documents import DOCUMENTS, document
from lcnn_core import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser("python -m lcnn_analyze.documents", description="Write a document of reports/.")
    parser.add_argument("name", choices=[*DOCUMENTS])
    parser.add_argument("-o", "--output", type=Path, default=Path("reports"), metavar="FOLDER")
    arguments = parser.parse_args()
    for name, content in document(arguments.name).items():
        (arguments.output / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(arguments.output / name) as file:
            file.write(content)
        print(f"wrote {arguments.output / name}")


if __name__ == "__main__":
    main()
