"""The OpenAPI document says what the service does, the page at /docs says what the document does, and schemathesis agrees."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from scoremean import cli, errors
from scoremean.app import Service
from scoremean.errors import InvalidScore, ScoremeanError
from scoremean.settings import Settings
from scoremean.web import docs_page as docs
from scoremean.web.handlers import Handlers
from scoremean.web.openapi import OPERATIONS, PROBLEM, document, encoded
from scoremean.web.wire import JSON, MSGPACK, NDJSON, ScoreDecoder
from tests.support import Server, fetch, require_library, require_program
from tests.test_http import BAD_INPUT, BAD_REQUESTS, exchange

ROOT = Path(__file__).parents[1]
SETTINGS = [Settings(), Settings(token_file="tokens", score_min=-3, score_max=-1, batch_max_scores=7)]
WHOLE = document(SETTINGS[0], "1.2.3")
WRITE, READ = "w" * 24, "r" * 24


def resolved(value: dict[str, Any], whole: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a reference in a document leads to, and anything else as it is."""
    if "$ref" not in value:
        return value
    _, _, kind, name = value["$ref"].split("/")
    return (whole or WHOLE)["components"][kind][name]


def faults(schema: dict[str, Any], value: Any, whole: dict[str, Any] | None = None) -> list[str]:
    """Return what is wrong with `value` by a schema of a document."""
    validator = Draft202012Validator({**schema, "components": (whole or WHOLE)["components"]})
    return [error.message for error in validator.iter_errors(value)]


def operations(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all operations of a document."""
    return [one for item in whole["paths"].values() for name, one in item.items() if name != "parameters"]


def require_documented(method: str, path: str, status: int, headers: Any, body: bytes) -> None:
    """Require that the document has this answer: its status, its headers, its type and its schema, no member more."""
    response = resolved(WHOLE["paths"][path][method.lower()]["responses"][str(status)])
    sent = {name.lower() for name in headers}
    for name, link in response["headers"].items():
        assert name.lower() in sent or not resolved(link)["required"], name
    assert sent <= {"server", "date", "content-type", "content-length", "connection", *map(str.lower, response["headers"])}
    if "content" not in response:
        assert body == b""
        return
    kind = headers["Content-Type" if "Content-Type" in headers else "content-type"].partition(";")[0]
    schema = response["content"][kind]["schema"]
    if kind in (JSON, PROBLEM):
        value = json.loads(body)
        assert not faults(schema, value)
        if "$ref" in schema:
            assert set(value) <= set(resolved(schema)["properties"])


def test_the_operations_are_the_routes():
    """Each with the name of its handler, the right that it needs, and whether it is vital."""
    routes = Handlers(*[None] * 6).routes()
    assert {(method, path, one.name, one.right, one.vital) for (method, path), one in OPERATIONS.items()} == {
        (route.method, route.path, route.handler.__name__, route.right, route.vital) for route in routes
    }


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_document_is_openapi(settings):
    """By the schema of OpenAPI 3.1; and each of its examples is by its own schema what it stands for."""
    whole = document(settings, "1.2.3")
    validate(json.loads(encoded(settings, "1.2.3")))
    for schema in whole["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            assert not faults(schema, example, whole)
        assert schema["description"] and all(one.get("description") for one in schema.get("properties", {}).values())
    for operation in operations(whole):
        for one in operation.get("parameters", ()):
            assert "example" not in one or not faults(one["schema"], one["example"], whole)
        for response in operation["responses"].values():
            for content in resolved(response, whole).get("content", {}).values():
                shown = [content["example"]] if "example" in content else []
                shown += [resolved(one, whole)["value"] for one in content.get("examples", {}).values()]
                assert not [fault for example in shown for fault in faults(content["schema"], example, whole)]


def test_every_problem_is_in_the_document():
    """With its status, title and sentence; and some response has it: an operation's, or that of a request for none."""
    whole = document(SETTINGS[1], "1.2.3")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ScoremeanError)]
    never = {"bad-request", "unavailable", "store-error"}  # bases, never raised themselves, and what ends a start
    found = {slug: one["value"] for slug, one in whole["components"]["examples"].items()}
    assert set(found) == {kind.slug for kind in kinds} - never
    for kind in kinds:
        if kind.slug in found and "slug" in vars(kind):
            value = found[kind.slug]
            assert value["type"] == f"urn:scoremean:{kind.slug}"
            assert (value["status"], value["title"]) == (kind.status, kind.title)
    responses = whole["components"]["responses"].values()
    assert set(found) == {slug for response in responses for slug in response["content"][PROBLEM]["examples"]}


def test_tokens_are_asked_for_where_the_service_does():
    """Security, 401 and 403 are in the document of a service with tokens, where a route needs one; and nowhere without."""
    assert "securitySchemes" not in WHOLE["components"]
    whole = document(SETTINGS[1], "1.2.3")
    for (method, path), one in OPERATIONS.items():
        operation = whole["paths"][path][method.lower()]
        statuses = [status for status in ("401", "403") if status in operation["responses"]]
        assert statuses == ["401", "403"][: one.right]
        assert ("security" in operation) == bool(one.right)
        assert "security" not in WHOLE["paths"][path][method.lower()]


@given(
    st.dictionaries(
        st.sampled_from(["UUID", "score", "id", "x"]),
        st.none() | st.booleans() | st.integers(-7, 7) | st.text(max_size=3) | st.sampled_from(["a" * 256, "a" * 257]),
    )
)
def test_the_schema_of_a_score_is_what_validation_takes(value):
    """Text of more bytes than characters apart, both judge alike."""
    decoder = ScoreDecoder(-3, 3, 10)
    schema = document(Settings(score_min=-3, score_max=3), "")["components"]["schemas"]["Score"]
    assert isinstance(decoder.item(value), InvalidScore) == bool(faults(schema, value))


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_the_answer_to_a_bad_request_is_documented(service, name):
    """For its operation; what leads to none has one of the responses for that, or was not understood as HTTP."""
    raw, _, slug = BAD_REQUESTS[name]
    status, headers, problem = await exchange(service, raw)
    method, target = raw.decode("latin-1").split(" ")[:2]
    for route, path in OPERATIONS:
        if route == method and re.fullmatch(re.sub(r"\{\w+\}", ".*", path), target.partition("?")[0]):
            require_documented(route, path, status, headers, json.dumps(problem).encode())
            return
    assert slug in ("unknown-route", "method-not-allowed", "malformed-request")
    assert not faults({"$ref": "#/components/schemas/Problem"}, problem)
    assert (slug == "method-not-allowed") == ("allow" in headers)


@pytest.mark.parametrize("name", BAD_INPUT)
async def test_the_answer_to_a_bad_body_is_documented(client, name):
    """And its problem has no member that is not."""
    async with client.post("/scores", data=BAD_INPUT[name][0], headers={"Content-Type": JSON}) as response:
        require_documented("POST", "/scores", response.status, response.headers, await response.read())


async def test_the_answers_are_documented(client):
    """Of each route but /events, of both forms of a post, of what is skipped, voided, replayed, not modified, not there."""
    score = {"UUID": "a", "score": 5, "id": "i"}
    async with client.get("/docs") as response:
        etag = response.headers["ETag"]
    requests: list[tuple[str, str, str, dict[str, Any], int]] = [
        ("POST", "/scores", "/scores", {"json": score}, 200),
        ("POST", "/scores", "/scores", {"json": score}, 200),
        ("POST", "/scores", "/scores", {"json": {**score, "score": 4}}, 422),
        ("POST", "/scores", "/scores?on_error=skip", {"json": [score, {"UUID": "a"}, {**score, "score": 4}]}, 200),
        ("GET", "/means", "/means?limit=1", {}, 200),
        ("POST", "/means/query", "/means/query", {"json": ["a", "nobody"]}, 200),
        ("GET", "/means/{UUID}", "/means/a", {}, 200),
        ("GET", "/means/{UUID}", "/means/a", {"headers": {"If-None-Match": "*"}}, 304),
        ("GET", "/means/{UUID}", "/means/nobody", {}, 404),
        ("DELETE", "/scores/{id}", "/scores/i", {}, 200),
        ("POST", "/scores", "/scores", {"json": score}, 422),
        ("POST", "/scores", "/scores", {"json": [{"UUID": "a", "score": 1}] * 2}, 200),
        ("POST", "/voids", "/voids", {"json": {"UUID": "a", "score": 1, "id": "v"}}, 200),
        ("POST", "/voids", "/voids", {"json": {"UUID": "a", "score": 1, "id": "v"}}, 200),
        ("POST", "/voids", "/voids", {"json": {"UUID": "a", "score": 5, "id": "w"}}, 422),
        ("POST", "/means/{UUID}/merge", "/means/a/merge", {"json": {"into": "b"}}, 200),
        ("POST", "/means/{UUID}/merge", "/means/a/merge", {"json": {"into": "b"}}, 404),
        ("POST", "/means/{UUID}/merge", "/means/b/merge", {"json": {"into": "a"}}, 200),
        ("DELETE", "/means/{UUID}", "/means/a", {}, 200),
        ("GET", "/stats", "/stats", {}, 200),
        ("GET", "/metrics", "/metrics", {}, 200),
        ("GET", "/livez", "/livez", {}, 200),
        ("GET", "/readyz", "/readyz", {}, 200),
        ("GET", "/", "/", {}, 200),
        ("GET", "/page/{file}", "/page/page.css", {}, 200),
        ("GET", "/page/{file}", "/page/icon.svg", {}, 200),
        ("GET", "/page/{file}", "/page/nothing", {}, 404),
        ("GET", "/docs", "/docs", {}, 200),
        ("GET", "/docs", "/docs", {"headers": {"If-None-Match": etag}}, 304),
        ("GET", "/openapi.json", "/openapi.json", {}, 200),
        ("GET", "/events", "/events?min_count=3", {}, 422),
    ]
    for method, path, target, options, status in requests:
        async with client.request(method, target, **options) as response:
            assert response.status == status, target
            require_documented(method, path, response.status, response.headers, await response.read())
    assert set(OPERATIONS) == {request[:2] for request in requests}


@pytest.mark.parametrize("kind", [NDJSON, MSGPACK])
async def test_the_other_types_have_the_same_schemas(client, kind):
    """A batch in NDJSON and in MessagePack."""
    items = [{"UUID": "a", "score": 5}, {"UUID": "a", "score": 6}]
    lines = b"\n".join(map(msgspec.json.encode, items)) if kind == NDJSON else msgspec.msgpack.encode(items)
    async with client.post("/scores?on_error=skip", data=lines, headers={"Content-Type": kind}) as response:
        body = await response.read()
    value = msgspec.msgpack.decode(body) if kind == MSGPACK else [json.loads(line) for line in body.splitlines()]
    content = WHOLE["paths"]["/scores"]["post"]["responses"]["200"]["content"]
    assert [len(one) for one in value] == [2, 5]
    assert not faults(content[kind]["schema"], value)


async def test_the_events_are_documented(client):
    """Schemathesis cannot ask for them, since they do not end: the first two, each by the schema that its name has."""
    async with client.get("/events?min_count=1") as response:
        content = WHOLE["paths"]["/events"]["get"]["responses"]["200"]["content"]
        assert [response.headers["Content-Type"]] == list(content)
        names = []
        for one in content[response.content_type]["schema"]["items"]["oneOf"]:
            lines = (await response.content.readuntil(b"\n\n")).decode().splitlines()
            event = dict(line.split(": ", 1) for line in lines if line)
            names.append(event["event"])
            assert not faults(one, event)
            data, schema = json.loads(event["data"]), one["properties"]["data"]["contentSchema"]
            assert not faults(schema, data)
            assert set(data) == set(resolved(schema)["properties"])
    assert names == ["now", "overview"]


def test_the_command_prints_what_is_served(tmp_path, capsys):
    """With the same settings: from flags and from the environment."""
    flags = ["--score-max", "9", "--batch-max-scores", "20"]
    assert cli.main(["openapi", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["components"]["schemas"]["Score"]["properties"]["score"]["maximum"] == 9
    with Server(tmp_path / "store", *flags) as server:
        with urlopen(f"{server.url}/openapi.json") as response:
            assert json.load(response) == printed


class _Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element."""
        self.tags.append(tag)
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or "")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Require that it ends the element that was begun last."""
        assert self.open.pop() == tag


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_page_is_whole(settings):
    """Each element is closed, each id is there once, each link leads somewhere; no script, no style but its sheets."""
    text = docs.encoded(settings, "1.2.3", "http://h").decode()
    page = _Page(text)
    assert not page.open
    assert len(page.values["id"]) == len(set(page.values["id"]))
    assert {link[1:] for link in page.values["href"] if link.startswith("#")} <= set(page.values["id"])
    assert {one.name for one in OPERATIONS.values()} <= set(page.values["id"])
    assert not {"script", "style"} & set(page.tags) and "style" not in page.values
    for method, path in OPERATIONS:
        assert f"<code>{method} {path}</code>" in text
    assert len(text) < 100_000


def test_the_page_escapes_what_is_in_the_document():
    """Whatever stands there, it is text."""
    evil = "</code><script>alert(1)</script>&"
    whole = json.loads(json.dumps(WHOLE).replace("Tell what the store holds", json.dumps(evil)[1:-1]))
    text = docs.render(whole)
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (b"scores.example", "http://scores.example"),
        (b"SCORES.example.:8081", "http://SCORES.example.:8081"),
        (b"[::1]:9000", "http://[::1]:9000"),
        (b"a_b-c:", "http://HOST"),
        (b"", "http://HOST"),
        (b"x'; rm -rf '", "http://HOST"),
        (b"<script>", "http://HOST"),
        (b'x"\\', "http://HOST"),
        (b"h/\xff", "http://HOST"),
        (b"$(id):80", "http://HOST"),
    ],
)
async def test_the_commands_have_the_address_that_was_asked(store, tmp_path, host, address):
    """If it looks like one: a Host header is a client's text, and the command is for a shell."""
    service = Service(Settings(port=0, host="0.0.0.0", token_file=str(_tokens(tmp_path))), store, "1.2.3")
    await service.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.url.rpartition(":")[2])
    for forwarded, scheme in ((b"https", "https"), (b"x", "http")):
        writer.write(b"GET /docs HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Proto: %b\r\n\r\n" % (host, forwarded))
        head = await reader.readuntil(b"\r\n\r\n")
        text = (await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))).decode()
        commands = [unescape(one) for one in re.findall("<pre><code>(.*?)</code>", text)]
        assert len(commands) == len(OPERATIONS)
        for command, (_, path) in zip(commands, OPERATIONS):
            assert shlex.split(command)[-1].startswith(address.replace("http", scheme) + path.partition("{")[0])
        assert "8080" not in text
    writer.close()
    await service.stop()


def test_the_commands_of_the_page_work(tmp_path):
    """Each as it stands there; that of /events does not end."""
    require_program("curl", "curl")
    tokens = _tokens(tmp_path)
    with Server(tmp_path / "store", "--token-file", str(tokens)) as server:
        page = fetch(f"{server.url}/docs").decode()
        commands = [unescape(one) for one in re.findall("<pre><code>(.*?)</code>", page) if "/events" not in one]
        assert len(commands) == len(OPERATIONS) - 1
        environment = {**os.environ, "TOKEN": WRITE}
        # The first posts a score; with an id here, so that the second finds one to void, and again before each other one, so
        # that they find a mean.
        with_id = commands[0].replace('"score":5', '"score":5,"id":"vote-1"')
        for command in (with_id, *(each for other in commands[1:] for each in (commands[0], other))):
            command = command.replace("curl", "curl -sS -f", 1)
            done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
            assert done.returncode == 0 and done.stdout, (command, done.stderr)


def _tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"write {WRITE}\nread {READ}\n")
    path.chmod(0o600)
    return path


def _schemathesis(cwd: Path, url: str, settings: Settings, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run it with all checks, some of them in the form that tests/schemathesis_hooks.py gives them.

    It would leave out the route that it reads the document from, so that is a file. /events never ends and is left out.
    """
    require_library("schemathesis")
    path = cwd / "openapi.json"
    path.write_bytes(encoded(settings, "1.2.3"))
    replaced = "positive_data_acceptance,negative_data_rejection,allow_header_conformance"
    common = ["--no-color", "--generation-deterministic", "--continue-on-failure", "--exclude-path", "/events"]
    common += ["--checks", "all", "--exclude-checks", replaced]
    return subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", path, "--url", url, *common, *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _require_nothing_found(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert f"Tested: {len(OPERATIONS) - 1}" in done.stdout
    assert "No issues found" in done.stdout


@pytest.mark.ci
def test_schemathesis_finds_nothing(tmp_path):
    """Whatever it makes of the document: no answer is other than documented, nothing valid refused, nothing invalid taken."""
    settings = Settings(batch_max_scores=20)
    with Server(tmp_path / "store", "--batch-max-scores", "20") as server:
        _require_nothing_found(_schemathesis(tmp_path, server.url, settings, "--max-examples", "100"))
        assert not server.messages()


@pytest.mark.ci
def test_schemathesis_finds_nothing_where_tokens_are_asked_for(tmp_path):
    """Nor is anything answered without one."""
    settings = Settings(batch_max_scores=20, token_file=str(_tokens(tmp_path)))
    token = ("--header", f"Authorization: Bearer {WRITE}")
    with Server(tmp_path / "store", "--batch-max-scores", "20", "--token-file", settings.token_file) as server:
        _require_nothing_found(_schemathesis(tmp_path, server.url, settings, "--max-examples", "20", *token))
        assert not server.messages()


@pytest.mark.ci
def test_schemathesis_sees_a_service_that_is_not_as_documented(tmp_path):
    """Here it takes scores up to 9 instead of 5, and asks for no token."""
    settings = Settings(batch_max_scores=20, token_file="tokens")
    with Server(tmp_path / "store", "--batch-max-scores", "20", "--score-max", "9") as server:
        done = _schemathesis(tmp_path, server.url, settings, "--phases", "coverage", "--max-examples", "5")
    assert done.returncode == 1, done.stdout[-20_000:] + done.stderr
    for found in ("API accepts invalid authentication", "Schema-violating request accepted"):
        assert found in done.stdout
