"""The study on one page: what ``reports/study.sh`` found for each network, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "reports" / "study"
"""Where each network's ``spectrum.json`` lies, under the network's name."""


def files(folder: Path = FOLDER) -> Mapping[str, bytes]:
    """``study/report.html``, ``.md`` and the picture of all ``*.json`` in ``folder``, in the order of their names; none
    while there is no study."""
    from lcnn_analyze.render import curves
    from lcnn_analyze.render.study import PICTURE, html, markdown
    from lcnn_analyze.render.sweep import sweep_study

    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not documents:
        return {}
    study = sweep_study(documents)
    study = replace(
        study, method=(*study.method, "Here that folder is `reports/study`; `reports/study.sh` runs it all.")
    )
    return {
        "study/report.html": html(study),
        "study/report.md": markdown(study).encode(),
        f"study/{PICTURE}": curves.png(study.charts),
    }
