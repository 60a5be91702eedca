-- Arguments: METHOD FILE LINES. A request is made of LINES lines of FILE: a body for POST, a path for GET. All are made
-- before the clock starts, so that wrk only sends.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local method, size, some = args[1], tonumber(args[3]), {}
  local headers = {["Content-Type"] = size > 1 and "application/x-ndjson" or "application/json"}
  requests, sent = {}, 0
  for line in io.lines(args[2]) do
    some[#some + 1] = line
    if #some == size then
      local text = table.concat(some, "\n")
      requests[#requests + 1] = method == "GET" and wrk.format("GET", text) or wrk.format("POST", "/scores", headers, text)
      some = {}
    end
  end
  started = os.clock()
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function done(summary, latency, _)
  local errors = summary.errors
  local seconds = summary.duration / 1e6
  print(string.format(
    'figures {"requests": %d, "seconds": %f, "busy": %f, "bad": %d, "p99_ms": %f}',
    summary.requests, seconds, (os.clock() - threads[1]:get("started")) / seconds,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, latency:percentile(99) / 1e3))
end
