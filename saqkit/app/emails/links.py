"""Addresses of pages of the web application, for the links in emails."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote, urlencode, urlsplit

from saqkit.errors import DescriptionError

__all__ = ["Links"]

VARIABLE = "FRONTEND_URL"
DEFAULT = "http://localhost:3000"


class Links:
    """Makes addresses below `root`, which is that of the web application: `links("courses", 7)`.

    Raises `DescriptionError` for a root that is no plain http or https address: every email would have dead links.
    """

    def __init__(self, root: str) -> None:
        example = "such as https://school.example"
        try:
            parts = urlsplit(root)
            port = parts.port
        except ValueError as error:
            raise DescriptionError(f"is no address: {error}", key=VARIABLE, value=root, hint=example) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            shown = f'"{root[:80]}"'.encode("unicode_escape").decode()
            raise DescriptionError(f"{shown} is no http:// or https:// address", key=VARIABLE, value=root, hint=example)
        if parts.query or parts.fragment or parts.username is not None or re.search(r"[\x00-\x20\x7f<>\"]", root):
            message = "has more than a scheme, a host, a port and a path, all without blanks"
            raise DescriptionError(message, key=VARIABLE, value=root, hint=example)
        self.root = root.rstrip("/")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Links:
        """Below `FRONTEND_URL`; default http://localhost:3000."""
        return cls(environ.get(VARIABLE) or DEFAULT)

    def __call__(self, *parts: object, **query: object) -> str:
        """The address of a page: its path in parts, and its query; whatever is in them is quoted."""
        path = "".join(f"/{quote(str(part), safe='')}" for part in parts)
        asked = urlencode({name: str(value) for name, value in query.items()})
        return f"{self.root}{path}?{asked}" if asked else self.root + path
