"""Who is let in: tokens, names in the Host header, TLS, a Unix socket. Real sockets throughout."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientConnectorError, ClientError, ClientSession, TCPConnector, UnixConnector
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from scoremean import Score, Tally, cli
from scoremean.app import Service, serve
from scoremean.client import Client
from scoremean.errors import Forbidden, ListenError, MisdirectedRequest, SettingError, Unauthorized
from scoremean.settings import Settings
from scoremean.web import events as live
from scoremean.web.access import TOKENS_MAX, Access, Hosts, Right, read_tokens, write_token
from scoremean.web.handlers import Handlers
from tests.support import Server, post, require_program
from tests.test_http import assert_problem, exchange, raw_post, raw_request, read_response

DOCS = Path(__file__).parents[1] / "docs"
READ, WRITE = "r" * 16, "w-._~+/9" * 2 + "=="


def bearer(token: str) -> dict[str, str]:
    """Return the headers that show a token."""
    return {"Authorization": f"Bearer {token}"}


def private(path: Path, text: str) -> str:
    """Write a file that only its owner may read, and return its path."""
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


@pytest.fixture(name="token_file")
def fixture_token_file(tmp_path):
    """A file with a token for reading and one for writing."""
    return private(tmp_path / "tokens", f"# who: the reviewers\nread {READ}\n\n  write\t{WRITE} # the import\n")


@asynccontextmanager
async def running(store, **settings) -> AsyncIterator[Service]:
    """A service with these settings."""
    service = Service(Settings(port=0, **settings), store, "1.2.3")
    await service.start()
    yield service
    await service.stop()


def test_the_tokens_of_a_file(token_file):
    """With comments, empty lines and any white space."""
    assert read_tokens(token_file) == [(READ, Right.READ), (WRITE, Right.WRITE)]
    assert write_token(token_file) == WRITE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must hold 1 to 64 tokens, and holds 0"),
        ("# none\n\n", "holds 0"),
        ("".join(f"read {n:016}\n" for n in range(TOKENS_MAX + 1)), "holds 65"),
        (f"read {READ}\n{WRITE}", "line 2 is neither `read TOKEN` nor `write TOKEN`"),
        (f"admin {READ}", "line 1 is neither"),
        (f"READ {READ}", "line 1 is neither"),
        (f"read {READ} {WRITE}", "line 1 is neither"),
        (f"read {READ}é", "line 1 is neither"),
        ("read " + "x" * 600, "line 1 is neither"),
        (f"read {READ[1:]}", "the token in line 1 is shorter than 16 characters"),
        (f"read {READ}\nwrite {READ}", "the token in line 2 stands there twice"),
    ],
)
def test_a_token_file_that_is_at_fault_is_refused(tmp_path, text, message):
    """With the line, and no token in the sentence."""
    with pytest.raises(SettingError) as caught:
        Access(Settings(token_file=private(tmp_path / "tokens", text)))
    assert message in str(caught.value)
    assert READ[1:] not in str(caught.value) and WRITE not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o606, 0o601])
def test_a_file_of_secrets_that_others_may_read_is_refused(tmp_path, mode):
    """Or that they, or the group, may change. The group may read it."""
    path = Path(private(tmp_path / "tokens", f"read {READ}"))
    path.chmod(mode)
    with pytest.raises(SettingError, match=f"token_file .* has the mode {mode:04o}, so others .*: chmod 600 "):
        read_tokens(str(path))
    path.chmod(0o640)
    assert read_tokens(str(path))


def test_a_token_file_that_cannot_be_read_is_refused(tmp_path):
    """Not there, not text, and without a token that the import could use."""
    with pytest.raises(SettingError, match="cannot read token_file .*none: No such file or directory"):
        read_tokens(str(tmp_path / "none"))
    (tmp_path / "bytes").touch(mode=0o600)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(SettingError, match="token_file .* is not UTF-8 text"):
        read_tokens(str(tmp_path / "bytes"))
    with pytest.raises(SettingError, match="cannot read token_file .*: Is a directory"):
        tmp_path.chmod(0o700)
        read_tokens(str(tmp_path))
    with pytest.raises(SettingError, match="none of its tokens may write"):
        write_token(private(tmp_path / "read", f"read {READ}"))


@pytest.mark.parametrize(
    "header",
    [None, "", WRITE, *(f"Bearer {end}" for end in ("", WRITE[:-1], f"{WRITE}x", f"x {WRITE}", "\udcff")), f"Basic {WRITE}"],
)
async def test_without_a_known_token_it_is_401(store, token_file, header, caplog):
    """On every route but those that tell nothing of what is stored; and nothing is counted."""
    public = {"/livez", "/readyz", "/", "/page/{file}", "/openapi.json", "/docs"}
    headers = [] if header is None else [f"Authorization: {header}"]
    async with running(store, token_file=token_file) as service:
        for route in Handlers(*[None] * 6).routes():
            assert (route.right is Right.NONE) == (route.path in public)
            if route.right is Right.NONE:
                continue
            path = re.sub(r"\{\w+\}", "a", route.path)
            status, found, problem = await exchange(service, raw_request(f"{route.method} {path}", *headers))
            assert (status, problem["type"]) == (401, "urn:scoremean:unauthorized")
            assert found["www-authenticate"] == "bearer"
        for path in ("/livez", "/readyz"):
            assert (await exchange(service, raw_request(f"GET {path}", *headers)))[0] == 200
    assert not caplog.records


async def test_of_two_tokens_none_is_taken(store, token_file):
    """Nobody else on the way could know which one counts."""
    async with running(store, token_file=token_file) as service:
        for tokens in ((READ, WRITE), (WRITE, READ), (READ, READ)):
            raw = raw_request("GET /stats", *(f"Authorization: Bearer {token}" for token in tokens))
            assert (await exchange(service, raw))[0] == 401


async def test_a_token_that_may_read_does_not_write(store, token_file):
    """403 on each route that writes; one that may write does both."""
    body = {"UUID": "a", "score": 5, "id": "k"}
    async with running(store, token_file=token_file) as service:
        async with ClientSession(service.url, headers=bearer(READ)) as client:
            posts = [("/scores", body), ("/voids", body), ("/means/a/merge", {"into": "b"})]
            deletes = [client.delete("/scores/k"), client.delete("/means/a")]
            for request in (*(client.post(path, json=members) for path, members in posts), *deletes):
                await assert_problem(request, 403, "forbidden")
        assert store.stats().scores == 0
        async with ClientSession(service.url, headers={"Authorization": f"bearer   {WRITE}"}) as client:
            async with client.post("/scores", json=body) as response:
                assert response.status == 200
        for token in (READ, WRITE):
            async with ClientSession(service.url, headers=bearer(token)) as client:
                for path in ("/means/a", "/means", "/stats"):
                    async with client.get(path) as response:
                        assert response.status == 200
                async with client.post("/means/query", json=["a"]) as response:
                    assert response.status == 200


async def test_a_stranger_is_not_asked_for_a_body(store, token_file):
    """Expect: 100-continue without a token gets the 401 and nothing before it."""
    raw = raw_request("POST /scores", "Content-Type: application/json", "Expect: 100-continue", length=100)
    async with running(store, token_file=token_file) as service:
        assert (await exchange(service, raw))[0] == 401


async def test_the_client_and_import_show_a_token(store, token_file, tmp_path, capsys):
    """And raise what they are answered."""
    scores = tmp_path / "scores.ndjson"
    scores.write_text('{"UUID": "a", "score": 4}\n')
    async with running(store, token_file=token_file) as service:
        async with Client(service.url, token=WRITE) as client:
            assert (await client.post(Score("a", 5))).mean == 5.0
        for error, token in ((Unauthorized, None), (Unauthorized, WRITE[1:]), (Forbidden, READ)):
            async with Client(service.url, token=token) as client:
                with pytest.raises(error):
                    await client.post(Score("a", 5))
        arguments = ["import", "--url", service.url, "--token-file", token_file, str(scores)]
        assert await asyncio.to_thread(cli.main, arguments) == 0
    assert '"counted":1' in capsys.readouterr().out
    assert store.stats().scores == 2


async def reloaded(service: Service, caplog, level: str) -> None:
    """Have `service` read its files again, and assert that this is logged, and no token is."""
    caplog.clear()
    with caplog.at_level("INFO"):
        service.access.reload()
    assert [record.levelname for record in caplog.records] == [level]
    assert WRITE not in caplog.text and READ not in caplog.text


async def test_tokens_are_read_again(store, token_file, caplog):
    """A file that is at fault changes nothing."""

    async def status(token: str) -> int:
        async with ClientSession(service.url, headers=bearer(token)) as client, client.get("/stats") as response:
            return response.status

    async with running(store, token_file=token_file) as service:
        assert [await status(token) for token in (READ, WRITE)] == [200, 200]
        private(Path(token_file), f"reed {READ}")
        await reloaded(service, caplog, "ERROR")
        assert "token_file: what was read before stays in use" in caplog.text
        assert [await status(token) for token in (READ, WRITE)] == [200, 200]
        private(Path(token_file), f"read {READ}")
        await reloaded(service, caplog, "INFO")
        assert [await status(token) for token in (READ, WRITE)] == [200, 401]


async def test_sighup_reads_them_again(store, token_file, caplog):
    """In the one process that serves."""
    caplog.set_level("INFO")
    announced = asyncio.get_running_loop().create_future()
    settings = Settings(port=0, token_file=token_file)
    serving = asyncio.ensure_future(serve(settings, store, "1.2.3", announced.set_result))
    async with ClientSession(await announced, headers=bearer("n" * 16)) as client:
        await assert_problem(client.get("/stats"), 401, "unauthorized")
        private(Path(token_file), f"read {'n' * 16}")
        os.kill(os.getpid(), signal.SIGHUP)
        while "read again" not in caplog.text:
            await asyncio.sleep(0)
        async with client.get("/stats") as response:
            assert response.status == 200
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving is True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stream_ends_when_its_token_is_taken_out(tmp_path, token_file, workers):
    """Within seconds of the SIGHUP; a stream whose token stays goes on."""

    async def run(server: Server) -> None:
        async with ClientSession(server.url, connector=TCPConnector(force_close=True)) as client:
            streams = [await client.get("/events", headers=bearer(token)) for token in (READ, WRITE) * 4]
            for stream in streams:
                assert (stream.status, await stream.content.readline()) == (200, b"event: now\n")
            private(Path(token_file), f"write {WRITE}")
            os.kill(server.pid, signal.SIGHUP)
            await asyncio.gather(*(asyncio.wait_for(stream.read(), 10) for stream in streams[::2]))
            for stream in streams[1::2]:
                counted = 0
                while counted < 3:
                    counted += b"event: now" in await stream.content.readline()
            await assert_problem(client.get("/events", headers=bearer(READ)), 401, "unauthorized")
            for stream in streams:
                stream.close()

    with Server(tmp_path / "store", "--workers", workers, "--token-file", token_file) as server:
        asyncio.run(run(server))


def test_sighup_reaches_every_worker(tmp_path, token_file):
    """The parent passes it on."""
    with Server(tmp_path / "store", "--workers", "2", "--token-file", token_file) as server:
        private(Path(token_file), f"read {'n' * 16}")
        os.kill(server.pid, signal.SIGHUP)
        while server.messages().count("token_file: read again") < 2:
            pass

        async def run() -> None:
            async with ClientSession(server.url, connector=TCPConnector(force_close=True)) as client:
                for token, status in ((WRITE, 401), ("n" * 16, 200)) * 10:
                    async with client.get("/stats", headers=bearer(token)) as response:
                        assert response.status == status

        asyncio.run(run())
        server.terminate()
        code, messages = server.wait()
    assert code == 0, messages


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_at_fault_prevents_the_start(tmp_path, capsys, workers):
    """With one sentence."""
    arguments = ["serve", "--store", str(tmp_path / "store"), "--workers", workers, "--port", "0"]
    assert cli.main([*arguments, "--token-file", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err
    assert "cannot read token_file" in errors and errors.count("\n") == 1


HOSTS = {
    "localhost": True,
    "LocalHost:8080": True,
    "localhost.": True,
    "127.0.0.1": True,
    "127.0.0.1:1": True,
    "[::1]": True,
    "[::1]:8080": True,
    "127.0.0.2:8080": True,
    "scores.example:443": True,
    "": False,
    "evil.example": False,
    "evil.example:8080": False,
    "localhost.evil.example": False,
    "evil-localhost": False,
    "localhost:8080:x": False,
    "localhost@evil.example": False,
    "evil.example#localhost": False,
    "127.0.0.1.evil.example": False,
    "[::2]": False,
    "::1": False,
}


@pytest.mark.parametrize("header", HOSTS)
async def test_a_host_header_must_be_a_name_of_the_service(store, header):
    """Or a page of any site could read it through a name of its own that leads to 127.0.0.1."""
    async with running(store, host="127.0.0.2", allowed_hosts="Scores.Example, other") as service:
        for _ in range(2):  # also once it is known
            raw = f"GET /stats HTTP/1.1\r\nHost: {header}\r\n\r\n".encode()
            status, _, body = await exchange(service, raw)
            if HOSTS[header]:
                assert status == 200
            else:
                assert (status, body["type"]) == (421, "urn:scoremean:misdirected-request")


async def test_a_host_header_is_there_once(service):
    """HTTP/1.0 knew none, and no browser speaks it."""
    for raw, status in (
        (b"GET /stats HTTP/1.1\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /stats HTTP/1.0\r\n\r\n", 200),
        (b"GET /stats HTTP/1.0\r\nHost: evil.example\r\n\r\n", 421),
    ):
        assert (await exchange(service, raw))[0] == status


def test_few_headers_are_known_by_heart():
    """However many ports a client makes up."""
    hosts = Hosts(["127.0.0.1"])
    for port in range(1000):
        hosts.require(f"localhost:{port}")
    assert len(hosts.known) == 256
    with pytest.raises(MisdirectedRequest):
        hosts.require("evil")


@pytest.mark.parametrize("name", ["a:80", "::1", "http://a", "a/b"])
def test_an_allowed_host_that_no_header_could_have_is_refused(name):
    """It would be allowed in vain."""
    with pytest.raises(SettingError, match="allowed_hosts: .* must be a name without a port"):
        Access(Settings(allowed_hosts=f"ok.example,{name}"))


async def test_another_address_needs_a_token_file_and_no_host_header(store, token_file):
    """The token protects it then; with allowed_hosts the header is looked at too."""
    with pytest.raises(SettingError, match="host '0.0.0.0' is not a loopback address"):
        Settings(host="0.0.0.0")
    for names, status in (("", 200), ("scores.example", 421)):
        async with running(store, host="0.0.0.0", token_file=token_file, allowed_hosts=names) as service:
            raw = f"GET /stats HTTP/1.1\r\nHost: any.example\r\nAuthorization: Bearer {READ}\r\n\r\n".encode()
            found, _, _ = await exchange(service, raw)
            assert found == status


async def test_no_other_site_is_let_in_by_cors(client):
    """A browser that asks is told nothing that allows it."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("OPTIONS", "/scores"), ("OPTIONS", "/means/a"), ("GET", "/stats")):
        async with client.request(method, path, headers=headers) as response:
            assert response.status == (405 if method == "OPTIONS" else 200)
            assert not [name for name in response.headers if name.lower().startswith("access-control")]


@pytest.fixture(name="authority", scope="module")
def fixture_authority():
    """A certificate authority."""
    return trustme.CA()


def issue(authority: trustme.CA, path: Path, name: str = "127.0.0.1") -> dict[str, str]:
    """Write a certificate and its key, and return the settings that name the files."""
    certificate = authority.issue_cert(name)
    path.mkdir(exist_ok=True)
    private(path / "key.pem", certificate.private_key_pem.bytes().decode())
    certificate.cert_chain_pems[0].write_to_path(str(path / "cert.pem"))
    return {"tls_cert": str(path / "cert.pem"), "tls_key": str(path / "key.pem")}


def trusting(authority: trustme.CA, certificate: dict[str, str] | None = None) -> ssl.SSLContext:
    """Return what a client needs that trusts `authority`, and shows a certificate if it has one."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate:
        context.load_cert_chain(certificate["tls_cert"], certificate["tls_key"])
    return context


async def status_of(service: Service, context: ssl.SSLContext) -> int:
    """Return the status of a request over a new connection; 0 if there is none."""
    try:
        async with ClientSession(service.url, connector=TCPConnector(ssl=context)) as client, client.get("/stats") as response:
            return response.status
    except ClientError:
        return 0


async def test_https(store, tmp_path, authority, caplog):
    """It is announced, plain HTTP is not answered, and the Client verifies the service."""
    async with running(store, **issue(authority, tmp_path / "tls")) as service:
        assert service.url.startswith("https://127.0.0.1:")
        async with Client(service.url, tls=trusting(authority)) as client:
            assert (await client.post(Score("a", 5))).mean == 5.0
        assert await status_of(service, trusting(trustme.CA())) == 0
        port = int(service.url.rpartition(":")[2])
        for raw in (b"", raw_request("GET /livez")):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority))
            writer.write(raw)
            writer.close()  # both directions at once: TLS has no other way here
            await writer.wait_closed()
        assert not caplog.records
        async with ClientSession(service.url.replace("https", "http")) as client:
            with pytest.raises(ClientError):
                await client.get("/stats")
        assert service.access.tls.context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_client_must_show_a_certificate_of_the_ca(store, tmp_path, authority):
    """None, or one of another CA, gets no connection."""
    own, other = issue(authority, tmp_path / "own"), issue(trustme.CA(), tmp_path / "other")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with running(store, **own, tls_client_ca=str(tmp_path / "ca.pem")) as service:
        assert await status_of(service, trusting(authority, own)) == 200
        assert await status_of(service, trusting(authority)) == 0
        assert await status_of(service, trusting(authority, other)) == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_is_read_again(store, tmp_path, authority, version, caplog):
    """Certificate, key and client CA, for new connections."""
    second = trustme.CA()
    own, other = issue(authority, tmp_path / "own"), issue(second, tmp_path / "other")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    first_client, second_client = trusting(authority, own), trusting(authority, other)
    second.configure_trust(first_client)
    for context in (first_client, second_client):
        context.maximum_version = version
    files = issue(authority, tmp_path / "server")
    async with running(store, **files, tls_client_ca=str(tmp_path / "ca.pem")) as service:
        assert [await status_of(service, context) for context in (first_client, second_client)] == [200, 0]
        private(Path(files["tls_key"]), "no key")
        await reloaded(service, caplog, "ERROR")
        assert [await status_of(service, context) for context in (first_client, second_client)] == [200, 0]
        issue(second, tmp_path / "server")
        second.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        await reloaded(service, caplog, "INFO")
        second.configure_trust(second_client)
        assert [await status_of(service, context) for context in (first_client, second_client)] == [0, 200]


@pytest.mark.parametrize("mutual", [True, False])
async def test_open_connections_end_when_the_cas_are_read_again(  # pylint: disable=too-many-locals  # each connection is one
    store, tmp_path, authority, monkeypatch, mutual
):
    """The idle one, and one on which events come; one on which a score is counted after its answer. Without CAs all go on."""
    monkeypatch.setattr(live, "EVENT_SECONDS", 0)
    files, own = issue(authority, tmp_path / "server"), issue(authority, tmp_path / "own")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with running(store, **files, tls_client_ca=str(tmp_path / "ca.pem") if mutual else "") as service:
        server = service._server  # pylint: disable=protected-access
        commit, held = Future(), asyncio.Event()
        idle, events, busy = [
            await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]), ssl=trusting(authority, own))
            for _ in range(3)
        ]
        idle[1].write(raw_request("GET /livez"))
        assert (await read_response(idle[0]))[0] == 200
        events[1].write(raw_request("GET /events"))
        assert b" 200 OK\r\n" in await events[0].readuntil(b"\r\n\r\n")
        with monkeypatch.context() as patched:
            patched.setattr(store, "submit", lambda batch: held.set() or commit)
            busy[1].write(raw_post())
            await held.wait()
        server.sweep(asyncio.get_running_loop().time())
        assert not [connection for connection in server.connections if connection.closing]
        service.access.reload()
        server.sweep(asyncio.get_running_loop().time())
        commit.set_result([Tally(5, 1)])
        status, headers, _ = await read_response(busy[0])
        assert (status, headers.get("connection")) == (200, "close" if mutual else None)
        if mutual:
            for reader in (idle[0], events[0], busy[0]):
                await reader.read()
        else:
            await events[0].readuntil(b"event: now")
            idle[1].write(raw_request("GET /livez"))
            assert (await read_response(idle[0]))[0] == 200
        for _, writer in (idle, events, busy):
            writer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_removed_ca_is_not_trusted_in_a_resumed_session(store, tmp_path, authority, version):
    """A session that is resumed shows no certificate again, so none is."""
    files, own = issue(authority, tmp_path / "server"), issue(authority, tmp_path / "own")
    context = trusting(authority, own)
    context.maximum_version = version

    def answer(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        """Return the first bytes of an answer, none if there is no connection, and the session."""
        connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
        try:
            with context.wrap_socket(connection, server_hostname="127.0.0.1", session=session) as secure:
                secure.sendall(raw_request("GET /livez"))
                return secure.recv(12), secure.session
        except OSError:
            return b"", None
        finally:
            connection.close()

    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with running(store, **files, tls_client_ca=str(tmp_path / "ca.pem")) as service:
        first, session = await asyncio.to_thread(answer, None)
        assert first == b"HTTP/1.1 200" and session is not None
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        service.access.reload()
        assert (await asyncio.to_thread(answer, session))[0] == b""


def test_tls_files_at_fault_are_refused(tmp_path, authority):
    """Each with a sentence that names the setting."""
    good, other = issue(authority, tmp_path / "good"), issue(authority, tmp_path / "other")
    text = private(tmp_path / "text", "text")
    for settings, message in (
        (good | {"tls_key": other["tls_key"]}, "are of no use"),
        (good | {"tls_cert": text}, "are of no use"),
        (good | {"tls_cert": str(tmp_path / "none")}, "cannot read tls_cert .*: No such file or directory"),
        (good | {"tls_key": str(tmp_path / "none")}, "cannot read tls_key .*: No such file or directory"),
        (good | {"tls_client_ca": str(tmp_path / "none")}, "cannot read tls_client_ca .*: No such file or directory"),
        (good | {"tls_client_ca": text}, "tls_client_ca .* holds no certificates"),
    ):
        with pytest.raises(SettingError, match=message):
            Access(Settings(**settings))
    key = load_pem_private_key(Path(good["tls_key"]).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(SettingError, match="the key has a password"):
        Access(Settings(**good | {"tls_key": private(tmp_path / "locked", locked.decode())}))
    Path(good["tls_key"]).chmod(0o644)
    with pytest.raises(SettingError, match="tls_key .* has the mode 0644"):
        Access(Settings(**good))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_over_tls(tmp_path, authority, workers):
    """As a process, with each number of workers."""
    files = issue(authority, tmp_path / "tls")
    flags = ["--tls-cert", files["tls_cert"], "--tls-key", files["tls_key"], "--workers", workers]
    with Server(tmp_path / "store", *flags) as server:

        async def run() -> None:
            async with Client(server.url, tls=trusting(authority)) as client:
                assert (await client.post(Score("a", 5))).mean == 5.0

        asyncio.run(run())
        server.terminate()
        code, messages = server.wait()
    assert (code, server.url[:8]) == (0, "https://"), messages


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    """The commands of docs/security.md make files that serve takes and clients trust; a warning is logged without TLS."""
    require_program("openssl", "openssl")
    monkeypatch.chdir(tmp_path)
    make, serve_line, *_ = re.findall(r"^```sh\n(.*?)^```", (DOCS / "security.md").read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", make], check=True, capture_output=True)
    flags = serve_line.split()[2:]
    token = write_token("tokens")
    assert [right for _, right in read_tokens("tokens")] == [Right.WRITE, Right.READ]

    async def run(url: str, tls: ssl.SSLContext | None) -> None:
        async with Client(url.replace("0.0.0.0", "localhost"), token=token, tls=tls) as client:
            assert (await client.post(Score("a1-b1", 5))).mean == 5.0

    for some, tls in ((flags, ssl.create_default_context(cafile="cert.pem")), (flags[:4], None)):
        with Server(tmp_path / f"store-{len(some)}", *some) as server:
            asyncio.run(run(server.url, tls))
            server.terminate()
            code, messages = server.wait()
        assert code == 0, messages
        assert ("unencrypted" in messages) is (tls is None)


async def test_a_unix_socket(store, tmp_path):
    """For this user alone; one that a dead process left is replaced, and nothing else is."""
    path = tmp_path / "scoremean.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running(store, unix_socket=str(path), host="0.0.0.0") as service:
        assert service.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        async with ClientSession("http://any.example", connector=UnixConnector(str(path))) as client:
            assert await post(client, "a", 5) == 5.0
        with pytest.raises(ListenError, match=f"cannot listen on {path}: Address already in use"):
            await Service(Settings(unix_socket=str(path)), store, "1").start()
    for other, message in (("file", "Address already in use"), ("x" * 200, "path too long"), ("no/no", "No such file")):
        (tmp_path / "file").touch()
        with pytest.raises(ListenError, match=message):
            await Service(Settings(unix_socket=str(tmp_path / other)), store, "1").start()
    assert (tmp_path / "file").exists()


def test_workers_share_a_unix_socket(tmp_path):
    """All of them listen on it."""
    path = tmp_path / "scoremean.sock"
    with Server(tmp_path / "store", "--workers", "2", "--unix-socket", str(path)) as server:

        async def run() -> None:
            async with ClientSession("http://localhost", connector=UnixConnector(str(path))) as client:
                assert await post(client, "a", 5) == 5.0

        asyncio.run(run())
        server.terminate()
        code, messages = server.wait()
    assert code == 0, messages
    with pytest.raises(ClientConnectorError):
        asyncio.run(run())
