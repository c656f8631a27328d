"""People from CSV files: every bad row has its line and its reason, and refusing writes nothing."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from saqkit.app.audience import Audience
from saqkit.app.store import TENANTS, Store
from saqkit.app.tables import users
from saqkit.app.users import BadRow, ImportRefused, import_users
from saqkit.errors import UsageError

PEOPLE = Path(__file__).parent.parent / "data" / "users.csv"
HEADER = "email,name,role,tenant\n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "people.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


async def stored(store: Store) -> list[tuple[str, str, str, str]]:
    people = select(users.c.email, users.c.name, users.c.role, users.c.tenant).order_by(users.c.id)
    rows = await store._database.read(lambda connection: connection.execute(people).all())
    return [(str(email), str(name), str(role), str(tenant)) for email, name, role, tenant in rows]


async def test_people_are_added_and_later_updated(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "ada@school.example,Ada,student,north\n\nBen@School.example, Ben ,Teachers,\n")
    report = await import_users(store, path)
    assert (report.added, report.updated, report.bad, report.skipped) == (2, 0, 0, [])
    path = write(tmp_path, HEADER + "ada@school.example,Ada L.,teacher,north\nada@school.example,Ada,,south\n")
    report = await import_users(store, path, on_bad="refuse")
    assert (report.added, report.updated) == (1, 1)
    assert await stored(store) == [
        ("ada@school.example", "Ada L.", "teacher", "north"),
        ("ben@school.example", "Ben", "teacher", ""),
        ("ada@school.example", "Ada", "student", "south"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "email;name\r\na@x.example;Ana, María\r\n",
        "email\tname\na@x.example\tAna, María\n",
        "\ufeffE-Mail ,name\n".replace("E-Mail", "EMAIL") + 'a@x.example,"Ana, María"\n',
        'phone,name,email\n123,"Ana, María",a@x.example',
    ],
)
async def test_delimiters_marks_and_other_columns_are_understood(store: Store, tmp_path: Path, content: str) -> None:
    report = await import_users(store, write(tmp_path, content))
    assert report.skipped == []
    assert await stored(store) == [("a@x.example", "Ana, María", "student", "")]


async def test_people_belong_to_an_institution_until_a_file_says_otherwise(store: Store, tmp_path: Path) -> None:
    header = "email,tenant,institution\n"
    rows = "a@x.example,north,main\nb@x.example,north,\nc@x.example,south,main\nd@x.example,,main\n"
    report = await import_users(store, write(tmp_path, header + rows))
    assert report.skipped == [BadRow(5, "has an institution and no tenant whose it is", "main")]

    async def places() -> dict[str, str]:
        told = select(users.c.email, users.c.institution).order_by(users.c.id)
        return dict(await store._database.read(lambda c: [(e[0], i) for e, i in c.execute(told).all()]))

    assert await places() == {"a": "main", "b": "", "c": "main"}
    assert [(tenant, [one.name for one in await store.tenants.institutions(tenant)]) for tenant in ("north", "south")
            ] == [("north", ["main"]), ("south", ["main"])]  # fmt: skip
    await import_users(store, write(tmp_path, "email,tenant\na@x.example,north\n"))
    assert (await places())["a"] == "main", "the file says nothing of it"
    await import_users(store, write(tmp_path, header + "a@x.example,north,annexe\nc@x.example,south,\n"))
    assert await places() == {"a": "annexe", "b": "", "c": ""}


BAD = (
    HEADER.encode()
    + b"good@x.example,Good,student,\n"
    + b"not an address,N,student,\n"
    + b'"line@x.example\nBcc: all@x.example",N,student,\n'
    + b"good@X.example,Again,student,\n"
    + b"role@x.example,N,studnet,\n"
    + b",N,student,\n"
    + b"short@x.example,N\n"
    + b"latin@x.example,M\xfcller,student,\n"
    + b'quote@x.example,"a"b,student,\n'
    + b'name@x.example,"two\nlines",student,\n'
    + b"last@x.example,Last,student,\n"
)
REASONS = [
    BadRow(3, "is not an email address", "not an address"),
    BadRow(4, "email has a line break or control character", "line@x.example\nBcc: all@x.example"),
    BadRow(6, "is in this file twice", "good@X.example"),
    BadRow(7, 'is not a role: did you mean "student"?', "studnet"),
    BadRow(8, "the address is empty", ""),
    BadRow(9, "has 2 columns, the header has 4", ""),
    BadRow(10, "name has bytes that are not UTF-8", "M?ller"),
    BadRow(11, "is not CSV: ',' expected after '\"'", ""),
    BadRow(12, "name has a line break or control character", "two\nlines"),
]


async def test_bad_rows_are_skipped_with_their_line_and_reason(store: Store, tmp_path: Path) -> None:
    report = await import_users(store, write(tmp_path, BAD), on_bad="skip")
    assert report.skipped == REASONS
    assert (report.added, report.updated, report.bad) == (2, 0, 9)
    assert [row[0] for row in await stored(store)] == ["good@x.example", "last@x.example"]


async def test_refusing_writes_nothing_and_names_the_first_row(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path, BAD)
    with pytest.raises(ImportRefused) as caught:
        await import_users(store, path, on_bad="refuse")
    expected = f"{path}: nothing was imported because of 9 bad rows, the first: line 3: is not an email address"
    assert str(caught.value) == f"{expected} ('not an address')"
    assert caught.value.report.skipped == REASONS
    assert await stored(store) == []


@pytest.mark.parametrize(
    "address",
    [
        "a", "a@b", "@x.example", "a@", "a@@x.example", "a b@x.example", "a..b@x.example", ".a@x.example",
        "a.@x.example", "a@x..example", "a@-x.example", "ä@x.example", "a@x.example>", "<a@x.example>",
        "a@x.example;b@x.example", "a" * 250 + "@x.example",
    ],
)  # fmt: skip
async def test_impossible_addresses_are_bad_rows(store: Store, tmp_path: Path, address: str) -> None:
    report = await import_users(store, write(tmp_path, f"email,name\n{address},N\n"))
    assert [(row.line, row.reason) for row in report.skipped] == [(2, "is not an email address")]


@pytest.mark.parametrize("address", ["o'brien+tag@mail.x-y.example", "a_b-c.d@x.example", "1@2.example"])
async def test_unusual_addresses_are_good(store: Store, tmp_path: Path, address: str) -> None:
    assert (await import_users(store, write(tmp_path, f"email,name\n{address},N\n"))).added == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line names the columns: email,name,role,tenant,institution"),
        (b"name,role\nA,student\n", r'line 1: there is no column "email" \(columns: name, role\)'),
        (b"emial,name\na@x.example,A\n", r'line 1: unknown column "emial" \(did you mean "email"\?\)'),
        (b"email,rol\na@x.example,student\n", r'line 1: unknown column "rol" \(did you mean "role"\?\)'),
        (b"email,email\na@x.example,b@x.example\n", 'line 1: the column "email" is there twice'),
        ("email,name\na@x.example,A\n".encode("utf-16"), "line 1 is not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1 is not text in UTF-8"),
    ],
)
async def test_a_wrong_header_is_refused_in_one_line(
    store: Store, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        await import_users(store, write(tmp_path, content))
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # can be printed


async def test_a_file_that_is_not_there_or_a_word_that_is_not_known_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: cannot be read: No such file"):
        await import_users(store, tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        await import_users(store, tmp_path)
    with pytest.raises(UsageError, match='on_bad is skip or refuse, not "ignore"'):
        await import_users(store, PEOPLE, on_bad="ignore")  # type: ignore[arg-type]


async def test_a_hundred_thousand_rows_take_seconds(store: Store, tmp_path: Path) -> None:
    rows = "".join(f"person{n}@school.example,Person {n},student,north\n" for n in range(100_000))
    shares: list[float] = []
    started = time.perf_counter()
    report = await import_users(store, write(tmp_path, HEADER + rows), on_bad="refuse", progress=shares.append)
    assert time.perf_counter() - started < 30
    assert (report.added, report.bad) == (100_000, 0)
    assert await store.count_users() == 100_000
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 20


async def test_the_shipped_people_are_a_thousand_of_three_schools(store: Store) -> None:
    with PEOPLE.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert Counter(row["role"] for row in rows) == {"student": 600, "parent": 300, "teacher": 100}
    assert {row["tenant"] for row in rows} == set(TENANTS)
    assert all(row["email"].endswith(".example") for row in rows)  # RFC 2606: never somebody's address
    report = await import_users(store, PEOPLE, on_bad="refuse")
    assert (report.added, report.bad) == (1000, 0)
    assert await store.count_users(Audience.of("students,parents")) == 900
