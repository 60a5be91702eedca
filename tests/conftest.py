"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest
from aiohttp import ClientSession
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from scoremean.app import Service
from scoremean.settings import Settings
from scoremean.store.embedded.store import LmdbStore
from tests.support import assert_sound

# A machine that others use is slow at times, and that is no fault of a test.
hypothesis_settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("shared")


@pytest.fixture(name="many_scores", scope="session")
def fixture_many_scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the size and shape of InstEval, the real data of the guides: 73,421 scores of 1,128 lecturers, few of whom have
    many. The same each time."""
    random = Random(1)
    lecturers = [*range(1128), *(int(1128 * random.random() ** 2) for _ in range(73_421 - 1128))]
    random.shuffle(lecturers)
    lines = (f'{{"UUID": "lecturer-{number}", "score": {random.randint(1, 5)}}}\n' for number in lecturers)
    path = tmp_path_factory.mktemp("scores") / "many.ndjson"
    path.write_text("".join(lines))
    return path


@pytest.fixture(name="store")
def fixture_store(tmp_path: Path) -> Iterator[LmdbStore]:
    """A new store, which is checked after the test."""
    store = LmdbStore(tmp_path / "store")
    yield store
    store.close()
    assert_sound(tmp_path / "store")


@pytest.fixture(name="settings")
def fixture_settings() -> Settings:
    """The settings of the service under test: a free port, and limits that a test can reach."""
    return Settings(port=0, batch_max_scores=10, body_max_bytes=1000, body_timeout_seconds=1, shutdown_timeout_seconds=5)


@pytest.fixture(name="service")
async def fixture_service(store: LmdbStore, settings: Settings) -> AsyncIterator[Service]:
    """A service over `store` in this process, on a real socket."""
    service = Service(settings, store, "1.2.3")
    await service.start()
    yield service
    await service.stop()


@pytest.fixture(name="client")
async def fixture_client(service: Service) -> AsyncIterator[ClientSession]:
    """An HTTP client of `service`; paths are relative to it."""
    async with ClientSession(service.url) as session:
        yield session


@pytest.fixture(name="uncovered")
def fixture_uncovered(monkeypatch) -> None:
    """Without the measuring of coverage in what a test starts: it writes files, and answers SIGTERM."""
    for name in list(os.environ):
        if name.startswith("COVERAGE_PROCESS") or name == "COV_CORE_SOURCE":
            monkeypatch.delenv(name)
