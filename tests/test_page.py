"""The page at `/` in a real browser, Debian's chromium: every control, and nothing in the console that is not expected there.

The screenshots go to `.bench/page/`, to be looked at.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import pytest

from scoremean import Batch, Tally, open_store
from tests.support import Server, assert_sound, require_library, require_program, scores_of

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
except ImportError:  # as fixture_browser says; where these tests are not asked for nobody misses it
    Page = object

pytestmark = pytest.mark.ci

SHOTS = Path(__file__).parents[1] / ".bench" / "page"
DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
NARROW = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
READ, WRITE = "read-token-for-the-page", "write-token-for-the-page"

# What Chromium itself says in the console of a request that failed.
UNAUTHORIZED, FORBIDDEN, REFUSED = (
    f"Failed to load resource: the server responded with a status of {status}"
    for status in ("401 (Unauthorized)", "403 (Forbidden)", "422 (Unprocessable Entity)")
)
GONE = "Failed to load resource: net::ERR_CONNECTION_REFUSED"

NASTY = [
    "<img src=x onerror=document.title='bad'>",
    "a/../b",
    "min_count=1&uuid=other",
    "ü é?#%25+&",
    "'\"`${x}\\",
    "\u202eback\u2066wards",
    "👩‍🔬 科学",
    "W" * 256,
]

Visit = Callable[..., Page]
Tallies = dict[str, Tally]


@pytest.fixture(scope="module", name="browser")
def fixture_browser() -> Iterator[Browser]:
    """Chromium. One for all tests; each has a context of its own."""
    require_program("chromium", "chromium")
    require_library("axe_playwright_python")
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture(name="visit")
def fixture_visit(browser: Browser) -> Iterator[Visit]:
    """`visit(url, fails, **options)` opens the page in a context with these options.

    In the end the console holds the errors `fails`, and no other error or warning.
    """
    visits: list[tuple[list[str], set[str]]] = []
    with ExitStack() as contexts:

        def visit(url: str, fails: set[str] = frozenset(), **options: object) -> Page:
            context = contexts.enter_context(browser.new_context(**{"viewport": DESKTOP, **options}))
            page = context.new_page()
            errors: list[str] = []
            page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            visits.append((errors, set(fails)))
            page.goto(url)
            if UNAUTHORIZED not in fails:
                expect(page.locator("#status-text")).to_have_text("Live")
            return page

        yield visit
    for errors, fails in visits:
        assert set(errors) == fails


@pytest.fixture(scope="module", name="tallies")
def fixture_tallies(many_scores: Path) -> Tallies:
    """What the store of `filled` holds."""
    sums, counts = Counter(), Counter()
    for score in map(json.loads, many_scores.read_text().splitlines()):
        sums[score["UUID"]] += score["score"]
        counts[score["UUID"]] += 1
    return {uuid: Tally(sums[uuid], counts[uuid]) for uuid in counts}


@pytest.fixture(scope="module", name="filled")
def fixture_filled(tallies: Tallies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with many scores, for tests that post none."""
    path = tmp_path_factory.mktemp("filled") / "store"
    fill(path, tallies)
    with Server(path) as server:
        yield server.url
    assert_sound(path)


@pytest.fixture(name="fresh")
def fixture_fresh(tmp_path: Path) -> Iterator[str]:
    """The address of a service without scores."""
    with Server(tmp_path / "store") as server:
        yield server.url
    assert_sound(tmp_path / "store")


def fill(path: Path, tallies: Tallies) -> None:
    """Make a store that holds `tallies`, of scores from 0 to 5."""
    pairs = []
    for uuid, tally in tallies.items():
        low, more = divmod(tally.sum, tally.count)
        pairs += [(uuid, low + 1)] * more + [(uuid, low)] * (tally.count - more)
    with open_store(path) as store:
        for start in range(0, len(pairs), 10_000):
            store.commit([Batch(scores_of(pairs[start : start + 10_000]))])


def post(url: str, uuid: str, score: int) -> None:
    """Post one score, from elsewhere than the page."""
    body = json.dumps({"UUID": uuid, "score": score}).encode()
    with urlopen(Request(f"{url}/scores", body, {"Content-Type": "application/json"})) as response:
        assert response.status == 200


def shot(page: Page, name: str, full_page: bool = True) -> None:
    """Keep a picture of the page."""
    page.screenshot(path=SHOTS / f"{name}.png", full_page=full_page)


def rows(table: Locator) -> list[list[str]]:
    """Return the text of every cell in the rows of `table`."""
    return table.evaluate("body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent))")


def rounded(tally: Tally) -> str:
    """Return the mean with two decimals, half a hundredth up."""
    hundredths = (200 * tally.sum + tally.count) // (2 * tally.count)
    return f"{hundredths // 100}.{hundredths % 100:02}"


def ranked(tallies: Tallies, min_count: int, best: bool) -> list[list[str]]:
    """Return the rows that a table should have: of equal means the one of more scores first, then in the order of UUIDs."""
    enough = [(uuid, tally) for uuid, tally in tallies.items() if tally.count >= min_count]
    sign = -1 if best else 1
    enough.sort(key=lambda row: (sign * Fraction(row[1].sum, row[1].count), -row[1].count, row[0]))
    return [[uuid, rounded(tally), f"{tally.count:,}"] for uuid, tally in enough[:10]]


def distribution(tallies: Tallies, min_count: int) -> list[int]:
    """Return how many UUIDs have a mean in each fiftieth of 0 to 5."""
    parts = Counter(min(tally.sum * 10 // tally.count, 49) for tally in tallies.values() if tally.count >= min_count)
    return [parts[part] for part in range(50)]


def expect_rows(table: Locator, wanted: list[list[str]]) -> None:
    """Wait until `table` has these rows."""
    expect(table.locator("tr")).to_have_count(len(wanted))
    expect(table.locator("tr")).to_have_text(["".join(row) for row in wanted])
    assert rows(table) == wanted


def painted(page: Page, chart: str, colour: str) -> bool:
    """Return whether the chart has points of a colour of the style sheet."""
    return page.evaluate(
        """([chart, name]) => {
            const canvas = document.querySelector(`${chart} canvas`);
            if (!canvas) return false;
            // A copy, whose first point is of the colour; the original would say in the console that it is read so often.
            const copy = new OffscreenCanvas(canvas.width, canvas.height + 1).getContext("2d", { willReadFrequently: true });
            copy.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
            copy.fillRect(0, 0, 1, 1);
            copy.drawImage(canvas, 0, 1);
            const wanted = copy.getImageData(0, 0, 1, 1).data;
            const { data } = copy.getImageData(0, 1, canvas.width, canvas.height);
            const near = (at) => data[at + 3] > 60 && [0, 1, 2].every((part) => Math.abs(data[at + part] - wanted[part]) < 8);
            for (let at = 0; at < data.length; at += 4) if (near(at)) return true;
            return false;
        }""",
        [chart, colour],
    )


def expect_painted(page: Page, chart: str, *colours: str) -> None:
    """Look for each of the colours in a chart, once it is there."""
    expect(page.locator(f"{chart} canvas")).to_be_visible()
    # A chart is painted when the browser next has time for it.
    page.evaluate("new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)))")
    for colour in colours:
        assert painted(page, chart, colour), (chart, colour)


def expect_no_sideways(page: Page) -> None:
    """Nothing makes the page wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def expect_accessible(page: Page) -> None:
    """Let axe look for violations, best practices among them."""
    results = Axe().run(page)
    assert not results.violations_count, results.generate_report()


def test_it_shows_what_is_stored(visit, filled, tallies):
    """The totals, the distribution with its words and its table, the best and the worst: as computed from the scores."""
    page = visit(filled)
    expect(page.locator("#scores")).to_have_text(f"{sum(tally.count for tally in tallies.values()):,}")
    expect(page.locator("#uuids")).to_have_text(f"{len(tallies):,}")
    expect(page.locator("#store-size")).to_have_text(re.compile(r"^[\d.]+ [KM]iB$"))
    expect(page.locator("#disk-free")).to_have_text(re.compile(r"^[\d.]+ [GT]iB$"))
    expect(page.locator("#version")).to_have_text(re.compile(r"^\d+\.\d+"))
    expect_rows(page.locator("#best"), ranked(tallies, 10, best=True))
    expect_rows(page.locator("#worst"), ranked(tallies, 10, best=False))
    parts = distribution(tallies, 10)
    expect(page.locator("#means-uuids")).to_have_text(f"{sum(parts):,} UUIDs of {len(tallies):,}")
    top = parts.index(max(parts))
    words = f"The most means are from {top / 10:g} to {(top + 1) / 10:g}: {max(parts):,} UUIDs."
    expect(page.locator("#distribution-text")).to_contain_text(words)
    expect_painted(page, "#distribution-chart", "--accent")
    page.get_by_text("As a table").click()
    wanted = [[f"{part / 10:g}", f"{(part + 1) / 10:g}", f"{count:,}"] for part, count in enumerate(parts)]
    expect_rows(page.locator("#bins-rows"), wanted)
    shot(page, "table of the distribution")


def test_the_pointer_reads_the_distribution(visit, filled, tallies):
    """The part under the pointer, with how many UUIDs it has."""
    page = visit(filled)
    parts = distribution(tallies, 10)
    over = page.locator("#distribution-chart .u-over")
    box = over.bounding_box()
    over.hover(position={"x": box["width"] * 33.5 / 50, "y": box["height"] / 2})
    expect(page.locator("#distribution-bin")).to_have_text(f"3.3 to 3.4: {parts[33]:,} UUIDs")
    page.locator("h1").hover()
    expect(page.locator("#distribution-bin")).to_have_text("")


@pytest.mark.parametrize("min_count", [1, 2, 50, 200])
def test_the_minimum_count_decides_who_is_shown(visit, filled, tallies, min_count):
    """The tables and the distribution are of the UUIDs with enough scores. The address keeps it, and so does going back."""
    page = visit(filled)
    expect(page.get_by_label("of UUIDs with at least")).to_have_value("10")
    page.get_by_label("of UUIDs with at least").select_option(str(min_count))
    for _ in range(2):
        expect_rows(page.locator("#best"), ranked(tallies, min_count, best=True))
        expect_rows(page.locator("#worst"), ranked(tallies, min_count, best=False))
        enough = sum(distribution(tallies, min_count))
        expect(page.locator("#means-uuids")).to_have_text(f"{enough:,} UUIDs of {len(tallies):,}")
        page.reload()
    page.go_back()
    expect_rows(page.locator("#best"), ranked(tallies, 10, best=True))
    expect(page.locator("#min-count")).to_have_value("10")


def test_too_high_a_minimum_count_says_so(visit, filled, tallies):
    """Instead of empty tables, with a button that shows all."""
    page = visit(f"{filled}/#min_count=1000000")
    expect(page.locator("#too-few-text")).to_have_text("No UUID has at least 1,000,000 scores yet.")
    expect(page.locator("#results")).to_be_hidden()
    shot(page, "too few")
    page.get_by_role("button", name="Show those with 1 or more").click()
    expect_rows(page.locator("#best"), ranked(tallies, 1, best=True))
    expect(page.locator("#too-few")).to_be_hidden()


def test_what_happens_now_is_shown_within_moments(visit, fresh):
    """An empty store says how to post, and the command that it shows works; then rates, latencies and charts are there."""
    page = visit(fresh)
    expect(page.get_by_role("heading", name="No scores yet")).to_be_visible()
    expect(page.locator("#now, #means")).to_have_count(2)
    expect(page.locator("#now")).to_be_hidden()
    expect(page.locator("#scores")).to_have_text("0")
    shot(page, "empty")
    curl, url, _, header, _, body = shlex.split(page.locator("#empty-curl").text_content().replace("\\\n", ""))
    assert curl == "curl"
    with urlopen(Request(url, body.encode(), dict([header.split(": ")]))) as response:
        assert json.load(response) == {"UUID": "a1-b1", "mean": 5.0}
    expect(page.locator("#scores")).to_have_text("1")
    expect(page.locator("#uuids")).to_have_text("1")
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#rate-highest")).to_have_text("1")
    for latency in ("#p50", "#p99"):
        expect(page.locator(latency)).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    page.get_by_role("button", name="Show those with 1 or more").click()
    expect_rows(page.locator("#best"), [["a1-b1", "5.00", "1"]])
    for number in range(20):
        post(fresh, f"u{number}", number % 6)
    expect(page.locator("#scores")).to_have_text("21")
    expect(page.locator("#rate-highest")).not_to_have_text("1")
    expect(page.locator("#best tr")).to_have_count(10)
    expect_painted(page, "#rate-chart", "--accent")
    expect(page.locator("#rate-chart")).to_have_attribute("aria-label", re.compile(r"at most \d+ scores a second"))
    expect(page.locator("#latency-chart")).to_have_attribute("aria-label", re.compile(r"less than [\d.]+ m?s"))


def test_find_shows_a_uuid(visit, filled, tallies):
    """Its mean, sum and count, and where it stands among the others; a link to it shows the same."""
    page = visit(filled)
    uuid, tally = max(tallies.items(), key=lambda row: row[1].count)
    page.get_by_role("combobox", name="UUID", exact=True).fill(uuid)
    page.get_by_role("button", name="Find").click()
    for _ in range(2):
        expect(page.get_by_role("heading", name=uuid)).to_be_visible()
        expect(page.locator("#found-mean")).to_have_text(rounded(tally))
        expect(page.locator("#found-mean")).to_have_attribute("title", repr(tally.mean))
        expect(page.locator("#found-sum")).to_have_text(f"{tally.sum:,}")
        expect(page.locator("#found-count")).to_have_text(f"{tally.count:,}")
        parts = distribution(tallies, 10)
        percent = 100 * sum(parts[: tally.sum * 10 // tally.count]) // sum(parts)
        rank = f"At least {percent} % of the {sum(parts):,} UUIDs with at least 10 scores have a lower mean."
        expect(page.locator("#found-rank")).to_have_text(rank)
        expect_painted(page, "#found-chart", "--faint", "--mark")
        page.goto("about:blank")
        page.goto(f"{filled}/#{urlencode({'uuid': uuid})}")
    shot(page, "found")


def test_find_says_that_a_uuid_is_unknown(visit, filled):
    """As a sentence, and what was found before is gone; what cannot be a UUID is not even asked for."""
    page = visit(filled)
    box = page.get_by_role("combobox", name="UUID", exact=True)
    page.locator("#best a").first.click()
    expect(page.locator("#found")).to_be_visible()
    box.fill("nobody at all")
    box.press("Enter")
    expect(page.locator("#find-note")).to_have_text("No score was counted for nobody at all.")
    expect(page.locator("#found")).to_be_hidden()
    box.fill("ü" * 129)
    box.press("Enter")
    expect(page.locator("#find-note")).to_have_text("No UUID is longer than 256 bytes.")
    box.fill("a\x07b")
    box.press("Enter")
    expect(page.locator("#find-note")).to_have_text("No UUID has control characters.")
    box.fill("")
    box.press("Enter")
    expect(page.locator("#find-note")).to_have_text("")


def test_find_suggests_what_begins_so(visit, filled, tallies):
    """In the order of UUIDs, the text itself first; arrows choose, Escape closes, a click takes one, leaving closes."""
    page = visit(filled)
    box, options = page.get_by_role("combobox", name="UUID", exact=True), page.locator("#find-list li")
    wanted = sorted(uuid for uuid in tallies if uuid.startswith("lecturer-10"))[:8]
    box.fill("lecturer-10")
    expect(options).to_have_count(len(wanted))
    assert [option.get_attribute("title") for option in options.all()] == wanted
    first = tallies[wanted[0]]
    expect(options.first).to_have_text(f"{wanted[0]}{rounded(first)} of {first.count:,}")
    expect(box).to_have_attribute("aria-expanded", "true")
    shot(page, "suggestions")
    expect_accessible(page)
    box.press("Escape")
    expect(options).to_have_count(0)
    expect(box).to_have_attribute("aria-expanded", "false")
    box.press_sequentially("0")
    longer = sorted(uuid for uuid in tallies if uuid.startswith("lecturer-100"))[:8]
    expect(options).to_have_count(len(longer))
    for key, chosen in (("ArrowUp", len(longer) - 1), ("ArrowDown", None), ("ArrowDown", 0), ("ArrowDown", 1)):
        box.press(key)
        expect(page.locator("[role=option][aria-selected=true]")).to_have_count(int(chosen is not None))
        if chosen is not None:
            expect(options.nth(chosen)).to_have_attribute("aria-selected", "true")
            expect(box).to_have_attribute("aria-activedescendant", options.nth(chosen).get_attribute("id"))
    box.press("Enter")
    expect(page.locator("#found-uuid")).to_have_text(longer[1])
    expect(box).to_have_value(longer[1])
    box.fill("lecturer-10")
    options.nth(2).click()
    expect(page.locator("#found-uuid")).to_have_text(wanted[2])
    box.fill("lecturer-10")
    expect(options.first).to_be_visible()
    page.locator("#post-uuid").focus()
    expect(options).to_have_count(0)
    page.go_back()
    expect(page.locator("#found-uuid")).to_have_text(longer[1])


def test_a_table_leads_to_its_uuids(visit, filled, tallies):
    """A click shows the UUID as the search does, and the minimum count stays."""
    page = visit(f"{filled}/#min_count=50")
    for table, best in (("#best", True), ("#worst", False)):
        row = ranked(tallies, 50, best)[3]
        page.locator(table).get_by_role("link", name=row[0], exact=True).click()
        expect(page.locator("#found-uuid")).to_have_text(row[0])
        expect(page.locator("#found-mean")).to_have_text(row[1])
        expect(page.locator("#found-count")).to_have_text(row[2])
        expect(page.locator("#find-uuid")).to_have_value(row[0])
        expect(page.locator("#min-count")).to_have_value("50")


def test_what_is_found_is_kept_up_to_date(visit, fresh):
    """When more scores are counted."""
    post(fresh, "a", 1)
    page = visit(f"{fresh}/#uuid=a&min_count=1")
    expect(page.locator("#found-mean")).to_have_text("1.00")
    expect(page.locator("#found-rank")).to_have_text("Among the lowest of the 1 UUID with at least 1 score.")
    post(fresh, "a", 4)
    expect(page.locator("#found-mean")).to_have_text("2.50")
    expect(page.locator("#found-count")).to_have_text("2")


@pytest.mark.parametrize("uuid", NASTY, ids=["html", "path", "query", "encoded", "quotes", "direction", "emoji", "long"])
def test_any_text_is_only_text(visit, fresh, uuid):
    """A UUID that looks like HTML, an address or code is shown as it is, everywhere, and can be found and posted."""
    post(fresh, uuid, 4)
    post(fresh, f"{uuid}~"[-256:], 2)
    page = visit(f"{fresh}/#min_count=1", **NARROW)
    images = page.locator("img").count()
    link = page.locator("#best a").first
    expect(link).to_have_text(uuid, use_inner_text=False)
    link.click()
    expect(page.locator("#found-uuid")).to_have_text(uuid)
    expect(page.locator("#found-mean")).to_have_text("4.00")
    assert page.evaluate("location.hash").endswith(urlencode({"uuid": uuid}, safe="*").replace("~", "%7E"))
    page.locator("#find-uuid").fill(uuid[:200])
    expect(page.locator("#find-list li").first).to_be_visible()
    assert page.locator("#find-list li").first.get_attribute("title") == uuid
    page.locator("#find-list li").first.click()
    page.locator("#post-uuid").fill(uuid)
    page.locator("#post-score").fill("5")
    page.get_by_role("button", name="Post the score").click()
    expect(page.locator("#post-answer a")).to_have_text(uuid)
    expect(page.locator("#found-mean")).to_have_text("4.50")
    with urlopen(f"{fresh}/means/{quote(uuid, safe='')}") as response:
        assert json.load(response) == {"UUID": uuid, "mean": 4.5, "sum": 9, "count": 2}
    page.locator("#find-uuid").fill(f"no {uuid}"[:256])
    page.locator("#find-uuid").press("Enter")
    expect(page.locator("#find-note")).to_contain_text("No ")
    assert page.locator("img").count() == images
    expect(page).to_have_title("scoremean")
    expect_no_sideways(page)


def test_the_form_posts_a_score_and_shows_the_answer(visit, fresh):
    """The new mean; with an id, that the second time added nothing. Every figure follows."""
    page = visit(fresh)
    uuid, name = (page.get_by_role("textbox", name=label) for label in ("UUID", "Id optional"))
    score = page.get_by_role("spinbutton", name="Score")
    send, answer = page.get_by_role("button", name="Post the score"), page.locator("#post-answer")
    expect(score).to_have_attribute("max", "5")
    expect(page.locator("#post-range")).to_have_text("0 to 5")
    uuid.fill("a1-b1")
    for value, mean in (("5", "5.00"), ("4", "4.50")):
        score.fill(value)
        send.click()
        expect(answer).to_contain_text(f"Counted. The mean of a1-b1 is now {mean}.")
    expect(answer.locator("code")).to_have_text('{"UUID":"a1-b1","mean":4.5}')
    page.get_by_role("button", name="Random id").click()
    expect(name).to_have_value(re.compile(r"^[0-9a-f]{32}$"))
    score.fill("0")
    send.click()
    expect(answer).to_contain_text("Counted. The mean of a1-b1 is now 3.00.")
    score.press("Enter")
    expect(answer).to_contain_text("Counted before: nothing was added. Its mean was then 3.00.")
    expect(page.locator("#scores")).to_have_text("3")
    shot(page, "replayed")
    page.locator("#post-id").fill("")
    send.click()
    page.get_by_role("link", name="a1-b1").click()
    expect(page.locator("#found-sum")).to_have_text("9")
    expect(page.locator("#found-count")).to_have_text("4")


def test_the_form_says_what_the_service_refuses(visit, fresh):
    """Each fault beside its field, which is marked; one of no field below. The mended score is counted."""
    page = visit(fresh, fails={REFUSED})
    send, answer = page.get_by_role("button", name="Post the score"), page.locator("#post-answer")
    uuid, score, name = page.locator("#post-uuid"), page.locator("#post-score"), page.locator("#post-id")
    uuid.fill("a")
    score.fill("6")
    send.click()
    expect(page.locator("#post-score-fault")).to_have_text("score must be an integer from 0 to 5, not 6")
    expect(score).to_be_focused()
    expect(score).to_have_accessible_description("score must be an integer from 0 to 5, not 6")
    expect(score).to_have_attribute("aria-invalid", "true")
    expect(uuid).to_have_attribute("aria-invalid", "false")
    expect(answer).to_have_text("Not counted.")
    shot(page, "refused")
    expect_accessible(page)
    score.fill("2.5")
    score.press("Enter")
    expect(page.locator("#post-score-fault")).to_contain_text("not 2.5")
    uuid.fill("")
    score.fill("")
    send.click()
    expect(page.locator("#post-uuid-fault")).to_contain_text("UUID")
    expect(page.locator("#post-score-fault")).to_contain_text("score")
    expect(uuid).to_be_focused()
    uuid.fill("a")
    score.fill("3")
    name.fill("once")
    send.click()
    expect(answer).to_contain_text("Counted. The mean of a is now 3.00.")
    expect(page.locator("#post [aria-invalid=true], #post .fault:not(:empty)")).to_have_count(0)
    score.fill("4")
    send.click()
    expect(page.locator("#post-answer .fault")).to_contain_text("once")
    expect(page.locator("#scores")).to_have_text("1")


@pytest.fixture(name="guarded")
def fixture_guarded(tmp_path: Path) -> Iterator[str]:
    """The address of a service that asks for tokens, with one score of `a`."""
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"read {READ}\nwrite {WRITE}\n")
    fill(tmp_path / "store", {"a": Tally(3, 1)})
    with Server(tmp_path / "store", "--token-file", str(tokens)) as server:
        yield server.url
    assert_sound(tmp_path / "store")


def sign_in(page: Page, token: str) -> None:
    """Fill the dialog in and send it."""
    page.get_by_label("Token").fill(token)
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()


def test_sign_in(visit, guarded):
    """A wrong token says so; one that reads shows everything and may not post; one that writes may. This tab alone keeps it."""
    page = visit(f"{guarded}/#min_count=1", fails={UNAUTHORIZED, FORBIDDEN})
    dialog = page.get_by_role("dialog", name="Sign in")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.locator("#scores")).to_have_text("–")
    sign_in(page, "tökén")
    expect(page.get_by_role("alert")).to_have_text("A token has ASCII letters, digits and signs only.")
    sign_in(page, "wrong-token-for-the-page")
    expect(page.get_by_role("alert")).to_have_text("The service does not know this token.")
    shot(page, "sign in", full_page=False)
    sign_in(page, READ)
    expect(dialog).to_be_hidden()
    expect(page.locator("#status-text")).to_have_text("Live")
    expect_rows(page.locator("#best"), [["a", "3.00", "1"]])
    page.locator("#post-uuid").fill("a")
    page.locator("#post-score").fill("5")
    page.get_by_role("button", name="Post the score").click()
    expect(page.locator("#post-answer")).to_contain_text("This token may only read, so the score was not counted.")
    page.get_by_role("button", name="Sign in with another token").click()
    sign_in(page, WRITE)
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Post the score").click()
    expect(page.locator("#post-answer")).to_contain_text("is now 4.00")
    assert page.evaluate("[...Object.values(sessionStorage)]") == [WRITE]
    assert WRITE not in page.evaluate("JSON.stringify({...localStorage}) + document.cookie + document.body.outerHTML")
    page.reload()
    expect_rows(page.locator("#best"), [["a", "4.00", "2"]])
    expect(page.get_by_role("button", name="Sign in")).to_be_hidden()
    other = page.context.new_page()
    other.goto(guarded)
    expect(other.get_by_role("dialog", name="Sign in")).to_be_visible()


def test_sign_out(visit, guarded):
    """Leaves nothing of what was shown, nor the token. Who cancels is not asked again until they want to."""
    page = visit(f"{guarded}/#uuid=a&min_count=1", fails={UNAUTHORIZED})
    sign_in(page, READ)
    expect(page.locator("#found-mean")).to_have_text("3.00")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator("#best tr")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#status-text")).to_have_text("Signed out")
    expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Sign in").click()
    sign_in(page, READ)
    expect(page.locator("#status-text")).to_have_text("Live")
    expect(page.locator("#found-mean")).to_have_text("3.00")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_is_that_of_the_system_or_the_one_chosen(visit, filled, system):
    """A choice is kept for the next visit; the charts are painted in it."""
    ground = {"light": "rgb(245, 246, 245)", "dark": "rgb(13, 17, 20)"}
    other = {"light": "dark", "dark": "light"}[system]
    page = visit(filled, color_scheme=system)
    body, theme = page.locator("body"), page.get_by_label("Theme")
    expect(body).to_have_css("background-color", ground[system])
    expect_painted(page, "#distribution-chart", "--accent")
    shot(page, f"desktop {system}")
    theme.select_option(other)
    expect(body).to_have_css("background-color", ground[other])
    expect_painted(page, "#distribution-chart", "--accent")
    page.reload()
    expect(theme).to_have_value(other)
    expect(body).to_have_css("background-color", ground[other])
    theme.select_option("")
    expect(body).to_have_css("background-color", ground[system])
    page.emulate_media(color_scheme=other)
    expect(body).to_have_css("background-color", ground[other])
    expect_painted(page, "#distribution-chart", "--accent")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_small_screens(visit, filled, width):
    """Nothing has to be scrolled sideways, and the charts follow when a phone is turned."""
    page = visit(f"{filled}/#uuid=lecturer-1002", **{**NARROW, "viewport": {"width": width, "height": 844}})
    expect(page.locator("#found")).to_be_visible()
    expect(page.locator("#best tr")).to_have_count(10)
    expect_painted(page, "#distribution-chart", "--accent")
    expect_no_sideways(page)
    shot(page, f"width {width}")
    page.set_viewport_size({"width": 844, "height": width})
    wide = page.locator("#distribution-chart").bounding_box()["width"]
    expect(page.locator("#distribution-chart .uplot")).to_have_css("width", f"{round(wide)}px")
    expect_no_sideways(page)


def test_everything_can_be_done_by_keyboard(visit, fresh):
    """Tab comes to every control in the order that they are seen in; posting, finding and choosing need no pointer."""
    for number in range(3):
        post(fresh, f"u{number}", number)
    page = visit(f"{fresh}/#min_count=1")
    expect(page.locator("#best tr")).to_have_count(3)
    order = []
    while True:
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        if focused in order[:1] or page.evaluate("document.activeElement === document.body"):
            break
        order.append(focused)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", focused
    forms = ["find-uuid", "Find", "post-uuid", "post-score", "post-id", "post-random", "Post the score"]
    means = ["min-count", "As a table", "u2", "u1", "u0", "u0", "u1", "u2"]
    assert order == ["Skip to the content", "theme", *forms, *means, "Routes", "OpenAPI", "Metrics"]
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    expect(page.locator("#found-mean")).to_have_text("1.00")
    expect(page.locator("#found")).to_be_focused()
    for text in ("u9", "5"):
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(page.locator("#post-answer")).to_contain_text("The mean of u9 is now 5.00.")
    # The rows are filled anew where they are, so a link that has the focus is not lost.
    page.locator("#best a").first.focus()
    post(fresh, "u8", 5)
    expect(page.locator("#best tr")).to_have_count(5)
    expect(page.locator("#best a").first).to_be_focused()


def test_who_wants_no_motion_gets_none(visit, filled):
    """No transition and no animation is left, where there are some otherwise."""
    moving = """[...document.querySelectorAll("*")].filter((element) => {
        const style = getComputedStyle(element);
        return parseFloat(style.transitionDuration) > 0 || style.animationName !== "none";
    }).length"""
    page = visit(filled, reduced_motion="reduce")
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


def test_a_service_that_is_started_again_is_found_again(visit, tmp_path):
    """Meanwhile the status line says that the connection is lost, and a button tries at once. The rates begin anew."""
    fill(tmp_path / "store", {"a": Tally(3, 1)})
    with Server(tmp_path / "store") as server:
        url = server.url
        page = visit(f"{url}/#uuid=a&min_count=1", fails={GONE})
        server.kill()
    status = page.locator("#status-text")
    expect(status).to_have_text("Connection lost")
    expect(page.locator("#status-wait")).to_have_text(re.compile(r"^next try in \d+ s$"))
    shot(page, "connection lost", full_page=False)
    page.get_by_role("button", name="Try now").click()
    expect(status).to_have_text("Connection lost")
    page.locator("#post-uuid").fill("a")
    page.locator("#post-score").fill("5")
    page.get_by_role("button", name="Post the score").click()
    expect(page.locator("#post-answer")).to_contain_text("The service cannot be reached.")
    with Server(tmp_path / "store", "--port", url.rpartition(":")[2]):
        expect(status).to_have_text("Live", timeout=30_000)  # without the button
        expect(page.get_by_role("button", name="Try now")).to_be_hidden()
        page.get_by_role("button", name="Post the score").click()
        expect(page.locator("#found-mean")).to_have_text("4.00")
        expect(page.locator("#rate")).to_have_text(re.compile(r"^\d+$"))
        page.close()


def test_a_tab_that_is_hidden_asks_for_nothing(visit, fresh):
    """It ends its stream, and goes on when it is shown again."""
    page = visit(fresh)
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with page.expect_event("requestfailed", lambda request: "/events" in request.url):
        page.evaluate(hide, True)
    expect(page.locator("#status-text")).to_have_text("Paused")
    post(fresh, "a", 3)
    with page.expect_request("**/events*"):
        page.evaluate(hide, False)
    expect(page.locator("#status-text")).to_have_text("Live")
    expect(page.locator("#scores")).to_have_text("1")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_axe_finds_no_violation(visit, filled, look):
    """With everything that can be open, open."""
    page = visit(f"{filled}/#uuid=lecturer-1002", **(NARROW if look == "phone" else {"color_scheme": look}))
    expect(page.locator("#found-rank")).not_to_be_empty()
    page.get_by_text("As a table").click()
    expect(page.locator("#bins-rows tr")).to_have_count(50)
    expect_accessible(page)


def test_axe_finds_no_violation_in_an_empty_store(visit, fresh):
    """Where other things are shown."""
    page = visit(fresh)
    expect(page.get_by_role("heading", name="No scores yet")).to_be_visible()
    expect_accessible(page)


def test_axe_finds_no_violation_in_the_dialog(visit, guarded):
    """With its sentence of a wrong token, and behind it a page without figures."""
    page = visit(guarded, fails={UNAUTHORIZED})
    sign_in(page, "wrong-token-for-the-page")
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect_accessible(page)


def test_it_works_without_any_other_host(visit, filled):
    """Everything comes from the service itself, and the links in the footer lead to what it has."""
    page = visit(filled)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded and all(name.startswith(filled) for name in loaded)
    for link in page.locator("footer a").all():
        assert page.request.get(f"{filled}{link.get_attribute('href')}").ok


NOW = {
    "time": 1764000000.0,
    "version": "1.2.3",
    "uuids": 2_000_000,
    "scores": 9_000_000,
    "ids": 0,
    "store_size_bytes": 3 << 30,
    "store_size_max_bytes": 64 << 30,
    "disk_free_bytes": 1 << 40,
    "queue_scores": 0,
    "counted": 0,
    "replays": 0,
    "voids": 0,
    "commits": 0,
    "commit_duration": {"bounds_seconds": [0.001, 0.002, 0.003], "counts": [0, 0, 0, 0], "sum_seconds": 0.0},
}


def visit_events(visit: Visit, url: str, *events: tuple[str, dict]) -> Page:
    """Open the page on a service that tells these events."""
    page = visit(url)
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    page.route("**/events?*", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.reload()
    return page


def test_rates_and_latencies_are_those_of_the_events(visit, filled):
    """Of two events, ten seconds apart: 20 scores a second; half of the commits up to 2 ms, 99 of 100 up to 2.98 ms."""
    counts = {"bounds_seconds": [0.001, 0.002, 0.003], "counts": [0, 50, 50, 0], "sum_seconds": 0.2}
    later = NOW | {"time": NOW["time"] + 10, "counted": 200, "commits": 100, "commit_duration": counts}
    page = visit_events(visit, filled, ("now", NOW), ("now", later))
    expect(page.locator("#rate-highest")).to_have_text("20")
    assert "99 % of the commits took less than 3 ms" in page.locator("#latency-chart").get_attribute("aria-label")
    expect(page.locator("#store-size")).to_have_text("3 GiB")


def test_a_store_that_is_being_read_says_how_far_that_is(visit, filled):
    """And shows what it has; two million UUIDs take a while."""
    overview = {"min_count": 10, "score_min": 0, "score_max": 5, "time": 1.0, "complete": False, "read_uuids": 500_000}
    overview |= {"uuids": 1, "distribution": [0] * 49 + [1], "best": [{"UUID": "a", "mean": 5.0, "sum": 50, "count": 10}]}
    page = visit_events(visit, filled, ("now", NOW), ("overview", overview | {"worst": []}))
    expect(page.locator("#reading-text")).to_have_text("Reading the store: 500,000 of 2,000,000 UUIDs")
    assert page.locator("#reading-progress").evaluate("bar => bar.value / bar.max") == 0.25
    expect_rows(page.locator("#best"), [["a", "5.00", "10"]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_routes_is_as_easy_to_use(visit, filled, scheme):
    """/docs, on a phone: nothing is wider than the screen, and axe finds nothing."""
    page = visit(filled, color_scheme=scheme, **NARROW)
    page.get_by_role("link", name="Routes").click()
    expect(page.get_by_role("heading", name="POST /scores")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not Axe().run(page).response["violations"]
    shot(page, f"docs-{scheme}", full_page=False)
