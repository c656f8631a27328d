"""From a type of email and its variables to subject, text and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, select_autoescape
from jinja2.environment import TemplateModule

from saqkit.app.emails.catalogue import EmailType, Value
from saqkit.app.emails.links import Links
from saqkit.errors import PermanentFailure

__all__ = ["Rendered", "Renderer"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one email says."""

    subject: str
    text: str
    html: str


class Renderer:
    """Fills the templates in `folder`; they have `link`, see `Links`. Values are escaped in HTML, and only there."""

    def __init__(self, links: Links, folder: Path = TEMPLATES) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(folder),
            autoescape=select_autoescape(["html"], default=False),
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.globals["link"] = links

    def render(self, kind: EmailType, variables: Mapping[str, Value]) -> Rendered:
        """The email of `kind`; raises `PermanentFailure` with template and reason if it cannot be rendered.

        The same variables would fail again: of a missing one the reason says which it is.
        """
        text = self._filled(kind, f"{kind.name}.txt", variables)
        subject = str(getattr(text, "subject", "")).strip()
        if not subject:
            raise PermanentFailure(f"template {kind.name}.txt: sets no subject")
        html = self._filled(kind, f"{kind.name}.html", {**variables, "subject": subject})
        return Rendered(subject, str(text), str(html))

    def _filled(self, kind: EmailType, template: str, variables: Mapping[str, Value]) -> TemplateModule:
        try:
            return self._environment.get_template(template).make_module(dict(variables))
        except TemplateError as error:
            reason = " ".join(str(error.message or type(error).__name__).split())
            raise PermanentFailure(f"template {template}: {reason} (email {kind.name} needs: {', '.join(kind.fields)})"
                                   ) from error  # fmt: skip
        except Exception as error:  # what a template does with a value of the wrong kind, each time again
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PermanentFailure(f"template {template}: {reason}") from error
