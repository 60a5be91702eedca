#!lua
-- Applies changes to the hash of one UUID, once however often it is sent. scoremean/store/redis.py says what the hash holds.
--
-- KEYS: the hash. ARGV: the process that calls and the number of its call, which only grows for this hash; the Unix time and
-- for how long ids are kept, in seconds; then the changes, each a letter with its arguments:
--   a sum count       add a tally       -> "sum count"
--   i id sum count    add it once       -> "sum count", "r sum count" for a replay, "c" for a conflict, "x" when it was voided
--   v id              void what it added -> "v sum count voided", of which the last is the count that was taken now; or "u"
--   f                 forget the UUID   -> "sum count" that was taken away, or "u" when there was none
-- Returns the answers with ";" between them, or "late" for a call that a later one of the same process has overtaken.

local EXACT = 9007199254740992 -- up to here a number of Lua is an exact integer
local CALL_SECONDS = 600
local SAMPLE_MAX = 64

local key, process, number, now, keep = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local sum, count, epoch, packed = unpack(redis.call('HMGET', key, 's', 'c', 'e', 't'))
local was_empty = not count
sum, count, epoch = sum or '0', count or '0', epoch or '0'

-- The last call of each process, as process, time, number, answer: one that is sent again is answered, not applied.
local calls = {}
local known = packed and cmsgpack.unpack(packed) or {}
for i = 1, #known, 4 do
    if known[i] == process then
        if known[i + 2] >= number then
            return known[i + 2] == number and known[i + 3] or 'late'
        end
    elseif now - known[i + 1] < CALL_SECONDS then
        for j = i, i + 3 do
            calls[#calls + 1] = known[j]
        end
    end
end

local changed, new_ids = false, 0

local function add(sum_added, count_added)
    changed = true
    local old, added = tonumber(sum), tonumber(sum_added)
    local new, new_count = old + added, tonumber(count) + tonumber(count_added)
    if math.max(math.abs(old), math.abs(added), math.abs(new), new_count) < EXACT then
        sum, count = string.format('%.0f', new), string.format('%.0f', new_count)
    else
        redis.call('HSET', key, 's', sum, 'c', count)
        redis.call('HINCRBY', key, 's', sum_added)
        redis.call('HINCRBY', key, 'c', count_added)
        sum, count = unpack(redis.call('HMGET', key, 's', 'c'))
    end
    return sum .. ' ' .. count
end

local function negative(text)
    return text == '0' and text or text:sub(1, 1) == '-' and text:sub(2) or '-' .. text
end

-- An id is kept as: sum and count added, sum and count of the first answer, the epoch of the UUID, 1 if voided, the time.
local function find(id)
    local record = redis.call('HGET', key, id)
    if record then
        return record:match('^(%S+) (%S+) (%S+ %S+) (%S+) (%S+) (%S+)$')
    end
end

local apply = {
    a = function(i)
        return add(ARGV[i + 1], ARGV[i + 2]), i + 3
    end,
    i = function(i)
        local id, sum_added, count_added = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
        local old_sum, old_count, first, _, voided = find(id)
        if not old_sum then
            local answer = add(sum_added, count_added)
            redis.call('HSET', key, id, table.concat({sum_added, count_added, answer, epoch, 0, ARGV[3]}, ' '))
            new_ids = new_ids + 1
            return answer, i + 4
        elseif old_sum ~= sum_added or old_count ~= count_added then
            return 'c', i + 4
        end
        return voided == '1' and 'x' or 'r ' .. first, i + 4
    end,
    v = function(i)
        local id = ARGV[i + 1]
        local sum_added, count_added, first, counted_in, voided, time = find(id)
        if not sum_added or counted_in ~= epoch then
            return 'u', i + 2
        elseif voided == '1' then
            return 'v ' .. sum .. ' ' .. count .. ' 0', i + 2
        end
        redis.call('HSET', key, id, table.concat({sum_added, count_added, first, epoch, 1, time}, ' '))
        return 'v ' .. add(negative(sum_added), negative(count_added)) .. ' ' .. count_added, i + 2
    end,
    f = function(i)
        if count == '0' then
            return 'u', i + 1
        end
        local answer = sum .. ' ' .. count
        sum, count, epoch, changed = '0', '0', string.format('%.0f', tonumber(epoch) + 1), true
        redis.call('HSET', key, 'e', epoch)
        return answer, i + 1
    end,
}

local answers, place = {}, 5
while place <= #ARGV do
    answers[#answers + 1], place = apply[ARGV[place]](place)
end
local answer = table.concat(answers, ';')
if not changed then
    return answer
end

calls[#calls + 1], calls[#calls + 2], calls[#calls + 3], calls[#calls + 4] = process, now, number, answer
if count ~= '0' then
    redis.call('HSET', key, 's', sum, 'c', count, 't', cmsgpack.pack(calls))
    if was_empty and packed then
        redis.call('PERSIST', key)
    end
else
    redis.call('HDEL', key, 's', 'c')
    redis.call('HSET', key, 't', cmsgpack.pack(calls))
    redis.call('EXPIRE', key, math.max(keep, CALL_SECONDS))
end

-- Of two fields drawn for each new id, those that are too old go: in the long run no more of them stay than there are ids to keep.
if new_ids > 0 then
    local fields = redis.call('HRANDFIELD', key, -2 * math.min(new_ids, SAMPLE_MAX), 'WITHVALUES')
    for i = 1, #fields, 2 do
        if #fields[i] == 16 and now - tonumber(fields[i + 1]:match('%d+$')) >= keep then
            redis.call('HDEL', key, fields[i])
        end
    end
end
return answer
