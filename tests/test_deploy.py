"""docs/deploy: the unit of systemd, the Dockerfile, the dashboard and the alerts."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.request import Request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scoremean.process import READY, notify
from scoremean.settings import SETTINGS
from tests.support import Server, fetch, require_program
from tests.test_layers import PACKAGE

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
UNIT = (DEPLOY / "scoremean.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
GRAFANA = json.loads((DEPLOY / "grafana.json").read_text())
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]


def output(*command: object, code: int = 0) -> str:
    """Run a command, which must end with this exit code, and return all that it writes."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == code, done.stdout
    return done.stdout


# -- readiness


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path, monkeypatch, workers, abstract):
    """READY when requests are answered, STOPPING at the stop, and nothing else: workers tell nothing."""
    name = f"@scoremean-test-{os.getpid()}-{workers}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        with Server(tmp_path / "store", "--workers", str(workers)) as server:
            assert manager.recv(100) == b"READY=1"
            fetch(f"{server.url}/readyz")
            server.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert server.wait()[0] == 0
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_a_service_manager_that_is_gone(tmp_path, monkeypatch, caplog):
    """Is logged, and prevents nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify(READY)
    assert "cannot tell the service manager READY=1" in caplog.text


# -- systemd


@pytest.mark.ci
def test_the_unit_is_one_that_systemd_takes(tmp_path):
    """With the program where the unit says that it is."""
    require_program("systemd-analyze", "systemd")
    (tmp_path / "scoremean.service").write_text(UNIT.replace("/usr/local/bin/scoremean", "/bin/true"))
    assert output("systemd-analyze", "verify", "--man=no", tmp_path / "scoremean.service") == ""


@pytest.mark.ci
def test_the_unit_leaves_little_to_attack():
    """As systemd counts it: 2.0 of 10 at most."""
    require_program("systemd-analyze", "systemd")
    output("systemd-analyze", "security", "--offline=true", "--threshold=20", DEPLOY / "scoremean.service")


def test_the_unit_sets_what_are_settings():
    """So does the Dockerfile."""
    for text in (UNIT, DOCKERFILE):
        assert set(re.findall(r"\bSCOREMEAN_(\w+)=", text)) <= {name.upper() for name in SETTINGS}


def system_calls(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups, and of those in it."""
    lines = [line.strip() for line in output("systemd-analyze", "syscall-filter", group).splitlines()]
    found: set[str] = set()
    for name in lines[1:]:
        if name and not name.startswith("#"):
            found |= system_calls(name) if name.startswith("@") else {name}
    return found


@pytest.mark.ci
def test_the_unit_allows_the_calls_that_the_service_makes(tmp_path):
    """Traced from start to stop, with workers and a post; and nothing is both written and run (MemoryDenyWriteExecute)."""
    require_program("systemd-analyze", "systemd")
    require_program("strace", "strace")
    allowed: set[str] = set()
    for sign, groups in re.findall(r"^SystemCallFilter=(~?)(.*)$", UNIT, re.MULTILINE):
        calls = set().union(*map(system_calls, groups.split()))
        allowed = allowed - calls if sign else allowed | calls
    trace = tmp_path / "trace"
    program = ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "scoremean"]
    with Server(tmp_path / "store", "--workers", "2", program=program) as server:
        body, headers = b'{"UUID": "a1-b1", "score": 5}', {"Content-Type": "application/json"}
        assert b"5.0" in fetch(Request(f"{server.url}/scores", body, headers))
        [child] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_bytes().split()
        os.kill(int(child), 15)
        assert server.wait()[0] == 0
    text = trace.read_text()
    called = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)[ (]", text, re.MULTILINE))
    assert {"fdatasync", "accept4", "execve"} <= called
    assert called <= allowed
    assert not re.findall(r".*PROT_WRITE\|PROT_EXEC.*|.*(?:pkey_)?mprotect\(.*PROT_EXEC.*", text)


# -- Docker


@pytest.mark.ci
def test_what_the_dockerfile_copies_is_enough_to_build(tmp_path):
    """A whole wheel comes of it."""
    for sources, target in re.findall(r"^COPY (?!--from)(.*) (\S+)$", DOCKERFILE, re.MULTILINE):
        for source in map(Path, sources.split()):
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / "src" / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / "src").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "src" / target)
    output(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, tmp_path / "src")
    [wheel] = tmp_path.glob("*.whl")
    kept = {f"scoremean/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        assert kept <= set(archive.namelist())


def test_the_container_is_not_root_and_tells_its_health(tmp_path):
    """The probe is run here, on the port of a service that is there, and then is not."""
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert int(re.search(r"^USER (\d+)$", final, re.MULTILINE)[1]) > 0
    python, *arguments = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", final, re.MULTILINE)[1])
    assert python == "python"
    with Server(tmp_path) as server:
        probe = [argument.replace("http://127.0.0.1:8080", server.url) for argument in arguments]
        output(sys.executable, *probe)
        server.terminate()
        server.wait()
        assert "Connection refused" in output(sys.executable, *probe, code=1)


# -- the dashboard and the alerts


@pytest.fixture(name="metrics", scope="module")
def fixture_metrics(tmp_path_factory) -> set[str]:
    """The name of every metric that a service has."""
    with Server(tmp_path_factory.mktemp("metrics")) as server:
        fetch(f"{server.url}/livez")
        families = text_string_to_metric_families(fetch(f"{server.url}/metrics").decode())
        return {sample.name for family in families for sample in family.samples}


def metrics_of(text: str) -> set[str]:
    """Return the names of metrics in PromQL."""
    return set(re.findall(r"\b(?:scoremean|process)_\w+", text))


def expressions() -> list[str]:
    """Return the PromQL of every panel, with what Grafana puts in for its variables."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [text.replace("$__rate_interval", "5m").replace("$instance", "a|b") for text in found]


def test_the_dashboard_asks_for_metrics_that_are_there(metrics):
    """And shows all of them but a few, which say what another one says."""
    shown = set().union(*map(metrics_of, expressions()))
    assert shown <= metrics
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in metrics - shown} <= {
        *(re.sub("_(bucket|sum|count)$", "", name) for name in shown),
        "process_virtual_memory_bytes",
    }


@pytest.mark.ci
def test_the_dashboard_asks_in_promql(tmp_path):
    """As promtool reads it, with nothing left to put in."""
    require_program("promtool", "prometheus")
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in output("promtool", "check", "rules", tmp_path / "rules.json")
    assert not [text for text in expressions() if "$" in text]


def test_the_dashboard_is_tidy():
    """No panel covers another one, and each says what it shows, in which unit; the source of data is a variable."""
    cells: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        at = panel["gridPos"]
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & covered and max(x for x, _ in covered) < 24, panel["title"]
        cells |= covered
    assert len(cells) == 24 * (1 + max(y for _, y in cells)), "there is a gap"
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    for panel in PANELS:
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert [variable["name"] for variable in GRAFANA["templating"]["list"]] == ["datasource", "instance"]


def test_the_alerts_ask_for_metrics_that_are_there(metrics):
    """And name pages of the docs, and settings, that are there."""
    text = (DEPLOY / "alerts.yml").read_text()
    asked = set().union(*map(metrics_of, re.findall(r"expr: (.*)", text)))
    assert asked and asked <= metrics
    for page, heading in re.findall(r'docs/(\w+\.md)(?:, "(\w+)")?', text):
        assert f"## {heading}" in (ROOT / "docs" / page).read_text()


@pytest.mark.ci
def test_the_configuration_in_the_docs_is_one(tmp_path):
    """For Prometheus, with the alerts beside it."""
    require_program("promtool", "prometheus")
    [text] = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    (tmp_path / "scoremean-token").touch()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(tmp_path)))
    assert "9 rules found" in output("promtool", "check", "config", tmp_path / "prometheus.yml")


@pytest.mark.ci
def test_each_alert_fires_when_it_should_and_not_else():
    """Their own tests say when, and none is without one."""
    require_program("promtool", "prometheus")
    output("promtool", "check", "rules", DEPLOY / "alerts.yml")
    output("promtool", "test", "rules", DEPLOY / "alerts_test.yml")
    tests = (DEPLOY / "alerts_test.yml").read_text()
    for alert in re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text()):
        assert re.search(rf'alertname(: |="){alert}\b', tests), alert
