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
    """One format. ``target`` is ``module:function``, a function (report, **options) -> bytes, the same each time."""

    name: str
    suffixes: tuple[str, ...]
    target: str
    doc: str
    text: bool = True

    def render(self, report: Report, **options: Any) -> bytes:
        """The report in this format; text formats are UTF-8."""
        module, function = self.target.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)(report, **options)


_LISTED = (
    Renderer("table", (".txt",), "terminal:render", "tables for a terminal"),
    Renderer("json", (".json",), "json:render", "everything, with a schema; renders again"),
    Renderer("csv", (".csv",), "csv:render", "one row per layer, exact numbers"),
    Renderer("md", (".md",), "markdown:render", "tables for a README or a pull request"),
    Renderer("html", (".html", ".htm"), "html:render", "one self-contained page"),
    Renderer("png", (".png",), "plots:render", "the spectrum as a picture", text=False),
    Renderer("svg", (".svg",), "plots:render_svg", "the spectrum as a vector picture"),
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
