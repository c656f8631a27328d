"""The templates of every email type, what may be put into them, and where their links lead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from saqkit.app.emails.catalogue import EMAIL_TYPES, EmailType, checked_data, checked_recipient, email_type
from saqkit.app.emails.links import Links
from saqkit.app.emails.rendering import TEMPLATES, Renderer
from saqkit.errors import DescriptionError, PermanentFailure, UsageError
from saqkit.spec.topology import load, shipped

ROOT = "https://vote.example/app"
RENDERER = Renderer(Links(ROOT))
RANK: dict[str, Any] = {"model": 7, "model_name": "Nova", "rank": 2, "previous_rank": 5, "first_name": "Ann"}


def values(kind: EmailType) -> dict[str, Any]:
    return {name: f"the-{name}" for name in (*kind.fields, "first_name")}


@pytest.mark.parametrize("kind", EMAIL_TYPES.values(), ids=lambda kind: kind.name)
def test_a_type_says_what_it_is_told_and_nothing_else_in_text_and_html(kind: EmailType) -> None:
    rendered = RENDERER.render(kind, values(kind))
    whole = {"text": rendered.text, "html": rendered.html}
    for form, said in whole.items():
        assert [name for name in kind.fields if f"the-{name}" not in said] == [], form
        assert "Hello the-first_name," in said
        links = re.findall(r"https?://[^\s\"<]+", said)
        assert links
        assert all(link.startswith(ROOT) for link in links)
        assert "{" not in said
    assert "\n" not in rendered.subject
    assert f"<title>{rendered.subject}</title>" in rendered.html
    for secret in kind.secret:  # a subject is shown on locked screens
        assert f"the-{secret}" not in rendered.subject
    for name in kind.fields:
        less = {key: value for key, value in values(kind).items() if key != name}
        with pytest.raises(PermanentFailure) as missing:
            RENDERER.render(kind, less)
        assert re.search(rf"^template {kind.name}\.txt: '{name}' is undefined", str(missing.value)), missing.value


def test_every_template_belongs_to_a_type() -> None:
    names = {path.name for path in TEMPLATES.iterdir()}
    assert names == {f"{name}.{form}" for name in (*EMAIL_TYPES, "layout") for form in ("txt", "html")}


def test_the_types_are_those_of_the_three_systems_where_their_topologies_ship() -> None:
    assert len(EMAIL_TYPES) == 12
    parts = {"course-platform": slice(0, 4), "voting": slice(4, 10), "school-erp": slice(10, 12)}
    for system in parts.keys() & set(shipped()):
        types = load(system).job_types
        own = list(EMAIL_TYPES)[parts[system]]
        assert [name for name in own if name not in types or types[name].per_user.provider is None] == []


def test_an_email_reads_as_it_was_meant() -> None:
    rendered = RENDERER.render(email_type("rank-update"), RANK)
    assert rendered.subject == "Nova is number 2 now"
    assert rendered.text == (
        "Hello Ann,\n\nNova, whom you support, was number 5 and is number 2 now.\n\n"
        "https://vote.example/app/models/7\n\n--\nhttps://vote.example/app\n"
    )
    assert RENDERER.render(email_type("rank-update"), {**RANK, "first_name": ""}).text.startswith("Hello,\n\nNova,")
    one, two = (RENDERER.render(email_type("vote-confirmation"), {**RANK, "votes": votes}).text for votes in (1, 2))
    assert "Your vote has been counted for Nova." in one
    assert "Your 2 votes have been counted for Nova." in two


def test_values_are_escaped_in_html_and_in_links_and_nowhere_else() -> None:
    given = {"friend": '<script>"Zoë" & Co</script>', "first_name": "<b>"}
    rendered = RENDERER.render(email_type("referral-join"), given)
    assert rendered.subject == '<script>"Zoë" & Co</script> has joined'
    assert '<script>"Zoë" & Co</script> has accepted' in rendered.text
    assert "<script>" not in rendered.html
    assert "&lt;script&gt;&#34;Zoë&#34; &amp; Co&lt;/script&gt; has accepted" in rendered.html
    reset = RENDERER.render(email_type("password-reset"), {"token": "a/b+c=&d?\"'<", "first_name": ""})
    assert f"{ROOT}/reset-password?token=a%2Fb%2Bc%3D%26d%3F%22%27%3C\n" in reset.text
    assert f'href="{ROOT}/reset-password?token=a%2Fb%2Bc%3D%26d%3F%22%27%3C"' in reset.html


def test_what_is_wrong_with_a_template_is_told_with_its_name(tmp_path: Path) -> None:
    kind = EmailType("note", ("text",))
    tmp_path.joinpath("note.html").write_text("<p>{{ text }}</p>")

    def refusal(source: str | None) -> str:
        if source is not None:
            tmp_path.joinpath("note.txt").write_text(source)
        with pytest.raises(PermanentFailure) as refused:
            Renderer(Links(ROOT), tmp_path).render(kind, {"text": "x"})
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert refusal(None).startswith("template note.txt: 'note.txt' not found")
    assert refusal("{{ text }}") == "template note.txt: sets no subject"
    assert refusal("{% set subject %}{% endset %}").endswith("sets no subject")
    assert refusal("{% if %}").startswith("template note.txt: Expected an expression")
    assert refusal("{% set subject = text + 1 %}").startswith("template note.txt: TypeError: ")
    assert refusal("{% set subject = text %}{{ text.more }}") == (
        "template note.txt: 'str object' has no attribute 'more' (email note needs: text)"
    )
    assert refusal("{% set subject = text %}{{ link(nobody) }}").startswith("template note.txt: 'nobody' is undefined")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "rank-update",
            {"model": 1, "model_name": "Nova"},
            "email rank-update: rank and previous_rank missing (it takes",
        ),
        ("rank-update", {**RANK, "ranks": 1}, 'email rank-update: takes no "ranks" (did you mean "rank"?)'),
        ("welcome", {"course": {"id": 7}}, "course is a dict, no small value (pass a text, a number, an id)"),
        ("welcome", {"course": None}, "course is a NoneType, no small value"),
        ("welcome", {"course": float("nan")}, "course is a float, no small value"),
        ("welcome", {"course": "x" * 2001}, "course has 2,001 characters, at most 2,000 are taken"),
        ("referral-join", {"friend": "Bob\nBcc: all@vote.example"}, "friend has a line break or control character"),
        ("referral-join", {"friend": "Bob\u2028"}, "friend has a line break or control character"),
        ("referral-join", {"friend": "B", "first_name": "Ann\r"}, "first_name has a line break or control character"),
        ("verification-code", {"code": ""}, "code is blank (pass what the email is to say)"),
        ("verification-code", {"code": " \u3000"}, "code is blank (pass what the email is to say)"),
        ("rank-updat", RANK, 'there is no email type "rank-updat" (did you mean "rank-update"?)'),
    ],
)
def test_bad_data_is_refused(name: str, data: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked_data(email_type(name), data)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_name_and_an_id_as_text_are_welcome() -> None:
    data = {**RANK, "model": "m-7", "first_name": ""}
    assert checked_data(email_type("rank-update"), data) == data


@pytest.mark.parametrize(
    "to",
    [
        "ann@vote.example\nBcc: all@vote.example",
        "ann@vote.example\n",
        "ann",
        "",
        "a@b, c@d",
        0,
        -1,
        True,
        1.5,
        None,
        2**63,
        -(2**64),
        pytest.param(1 << 20_000, id="digits"),
    ],
)
def test_a_bad_recipient_is_refused(to: Any) -> None:
    with pytest.raises(UsageError, match=r"^email welcome: .* is (no email address|nobody) \(.*\)$"):
        checked_recipient(email_type("welcome"), to)


def test_the_greatest_id_that_a_database_holds_is_a_recipient() -> None:
    assert checked_recipient(email_type("welcome"), 2**63 - 1) == 2**63 - 1


def test_links_lead_below_the_root_whatever_is_in_them() -> None:
    link = Links("http://localhost:3000/")
    assert link() == "http://localhost:3000"
    assert link("courses", 7) == "http://localhost:3000/courses/7"
    assert link("a/b", "../c", q="x y&z") == "http://localhost:3000/a%2Fb/..%2Fc?q=x+y%26z"
    assert Links.from_environment({}).root == Links.from_environment({"FRONTEND_URL": ""}).root == link.root
    assert Links.from_environment({"FRONTEND_URL": "https://x.example/app"}).root == "https://x.example/app"


@pytest.mark.parametrize(
    "root",
    [
        "vote.example",
        "vote.example:3000",
        "//vote.example",
        "ftp://vote.example",
        "javascript:alert(1)",
        "https://",
        "https://vote.example:port",
        "https://vote.example:0",
        "https://vote.example/?a=b",
        "https://vote.example/#top",
        "https://ann:secret@vote.example",
        "https://vote.example/a b",
        'https://vote.example/"onclick',
        "https://vote.example\nx",
    ],
)
def test_a_frontend_url_that_makes_dead_links_is_refused(root: str) -> None:
    with pytest.raises(DescriptionError, match=r"^FRONTEND_URL: .*\(such as https://school\.example\)$") as refused:
        Links.from_environment({"FRONTEND_URL": root})
    assert "secret" not in str(refused.value)
