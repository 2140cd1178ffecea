/* The replay protocol of one key, for spin: claim, lease, renewal, fence, ended claim, take-over, settle.
 *
 * Callers 0 and 1 make a request each, on two machines; caller 2 is an operator, on a third. A machine's owners are
 * looked up there alone, so between them the lease decides, by clocks that differ. A process may crash at any step, and
 * then asks again. All runs that have had their effect are in the ledger, which can be asked, and which refuses an
 * effect that it has denied before.
 *
 * Each option of a `do` is one step, as a move of tests/simulation/ is, and what it needs of kvreplay/_protocol/flow.py
 * stands beside it. The invariants are those of tests/simulation/invariants.py, by the same words; X is some run.
 *
 * It prints each step and what came of it; test_model.py makes the same steps on the real flows and compares.
 */

/* What may happen, and how often. Times are ticks. */
#ifndef TICKS
#define TICKS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef RENEWALS
#define RENEWALS 1
#endif
#ifndef LEASE
#define LEASE 2
#endif
#ifndef SKEW
#define SKEW 1      /* a clock may be ahead by so much */
#endif
#ifndef ON_TIME
#define ON_TIME 0   /* renewals come after each INTERVAL, and nothing of an owner's takes any time: see OnTime there */
#endif
#define INTERVAL 1

/* Bugs: each lets a step do what it must not. */
#ifndef BUG
#define BUG 0
#endif
#define COMPLETES_ANYWAY (BUG == 1)   /* does not compare, and puts its answer over whatever is there */
#define RELEASES_ANYWAY  (BUG == 2)   /* removes whatever is there */
#define RENEWS_ANYWAY    (BUG == 3)   /* ignores that the claim is gone */
#define IGNORES_LEASE    (BUG == 4)   /* takes over before the lease is over */
#define SETTLES_ANY      (BUG == 5)   /* an operator settles another claim than he has seen */
#define BELIEVES_LATE    (BUG == 6)   /* is answered although its answer was not stored */
#define HIDES_END        (BUG == 7)   /* does not say in its claim that its run has ended */

#define RUNS (3 + CRASHES)            /* run 0 is none */
#define NEVER 255

mtype = { raise, rerun, reconcile };               /* on_in_doubt */
mtype = { nothing, claim, ended, answer };         /* what the store holds */
mtype = { reads, looks_up, looks_again, asks_ledger, reconciles, claims, calls, is_running, runs_handler,
          declines, loses_contact_before, loses_contact_after, reads_to_renew, renews, returns, completes,
          withdraws, reads_to_tell, tells_end, crashes, ticks,
          visits, reads_to_settle, looks_up_to_settle, settles, is_done };
mtype = { going, answered, in_flight, in_doubt, claim_lost, declined, unsure, settled, left_alone };

typedef Record { mtype kind; byte token; byte lease }
typedef Run {
    byte caller, attempt;
    bool alive;      /* its flow goes on */
    bool stored;     /* its answer was stored */
    bool barred;     /* the ledger has denied it, and refuses it */
    bool lapsed      /* it was alive when its lease was over and it was run again, as the policy says */
}
typedef Caller {
    mtype next;
    Record found;    /* what the store was found to hold, */
    byte told;       /* and when, by the clock of the place */
    Record held;     /* its claim, as it is stored */
    Record before;   /* what it puts back if nothing happened */
    byte response;   /* the run whose answer a reconciler or an operator stores; 0: none */
    byte seen;       /* the run whose claim an operator has seen */
    byte mine;       /* its run */
    byte attempt, renewals;
    byte due;        /* ON_TIME: until when it must go on */
    mtype error;     /* what it ends with, once that is told in its claim */
    mtype fate;
    byte whose /* whose answer it got */
}

mtype policy;
Record store;
Run runs[RUNS];
Caller caller[3];
byte clock, ahead[3], crashes_left = CRASHES, claims_made = 1, acknowledged;
byte ledger[RUNS], effects;

#define my caller[i]
#define TOLD (clock + ahead[i])
#define IS(r) (store.kind == r.kind && store.token == r.token && store.lease == r.lease)
/* flow.py, _is_running: the owner is gone if it was on this machine, and else its lease decides. */
#define IN_DOUBT(r, time) (r.kind == ended || r.kind == claim && (runs[r.token].caller == i || r.lease <= time || IGNORES_LEASE))
/* simulation/moves.py, _hurries: ON_TIME no time passes while an owner has something to do. */
#define BETWEEN(c) (c.next == looks_up || c.next == asks_ledger || c.next == reconciles || c.next == claims || c.next == calls)
#define OWNS(c) (c.mine && (store.kind == claim || store.kind == ended) && store.token == c.mine)
#define HURRIES(c) (clock >= c.due && (OWNS(c) || BETWEEN(c) || c.next == looks_up_to_settle || c.next == settles))

#define invariant(holds, broken) if :: (holds) :: else -> printf(broken); assert(false) fi
#define set(record, k, r, l) record.kind = k; record.token = r; record.lease = l
#define copy(to, from) set(to, from.kind, from.token, from.lease)
#define due_in(ticks) my.due = (ON_TIME -> clock + ticks : NEVER)

/* What a step is, and what came of it: read by traces.py. */
inline step(What) { printf("STEP %d %e\n", i, What) }
inline then() {
    printf("THEN %e %d %d %d", store.kind, runs[store.token].caller, runs[store.token].attempt, store.lease);
    printf(" %e %d %d\n", my.fate, runs[my.whose].caller, runs[my.whose].attempt)
}

inline find() { copy(my.found, store); my.told = TOLD; due_in(0) }

/* invariants.check_living: within the bound, no owner that lives is found in doubt. */
#define check_living(r) invariant(!ON_TIME || r.kind != claim || !runs[r.token].alive, "BROKEN a living owner that renews in time is found in doubt\n")

inline put(Kind, Whose, Until) {
    if   /* invariants.note_put */
    :: Kind == answer ->
        invariant(!runs[Whose].stored, "BROKEN the answer X is stored a second time\n");
        runs[Whose].stored = true
    :: else
    fi;
    if
    :: (store.kind == claim || store.kind == ended) && store.token != my.mine ->
        check_living(store);
        if
        :: policy == rerun && runs[store.token].alive && store.lease <= TOLD -> runs[store.token].lapsed = true
        :: else
        fi
    :: else
    fi;
    set(store, Kind, Whose, Until);
    invariant(!acknowledged || store.kind == answer && store.token == acknowledged, "BROKEN the acknowledged answer X is lost\n")   /* check_kept */
}

inline finish(How) {
    my.fate = How;
    runs[my.mine].alive = false; my.mine = 0; my.next = is_done; my.due = NEVER;
    set(my.found, nothing, 0, 0); set(my.held, nothing, 0, 0); set(my.before, nothing, 0, 0);
    my.told = 0; my.response = 0; my.seen = 0; my.renewals = 0; my.error = going
}
inline give(Whose) {   /* invariants.acknowledge */
    invariant(runs[Whose].stored, "BROKEN an answer was given that was never stored\n");
    invariant(!acknowledged || acknowledged == Whose, "BROKEN two answers in one lifetime: X and X\n");
    acknowledged = Whose; my.whose = Whose;
    invariant(store.kind == answer && store.token == Whose, "BROKEN the acknowledged answer X is lost\n");
    finish(answered)
}
inline fail(How) {   /* invariants.check_left */
    invariant(!(OWNS(my) && store.kind == claim), "BROKEN a run that has ended does not say so in its claim\n");
    finish(How)
}

/* The most recent effect that no stored answer tells of: simulation/answers.py, _effect. */
inline ask(Denied) {
    my.response = 0; j = effects;
    do
    :: j > 0 && runs[ledger[j - 1]].stored -> j--
    :: else -> break
    od;
    if
    :: j > 0 -> my.response = ledger[j - 1]
    :: else -> runs[Denied].barred = true
    fi;
    j = 0
}

inline begin() {
    my.next = reads; my.fate = going; my.error = going; my.due = NEVER; my.attempt++; my.renewals = RENEWALS
}

/* flow.py, _admit. */
inline doubt() {
    if
    :: policy == rerun -> copy(my.before, my.found); my.next = claims
    :: else -> my.next = looks_again
    fi
}
inline decide() {
    if
    :: my.found.kind == nothing -> my.next = claims
    :: my.found.kind == answer -> give(my.found.token)
    :: my.found.kind == claim -> my.next = looks_up
    :: my.found.kind == ended -> doubt()
    fi
}

/* endings.py, end_in_doubt: the claim is to say that its run has ended. */
inline tell(Error) {
    due_in(0);
    if
    :: HIDES_END -> fail(Error)
    :: else -> my.error = Error; my.next = reads_to_tell
    fi
}

/* invariants.check_run: the handler runs once, unless the policy allows more, and never while its owner lives. */
inline check_run() {
    j = 0;
    do
    :: j < effects && (runs[my.mine].lapsed || runs[ledger[j]].lapsed) -> j++
    :: j < effects && !runs[my.mine].lapsed && !runs[ledger[j]].lapsed ->
        invariant(!runs[ledger[j]].alive, "BROKEN the handler runs again while the owner of X lives\n");
        invariant(!runs[ledger[j]].stored, "BROKEN the handler runs again although X is the answer\n");
        invariant(policy == rerun, "BROKEN the handler runs again, and the policy does not allow it\n");
        j++
    :: else -> break
    od;
    j = 0
}

proctype Request(byte i) {
    byte j;
    do
    :: atomic { my.next == reads ->
        step(reads); find(); decide(); then() }

    /* flow.py, _admit: what is there decides. */
    :: atomic { my.next == looks_up ->
        step(looks_up);
        if
        :: IN_DOUBT(my.found, my.told) -> doubt()
        :: else -> fail(in_flight)
        fi; then() }
    :: atomic { my.next == looks_again ->
        step(looks_again);
        if
        :: !IS(my.found) -> find(); decide()
        :: IS(my.found) && policy == raise ->
            find();
            check_living(store);
            invariant(IN_DOUBT(store, TOLD), "BROKEN a request found a key in doubt that was not\n");
            fail(in_doubt)
        :: IS(my.found) && policy == reconcile -> find(); my.next = asks_ledger
        fi; then() }
    :: atomic { my.next == asks_ledger ->
        step(asks_ledger); check_living(my.found); ask(my.found.token); my.told = TOLD; due_in(0);
        if
        :: my.response -> my.next = reconciles
        :: else -> my.next = claims
        fi; then() }
    :: atomic { my.next == reconciles ->
        step(reconciles);
        if
        :: IS(my.found) -> put(answer, my.response, 0); give(my.response)
        :: else -> find(); decide()
        fi; then() }

    /* flow.py, _run_claimed: claim, run, answer. */
    :: atomic { my.next == claims ->
        step(claims);
        if
        :: IS(my.found) ->
            my.mine = claims_made; claims_made++;
            runs[my.mine].caller = i; runs[my.mine].attempt = my.attempt; runs[my.mine].alive = true;
            put(claim, my.mine, my.told + LEASE); copy(my.held, store); my.told = 0; set(my.found, nothing, 0, 0); my.next = calls
        :: else -> set(my.before, nothing, 0, 0); find(); decide()
        fi; then() }
    :: atomic { my.next == calls && !runs[my.mine].barred ->
        step(runs_handler);
        check_run(); ledger[effects] = my.mine; effects++;
        set(my.before, nothing, 0, 0);
        due_in(INTERVAL); my.next = is_running; then() }
    :: atomic { my.next == calls -> /* or the ledger refuses */
        step(declines); due_in(0); my.next = withdraws; then() }
    :: atomic { my.next == calls && !runs[my.mine].barred ->
        step(loses_contact_before); tell(unsure); then() }
    :: atomic { my.next == is_running ->
        step(returns); due_in(0); my.next = completes; then() }
    :: atomic { my.next == is_running ->
        step(loses_contact_after); tell(unsure); then() }
    :: atomic { my.next == completes ->   /* _replace_claim: the fence */
        step(completes);
        if
        :: IS(my.held) || COMPLETES_ANYWAY -> put(answer, my.mine, 0); give(my.mine)
        :: else ->
            if
            :: BELIEVES_LATE -> give(my.mine)
            :: else -> tell(claim_lost)
            fi
        fi; then() }
    :: atomic { my.next == withdraws ->   /* endings.py, withdraw */
        step(withdraws);
        if
        :: IS(my.held) || RELEASES_ANYWAY -> put(my.before.kind, my.before.token, my.before.lease)
        :: else
        fi;
        fail(declined); then() }
    :: atomic { my.next == reads_to_tell ->   /* endings.py, end_in_doubt */
        step(reads_to_tell);
        if
        :: OWNS(my) -> copy(my.found, store); my.next = tells_end
        :: else -> fail(my.error)
        fi; then() }
    :: atomic { my.next == tells_end ->
        step(tells_end);
        if
        :: IS(my.found) -> put(ended, my.mine, my.found.lease)
        :: else
        fi;
        fail(my.error); then() }

    /* flow.py, renew: the first refusal ends it. */
    :: atomic { my.next == is_running && my.renewals && (!ON_TIME || clock >= my.due) ->
        step(reads_to_renew); my.renewals--;
        if
        :: OWNS(my) -> my.told = TOLD; due_in(0); my.next = renews
        :: else -> my.renewals = 0; my.due = NEVER
        fi; then() }
    :: atomic { my.next == renews ->
        step(renews);
        if
        :: IS(my.held) || RENEWS_ANYWAY ->
            put(claim, my.mine, my.told + LEASE); copy(my.held, store); due_in(INTERVAL)
        :: else -> my.renewals = 0; my.due = NEVER
        fi;
        my.told = 0;
        my.next = is_running; then() }

    :: atomic { crashes_left && my.next != reads && my.next != is_done ->
        step(crashes); crashes_left--; finish(going); begin(); then() }
    :: my.next == is_done -> break
    od
}

/* flow.py, settle. */
inline weigh() {
    if
    :: my.found.kind == nothing || my.found.kind == answer || my.found.token != my.seen && !SETTLES_ANY -> finish(left_alone)
    :: else ->
        if
        :: my.found.kind == ended -> my.next = settles
        :: else -> my.next = looks_up_to_settle
        fi
    fi
}

proctype Operator(byte i) {
    byte j;
end:do
    :: atomic { my.next == visits && (store.kind == ended || store.kind == claim && store.lease <= TOLD) ->
        step(visits); check_living(store); my.seen = store.token; ask(my.seen); my.next = reads_to_settle; then() }
    :: atomic { my.next == reads_to_settle ->
        step(reads_to_settle); find(); weigh(); then() }
    :: atomic { my.next == looks_up_to_settle ->
        step(looks_up_to_settle);
        if
        :: IN_DOUBT(my.found, my.told) -> my.next = settles
        :: else -> finish(in_flight)
        fi; then() }
    :: atomic { my.next == settles ->
        step(settles);
        if
        :: IS(my.found) && my.response -> put(answer, my.response, 0); finish(settled)
        :: IS(my.found) && !my.response -> put(nothing, 0, 0); finish(settled)
        :: else -> find(); weigh()
        fi; then() }
    :: my.next == is_done -> break
    od
}

#define DONE (caller[0].next == is_done && caller[1].next == is_done && (caller[2].next == visits || caller[2].next == is_done))

proctype Clock(byte i) {
end:do
    :: atomic { clock < TICKS && !DONE && !HURRIES(caller[0]) && !HURRIES(caller[1]) && !HURRIES(caller[2]) ->
        step(ticks); clock++; then() }
    od
}

init {
    byte i, j;
    atomic {
        if
        :: policy = raise
        :: policy = rerun
        :: policy = reconcile
        fi;
        store.kind = nothing;
        for (i : 0 .. 2) {
            set(my.found, nothing, 0, 0); set(my.held, nothing, 0, 0); set(my.before, nothing, 0, 0);
            begin()
        }
        select (j : 0 .. SKEW); ahead[1] = j; ahead[2] = j;   /* that of caller 0 is behind: the two are alike */
        caller[2].next = visits;
        printf("SCENARIO %e %d %d %d\n", policy, ahead[0], ahead[1], ahead[2]);
        run Request(0); run Request(1); run Operator(2); run Clock(0)
    }
}
