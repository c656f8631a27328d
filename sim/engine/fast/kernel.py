"""The one event loop of the fast engine: the SimPy model's events, in its order, on plain lists of numbers.

Every event of the model is an entry of one heap, numbered as SimPy numbers its events, so that ties fall alike; every
float operation is the model's own. What happens is explained there, under the same names. numba compiles `simulate`
where it is installed (see `compiled`); otherwise Python runs the very same function.

Jobs, attempts, lanes and nodes are rows of lists. A `place` says where the draws of a send stand in `Sends`; of the
users of a retry only their places are handed on, in linked nodes.
"""

# ruff: noqa: SIM109 - a tuple of names is built anew for each test of what is in it
from __future__ import annotations

from heapq import heapify, heappop, heappush, heappushpop, heapreplace
from math import ceil
from typing import Any

from saqkit.spec.draws import uniform

JITTER: Any = 5  # draws.Stream.JITTER
TEMPORARY = 1
FLUSH_EVERY_S, COLD_AFTER_S = 0.1, 0.001
GATHERING, OPENING, WRITING = 3, 4, 3
IN_SQLITE, IN_SQLITE_ROW = 0.33, 0.73
SHORTEST_S, BLOCKING_S, EARLY_S = 0.001, 0.01, 0.11
NEVER = float("inf")
CHUNK = 500  # the model's ENQUEUE_CHUNK

# What a worker's loop can be asked to do; as an event: the burst before it is over.
GO_ON, TALK, REPLIED, BLOCK, ANSWERED, PAUSE_IS_OVER, BEGIN, WORK, WORKED = 0, 1, 2, 3, 4, 5, 6, 7, 8
NEXT_PAGE, PAGE_READ, ENQUEUE, ADVANCE, ADVANCED, SERVE, END, TIME_OUT, GATHER = 9, 10, 11, 12, 13, 14, 15, 16, 17
TOLD, NOTHING = 18, 19
# The other events.
WOKEN, STORED, TALKED, REPLY, ASKED, ANSWER, BLOCKED, ENOUGH, WAKE = 20, 21, 22, 23, 24, 25, 26, 27, 28
COMPUTED, FLUSH_DUE, PAGE_SERVED, PAGE_REPLIED, PUT_SERVED, PUT_REPLIED, START, OPEN = 29, 30, 31, 32, 33, 34, 35, 36
ARRIVE, ANNOUNCED, PUT, ENQUEUED, DRAINED, DEADLINE, STOP, GIVEN_BACK = 37, 38, 39, 40, 41, 42, 43, 44
CODES = 64  # a transaction is the code of the step that its end leads to, and so many times the statements to come

NOBODY = -(1 << 62)  # no place of a send is before it
LEAST_S = 1e-9  # what a burst has to take to be sure to move the time on

DONE, RETRY, DEAD = 0, 1, 2  # as in `lifecycle.OUTCOMES`
STOPPED, STUCK, NO_DRAW, NO_ROOM = 0, 1, 2, 3


def simulate(t: Any, sends: Any) -> Any:
    """Carry out the run that the tables `t` describe, with the draws `sends`.

    Returns a status (`NO_ROOM`: the tables foresee too few rows; `NO_DRAW`: a retry needs draws that `sends` lacks,
    those after the place that comes second), when it ended, whether it drained, the attempts in the order in which they
    ended, and how busy the parts were.
    """
    latency, fate, next_place = sends.latency, sends.fate, sends.next_place
    workers, queues, servers, host_of = t.workers, t.queues, t.servers, t.host_of
    cores, stretch, client_cpu_s, trip_s, broker_cpu_s = t.cores, t.stretch, t.client_cpu_s, t.trip_s, t.broker_cpu_s
    resolution_s, overshoot_s, cold_s = t.resolution_s, t.overshoot_s, t.cold_s
    user_cpu_s, waits, ledger, batch = t.type_user_cpu_s, t.type_waits, t.type_ledger, t.type_batch
    queue_of = t.type_queue

    # Jobs. `job_left` is the first node of those whom the next attempt serves.
    jobs, most_jobs = 0, t.jobs
    job_kind, job_event, job_first, job_users = _ints(most_jobs), _ints(most_jobs), _ints(most_jobs), _ints(most_jobs)
    job_priority, job_parent, job_attempt = _ints(most_jobs), _ints(most_jobs), _ints(most_jobs)
    job_left, job_left_users, job_after = _ints(most_jobs), _ints(most_jobs), _ints(most_jobs)
    job_cursor, job_enqueued, job_declined = _ints(most_jobs), _ints(most_jobs), _ints(most_jobs)
    job_queued_at, job_ready_at = _floats(most_jobs), _floats(most_jobs)

    # Attempts, and what is known of them while they are under way: `at_place` is the place of the next user or, of a
    # retry, -2 - their node.
    tries, room = 0, t.attempts
    try_job, try_worker, try_number, try_users = _ints(room), _ints(room), _ints(room), _ints(room)
    refused, again_users, try_outcome, try_error = _ints(room), _ints(room), _ints(room), _ints(room)
    ready_at, taken_at, started_at, finished_at = _floats(room), _floats(room), _floats(room), _floats(room)
    cpu_s, provider_s, database_s, asked_at = _floats(room), _floats(room), _floats(room), _floats(room)
    kind_of, over, at_place, to_serve, lanes_left = _ints(room), _ints(room), _ints(room), _ints(room), _ints(room)
    again_first, again_last, flush_after, ended_after = _ints(room), _ints(room), _ints(room), _ints(room)
    ended, order = 0, _ints(room)
    # Of an attempt of plain users (first sends, recorded in the ledger) `upto` is the place behind the last of them, of
    # the others `NOBODY`; of the former `to_serve` is brought up to date only when it is read.
    upto, each_s = _ints(room), _floats(room)

    nodes, node_place, node_after = 0, _ints(t.nodes), _ints(t.nodes)
    lanes, lane_attempt, lane_user, lane_coming = 0, _ints(t.lanes), _ints(t.lanes), _ints(t.lanes)
    lane_asked_at = _floats(t.lanes)
    free_lanes = [0][1:]
    answers, answer_first, answer_count, answer_until_s = 0, _ints(t.lanes), _ints(t.lanes), _floats(t.lanes)
    free_answers = [0][1:]

    # Lines, a level after the other; the processes that wait for jobs are a ring per queue.
    line_first, line_last, line_ready = _ints(4 * queues), _ints(4 * queues), _ints(queues)
    idle_after, idle_before = _ints(queues * (workers + 1)), _ints(queues * (workers + 1))
    for q in range(4 * queues):
        line_first[q] = -1
    for q in range(queues * (workers + 1)):
        idle_after[q] = -1
    for q in range(queues):
        ring = q * (workers + 1) + workers
        idle_after[ring] = ring
        idle_before[ring] = ring
    delays, delayed = 0, [[(0.0, 0, 0)][1:] for _ in range(queues)]
    window = [[(0.0, 0)][1:] for _ in range(queues)]
    in_window, admitted = _ints(queues), _ints(queues)

    # Loops. `limits` are the timers of timeouts: many, far away and mostly withdrawn.
    ready = [[(0.0, 0, 0)][1:] for _ in range(workers)]
    timers = [[(0.0, 0, 0, 0)][1:] for _ in range(workers)]
    limits = [[(0.0, 0, 0, 0)][1:] for _ in range(workers)]
    next_ready, todo, numbers, withdrawn = _ints(workers), _ints(workers), _ints(workers), _ints(workers)
    running, sleep, asleep = _ints(workers), _ints(workers), _ints(workers)
    wakes, slept_at = _floats(workers), _floats(workers)
    first_limit_s, single = _floats(workers), servers == 1
    busy_s, host_running, core_s = _floats(workers), _ints(t.hosts), _floats(t.hosts)
    rows, armed, committing, flush_first, flush_last = (
        _ints(workers), _ints(workers), _ints(workers), _ints(workers), _ints(workers)
    )  # fmt: skip
    flush_s, flush_user_s = _floats(workers), _floats(workers)
    feeds = workers * queues
    free, most, wait, until_s = _ints(feeds), _ints(feeds), _ints(feeds), _floats(feeds)
    talking, asking, pausing, called, there = _ints(feeds), _ints(feeds), _ints(feeds), _ints(feeds), _ints(feeds)
    ended_first, ended_last = _ints(feeds), _ints(feeds)
    words = (workers + 61) // 62
    events = len(t.event_s)
    known, event_at = _ints(events * words), _floats(events)  # the processes that looked an event up, a bit each
    broker_free_s, broker_busy_s = 0.0, 0.0
    # Transactions that wait for the one writer: how long a statement takes with the interpreter and beside the loop,
    # whose, and what it is; those that wait for the interpreter of their process: since when, how long, whose, what.
    # Of the one that is carried out: both times of a statement, and since when.
    writes, asked = [(0.0, 0.0, 0, 0, 0)][1:], [[(0.0, 0.0, 0, 0)][1:] for _ in range(workers)]
    writing, statement_s, began_at, database = _ints(1), _floats(2), _floats(1), _floats(1)
    lent, missed, lent_s, back_at = _ints(workers), _ints(workers), _floats(workers), _floats(workers)
    slot_s, lane_s, all_provider_s = 0.0, 0.0, 0.0
    arrived, open_jobs, drained, status, lacking = 0, 0, 0, STOPPED, -1

    heap = [(0.0, 0, OPEN, 0, 0, 0.0)][1:]
    n = 0  # SimPy's number of the next event
    for w in range(workers):
        asleep[w], flush_first[w], first_limit_s[w] = 1, -1, NEVER
        for q in range(queues):
            ended_first[w * queues + q] = -1
        for k in range(t.serves_from[w], t.serves_from[w + 1]):
            free[w * queues + t.serves[k]] = t.slots[t.serves[k]]
            heappush(heap, (0.0, n, START, w, t.serves[k], 0.0))
            n += 1
    heappush(heap, (0.0, n, OPEN, 0, 0, 0.0))
    n += 1
    held, holding, now, burst_s = False, (0.0, 0, OPEN, 0, 0, 0.0), 0.0, 0.0

    while True:
        if held:
            now, _, kind, w, arg, value = heappushpop(heap, holding)
            held = False
        elif heap:
            now, _, kind, w, arg, value = heappop(heap)
        else:
            status = STUCK
            break
        call = NOTHING
        if kind < NOTHING:
            running[w] -= 1
            host_running[host_of[w]] -= 1
            burst_s, call = value, kind
        elif kind == WOKEN:
            if arg != sleep[w]:
                continue
            if running[w]:
                missed[w] = 1
                continue
        elif kind == COMPUTED or kind == GIVEN_BACK:  # a statement of a transaction
            host_running[host_of[w]] -= 1
            inside, code, left, said = -1, int(value) % CODES, int(value) // CODES, False
            writes_it = code == SERVE or code == ADVANCED or code == TOLD
            back_at[w] = now
            if kind == GIVEN_BACK:
                running[w] -= 1
                inside = w
            if kind == GIVEN_BACK and writes_it and statement_s[1] > 0:  # now SQLite works, beside the loop
                n = _beside(heap, n, now, t, w, statement_s[1], arg, value, host_running, core_s, lent_s)
            elif left:
                n = _lend(heap, n, now, t, w, statement_s[0], statement_s[1], arg, code + CODES * (left - 1), inside,
                          asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
            else:
                if writes_it:
                    writing[0] = 0
                    database[0] += now - began_at[0]
                    n = _begin_write(heap, n, now, t, inside, writes, writing, statement_s, began_at,
                                     asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
                if code == TOLD or not over[arg]:
                    ready[w].append((t.handing_s, code, arg))
                    said = True
            if kind == COMPUTED:
                if not said or running[w] >= servers:
                    continue
            elif not missed[w] and len(ready[w]) == next_ready[w]:
                n = _lend_on(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)
                continue
            sleep[w] += 1
        elif kind == STORED or kind == PAGE_REPLIED:
            if over[arg]:
                continue
            handed = kind == STORED and int(value) != END  # not where there was nothing to write
            ready[w].append((t.handing_s if handed else 0.0, int(value), arg))
            if running[w] >= servers:
                continue
            sleep[w] += 1
        elif kind == TALKED or kind == ASKED:  # a script: what ended is settled, then jobs are taken
            q, answer, a = arg // 2, -1, -1
            feed = w * queues + q
            if kind == TALKED:
                a = int(value)
            while a >= 0:
                j, of = try_job[a], kind_of[a]
                took_s, level = now - started_at[a], job_priority[j]
                slot_s += took_s
                lane_s += took_s * max(1, min(t.type_lanes[of], try_users[a]))
                all_provider_s += provider_s[a]
                finished_at[a] = now
                order[ended] = a
                ended += 1
                if t.type_pays[of]:
                    job_declined[j] += refused[a]
                if try_error[a] and job_attempt[j] < t.type_attempts[of]:
                    try_outcome[a] = RETRY
                    delay_s = t.delays_s[t.type_delays[of] + job_attempt[j] - 1]
                    if t.type_jitter[of]:
                        u = uniform(t.seed, JITTER, job_event[j] + 1, 0 if batch[of] else job_first[j], job_attempt[j])
                        delay_s = delay_s * u if t.type_jitter[of] == 1 else delay_s * (0.5 + u / 2)
                    if delay_s > 0:
                        turns = (now + delay_s - t.tick_phase_s) / t.tick_s[q]
                        woken_at = ceil(turns - 1e-9 - 1e-15 * turns) * t.tick_s[q] + t.tick_phase_s
                        delays += 1
                        heappush(delayed[q], (woken_at, delays, j))
                    else:
                        job_ready_at[j] = now
                        _join(line_first, line_last, job_after, j, 4 * q + level - 1)
                        line_ready[q] += 1
                    n = _wake(heap, n, now + t.wake_s, idle_after, idle_before, q, workers)
                    job_attempt[j] += 1
                    job_left[j], job_left_users[j] = again_first[a], again_users[a]
                else:
                    if try_error[a]:
                        try_outcome[a] = DEAD
                    elif not job_declined[j]:  # whose payment was declined is told nothing
                        for k in range(t.follow_from[of], t.follow_from[of + 1]):
                            to = t.follow[k]
                            at = queue_of[to]
                            job_kind[jobs], job_event[jobs], job_first[jobs] = to, job_event[j], job_first[j]
                            job_users[jobs] = job_left_users[jobs] = job_users[j]
                            job_priority[jobs] = t.type_priority[to] if level == t.type_priority[of] else level
                            job_parent[jobs], job_attempt[jobs], job_left[jobs] = j, 1, -1
                            job_queued_at[jobs] = job_ready_at[jobs] = now
                            _join(line_first, line_last, job_after, jobs, 4 * at + job_priority[jobs] - 1)
                            line_ready[at] += 1
                            jobs += 1
                            open_jobs += 1
                            n = _wake(heap, n, now + t.wake_s, idle_after, idle_before, at, workers)
                    open_jobs -= 1
                    if not open_jobs and arrived == events and not drained:
                        drained = 1
                        heappush(heap, (now, n, DRAINED, 0, 0, 0.0))
                        n += 1
                a = ended_after[a]
            if arg % 2:
                line, count, opens_at = delayed[q], 0, 0.0
                while line and line[0][0] <= now:
                    due_at, _, j = heappop(line)
                    job_ready_at[j] = due_at
                    _join(line_first, line_last, job_after, j, 4 * q + job_priority[j] - 1)
                    line_ready[q] += 1
                due_at = line[0][0] if line else 0.0
                first, limit = tries, t.limit[q]
                for level in range(4 * q, 4 * q + 4):
                    while line_first[level] >= 0 and count < most[feed]:
                        j = line_first[level]
                        of = job_kind[j]
                        if limit:
                            weight = max(1, job_users[j]) if t.limit_users[q] and not batch[of] else 1
                            opens_at = _opens_at(window[q], in_window, q, now, weight, limit)
                            if opens_at != 0.0:
                                break
                            window[q].append((now + t.period_s[q] * max(1.0, weight / limit), weight))
                            in_window[q] += weight
                            admitted[q] += weight
                        line_first[level] = job_after[j]
                        line_ready[q] -= 1
                        count += 1
                        if tries == room:
                            status = NO_ROOM
                            break
                        try_job[tries], try_worker[tries], try_number[tries] = j, w, job_attempt[j]
                        try_users[tries] = to_serve[tries] = job_users[j] if batch[of] else job_left_users[j]
                        ready_at[tries], taken_at[tries], kind_of[tries] = job_ready_at[j], now, of
                        again_first[tries] = ended_after[tries] = -1
                        upto[tries] = NOBODY
                        if job_attempt[j] > 1:
                            at_place[tries] = -2 - job_left[j]
                        else:
                            at_place[tries] = t.type_offset[of] + t.event_start[job_event[j]] + job_first[j] - 1
                        tries += 1
                    if opens_at != 0.0 or status == NO_ROOM:
                        break
                broker_free_s += count * t.broker_job_cpu_s
                broker_busy_s += count * t.broker_job_cpu_s + broker_cpu_s
                if opens_at == 0.0:
                    if count < most[feed]:
                        _idle(idle_after, idle_before, q, w, workers)
                    if line_ready[q]:
                        n = _wake(heap, n, now + t.wake_s, idle_after, idle_before, q, workers)
                if free_answers:
                    answer = free_answers.pop()
                else:
                    answer = answers
                    answers += 1
                if answers > len(answer_first) or status == NO_ROOM:
                    status = NO_ROOM
                    break
                answer_first[answer], answer_count[answer] = first, count
                answer_until_s[answer] = -opens_at if opens_at != 0.0 else due_at  # negative: of the rate limit
            heappush(heap, (now + trip_s, n, kind + 1, w, q, float(answer)))
            n += 1
            continue
        elif kind == REPLY or kind == ANSWER:
            ready[w].append((0.0, REPLIED if kind == REPLY else ANSWERED, arg + queues * int(value + 1)))
            if running[w] >= servers:
                continue
            sleep[w] += 1
        elif kind == WAKE or kind == BLOCKED or kind == ENOUGH:
            # A blocking wait may be over. `arg` is its number and queue, of a wake only the queue.
            q = arg % queues
            feed = w * queues + q
            if kind == WAKE:
                called[feed] = 1
            elif arg // queues != wait[feed]:
                continue
            elif kind == BLOCKED:
                there[feed] = 1
                if not called[feed]:
                    if until_s[feed] != 0.0:
                        delay_s, late_s = max(0.0, until_s[feed] - now), 0.0
                        if t.clock_s:
                            late_s = (t.clock_phase_s - now - delay_s) % t.clock_s
                        heappush(heap, (now + (delay_s + late_s), n, ENOUGH, w, arg, 0.0))
                        n += 1
                    continue
            if there[feed]:
                wait[feed] += 1
                called[feed] = there[feed] = 0
                _leave(idle_after, idle_before, q * (workers + 1) + w)
                broker_free_s = max(now, broker_free_s) + broker_cpu_s
                broker_busy_s += broker_cpu_s
                heappush(heap, (now + (broker_free_s - now), n, ASKED, w, 2 * q + 1, 0.0))
                n += 1
            continue
        elif kind == FLUSH_DUE:
            armed[w] = 0
            if rows[w] and not committing[w]:
                _queue_write(t, writes, flush_s[w], rows[w] * flush_user_s[w], WRITING, w, flush_first[w], TOLD)
                n = _begin_write(heap, n, now, t, -1, writes, writing, statement_s, began_at,
                                 asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
                rows[w], flush_first[w], committing[w] = 0, -1, 1
            continue
        elif kind == PAGE_SERVED or kind == PUT_SERVED:
            if kind == PAGE_SERVED:
                j, first, left, of, w = try_job[arg], w, int(value), kind_of[arg], try_worker[arg]
                level, put_from, to = job_priority[j], jobs, t.type_to[of]
                if level == t.type_priority[of]:
                    level = t.type_priority[to]
                while left > 0:
                    job_kind[jobs], job_event[jobs], job_first[jobs] = to, job_event[j], first
                    job_users[jobs] = job_left_users[jobs] = min(left, batch[of])
                    job_priority[jobs], job_parent[jobs], job_attempt[jobs], job_left[jobs] = level, j, 1, -1
                    first, left = first + batch[of], left - batch[of]
                    jobs += 1
                put_to = jobs
                open_jobs += put_to - put_from
            else:
                put_from, put_to = w, min(w + CHUNK, arg)
            for j in range(put_from, put_to):
                at = queue_of[job_kind[j]]
                job_queued_at[j] = job_ready_at[j] = now
                _join(line_first, line_last, job_after, j, 4 * at + job_priority[j] - 1)
                line_ready[at] += 1
            for j in range(put_from, put_to):
                at, seen = queue_of[job_kind[j]], j > put_from and job_kind[j] == job_kind[j - 1]
                k = put_from
                while not seen and k < j:
                    seen = queue_of[job_kind[k]] == at
                    k += 1
                if not seen:
                    n = _wake(heap, n, now + t.wake_s, idle_after, idle_before, at, workers)
            heappush(heap, (now + trip_s, n, kind + 1, w, arg, float(ADVANCE)))
            n += 1
            continue
        elif kind == START:
            talking[w * queues + arg] = 1
            ready[w].append((client_cpu_s, TALK, arg))
            if running[w] >= servers:
                continue
            sleep[w] += 1
        elif kind == PUT_REPLIED:
            heappush(heap, (now, n, ENQUEUED, w, arg, 0.0))
            n += 1
            continue
        elif kind == ANNOUNCED or kind == ENQUEUED:
            if kind == ENQUEUED:
                w += CHUNK
            if w < arg:
                heappush(heap, (now + t.enqueue_s * min(CHUNK, arg - w), n, PUT, w, arg, 0.0))
                n += 1
            continue
        elif kind == PUT:
            count = min(CHUNK, arg - w)
            broker_free_s = max(now + trip_s, broker_free_s) + broker_cpu_s
            broker_free_s += count * t.broker_job_cpu_s
            broker_busy_s += count * t.broker_job_cpu_s + broker_cpu_s
            heappush(heap, (now + (broker_free_s - now), n, PUT_SERVED, w, arg, 0.0))
            n += 1
            continue
        elif kind == OPEN or kind == ARRIVE:
            if kind == OPEN and t.deadline_s >= 0:
                heappush(heap, (now + t.deadline_s, n, DEADLINE, 0, 0, 0.0))
                n += 1
            first = arrived
            if kind == ARRIVE:
                arrived += 1
            while arrived < events and not t.event_s[arrived] - now > 0:
                arrived += 1
            if arrived < events:
                heappush(heap, (now + (t.event_s[arrived] - now), n, ARRIVE, 0, 0, 0.0))
                n += 1
            elif not events:
                drained = 1
                heappush(heap, (now, n, DRAINED, 0, 0, 0.0))
                n += 1
            for event in range(first, arrived):
                put_from, entry, event_at[event] = jobs, t.event_entry[event], now
                for k in range(t.start_from[entry], t.start_from[entry + 1]):
                    of = t.start_type[k]
                    level = t.entry_priority[entry] if t.entry_priority[entry] else t.type_priority[of]
                    size = t.event_users[event] if batch[of] else 1
                    for user in range(1, t.event_users[event] + 1, size):
                        job_kind[jobs], job_event[jobs], job_first[jobs] = of, event, user
                        job_users[jobs] = job_left_users[jobs] = size
                        job_priority[jobs], job_parent[jobs], job_attempt[jobs], job_left[jobs] = level, -1, 1, -1
                        jobs += 1
                open_jobs += jobs - put_from
                heappush(heap, (now + t.announce_s, n, ANNOUNCED, put_from, jobs, 0.0))
                n += 1
            continue
        elif kind == STOP or t.deadline_s < 0:
            break
        else:  # SimPy waits for the first of two events, which is an event of its own
            heappush(heap, (now, n, STOP, 0, 0, 0.0))
            n += 1
            continue

        # The loop of process w: a call, if a burst before it is over, then turns until it is busy or asleep. Where the
        # end of a burst or of a sleep would be the next event of all, it need not go through the heap.
        mine, soon, at, left = ready[w], timers[w], next_ready[w], todo[w]
        host, limit_s = host_of[w], first_limit_s[w]
        missed[w] = 0
        while True:
            if single and not asked[w] and (call == NOTHING or call == GO_ON) and armed[w]:
                # Plain users, one burst and one sleep after the other, as long as nothing else happens anywhere. What
                # is done here is what is done below for everybody; it stops where there is anything to decide.
                next_s, interrupted = heap[0][0] if heap else NEVER, False
                k = host_running[host] + 1
                longer, crowded = stretch[k], k > cores
                number, recorded, busy, core, sleeping = numbers[w], rows[w], busy_s[w], core_s[host], asleep[w]
                turn_s, standing = -1.0, False  # timers up to `turn_s` are of the turn; the first may be used up
                a = place = -1
                if call == GO_ON:
                    a = lane_attempt[arg]
                    place = lane_coming[arg] if upto[a] != NOBODY else -1
                while True:
                    if call == GO_ON:
                        if place < 0 or fate[lane_user[arg]] or latency[place] <= 0:
                            break
                        provider_s[a] += now - burst_s - lane_asked_at[arg]
                        recorded += 1
                        lane_user[arg] = place
                        lane_asked_at[arg] = now
                        number += 1
                        if standing:
                            heapreplace(soon, (now + latency[place], number, GO_ON, arg))
                        else:
                            heappush(soon, (now + latency[place], number, GO_ON, arg))
                        call = NOTHING
                    if left:
                        if mine[at][1] != GO_ON:
                            break
                        arg = mine[at][2]
                    else:
                        if not soon:
                            break
                        top_s, _, what, arg = soon[0]
                        if what != GO_ON:
                            break
                        if top_s > turn_s:  # the turn is over
                            if limit_s <= now or len(mine) > at:
                                break
                            if top_s > now:
                                if limit_s <= top_s or over[lane_attempt[arg]]:
                                    break
                                at_s = top_s - now
                                if resolution_s:
                                    k = ceil(at_s / resolution_s - 1e-6)
                                    at_s = k * resolution_s if k > 1 else resolution_s
                                at_s = now + (at_s + overshoot_s)
                                n += 1
                                if not sleeping:
                                    sleeping, slept_at[w] = 1, now
                                if at_s >= next_s:
                                    interrupted = True
                                    break
                                now = at_s
                                if limit_s <= now:
                                    break
                            turn_s = now
                    a = lane_attempt[arg]
                    place = at_place[a]
                    if place >= upto[a]:
                        break
                    standing = not left
                    if left:
                        at += 1
                        left -= 1
                    else:
                        lent[w] = 0
                    at_place[a] = place + 1
                    burst_s = each_s[a]
                    cpu_s[a] += burst_s
                    if sleeping:
                        sleeping, slept_s = 0, now - slept_at[w]
                        coldness = slept_s / (slept_s + COLD_AFTER_S)
                        wakes[w] += coldness
                        burst_s += cold_s * coldness
                    burst_s *= longer
                    core += burst_s * cores / (host_running[host] + 1) if crowded else burst_s
                    busy += burst_s
                    n += 1
                    at_s = now + burst_s
                    if at_s >= next_s:
                        interrupted, call = True, GO_ON
                        break
                    now = at_s
                    call = GO_ON
                numbers[w], rows[w], busy_s[w], core_s[host], asleep[w] = number, recorded, busy, core, sleeping
                if standing and call == GO_ON:
                    heappop(soon)
                while soon and soon[0][0] <= turn_s:
                    _, _, what, lane = heappop(soon)
                    if what == GO_ON and over[lane_attempt[lane]]:
                        lane_attempt[lane] = -1
                        free_lanes.append(lane)
                    else:
                        mine.append((0.0, what, lane))
                        left, lent[w] = left + 1, 0
                if interrupted:
                    held = True
                    if call == GO_ON:
                        lane_coming[arg] = place
                        host_running[host] += 1
                        running[w] += 1
                        holding = (at_s, n - 1, GO_ON, w, arg, burst_s)
                    else:
                        sleep[w] += 1
                        holding = (at_s, n - 1, WOKEN, w, sleep[w], 0.0)
                    break
                if call == GO_ON and upto[a] != NOBODY:
                    lane_coming[arg] = place
            if call == GO_ON:
                a = lane_attempt[arg]
                if over[a]:
                    lane_attempt[arg] = -1
                    free_lanes.append(arg)
                else:
                    of, place = kind_of[a], lane_user[arg]
                    if place >= 0:
                        outcome = 0
                        if waits[of]:
                            provider_s[a] += now - burst_s - lane_asked_at[arg]
                            outcome = fate[place]
                        if outcome == TEMPORARY:
                            if nodes == len(node_place):
                                status = NO_ROOM
                                break
                            _link(node_place, node_after, again_first, again_last, a, nodes, place)
                            nodes += 1
                            again_users[a] += 1
                        else:
                            if outcome:
                                refused[a] += 1
                            if ledger[of]:
                                rows[w] += 1
                                if not armed[w]:
                                    armed[w], flush_s[w] = 1, t.type_flush_s[of]
                                    flush_user_s[w] = t.type_flush_user_s[of]
                                    heappush(heap, (now + FLUSH_EVERY_S, n, FLUSH_DUE, w, 0, 0.0))
                                    n += 1
                    lane_user[arg] = place = lane_coming[arg]
                    if place < 0:
                        lane_attempt[arg] = -1
                        free_lanes.append(arg)
                        lanes_left[a] -= 1
                        if not lanes_left[a]:
                            if again_users[a]:
                                try_error[a] = 1
                            if not ledger[of]:
                                call = END
                            else:
                                asked_at[a] = now
                                if not rows[w] and not committing[w]:
                                    heappush(heap, (now, n, STORED, w, a, float(END)))
                                    n += 1
                                else:
                                    flush_after[a] = -1
                                    if flush_first[w] < 0:
                                        flush_first[w] = a
                                    else:
                                        flush_after[flush_last[w]] = a
                                    flush_last[w] = a
                                    if not committing[w]:
                                        committing[w] = 1
                                        mine.append((0.0, GATHER, GATHERING - 1))
                    else:
                        lane_asked_at[arg] = now
                        latency_s = latency[place] if waits[of] else 0.0
                        if latency_s > 0:
                            numbers[w] += 1
                            heappush(soon, (now + latency_s, numbers[w], GO_ON, arg))
                        else:
                            mine.append((0.0, GO_ON, arg))
            elif call == NOTHING:
                pass
            elif call == GATHER:
                if arg:
                    mine.append((0.0, GATHER, arg - 1))
                else:
                    _queue_write(t, writes, flush_s[w], rows[w] * flush_user_s[w], WRITING, w, flush_first[w], TOLD)
                    n = _begin_write(heap, n, now, t, w, writes, writing, statement_s, began_at,
                                     asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
                    rows[w], flush_first[w] = 0, -1
            elif call == TOLD:
                committing[w], a = 0, arg
                while a >= 0:
                    if not over[a]:
                        mine.append((0.0, END, a))
                    a = flush_after[a]
                if flush_first[w] >= 0:
                    committing[w] = 1
                    mine.append((0.0, GATHER, GATHERING - 1))
            elif call == TALK:
                feed, asks, count, a = w * queues + arg, 0, 0, ended_first[w * queues + arg]
                while a >= 0:
                    count += 1
                    a = ended_after[a]
                if not asking[feed] and not pausing[feed] and free[feed] > 0:
                    asks, asking[feed], most[feed] = 1, 1, free[feed]
                broker_free_s = max(now + trip_s, broker_free_s) + broker_cpu_s
                broker_free_s += count * t.broker_job_cpu_s
                broker_busy_s += count * t.broker_job_cpu_s + broker_cpu_s
                heappush(heap, (now + (broker_free_s - now), n, TALKED, w, 2 * arg + asks, float(ended_first[feed])))
                n += 1
                ended_first[feed] = -1
            elif call == REPLIED or call == ANSWERED:
                q, answer = arg % queues, arg // queues - 1
                feed = w * queues + q
                if call == REPLIED:
                    talking[feed] = 0
                else:
                    pausing[feed] = 0
                if answer >= 0:
                    count = answer_count[answer]
                    asking[feed] = 0
                    free[feed] -= count
                    for a in range(answer_first[answer], answer_first[answer] + count):
                        mine.append((t.queue_cpu_s, BEGIN, a))
                    if count < most[feed]:
                        pausing[feed], there[feed], most[feed] = 1, 0, free[feed]
                        wait[feed] += 1
                        early_s = EARLY_S if answer_until_s[answer] < 0 else 0.0
                        delay_s = max(SHORTEST_S, abs(answer_until_s[answer]) - now)
                        until_s[feed] = abs(answer_until_s[answer]) - early_s
                        if answer_until_s[answer] != 0.0 and delay_s < BLOCKING_S + early_s:
                            numbers[w] += 1
                            heappush(soon, (now + delay_s, numbers[w], PAUSE_IS_OVER, q))
                        else:
                            mine.append((client_cpu_s, BLOCK, wait[feed] * queues + q))
                    free_answers.append(answer)
                asks = 1 if not asking[feed] and not pausing[feed] and free[feed] > 0 else 0
                if (asks or (call == REPLIED and ended_first[feed] >= 0)) and not talking[feed]:
                    talking[feed] = 1
                    mine.append((client_cpu_s, TALK, q))
            elif call == BLOCK:
                broker_free_s = max(now + trip_s, broker_free_s) + broker_cpu_s
                broker_busy_s += broker_cpu_s
                heappush(heap, (now + (broker_free_s - now), n, BLOCKED, w, arg, 0.0))
                n += 1
            elif call == PAUSE_IS_OVER:
                feed = w * queues + arg
                _leave(idle_after, idle_before, arg * (workers + 1) + w)
                pausing[feed] = 0
                if not asking[feed] and free[feed] > 0 and not talking[feed]:
                    talking[feed] = 1
                    mine.append((client_cpu_s, TALK, arg))
            else:
                a = arg
                of, j = kind_of[a], try_job[a]
                stored, took_s, rows_s = NOTHING, 0.0, 0.0  # the step that a reply of the database leads to
                if over[a] and call != BEGIN and call != WORKED:
                    call = NOTHING
                elif call == NEXT_PAGE or call == PAGE_READ or call == ADVANCED or call == SERVE or call == END:
                    database_s[a] += now - asked_at[a]
                if call == BEGIN:
                    started_at[a] = now
                    numbers[w] += 1
                    heappush(limits[w], (now + t.type_timeout_s[of], numbers[w], TIME_OUT, a))
                    limit_s = limits[w][0][0]
                    if known[job_event[j] * words + w // 62] >> (w % 62) & 1:
                        call = WORK
                    else:
                        n = _lend(heap, n, now, t, w, t.type_page_s[of] * t.slowness, 0.0, a, WORK, w,
                                  asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
                if call == WORK:
                    known[job_event[j] * words + w // 62] |= 1 << (w % 62)
                    cpu_s[a] += t.type_cpu_s[of]
                    mine.append((t.type_cpu_s[of], WORKED, a))
                elif call == WORKED:
                    if batch[of]:
                        stored, took_s = NEXT_PAGE, t.type_page_s[of]
                    elif ledger[of]:
                        stored, took_s, rows_s = SERVE, t.type_open_s[of], t.type_open_user_s[of] * try_users[a]
                    else:
                        call = SERVE
                elif call == PAGE_READ:
                    length = min(t.type_page[of], job_users[j] - job_cursor[j])
                    mine.append((_page_cpu_s(t, of, length), ENQUEUE, a))
                elif call == ENQUEUE:
                    length = min(t.type_page[of], job_users[j] - job_cursor[j])
                    # A page that is repeated was enqueued before.
                    fresh = length if job_enqueued[j] <= job_cursor[j] else 0
                    job_enqueued[j] = max(job_enqueued[j], job_cursor[j] + length)
                    if length:
                        count = (fresh + batch[of] - 1) // batch[of]
                        broker_free_s = max(now + trip_s, broker_free_s) + broker_cpu_s
                        broker_free_s += count * t.broker_job_cpu_s
                        broker_busy_s += count * t.broker_job_cpu_s + broker_cpu_s
                        at_s = now + (broker_free_s - now)
                        heappush(heap, (at_s, n, PAGE_SERVED, job_cursor[j] + 1, a, float(fresh)))
                        n += 1
                    else:
                        call = ADVANCE
                elif call == ADVANCED:
                    length = min(t.type_page[of], job_users[j] - job_cursor[j])
                    job_cursor[j] += length
                    call = END if length < t.type_page[of] else NEXT_PAGE
                elif call == TIME_OUT:
                    try_error[a], call, again_users[a], again_first[a] = 2, END, 0, -1
                    if upto[a] != NOBODY:
                        to_serve[a] = upto[a] - at_place[a]
                    if not batch[of]:
                        flying = [-1]
                        for lane in range(lanes):
                            if lane_attempt[lane] == a:
                                flying.append(lane_user[lane])
                                if not single:  # a burst may be under way
                                    flying.append(lane_coming[lane])
                        claimed, node = try_users[a] - to_serve[a], job_left[j]
                        place = t.type_offset[of] + t.event_start[job_event[j]] + job_first[j] - 2
                        for k in range(try_users[a]):
                            place += 1
                            if job_attempt[j] > 1:
                                place, node = node_place[node], node_after[node]
                                if waits[of]:
                                    before = place
                                    place = next_place[before] if before < len(next_place) else -1
                                    if place < 0:
                                        status, lacking = NO_DRAW, before
                                        break
                            if k >= claimed or place in flying or (waits[of] and fate[place] == TEMPORARY):
                                if nodes == len(node_place):
                                    status = NO_ROOM
                                    break
                                _link(node_place, node_after, again_first, again_last, a, nodes, place)
                                nodes += 1
                                again_users[a] += 1
                if call == NEXT_PAGE:
                    length = min(t.type_page[of], job_users[j] - job_cursor[j])
                    cpu_s[a] += _page_cpu_s(t, of, length)
                    stored, took_s = PAGE_READ, t.type_page_s[of] + t.type_page_user_s[of] * length
                elif call == ADVANCE:
                    stored, took_s = ADVANCED, t.type_flush_s[of]
                elif call == SERVE:
                    if at_place[a] >= 0 and waits[of] and ledger[of] and user_cpu_s[of] > LEAST_S:
                        upto[a], each_s[a] = at_place[a] + to_serve[a], user_cpu_s[of]
                    lanes_left[a] = max(1, min(t.type_lanes[of], try_users[a]))
                    for _ in range(lanes_left[a]):
                        if free_lanes:
                            lane = free_lanes.pop()
                        else:
                            if lanes == len(lane_attempt):
                                status = NO_ROOM
                                break
                            lane = lanes
                            lanes += 1
                        lane_attempt[lane], lane_user[lane], lane_coming[lane] = a, -1, -1
                        mine.append((0.0, GO_ON, lane))
                if stored != NOTHING:
                    asked_at[a] = now
                    if stored == SERVE or stored == ADVANCED:  # a writing transaction
                        _queue_write(t, writes, took_s, rows_s, OPENING if stored == SERVE else WRITING, w, a, stored)
                        n = _begin_write(heap, n, now, t, w, writes, writing, statement_s, began_at,
                                         asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip
                    else:
                        n = _lend(heap, n, now, t, w, took_s * t.slowness, 0.0, a, stored, w,
                                  asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip

            if call == END:
                over[a], upto[a] = 1, NOBODY
                withdrawn[w] += 1
                if withdrawn[w] > 100 and withdrawn[w] > (len(soon) + len(limits[w])) / 2:
                    _withdraw(soon, limits[w], over, lane_attempt, free_lanes)
                    limit_s = limits[w][0][0] if limits[w] else NEVER
                    withdrawn[w] = 0
                q = queue_of[kind_of[a]]
                feed = w * queues + q
                if ended_first[feed] < 0:
                    ended_first[feed] = a
                else:
                    ended_after[ended_last[feed]] = a
                ended_last[feed] = a
                free[feed] += 1
                if not talking[feed]:
                    talking[feed] = 1
                    mine.append((client_cpu_s, TALK, q))

            if status != STOPPED:
                break
            if single or running[w] < servers:
                next_lane, any_ready = -1, left > 0
                if not any_ready:  # a turn is over: the timers that are due come next
                    if at:
                        del mine[:at]
                        at = 0
                    while True:
                        top_s = soon[0][0] if soon else NEVER
                        if top_s < limit_s or (top_s == limit_s and len(soon) > 0 and soon[0] < limits[w][0]):
                            if top_s > now:
                                break
                            _, _, call, lane = heappop(soon)
                            if call != GO_ON:
                                mine.append((0.0, call, lane))
                            elif over[lane_attempt[lane]]:
                                lane_attempt[lane] = -1
                                free_lanes.append(lane)
                            elif next_lane >= 0 or mine:
                                mine.append((0.0, GO_ON, lane))
                            else:
                                next_lane = lane  # mostly the only one
                        elif limit_s <= now:
                            _, _, call, lane = heappop(limits[w])
                            limit_s = limits[w][0][0] if limits[w] else NEVER
                            if not over[lane]:
                                mine.append((0.0, call, lane))
                        else:
                            break
                    left = len(mine)
                    any_ready = left > 0 or next_lane >= 0
                    if any_ready and asked[w] and not lent[w]:  # a thread has the interpreter between two turns
                        if next_lane >= 0:
                            mine.insert(0, (0.0, GO_ON, next_lane))
                        left, call = 0, NOTHING
                        n = _lend_it(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)
                        if single:
                            break
                        continue
                    if any_ready:
                        lent[w] = 0
                elif asked[w] and now - asked[w][0][0] >= t.switch_s:  # or takes it
                    call = NOTHING
                    n = _lend_it(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)
                    lent[w] = 0
                    if single:
                        break
                    continue
                if any_ready:
                    if next_lane >= 0:
                        burst_cpu_s, call, arg = 0.0, GO_ON, next_lane
                    else:
                        burst_cpu_s, call, arg = mine[at]
                        at += 1
                        left -= 1
                    if call == GO_ON:  # a lane claims its next user only now
                        a = lane_attempt[arg]
                        if upto[a] != NOBODY:
                            to_serve[a] = upto[a] - at_place[a]
                        if over[a] or not to_serve[a]:
                            lane_coming[arg] = -1
                        else:
                            of, place = kind_of[a], at_place[a]
                            if place >= 0:
                                at_place[a] = place + 1
                            else:
                                node = -2 - place
                                place, at_place[a] = node_place[node], -2 - node_after[node]
                                if waits[of]:
                                    before = place
                                    place = next_place[before] if before < len(next_place) else -1
                                    if place < 0:
                                        status, lacking = NO_DRAW, before
                                        break
                            lane_coming[arg] = place
                            to_serve[a] -= 1
                            burst_cpu_s = user_cpu_s[of]
                            cpu_s[a] += burst_cpu_s
                    if asleep[w]:
                        asleep[w] = 0
                        slept_s = now - slept_at[w]
                        coldness = slept_s / (slept_s + COLD_AFTER_S)
                        wakes[w] += coldness
                        burst_cpu_s += cold_s * coldness
                    if burst_cpu_s <= 0:
                        burst_s = 0.0
                        continue
                    k = host_running[host] + 1
                    wall_s = burst_cpu_s * stretch[k]
                    core_s[host] += wall_s if k <= cores else wall_s * cores / k
                    busy_s[w] += wall_s
                    at_s = now + wall_s
                    n += 1
                    if single and (not heap or at_s < heap[0][0]):
                        now, burst_s = at_s, wall_s
                        continue
                    host_running[host] = k
                    running[w] += 1
                    if held:
                        heappush(heap, holding)
                    held, holding, call = True, (at_s, n - 1, call, w, arg, wall_s), NOTHING
                    if not single:
                        continue
                elif single or not running[w]:  # asleep until the next timer that counts
                    first_look, call, at_s = True, NOTHING, -1.0
                    if not asleep[w]:
                        asleep[w], slept_at[w] = 1, now
                    while True:
                        top_s = soon[0][0] if soon else NEVER
                        is_late = top_s > limit_s or (top_s == limit_s and (len(soon) == 0 or soon[0] > limits[w][0]))
                        if is_late:
                            top_s = limit_s
                            if top_s == NEVER:
                                break
                            gone = over[limits[w][0][3]] > 0
                        else:
                            gone = soon[0][2] == GO_ON and over[lane_attempt[soon[0][3]]] > 0
                        if first_look:
                            first_look = False
                            if top_s <= now:
                                asleep[w] = 0
                        if not gone:
                            wait_s = top_s - now
                            if wait_s > 0:
                                if resolution_s:
                                    wait_s = max(1, ceil(wait_s / resolution_s - 1e-6)) * resolution_s
                                wait_s += overshoot_s
                            else:
                                wait_s = 0.0
                            at_s = now + wait_s
                            break
                        if is_late:
                            heappop(limits[w])
                            limit_s = limits[w][0][0] if limits[w] else NEVER
                        else:
                            free_lanes.append(soon[0][3])
                            lane_attempt[soon[0][3]] = -1
                            heappop(soon)
                    if at_s >= 0:
                        sleep[w] += 1
                        n += 1
                        if not held and not asked[w] and (not heap or at_s < heap[0][0]):
                            now = at_s
                            continue
                        if held:
                            heappush(heap, holding)
                        held, holding = True, (at_s, n - 1, WOKEN, w, sleep[w], 0.0)
            if asked[w]:
                n = _lend_on(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)
            break
        if status != STOPPED:
            break
        next_ready[w], todo[w], first_limit_s[w] = at, left, limit_s

    totals = (slot_s, lane_s, all_provider_s, broker_busy_s, database[0])
    per_job = (job_kind, job_event, job_first, job_priority, job_parent, job_queued_at)
    per_attempt = (try_job, try_worker, try_number, try_users, refused, again_users, try_outcome, try_error)
    times = (ready_at, taken_at, started_at, finished_at, cpu_s, provider_s, database_s)
    parts = (busy_s, core_s, wakes, admitted, event_at, lent_s)
    return status, lacking, now, drained, ended, order, totals, parts, per_job, per_attempt, times


# The lists of `simulate`; compiled, they are arrays.


def _ints(count: int) -> Any:
    return [0] * count


def _floats(count: int) -> Any:
    return [0.0] * count


def _queue_write(
    t: Any, writes: Any, fixed_s: float, rows_s: float, statements: int, w: int, arg: int, code: int
) -> None:
    """A transaction of process w waits for the writer."""
    each = t.slowness / statements
    beside_s = (IN_SQLITE * fixed_s + IN_SQLITE_ROW * rows_s) * each
    writes.append(((fixed_s + rows_s) * each - beside_s, beside_s, w, arg, code + CODES * statements))


def _begin_write(
    heap: Any, n: int, now: float, t: Any, inside: int, writes: Any, writing: Any, statement_s: Any, began_at: Any,
    asked: Any, running: Any, lent: Any, host_running: Any, core_s: Any, lent_s: Any, back_at: Any
) -> int:  # fmt: skip
    """The first of the transactions that wait begins, if the writer is free; returns the next event's number."""
    if writing[0] or not writes:
        return n
    held_s, beside_s, w, arg, code = writes.pop(0)
    writing[0], statement_s[0], statement_s[1], began_at[0] = 1, held_s, beside_s, now
    return _lend(heap, n, now, t, w, held_s, beside_s, arg, code - CODES, inside,
                 asked, running, lent, host_running, core_s, lent_s, back_at)  # fmt: skip


def _lend(
    heap: Any, n: int, now: float, t: Any, w: int, cpu_s: float, beside_s: float, arg: int, code: int, inside: int,
    asked: Any, running: Any, lent: Any, host_running: Any, core_s: Any, lent_s: Any, back_at: Any
) -> int:  # fmt: skip
    """A thread of process w is to compute a statement; `inside`: the process whose loop is at it now, or -1."""
    if not t.switch_s:
        if code == WORK or code == NEXT_PAGE or code == PAGE_READ:
            heappush(heap, (now + cpu_s, n, STORED, w, arg, float(code)))
            return n + 1
        return _beside(heap, n, now, t, w, cpu_s + beside_s, arg, float(code), host_running, core_s, lent_s)
    asked[w].append((now, cpu_s, arg, code))
    if w == inside:
        return n
    return _lend_on(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)


def _lend_on(
    heap: Any, n: int, now: float, t: Any, w: int,
    asked: Any, running: Any, lent: Any, host_running: Any, core_s: Any, lent_s: Any, back_at: Any
) -> int:  # fmt: skip
    """Threads that wait for the interpreter get it, if the loop does not compute."""
    while asked[w] and running[w] < t.servers:
        n = _lend_it(heap, n, now, t, w, asked, running, lent, host_running, core_s, lent_s, back_at)
    return n


def _lend_it(
    heap: Any, n: int, now: float, t: Any, w: int,
    asked: Any, running: Any, lent: Any, host_running: Any, core_s: Any, lent_s: Any, back_at: Any
) -> int:  # fmt: skip
    """The thread that waited longest gets the interpreter of process w."""
    asked_at, cpu_s, arg, code = asked[w].pop(0)
    running[w] += 1
    lent[w] = 1
    slept_s = max(0.0, asked_at - back_at[w])
    wall_s = _on_core(t, w, cpu_s + t.cold_s * (slept_s / (slept_s + COLD_AFTER_S)), host_running, core_s)
    lent_s[w] += wall_s
    heappush(heap, (now + wall_s, n, GIVEN_BACK, w, arg, float(code)))
    return n + 1


def _beside(
    heap: Any, n: int, now: float, t: Any, w: int, cpu_s: float, arg: int, value: float,
    host_running: Any, core_s: Any, lent_s: Any
) -> int:  # fmt: skip
    """A thread of process w computes without the interpreter."""
    wall_s = _on_core(t, w, cpu_s, host_running, core_s)
    lent_s[w] += wall_s
    heappush(heap, (now + wall_s, n, COMPUTED, w, arg, value))
    return n + 1


def _on_core(t: Any, w: int, cpu_s: float, host_running: Any, core_s: Any) -> Any:
    """A burst begins on the host of process w; returns how long it will take."""
    host = t.host_of[w]
    k = host_running[host] + 1
    wall_s = cpu_s * t.stretch[k]
    core_s[host] += wall_s if k <= t.cores else wall_s * t.cores / k
    host_running[host] = k
    return wall_s


def _page_cpu_s(t: Any, kind: int, users: int) -> Any:
    """What a page of `users` users costs a fan-out's loop."""
    batches = (users + t.type_batch[kind] - 1) // t.type_batch[kind]
    return t.type_page_cpu_s[kind] + t.type_batch_cpu_s[kind] * batches + t.type_user_cpu_s[kind] * users


def _opens_at(log: Any, in_window: Any, queue: int, now: float, weight: int, limit: int) -> Any:
    """0 if the rate limit admits a job of this weight now, else the time from which on it may be asked again."""
    gone = 0
    while gone < len(log) and log[gone][0] <= now:
        in_window[queue] -= log[gone][1]
        gone += 1
    if gone:
        del log[:gone]
    if in_window[queue] and in_window[queue] + weight > limit:
        left = in_window[queue]
        for leaves_at, weighs in log:
            left -= weighs
            if not left or left + weight <= limit:
                return leaves_at
    return 0.0


def _join(first: Any, last: Any, after: Any, job: int, level: int) -> None:
    """A job joins the end of a level."""
    after[job] = -1
    if first[level] < 0:
        first[level] = job
    else:
        after[last[level]] = job
    last[level] = job


def _idle(after: Any, before: Any, queue: int, worker: int, workers: int) -> None:
    """A process found too few jobs: it waits, behind those who wait already."""
    ring = queue * (workers + 1) + workers
    place = ring - workers + worker
    if after[place] < 0:
        last = before[ring]
        after[last] = before[ring] = place
        before[place], after[place] = last, ring


def _leave(after: Any, before: Any, place: int) -> None:
    """A process waits no longer, if it did."""
    if after[place] >= 0:
        after[before[place]], before[after[place]] = after[place], before[place]
        after[place] = -1


def _wake(heap: Any, n: int, at_s: float, after: Any, before: Any, queue: int, workers: int) -> int:
    """Of the processes that wait, the one that has waited longest is told at `at_s`."""
    ring = queue * (workers + 1) + workers
    place = after[ring]
    if place == ring:
        return n
    _leave(after, before, place)
    heappush(heap, (at_s, n, WAKE, place - ring + workers, queue, 0.0))
    return n + 1


def _link(place_of: Any, after: Any, first: Any, last: Any, attempt: int, node: int, place: int) -> None:
    """One more user of an attempt who has to be served again."""
    place_of[node], after[node] = place, -1
    if first[attempt] < 0:
        first[attempt] = node
    else:
        after[last[attempt]] = node
    last[attempt] = node


def _withdraw(soon: Any, late: Any, over: Any, lane_attempt: Any, free_lanes: Any) -> None:
    """Drop the timers whose attempt is over; their lanes are free."""
    kept = [timer for timer in late if not over[timer[3]]]
    late.clear()
    late.extend(kept)
    heapify(late)
    still = soon[:0]
    for timer in soon:
        if timer[2] == GO_ON and over[lane_attempt[timer[3]]]:
            lane_attempt[timer[3]] = -1
            free_lanes.append(timer[3])
        else:
            still.append(timer)
    soon.clear()
    soon.extend(still)
    heapify(soon)
