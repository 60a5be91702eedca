/**
 * The page for people: what the service does now, the means, one UUID, and a form that posts a score.
 *
 * The address after # is its only state that is worth a link: `#min_count=10&uuid=a1-b1`. Whatever the service says is put into
 * the document as text, never as HTML: a UUID is any text that somebody posted.
 */

const { uPlot } = window;
const $ = (id) => document.getElementById(id);

const HISTORY_SECONDS = 120;
const LATENCY_SECONDS = 10;
const RETRY_MAX_SECONDS = 15;
const SILENCE_MAX_SECONDS = 10; // an event comes each second
const REFRESH_SECONDS = 2;
const TYPING_PAUSE_MS = 150;
const SUGGESTIONS = 8;
const UUID_MAX_BYTES = 256;
const MIN_COUNT = 10;
const MIN_COUNTS = [...Array(6).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)).concat(10 ** 6);

// ---- Words and numbers

const whole = new Intl.NumberFormat("en");
const cents = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const two = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

/** Return `word` as it stands behind `n`: `1 score`, `2 scores`. */
const counted = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;

function bytes(n) {
  const power = Math.min(Math.floor(Math.log(Math.max(n, 1)) / Math.log(1024)), 5);
  return `${three.format(n / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][power]}`;
}

function duration(seconds) {
  return seconds < 1 ? `${two.format(seconds * 1000)} ms` : `${two.format(seconds)} s`;
}

/** Put `text` into `element`, if it is news: what stays the same disturbs no announcement, selection or hover. */
function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const most = (list) => Math.max(...list.filter((value) => value !== null));

// ---- What is kept in the browser: the theme, the token of this tab. A browser may refuse to keep anything.

function kept(storage, name) {
  try {
    return window[storage].getItem(name) ?? "";
  } catch {
    return "";
  }
}

function keep(storage, name, value) {
  try {
    if (value) window[storage].setItem(name, value);
    else window[storage].removeItem(name);
  } catch {
    // Then it lasts as long as the page.
  }
}

// ---- Requests

let token = kept("sessionStorage", "scoremean-token");

/** An answer that is not 2xx. `problem` is what the service says about it (RFC 9457). */
class Refused extends Error {
  constructor(response, problem) {
    super(problem.detail ?? `the service answered ${response.status}`);
    this.status = response.status;
    this.problem = problem;
  }
}

/** Return the response to a request that was granted. Throws Refused, after asking for a token if that is what is missing. */
async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) askForToken();
  throw new Refused(response, await response.json().catch(() => ({})));
}

const asJson = (value) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
});

const get = async (path, options) => (await request(path, options)).json();

/** Return the mean of `uuid`, null if it has no score. A query, since a GET of an unknown one is an error in the console. */
const meanOf = async (uuid, options) => (await get("/means/query", { ...asJson([uuid]), ...options }))[0];

/** Say what went wrong as a sentence. */
function sentence(error) {
  return error instanceof Refused ? `Refused: ${error.message}.` : "The service cannot be reached.";
}

// ---- The stream of events. Not an EventSource, which cannot send a token.

let stream = null;
let retryTimer = 0;
let silenceTimer = 0;
let failures = 0;

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

function showStatus(state, text) {
  $("status").dataset.state = state;
  say($("status-text"), text);
  say($("status-wait"), "");
  $("retry").hidden = state !== "lost";
  if (state !== "live") for (const id of ["rate", "p50", "p99"]) say($(id), "–");
}

function disconnect() {
  clearTimeout(retryTimer);
  clearTimeout(silenceTimer);
  stream?.abort();
  stream = null;
}

async function connect() {
  disconnect();
  if (document.hidden) return;
  const mine = (stream = new AbortController());
  try {
    const response = await request(`/events?min_count=${place.minCount}`, { signal: mine.signal });
    forgetLastNow();
    for await (const [name, data] of eventsOf(response)) {
      if (mine !== stream) return;
      clearTimeout(silenceTimer);
      silenceTimer = setTimeout(() => mine.abort(), SILENCE_MAX_SECONDS * 1000);
      failures = 0;
      showStatus("live", "Live");
      if (name === "now") showNow(data);
      if (name === "overview") showOverview(data);
    }
    if (mine === stream) lost("Connection lost");
  } catch (error) {
    if (mine !== stream) return;
    if (error.status === 401) showStatus("waiting", "Signed out");
    else lost(error instanceof Refused ? sentence(error) : "Connection lost");
  }
}

/** Try again after a delay that doubles with each failure; the seconds are shown, but not announced. */
function lost(why) {
  disconnect();
  showStatus("lost", why);
  const wait = (seconds) => {
    if (seconds === 0) return connect();
    say($("status-wait"), `next try in ${seconds} s`);
    retryTimer = setTimeout(wait, 1000, seconds - 1);
  };
  wait(Math.min(2 ** failures++, RETRY_MAX_SECONDS));
}

function pauseOrGoOn() {
  if (document.hidden) {
    disconnect();
    showStatus("waiting", "Paused");
  } else connect();
}

// ---- Now: rates and latencies are differences of two events, which carry what was counted since the service started

let now = null;
let recent = [];
const past = { time: [], rate: [], p50: [], p99: [] };

/** Draw no line over the time before: nothing is known of it. */
function forgetLastNow() {
  if (recent.length) remember(recent.at(-1).time, null, null, null);
  recent = [];
}

function remember(time, ...values) {
  past.time.push(time);
  ["rate", "p50", "p99"].forEach((name, index) => past[name].push(values[index]));
  while (past.time[0] < past.time.at(-1) - HISTORY_SECONDS) Object.values(past).forEach((list) => list.shift());
}

/** Return how many commits of each length there were between two events. */
function commitsBetween(first, last) {
  return last.commit_duration.counts.map((count, index) => count - first.commit_duration.counts[index]);
}

/** Return what a `share` of the commits took less than, in seconds: even within a bucket; null if there were none. */
function quantile(counts, bounds, share) {
  let left = share * counts.reduce((sum, count) => sum + count, 0);
  if (!left) return null;
  for (const [index, count] of counts.entries()) {
    const low = bounds[index - 1] ?? 0;
    if (left <= count) return low + ((bounds[index] ?? low) - low) * (left / count);
    left -= count;
  }
  return bounds.at(-1);
}

function showNow(event) {
  const last = recent.at(-1);
  // Less than before: the service was started again.
  if (last && (event.counted < last.counted || event.commits < last.commits)) forgetLastNow();
  now = event;
  showTotals();
  if (recent.length) showRates(recent, event);
  drawRates(event);
  recent.push(event);
  while (recent[0].time < event.time - LATENCY_SECONDS - 0.5) recent.shift();
  showWhetherEmpty();
  refreshFound();
}

function showTotals() {
  say($("scores"), whole.format(now.scores));
  say($("uuids"), whole.format(now.uuids));
  say($("store-size"), bytes(now.store_size_bytes));
  say($("store-size-max"), `of ${bytes(now.store_size_max_bytes)}`);
  say($("disk-free"), bytes(now.disk_free_bytes));
  say($("version"), now.version);
}

function showRates(before, event) {
  const last = before.at(-1);
  const seconds = event.time - last.time;
  if (seconds <= 0) return;
  const bounds = event.commit_duration.bounds_seconds;
  const rate = (event.counted - last.counted) / seconds;
  const counts = commitsBetween(last, event);
  remember(event.time, rate, quantile(counts, bounds, 0.5), quantile(counts, bounds, 0.99));
  say($("rate"), whole.format(Math.round(rate)));
  say($("rate-highest"), whole.format(Math.round(most(past.rate))));
  const lately = commitsBetween(before[0], event);
  for (const [id, share] of [["p50", 0.5], ["p99", 0.99]]) {
    const value = quantile(lately, bounds, share);
    say($(id), value === null ? "–" : duration(value));
  }
  describeCharts();
}

function drawRates(event) {
  const ago = past.time.map((time) => time - event.time);
  rateChart.draw([ago, past.rate]);
  latencyChart.draw([ago, past.p50, past.p99]);
}

/** Say in words what the two charts show, for those who do not see them. */
function describeCharts() {
  const time = `in the last ${counted(Math.round(past.time.at(-1) - past.time[0]), "second")}`;
  const highest = whole.format(Math.round(most(past.rate)));
  $("rate-chart").ariaLabel = `Chart: ${time} at most ${highest} scores a second`;
  const slowest = most(past.p99);
  $("latency-chart").ariaLabel = slowest > 0
    ? `Chart: ${time} 99 % of the commits took less than ${duration(slowest)}, in every second`
    : "Chart: no commit yet";
}

function showWhetherEmpty() {
  const empty = now.uuids === 0;
  $("empty").hidden = !empty;
  $("now").hidden = $("means").hidden = empty;
  if (!empty) return;
  const authorization = token ? ['-H "Authorization: Bearer $TOKEN"'] : [];
  const body = JSON.stringify({ UUID: "a1-b1", score: overview?.score_max ?? 5 });
  const lines = [`curl ${location.origin}/scores`, ...authorization, "-H 'Content-Type: application/json'", `-d '${body}'`];
  say($("empty-curl"), lines.join(" \\\n  "));
}

// ---- The overview

let overview = null;

function showOverview(event) {
  overview = event;
  $("post-score").min = event.score_min;
  $("post-score").max = event.score_max;
  say($("post-range"), `${whole.format(event.score_min)} to ${whole.format(event.score_max)}`);
  $("reading").hidden = event.complete;
  if (!event.complete && now) {
    $("reading-progress").max = Math.max(now.uuids, 1);
    $("reading-progress").value = event.read_uuids;
    say($("reading-text"), `Reading the store: ${whole.format(event.read_uuids)} of ${counted(now.uuids, "UUID")}`);
  }
  const none = event.uuids === 0;
  $("results").hidden = none;
  $("too-few").hidden = !(none && event.complete);
  $("show-all").hidden = event.min_count === 1;
  say($("too-few-text"), `No UUID has at least ${counted(event.min_count, "score")} yet.`);
  say($("means-uuids"), `${counted(event.uuids, "UUID")} of ${whole.format(event.read_uuids)}`);
  showRows($("best"), event.best);
  showRows($("worst"), event.worst);
  showDistribution();
  drawFound();
}

/** Show `means` in the rows that are there, so that a link that has the focus keeps it. */
function showRows(body, means) {
  while (body.rows.length > means.length) body.deleteRow(-1);
  while (body.rows.length < means.length) {
    const row = body.insertRow();
    row.append(make("th", "", { scope: "row" }), make("td"), make("td"));
    row.cells[0].append(make("a"));
  }
  means.forEach((mean, index) => {
    const [name, value, count] = body.rows[index].cells;
    const link = name.firstChild;
    say(link, mean.UUID);
    link.title = mean.UUID;
    link.href = hashOf({ uuid: mean.UUID });
    say(value, cents.format(mean.mean));
    value.title = mean.mean;
    say(count, whole.format(mean.count));
  });
}

/** Return where the part `index` of the distribution begins. */
const edge = (index) => overview.score_min + (index * (overview.score_max - overview.score_min)) / overview.distribution.length;

const bars = () => [overview.distribution.map((_, index) => edge(index + 0.5)), overview.distribution];

function showDistribution() {
  if (!overview.uuids) return;
  const bins = overview.distribution;
  distributionChart.draw(bars());
  const top = bins.indexOf(Math.max(...bins));
  let left = overview.uuids / 2;
  const middle = bins.findIndex((count) => (left -= count) <= 0);
  say($("distribution-text"),
    `The most means are from ${short.format(edge(top))} to ${short.format(edge(top + 1))}: ${counted(bins[top], "UUID")}. `
    + `At least half are below ${short.format(edge(middle + 1))}.`);
  showBins();
}

/** Say which part of the distribution the pointer is on. */
function showBin(index) {
  const text = index === null || index === undefined ? ""
    : `${short.format(edge(index))} to ${short.format(edge(index + 1))}: ${counted(overview.distribution[index], "UUID")}`;
  say($("distribution-bin"), text);
}

function showBins() {
  if (!$("bins").open || !overview) return;
  const body = $("bins-rows");
  overview.distribution.forEach((count, index) => {
    const row = body.rows[index] ?? body.insertRow();
    if (!row.cells.length) row.append(make("th", "", { scope: "row" }), make("td"), make("td"));
    [short.format(edge(index)), short.format(edge(index + 1)), whole.format(count)]
      .forEach((text, cell) => say(row.cells[cell], text));
  });
}

// ---- Charts

/** Return a colour of the style sheet as it is in the theme that is shown. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

const axis = (more) => ({
  stroke: () => colour("--muted"),
  font: `12px ${getComputedStyle(document.body).fontFamily}`,
  grid: { stroke: () => colour("--line"), width: 1 },
  ticks: { show: false },
  gap: 6,
  ...more,
});

/** A chart that fills `element`, made when it is first drawn, and as wide as the element is then and later. */
class Chart {
  static all = [];

  constructor(element, options) {
    this.element = element;
    this.options = options;
    Chart.all.push(this);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
  }

  size() {
    return { width: Math.max(this.element.clientWidth, 100), height: this.element.clientHeight };
  }

  draw(data) {
    this.plot ??= new uPlot({ legend: { show: false }, ...this.size(), ...this.options }, data, this.element);
    this.plot.setData(data);
  }
}

const line = (name) => ({ stroke: () => colour(name), width: 1.75 });

/** The options of a chart of the last minutes; it goes up to `least` while there is nothing to show. */
const overTime = (series, unit, least) => ({
  cursor: { show: false },
  padding: [8, 16, 0, 0],
  scales: { x: { time: false, range: [-HISTORY_SECONDS, 0] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.15 : least] } },
  axes: [
    axis({
      grid: { show: false },
      size: 28,
      gap: 10,
      splits: [-120, -60, 0],
      values: (_, splits) => splits.map((seconds) => (seconds ? `${seconds / 60} min` : "now")),
    }),
    axis({ size: 56, space: 36, values: (_, splits) => splits.map(unit) }),
  ],
  series: [{}, ...series],
});

const distribution = (name, options) => ({
  cursor: { show: false },
  padding: [8, 8, 0, 0],
  scales: {
    x: { time: false, range: () => [overview.score_min, overview.score_max] },
    y: { range: (_, low, high) => [0, high * 1.08 || 1] },
  },
  axes: [
    axis({ grid: { show: false }, size: 24, values: (_, splits) => splits.map((value) => compact.format(value)) }),
    axis({ size: 44, space: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7],
      values: (_, splits) => splits.map((value) => compact.format(value)) }),
  ],
  series: [
    {},
    {
      fill: () => colour(name),
      width: 0,
      points: { show: false },
      paths: uPlot.paths.bars({ size: [0.86, 40], radius: 0.15 }),
    },
  ],
  ...options,
});

const rateChart = new Chart($("rate-chart"),
  overTime([{ ...line("--accent"), fill: () => colour("--soft") }], (value) => compact.format(value), 1));
const latencyChart = new Chart($("latency-chart"),
  overTime([line("--accent"), line("--mark")], (value) => (value ? duration(value) : "0"), 0.01));
const distributionChart = new Chart($("distribution-chart"), distribution("--accent", {
  cursor: { x: false, y: false, drag: { setScale: false, x: false }, points: { show: false } },
  hooks: { setCursor: [(plot) => showBin(plot.cursor.idx)] },
}));
const foundChart = new Chart($("found-chart"), distribution("--faint", { hooks: { draw: [markFound] } }));

/** Draw a line over the distribution where the mean of the UUID that was found is. */
function markFound(plot) {
  const { ctx, bbox } = plot;
  const x = Math.round(plot.valToPos(Math.min(Math.max(found.mean, overview.score_min), overview.score_max), "x", true));
  const wide = 2 * devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colour("--mark");
  ctx.fillRect(x - wide / 2, bbox.top, wide, bbox.height);
  ctx.beginPath();
  ctx.arc(x, bbox.top, 2 * wide, 0, 2 * Math.PI);
  ctx.fill();
  ctx.restore();
}

/** Paint all charts again; by a rebuilding of their paths, which hold colours. */
function repaint() {
  for (const { plot } of Chart.all) plot?.redraw();
}

// ---- The place: what the address names

const place = { uuid: "", minCount: MIN_COUNT };

/** Return the address of this page with `change`. */
function hashOf(change) {
  const { uuid, minCount } = { ...place, ...change };
  const parts = new URLSearchParams({ ...(minCount !== MIN_COUNT && { min_count: minCount }), ...(uuid && { uuid }) });
  return `#${parts}`;
}

/** Follow the address; the anchor of the skip link is no place. */
function followAddress() {
  const anchor = location.hash.slice(1);
  if (anchor && !anchor.includes("=")) return;
  const parts = new URLSearchParams(anchor);
  const wanted = Number(parts.get("min_count") ?? MIN_COUNT);
  const minCount = MIN_COUNTS.includes(wanted) ? wanted : MIN_COUNT;
  const uuid = parts.get("uuid") ?? "";
  const [other, reopen] = [uuid !== place.uuid, minCount !== place.minCount];
  Object.assign(place, { uuid, minCount });
  $("min-count").value = minCount;
  if (reopen) connect();
  if (other) {
    $("find-uuid").value = uuid;
    find(uuid);
  }
}

function goTo(change) {
  const hash = hashOf(change);
  if (hash !== location.hash) location.hash = hash;
}

// ---- Find a UUID

let found = null;
let foundAt = 0;
let foundCounted = 0;
let foundBusy = false;

const changesOf = (event) => event && event.counted + event.voids;

/** Say why no UUID can be `text`; an empty string if one can. */
function faultOf(text) {
  if (/\p{Cc}/u.test(text)) return "No UUID has control characters.";
  return new TextEncoder().encode(text).length > UUID_MAX_BYTES ? `No UUID is longer than ${UUID_MAX_BYTES} bytes.` : "";
}

async function find(uuid) {
  found = null;
  $("found").hidden = true;
  const fault = faultOf(uuid);
  say($("find-note"), fault);
  if (!uuid || fault) return;
  await fetchFound();
  if (place.uuid === uuid && found) $("found").focus();
}

async function fetchFound() {
  const { uuid } = place;
  foundBusy = true;
  foundAt = performance.now();
  foundCounted = changesOf(now);
  try {
    const mean = await meanOf(uuid);
    if (uuid !== place.uuid) return;
    found = mean;
    say($("find-note"), mean ? "" : `No score was counted for ${uuid}.`);
    showFound();
  } catch (error) {
    if (uuid === place.uuid) say($("find-note"), sentence(error));
  } finally {
    foundBusy = false;
  }
}

/** Read the UUID that is shown again if scores were counted meanwhile. */
function refreshFound() {
  const due = performance.now() - foundAt >= REFRESH_SECONDS * 1000;
  if (place.uuid && !faultOf(place.uuid) && due && !foundBusy && foundCounted !== changesOf(now)) fetchFound();
}

function showFound() {
  $("found").hidden = !found;
  if (!found) return;
  say($("found-uuid"), found.UUID);
  $("found-uuid").title = found.UUID;
  say($("found-mean"), cents.format(found.mean));
  $("found-mean").title = found.mean;
  say($("found-sum"), whole.format(found.sum));
  say($("found-count"), whole.format(found.count));
  drawFound();
}

function drawFound() {
  if (!found || !overview) return;
  $("found-chart").hidden = !overview.uuids;
  say($("found-rank"), overview.uuids ? rankOf(found) : "");
  if (overview.uuids) foundChart.draw(bars());
}

/** Say how many UUIDs surely have a lower mean: those in lower parts of the distribution; of its own part it is not known. */
function rankOf({ sum, count }) {
  const { score_min: low, score_max: high, distribution: bins, min_count: least, uuids } = overview;
  const part = Math.floor(((sum - low * count) * bins.length) / ((high - low) * count));
  const lower = bins.slice(0, Math.min(Math.max(part, 0), bins.length - 1)).reduce((total, n) => total + n, 0);
  const percent = Math.floor((100 * lower) / uuids);
  const of = `of the ${counted(uuids, "UUID")} with at least ${counted(least, "score")}`;
  return percent ? `At least ${percent} % ${of} have a lower mean.` : `Among the lowest ${of}.`;
}

// ---- Suggestions: an editable combobox with a list (ARIA Authoring Practices)

let typing = 0;
let asked = null;

function closeList() {
  clearTimeout(typing);
  asked?.abort();
  $("find-list").hidden = true;
  $("find-list").replaceChildren();
  $("find-uuid").ariaExpanded = "false";
  $("find-uuid").removeAttribute("aria-activedescendant");
}

async function suggest() {
  closeList();
  const text = $("find-uuid").value;
  if (!text || faultOf(text)) return;
  const { signal } = (asked = new AbortController());
  try {
    const page = new URLSearchParams({ after: text, limit: SUGGESTIONS });
    const [exact, after] = await Promise.all([meanOf(text, { signal }), get(`/means?${page}`, { signal })]);
    const begin = after.filter((mean) => mean.UUID.startsWith(text));
    showSuggestions([...(exact ? [exact] : []), ...begin].slice(0, SUGGESTIONS));
  } catch {
    // No suggestions then; to find the UUID says why.
  }
}

function showSuggestions(means) {
  const options = means.map((mean, index) => {
    const option = make("li", "", { role: "option", id: `find-${index}`, "aria-selected": "false", title: mean.UUID });
    option.append(make("span", mean.UUID), make("span", `${cents.format(mean.mean)} of ${whole.format(mean.count)}`));
    option.dataset.uuid = mean.UUID;
    return option;
  });
  $("find-list").replaceChildren(...options);
  $("find-list").hidden = !options.length;
  $("find-uuid").ariaExpanded = String(options.length > 0);
}

function moveInList(step) {
  const options = [...$("find-list").children];
  if (!options.length) return;
  const at = options.findIndex((option) => option.ariaSelected === "true");
  // One place more than there are options: the text itself, which is before the first and behind the last.
  const next = (at + 1 + step + options.length + 1) % (options.length + 1) - 1;
  options.forEach((option, index) => (option.ariaSelected = String(index === next)));
  if (next < 0) $("find-uuid").removeAttribute("aria-activedescendant");
  else $("find-uuid").setAttribute("aria-activedescendant", options[next].id);
}

function keyInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    moveInList(step);
  } else if (event.key === "Escape") closeList();
}

function submitFind(event) {
  event.preventDefault();
  const chosen = $("find-list").querySelector("[aria-selected=true]");
  const uuid = chosen ? chosen.dataset.uuid : $("find-uuid").value;
  closeList();
  $("find-uuid").value = uuid;
  if (uuid === place.uuid) find(uuid);
  else goTo({ uuid });
}

// ---- Post a score

const FIELDS = { "/UUID": "post-uuid", "/score": "post-score", "/id": "post-id" };

function showFaults(problem = {}) {
  const faults = problem.errors ?? [];
  for (const [pointer, id] of Object.entries(FIELDS)) {
    const own = faults.filter((fault) => fault.pointer === pointer);
    say($(`${id}-fault`), own.map((fault) => fault.detail).join("; "));
    $(id).ariaInvalid = String(own.length > 0);
  }
  document.querySelector("#post [aria-invalid=true]")?.focus();
  return faults.length > 0 && faults.every((fault) => fault.pointer in FIELDS);
}

function showAnswer(...parts) {
  $("post-answer").replaceChildren(...parts);
}

/** Return what the form says as the body of a request; what is empty is left out, and it is for the service to miss it. */
function scoreInForm() {
  const [uuid, score, id] = Object.values(FIELDS).map((field) => $(field).value);
  return { ...(uuid && { UUID: uuid }), ...(score && { score: Number(score) }), ...(id && { id }) };
}

async function post(event) {
  event.preventDefault();
  const button = $("post").querySelector("[type=submit]");
  if (button.disabled) return;
  button.disabled = true;
  showAnswer();
  try {
    const response = await request("/scores", asJson(scoreInForm()));
    showFaults();
    showCounted(response, await response.text());
  } catch (error) {
    showRefused(error);
  } finally {
    button.disabled = false;
  }
}

function showCounted(response, text) {
  const { UUID: uuid, mean } = JSON.parse(text);
  const replayed = response.headers.get("Idempotency-Replayed") === "true";
  const what = make("p", replayed ? "Counted before: nothing was added. Its mean was then " : "Counted. The mean of ");
  if (!replayed) what.append(make("a", uuid, { href: hashOf({ uuid }) }), " is now ");
  const value = make("strong", cents.format(mean), { title: mean });
  what.append(value, ".");
  showAnswer(what, make("code", text));
}

function showRefused(error) {
  if (error.status === 403) {
    const button = make("button", "Sign in with another token", { type: "button", class: "quiet" });
    button.addEventListener("click", askForToken);
    return showAnswer(make("p", "This token may only read, so the score was not counted.", { class: "fault" }), button);
  }
  const beside = showFaults(error.problem);
  if (beside) return showAnswer(make("p", "Not counted.", { class: "fault" }));
  const again = error instanceof Refused ? "" : " If the score has an id, it can be sent again and counts once.";
  return showAnswer(make("p", sentence(error) + again, { class: "fault" }));
}

/** Return 128 random bits. Not crypto.randomUUID, which is missing where the service is reached without TLS. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- Sign in

function askForToken() {
  $("sign-in").hidden = false;
  $("sign-out").hidden = true;
  if (!$("sign").open) $("sign").showModal();
}

async function signIn(event) {
  event.preventDefault();
  say($("sign-fault"), "");
  const wanted = $("sign-token").value.trim();
  // Others cannot be sent in a header.
  if (!/^[\x21-\x7e]+$/.test(wanted)) return say($("sign-fault"), "A token has ASCII letters, digits and signs only.");
  try {
    const headers = { Authorization: `Bearer ${wanted}` };
    const response = await fetch("/stats", { headers });
    if (response.status === 401) return say($("sign-fault"), "The service does not know this token.");
    if (!response.ok) return say($("sign-fault"), `The service answered ${response.status}.`);
  } catch {
    return say($("sign-fault"), "The service cannot be reached.");
  }
  token = wanted;
  keep("sessionStorage", "scoremean-token", token);
  $("sign-token").value = "";
  $("sign").close();
  showAnswer();
  showSignedIn();
  connect();
  if (place.uuid) find(place.uuid);
}

function showSignedIn() {
  $("sign-out").hidden = !token;
  $("sign-in").hidden = true;
}

/** Forget the token, and by a new start of the page all that it was allowed to see. */
function signOut() {
  keep("sessionStorage", "scoremean-token", "");
  location.reload();
}

// ---- The theme

function showTheme() {
  const theme = $("theme").value;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  repaint();
}

// ---- Start

const on = (id, name, listener) => $(id).addEventListener(name, listener);

$("min-count").append(...MIN_COUNTS.map((count) => make("option", whole.format(count), { value: count })));
$("theme").value = kept("localStorage", "scoremean-theme");
showTheme();
showSignedIn();

on("theme", "change", () => {
  keep("localStorage", "scoremean-theme", $("theme").value);
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
on("min-count", "change", () => goTo({ minCount: Number($("min-count").value) }));
on("show-all", "click", () => goTo({ minCount: 1 }));
on("bins", "toggle", showBins);
on("find", "submit", submitFind);
on("find-uuid", "input", () => {
  closeList();
  typing = setTimeout(suggest, TYPING_PAUSE_MS);
});
on("find-uuid", "keydown", keyInList);
on("find-uuid", "blur", closeList);
// Before the field loses the focus, which closes the list.
on("find-list", "pointerdown", (event) => event.preventDefault());
on("find-list", "click", (event) => {
  const uuid = event.target.closest("[role=option]")?.dataset.uuid;
  if (uuid === undefined) return;
  closeList();
  goTo({ uuid });
});
on("post", "submit", post);
on("post-random", "click", () => ($("post-id").value = randomId()));
on("retry", "click", () => connect());
on("sign-in", "click", askForToken);
on("sign-out", "click", signOut);
on("sign-form", "submit", signIn);
on("sign-cancel", "click", () => $("sign").close());
on("sign", "close", () => ($("sign-in").hidden = Boolean(token)));
addEventListener("hashchange", followAddress);
document.addEventListener("visibilitychange", pauseOrGoOn);

followAddress();
connect();
