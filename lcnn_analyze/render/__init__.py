"""Reports as bytes. ``RENDERERS`` lists every format; each lives in one file and is imported when first used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lcnn_core import ConfigError

if TYPE_CHECKING:
    from lcnn_analyze.report import Report


@dataclass(frozen=True)
class Renderer:
    """One format. ``module`` has ``render(report, **options) -> bytes``; the same report gives the same bytes."""

    name: str
    suffixes: tuple[str, ...]
    module: str
    doc: str
    text: bool = True

    def render(self, report: Report, **options: Any) -> bytes:
        """The report in this format; text formats are UTF-8."""
        return import_module(self.module).render(report, **options)


_LISTED = (
    Renderer("table", (".txt",), "lcnn_analyze.render.terminal", "tables for a terminal"),
    Renderer("json", (".json",), "lcnn_analyze.render.json", "everything, with a schema; renders again"),
    Renderer("csv", (".csv",), "lcnn_analyze.render.csv", "one row per layer, exact numbers"),
    Renderer("md", (".md",), "lcnn_analyze.render.markdown", "tables for a README or a pull request"),
    Renderer("html", (".html", ".htm"), "lcnn_analyze.render.html", "one self-contained page"),
    Renderer("png", (".png",), "lcnn_analyze.render.plots", "the spectrum as a picture", text=False),
    Renderer("svg", (".svg",), "lcnn_analyze.render.plots_svg", "the spectrum as a vector picture"),
)

RENDERERS: dict[str, Renderer] = {renderer.name: renderer for renderer in _LISTED}

__all__ = ["RENDERERS", "Renderer", "renderer_for"]


def renderer_for(path: str) -> Renderer:
    """The renderer whose suffix ``path`` has. Raises ConfigError that lists the suffixes there are."""
    suffix = PurePath(path).suffix.lower()
    for renderer in RENDERERS.values():
        if suffix in renderer.suffixes:
            return renderer
    known = ", ".join(suffix for renderer in RENDERERS.values() for suffix in renderer.suffixes)
    raise ConfigError(f"output file {path!r} ends in {suffix!r}; expected one of {known}, or give --format")
