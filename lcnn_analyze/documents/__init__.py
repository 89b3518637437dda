"""The generated documents under ``reports/``: ``python -m lcnn_analyze.documents NAME`` writes one of them again.

``DOCUMENTS`` lists them. Each is a function that gives the files, name to content; nothing is written before all of
them are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

DOCUMENTS: dict[str, str] = {
    "api": "lcnn_analyze.documents.api",
    "audit": "lcnn_analyze.documents.audit",
    "study": "lcnn_analyze.documents.study",
    "zoo": "lcnn_analyze.documents.zoo",
}
"""name -> the module whose ``files()`` makes it. To add a document: its file and one line here."""


def document(name: str) -> Mapping[str, bytes]:
    """The files of the document ``name``, by name under ``reports/``. Raises KeyError for an unknown one."""
    files: Callable[[], Mapping[str, bytes]] = import_module(DOCUMENTS[name]).files
    return files()
