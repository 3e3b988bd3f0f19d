"""The forms of a web page, read and filled in as a browser does: hidden fields go back as they came."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Form:
    """One form: where it goes, the value of each named input, and each input's type."""

    action: str
    values: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def filled(self, account: dict[str, str]) -> dict[str, str]:
        """The fields to send: `account["email"]` and `account["password"]` typed in where the form asks for them."""
        typed = {
            name: account["password"] if self.types[name] == "password" else account["email"]
            for name in self.values
            if self.types[name] in ("password", "email")
        }
        return self.values | typed


def password_form(html: str) -> Form | None:
    """The first form of the page that asks for a password."""
    return next((form for form in _read(html) if "password" in form.types.values()), None)


def token(html: str, name: str = "csrf_token") -> str | None:
    """The CSRF token that any form of the page carries."""
    return next((form.values[name] for form in _read(html) if form.values.get(name)), None)


def _read(html: str) -> list[Form]:
    reader = _Reader()
    reader.feed(html)
    return reader.forms


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(attributes.get("action", "")))
            self._open = True
        elif tag == "input" and self._open and attributes.get("name"):
            name = attributes["name"]
            self.forms[-1].values[name] = attributes.get("value", "")
            self.forms[-1].types[name] = attributes.get("type", "text")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False
