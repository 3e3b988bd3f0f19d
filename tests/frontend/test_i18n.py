"""The languages of the pages: every text has its words in each, figures keep their places, and browsers get theirs."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx
import pytest
from jinja2 import Environment

import frontend
from dermserve import errors
from dermserve.labels import LEAF_NAMES
from dermserve.model_card import Estimate, ModelCard
from dermserve.settings import Settings
from frontend import i18n, templating
from frontend.access import Role
from frontend.context import BODY_SITES, NAME_MAX, NOTE_MAX, Context
from frontend.identity import passwords
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, make_card

TRANSLATED = [language for language in i18n.LANGUAGES if language != "en"]
FOLDER = Path(frontend.__file__).parent
KEPT = re.compile(r"%\(\w+\)s|%%|%|\{\w+\}|<[^<>]+>|&\w+;")
"""What a translation may move and must not change: places for figures, percent signs, tags."""


def pages(language: str) -> Environment:
    """The environment that renders the pages."""
    return templating._environment(language)


def of_templates() -> set[tuple[str, ...]]:
    """Every text in a template, with its plural where it has one."""
    found: set[tuple[str, ...]] = set()
    for file in (FOLDER / "templates").iterdir():
        for _, _, text in pages("en").extract_translations(file.read_text()):  # type: ignore[attr-defined]
            forms = (text,) if isinstance(text, str) else text
            found.add(tuple(form for form in forms if form is not None))
    return found


def details() -> set[str]:
    """What errors say on a page, where it is one fixed text; programs alone, or a command, see the others."""
    starting = {errors.StartupError.__name__, *(one.__name__ for one in errors.StartupError.__subclasses__())}
    kinds = {one.__name__ for one in errors.BY_CODE.values()} - starting
    found = set()
    elsewhere = {
        *(FOLDER / name for name in ("api.py", "batch.py", "stow.py", "destinations.py")),
        *FOLDER.glob("bodies/*.py"),
    }
    for file in set(FOLDER.rglob("*.py")) - elsewhere - set(FOLDER.glob("dicom/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(detail))]) if kind in kinds:
                    found.add(detail)
    return found


def refusal(check: Callable[..., object], *arguments: object) -> str:
    """What is said to somebody whom `check` refuses."""
    with pytest.raises(errors.RequestInvalid) as refused:
        check(*arguments)
    return refused.value.detail


def refusals_with_figures() -> Iterable[str]:
    return (
        refusal(passwords.check, "ana@clinic.example", "short"),
        refusal(passwords.check, "ana@clinic.example", "long words " * 20),
        refusal(Context.of, "x" * (NAME_MAX + 1), None, None),
        refusal(Context.of, None, "tail", None),
        refusal(Context.of, None, None, "x" * (NOTE_MAX + 1)),
    )


def of_the_model_card() -> Iterable[str]:
    """What the pages make of names in the committed model card."""
    card = ModelCard.read(Settings().model_repository)
    yield from map(templating.point_name, card.operating_points)
    yield from map(templating.data_name, card.metrics)
    yield from {templating.measure_name(name) for measured in card.metrics.values() for name in measured}


CODE_TEXTS: dict[str, Callable[[], Iterable[str]]] = {
    "titles of errors": lambda: [one.title for one in errors.BY_CODE.values()],
    "details of errors": details,
    "details of errors with figures": refusals_with_figures,
    "diagnoses": LEAF_NAMES.values,
    "body sites": lambda: BODY_SITES,
    "quality": templating._FLAG_WORDS.values,
    "roles": lambda: list(Role),
    "model card": of_the_model_card,
}


def lacking(language: str, texts: Iterable[tuple[str, ...]]) -> list[str]:
    """Those of `texts` that a language does not say in its own words, in as many forms as they have."""
    catalog = i18n.catalog(language)
    missing = []
    for text in texts:
        message = catalog.get(text[0])
        said = message.string if message and not message.fuzzy else ""
        forms = (said,) if isinstance(said, str) else said
        if len(forms) != len(text) or not all(forms):
            missing.append(text[0])
    return missing


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_of_the_templates_has_its_words(language: str) -> None:
    texts = of_templates()
    assert len(texts) > 200
    assert lacking(language, texts) == []


@pytest.mark.parametrize("texts", CODE_TEXTS.values(), ids=CODE_TEXTS)
@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_of_the_code_has_its_words(language: str, texts: Callable[[], Iterable[str]]) -> None:
    found = [(str(text),) for text in texts()]
    assert found
    assert lacking(language, found) == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_figures_and_tags_keep_their_places(language: str) -> None:
    wrong = []
    for message in i18n.catalog(language):
        english = message.id if isinstance(message.id, str) else message.id[-1]
        for said in [message.string] if isinstance(message.string, str) else message.string:
            inside_attributes = re.sub(r"<[^<>]+>", "", said)  # a quotation mark would end the attribute
            if message.id and (sorted(KEPT.findall(said)) != sorted(KEPT.findall(english)) or '"' in inside_attributes):
                wrong.append(said)
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "spanish"),
    [
        ("{{ _('95 %% interval') }}", "Intervalo del 95\u00a0%"),
        ("{{ '95\u00a0% sensitivity' | said }}", "sensibilidad del 95\u00a0%"),
        ("{{ ngettext('%(num)s result', '%(num)s results', 1) }}", "1 resultado"),
        ("{{ ngettext('%(num)s result', '%(num)s results', 0) }}", "0 resultados"),
        ("{{ _('Compare %(name)s', name='<b>100 %') }}", "Comparar &lt;b&gt;100 %"),
        ("{{ 'words that nobody translated, 5 %' | said }}", "words that nobody translated, 5 %"),
    ],
)
def test_words_with_figures(source: str, spanish: str) -> None:
    assert pages("es").from_string(source).render() == spanish


@pytest.mark.parametrize(
    ("cookie", "accept_language", "language"),
    [
        (None, "", "en"),
        (None, "es", "es"),
        (None, "ca-ES,es;q=0.8", "ca"),
        (None, "es-MX,es;q=0.9,en;q=0.8", "es"),
        (None, "de,fr;q=0.7", "en"),
        (None, "de,ca;q=0.7", "ca"),
        (None, "*;;,=", "en"),
        ("es", "ca", "es"),
        ("en", "ca", "en"),
        ("xx", "ca", "ca"),
    ],
)
def test_language_of_a_browser(cookie: str | None, accept_language: str, language: str) -> None:
    assert i18n.chosen(cookie, accept_language) == language


@pytest.mark.parametrize("language", TRANSLATED)
def test_figures_are_written_as_in_the_language(language: str) -> None:
    assert i18n.percent(0.123, language) == "12,3\u00a0%"
    assert i18n.percent(0.0004, language) == "<\u00a00,1\u00a0%"
    assert i18n.number(0.8743, decimals=3, language=language) == "0,874"


@pytest.mark.parametrize(
    ("share", "threshold", "shown"),
    [
        (0.12, 0.12, ("12.0\u00a0%", "12.0\u00a0%")),
        (0.3, 0.12, ("30.0\u00a0%", "12.0\u00a0%")),
        (0.1196, 0.12, ("11.96\u00a0%", "12.00\u00a0%")),
        (0.12004, 0.12, ("12.004\u00a0%", "12.000\u00a0%")),
        (0.11999999731779099, 0.12, ("11.9999997\u00a0%", "12.0000000\u00a0%")),
        (0.0004, 0.0006, ("0.04\u00a0%", "0.06\u00a0%")),
        (0.9999, 0.9995, ("99.99\u00a0%", "99.95\u00a0%")),
        (0.001, 0.5, ("0.1\u00a0%", "50.0\u00a0%")),
    ],
)
def test_figures_beside_a_threshold(share: float, threshold: float, shown: tuple[str, str]) -> None:
    assert (i18n.percent(share, "en", threshold), i18n.percent(threshold, "en", share)) == shown
    spanish = tuple(one.replace(".", ",") for one in shown)
    assert (i18n.percent(share, "es", threshold), i18n.percent(threshold, "es", share)) == spanish


def test_page_in_the_language_that_the_browser_prefers(server: Server) -> None:
    page = httpx.get(server.url, headers={"Accept": "text/html", "Accept-Language": "es"})
    assert '<html lang="es">' in page.text
    assert "Solo para investigación; no es un producto sanitario." in page.text
    assert "Una estimación del riesgo de melanoma" in page.text
    assert "Research use only" not in page.text
    assert {"Accept-Language", "Cookie"} <= set(page.headers["vary"].split(", "))


def test_names_in_the_model_card_are_translated(server: Server) -> None:
    page = httpx.get(f"{server.url}/about", headers={"Accept-Language": "ca"}).text
    assert "sensibilitat del 95\u00a0%" in page
    assert "Nevus melanocític" in page
    assert "95,3\u00a0%" in page


def test_measures_and_times_are_written_for_people(start: Callable[..., Server], tmp_path: Path) -> None:
    names = ("partial_auc_above_80_sensitivity", "brier_score")
    measured = {name: Estimate(value=0.1, low=0.0, high=0.2, images=9, positives=3) for name in names}
    make_card(tmp_path, metrics={"val": measured})
    page = httpx.get(f"{start(model_repository=tmp_path).url}/about").text
    assert "partial ROC-AUC above 80\u00a0% sensitivity" in page
    assert "Brier score" in page
    assert ">22 Nov 2026, 00:00 UTC<" in page


def test_errors_are_said_in_the_language(server: Server) -> None:
    browser = Browser(server.url)
    browser.client.headers["Accept-Language"] = "es"
    assert "<h1>Aquí no hay nada</h1>" in browser.get("/nothing").text
    refused = browser.post("/register", email=browser.email, password="short")
    assert "Hay que elegir una contraseña de al menos 12 caracteres" in refused.text


def test_choice_of_a_visitor(server: Server) -> None:
    browser = Browser(server.url)
    chosen = browser.get("/language/ca?next=/about")
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/about")
    assert chosen.cookies[i18n.COOKIE] == "ca"
    page = browser.client.get("/about", headers={"Accept-Language": "es"}).text
    assert '<html lang="ca">' in page
    assert "Punts d'operació" in page


def test_choice_of_a_language_that_is_not_there(server: Server) -> None:
    response = Browser(server.url).get("/language/xx")
    assert response.status_code == 404
    assert i18n.COOKIE not in response.cookies


@pytest.mark.parametrize("elsewhere", ["//evil.example", "/\\evil.example", "https://evil.example/", ""])
def test_choosing_a_language_leads_nowhere_else(server: Server, elsewhere: str) -> None:
    response = httpx.get(f"{server.url}/language/es", params={"next": elsewhere})
    assert (response.status_code, response.headers["location"]) == (303, "/")
