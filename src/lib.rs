//! clerk-sync keeps Clerk's users, organizations and memberships in a Supabase Postgres, correctly enough that
//! Row-Level-Security policies can be built on them. This page is the map; read it before the code.
//!
//! # One idea
//!
//! Webhooks and API responses are turned into one value, a [`model::Change`]: *at this moment of Clerk's clock this object looked like
//! this, or was deleted*. One writer takes batches of changes, and the newer one wins. So duplicates, reordering, replays and late
//! parents need no special cases.
//!
//! ```text
//! webhook   → verify → parse → Change ┐
//!                                     ├→ fold (one change per object) → clerk_sync.apply(batch) → an outcome per change
//! reconcile → list → compare → Change ┘
//! ```
//!
//! # The map
//!
//! Dependencies point one way; `tests/layering.rs` has the complete table:
//! `main → command → { app, ops, doctor → policy } → health → { webhook, reconcile, upkeep } → { clerk, store } → model`.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`model`] | the types that all others share, and the folding of batches; pure |
//! | [`clerk`] | parsing of Clerk's JSON into `model` (pure), and the client of its Backend API |
//! | [`store`] | Postgres: sessions as the worker's role, the calls of `clerk_sync.*`, queries, migrations |
//! | [`webhook`] | one delivery: signature, body, write queue, response |
//! | [`reconcile`] | finds and repairs what webhooks missed: passes, their lease, their schedule |
//! | [`upkeep`] | bookkeeping: retries dead letters, prunes old rows, purges emptied rows |
//! | [`command`] | the commands: their arguments, and what they print |
//! | [`doctor`] | checks of the whole set-up, each with a fix |
//! | [`health`], [`ops`] | `/livez` and `/readyz` for the platform; metrics and the status page, on a listener of their own |
//! | [`app`] | starts `serve`: listener, write queue, schedule and upkeep; stops them in order |
//! | [`door`] | a listener that idle and slow connections cannot block, for [`app`] and [`ops`] |
//! | [`config`], [`dotenv`] | the environment variables of `serve`, all checked at once; the `.env` file |
//! | [`policy`] | policies for the application's own tables: prints them, finds what is wrong with them |
//! | [`prompt`] | questions on a terminal, for `init` |
//! | [`terminal`] | printing, without control characters that a terminal would obey |
//! | [`telemetry`], [`clock`], [`thread`], [`os`], [`procfs`] | logs and metric names; the only reader of the wall clock; runs a task on its own thread; system calls; resource use from `/proc` |
//! | [`sender`] | signing and posting as Svix does, for `replay` and tests |
//! | [`failpoint`] | fault injection for tests; compiled out of releases |
//! | `testkit/` | the library of tests and `lab/`: a private Postgres, a simulated Clerk, a network with faults, a worker as a process |
//! | `lab/` | demo, benchmarks and fault tests: `./x demo`, `./x bench`, `./x chaos`, `./x soak` |
//! | `tests/lagging.rs` | an API that lags, is misdated or silent, scenario by scenario |
//! | `tests/counterexamples.rs` | each scenario of `docs/ordering.md` with all rules, and without the one that it needs |
//! | `tests/hostile.rs`, `tests/support/oracle.rs` | thousands of histories of a hostile Clerk, and the rules of order in plain Rust: `./x long` |
//! | `tests/faults.rs`, `tests/bad_input.rs` | 30 faults and 92 bad inputs, each with the required result: `./x faults` |
//! | `tests/outputs.rs`, `tests/snapshots/` | the whole output of each command |
//! | `tests/documents.rs`, `tests/plain_words.rs` | the commands, links and SQL of the documentation; words to avoid |
//! | `fuzz/` | verify, parse and fold under a fuzzer, with its corpus |
//! | `tests/node/rls/` | policies as Supabase's own programs run them, and `examples/` as Next.js does |
//! | `ops/`, `docs/` (folders) | Prometheus alert rules; documentation for users |
//! | `tests/two_releases.rs`, `tests/protocol.rs` | two releases in one database; the SQL interface between program and database |
//! | `npm/`, `skills/`, `llms.txt`, `examples/` | packages for `npx`; what coding agents read; a Next.js application |
//! | `migrations/manifest.txt` | everything that a fresh installation has, for `doctor` and `migrate` |
//! | `.sqlx/` | the types of the queries that are checked when the program is compiled; `./x queries` writes them |
//! | `migrations/` | the schemas, tables and types; in `replayed/` views, functions and policies, including the writer, `clerk_sync.apply`, with a file for each step |
//!
//! # How a webhook is processed
//!
//! 1. [`door`] accepts the connection, with limits on time and number; the route is `POST /webhooks/clerk`.
//! 2. [`webhook::extract::Verified`] exists only for a complete body ([`webhook::body_memory`] limits the memory for all of them) with a valid
//!    signature ([`webhook::signature`]) and a timestamp within five minutes. Anything else is 400, without a query. A valid signature
//!    with a wrong timestamp means a wrong clock or an old request: `/readyz` reports the clock only if the database's clock agrees.
//! 3. [`clerk::event::parse`] reads the body: a change, nothing (a type that is not copied), or a dead letter.
//! 4. [`webhook::receive`] makes a [`model::Delivery`] of it, enqueues it in the [`webhook::queue::WriteQueue`] and waits. The queue, on its own
//!    thread, gathers deliveries while a batch is in flight; a [`webhook::batch_writer`] folds the batch ([`model::Batch::fold`]) and makes one
//!    call. If the database is far away, two batches are in flight.
//! 5. `clerk_sync.apply` locks a table that only the schema's owner may lock (`clerk_sync.lock_writer`), which serializes the writers of
//!    all replicas. One transaction writes generations, tombstones, versions, rows, stubs, pending reads, dead letters and receipts.
//! 6. [`webhook::answer`] responds after the commit: *when Clerk receives the 2xx, policies already see the change*. 2xx means durable; 503
//!    makes Svix retry, and is the response to everything that may work later.
//!
//! # How a pass works
//!
//! A *pass* is the reconcile of one kind. Users read *reconcile*.
//!
//! 1. [`reconcile::schedule`] or [`command`] starts it. [`reconcile::Reconciler::run`] checks that the key belongs to the
//!    mirror's instance, and takes the lease: a token that every write of the pass carries, and that is refused once lost.
//! 2. Pages of 500 come from [`clerk::client`], oldest first, within our share of the rate limit. Each is compared with the
//!    same rows in the database ([`reconcile::compare`]), and what differs is written with its findings and the pass's progress in one
//!    statement (`clerk_sync.record_page`). A killed pass resumes from its last page, and a whole one follows:
//!    what it had listed before may have changed since.
//! 3. Rows that the list should have contained and did not ([`reconcile::window`]) are read by id, unless there are too many of them
//!    ([`reconcile::brake`], the deletion limit): then their deletion waits for approval, and everything else continues. Only what Clerk
//!    does not find by id is deleted, with an *inferred* tombstone.
//! 4. Pending reads by id are made: for stubs (placeholder rows), for what a webhook left open, and for contradictions that are due. `serve`
//!    makes them between passes too.
//! 5. A complete pass moves its kind's watermark (R7). What contradicts events is counted, reported, and read by id when it is due (R2).
//!
//! A failure affects no more than its cause: kinds are independent, an organization that Clerk does not answer for leaves only its own
//! memberships undecided, and undecided rows are counted by reason ([`model::Undecided`]). An error, an empty or short answer, or a
//! contradicting count never deletes anything: the pass reports that it is incomplete.
//!
//! When a large user or organization is deleted, its memberships are removed afterwards, a few hundred in a statement
//! (`clerk_sync.deleted_parents`); from the delete on they give no access.
//!
//! # How a dead letter is retried
//!
//! A signed body that cannot be applied is kept, with a 200 response: a retry by Svix would not help. In `serve`, [`upkeep`] retries it
//! less and less often, because a newer release may be able to read it, or the database may accept it later. It is parsed, folded and
//! applied like a webhook, with the time of its first attempt; `clerk_sync.retry_dead_letter` applies it and removes it in one statement.
//! By then it may be days old; the rules below decide whether it still counts.
//!
//! # Why order does not matter
//!
//! Svix delivers at least once, in no order, or never, and Clerk's API may be behind the webhooks that Clerk has sent. "The newer
//! `updated_at` wins" is wrong in about one of five histories that Clerk can emit. In one sentence: what takes access away is believed
//! quickly, what gives it needs the newest event, or a read that is provably newer. `docs/ordering.md` has an example of what goes wrong
//! without each rule, the waits, and what remains. `tests/rules.rs` has a scenario for each; `tests/convergence.rs` tries them in every
//! order and every cut into batches, `tests/hostile.rs` against a hostile Clerk (`./x long`); both compare the SQL with
//! `tests/support/oracle.rs`, the same rules in plain Rust.
//!
//! An *event* is a webhook, a *read* any answer of Clerk's API: a list, or a read by id. A state *gives*
//! access unless it provably allows no more than the stored one, compared by a user's ban and deprovisioning or a membership's role and permissions.
//!
//! * **R1 Version.** A live observation has the version (`updated_at`, observed at, denial, content hash), and the greater wins.
//!   *Observed at* is an event's own timestamp, or the `Date` of a read less 10 s. `updated_at` counts as at most a second after the event
//!   or the `Date`: a time far ahead must not keep later changes out. *Denial* decides ties of both times towards less access.
//! * **R2 Contradictions.** A read contradicts if its `updated_at` is older than the row's; or if it gives access and is not more than 2 s
//!   newer than the greatest event, or shows the last `updated_at` that was ahead of its time, unless it says what that event said and no
//!   events disagree (R9). It changes nothing, is stored, and repeated by id when it is due. It is believed after it has said the same for an
//!   hour; after 24 h if it gives access and its `updated_at` is more than 2 s from the greatest event's, or equal to it where that event came
//!   more than 5 s after its `updated_at`; at once if it takes access and is at most 2 s older. It then leaves a floor: events up to the greatest one,
//!   and from more than 5 minutes before the read, are stale. Everything else that is read is believed at once.
//! * **R3 No idle writes.** A read that equals the row in content and is not newer agrees, and writes nothing. An event with a greater
//!   version stores its version even with equal content, because content may go A → B → A.
//! * **R4 Deletes** count by the event's timestamp; their `updated_at` may be days old. Each leaves a tombstone, also for an id never
//!   seen, that only a person undoes (`refresh ID --undelete`). Absence, confirmed by id, leaves an *inferred* one; it is not believed
//!   where an event reported the object and we have known it for less than an hour, unless an event without a time said "deleted". An
//!   event never undoes a tombstone: a later one asks for a read by id, and that undoes an inferred one.
//! * **R5 Generations.** For each pair of user and organization the greatest (created at, membership id) that anybody ever named is
//!   remembered, and only that membership may be live; `created_at` counts as at most a second after each observation. An event from
//!   before R7's mark that names a membership within 2 s of a live one asks for a read. A read that shows another membership
//!   contradicts (R2: an hour if created within 2 s or giving nothing, else 24 h), and then is set 1 ms above the one it replaces.
//! * **R6 Stubs.** A membership makes its missing parents from what it embeds, and they are read by id. Any full observation beats any
//!   stub. A membership of a deleted parent is not stored; if no event announced that delete, it waits for a read by id.
//! * **R7 Memory of a pass.** An event from 5 minutes before the last pass of its kind (the one that is listing counts for what it has
//!   listed) is stale where we hold the row and its `updated_at` is at most 2 s newer. One that takes access within 5 s asks for a
//!   read, and is stored at once if it is the object's newest event and from less than an hour before that margin. A newer one applies:
//!   the pass read a replica that was behind. Where we hold no row, it waits for a read by id.
//! * **R8 Fold is a join.** Applying a folded batch gives what applying one by one would: discarded changes still contribute the
//!   memberships that they mention, the greatest event, and whether events disagree (R9).
//! * **R9 In doubt less access.** Two events of one object that differ in access, with `updated_at` within 5 s that disagree with their
//!   timestamps, or both within 2 s, or an event within 2 s of a row that only reads reported: the one with less access is stored
//!   at once, whichever arrived first, and a read by id is requested. A read settles the request if it was observed 2.1 s after the event:
//!   less access is then believed at once, more by R2. No access field is guessed, and the first read decides an unknown ban.
//! * **Clocks.** A response dated more than a minute off the database's clock is requested again, and then ends its pass with an error about
//!   the clocks; the writer refuses one more than 5 minutes ahead. An event that far ahead has its object read by id, and `/readyz` reports it.
//!
//! # What is bounded
//!
//! * Time: 10 s for a request's head and for its body, 10 minutes for a connection, 8 s until the response, 10 s to read it, 4 s
//!   for a call to the database on our side, 3 s on its own (2 s for the writer's turn, 1 s for another lock). Stopping takes 10 s at most.
//!   `migrate` waits 2 s for a lock of another session, 30 times.
//! * Memory: 2 MiB for a body, 20 MiB for all bodies together, half of it for those up to 64 kB ([`webhook::body_memory`]), 2,500
//!   deliveries waiting. Beyond it a body that is still arriving loses its memory to the new one; without memory the response is 503 at
//!   once.
//! * Connections: 2,048, fewer where the system allows fewer files, and 64 of the private listener. Beyond it the one that was idle
//!   longest is closed ([`door`]). 192 files are kept for the database and all else.
//! * The database: two connections for each replica, some more for moments ([`upkeep`] each minute, [`reconcile::schedule`] every
//!   15 s, [`ops`] when asked), four more while it runs passes; a batch has at most 256 deliveries and 2 MiB of bodies, a page of
//!   a pass 500 rows.
//! * Clerk's API: a fifth of the rate limit, 30 s for a try, 3 minutes for a call with all its tries.
//! * Bookkeeping: receipts are kept for 30 days, findings with their passes and dead letters for 90, unless configured
//!   otherwise, and removed 1,000 rows at a time. Without its receipt a message that comes again is stale or unchanged by its
//!   version. Versions, tombstones, generations and watermarks are kept for ever.
//! * Refused rows: what Postgres would refuse in a payload is fixed in [`model`] and reported (`field_errors`). A row that is refused all
//!   the same, mostly by an object of the application, is found by halving; less of it is written (see below), and it is retried
//!   after a minute, then less and less often, at least every hour. After a time-out, batches have 16 deliveries, then one.
//!
//! # Why access does not depend on the application's objects
//!
//! The application may put keys, triggers, indexes and checks on our tables, and any of them may refuse our row. A change that is
//! refused alone is tried in three steps ([`webhook::batch_writer`], `reconcile::refused_rows`), each its own call of `clerk_sync.apply`
//! ([`model::Mode`]): all of it; then, of existing rows, only the columns that decide access; then only our own tables, with a *denial*
//! (`clerk_sync.denials`) where a row gives access that it should not give. Every function, view and policy of `clerk_rls` respects
//! denials. A trigger that keeps or changes a row raises no error, so after a batch that takes access away the rows are checked. The
//! delivery is acknowledged, because access has ended; the row waits as a pending read *refused*, and the denial ends in the transaction
//! that corrects the row. A timeout of our own lock (`CS002`), outages and deadlocks are a 503 for every delivery.
//!
//! # Invariants
//!
//! * Only `clerk_sync.apply` writes live rows of `clerk.*`. Rows of deleted objects are also emptied or removed by `retry_refused`,
//!   `remove_memberships_of_deleted` and `purge`. The worker's role cannot write these tables directly.
//! * Neither our own clock nor the time of an attempt decides an order. `model` reads no clock.
//! * No access field is guessed: without a role or a user a membership waits for a read; an unknown ban counts as a ban.
//! * Nothing is set on a connection to the database before it is proven that no pooler shares it
//!   ([`store::Database::open`]).
//! * No status for a delivery is chosen outside [`webhook::answer`], and 2xx is never answered before the commit.
//! * No transaction that writes is begun from Rust, but by `migrate`: each write is one statement, so a lost connection leaves nothing half
//!   done. [`doctor`] looks in transactions that are read-only and rolled back.
//! * No secret and no personal data is in a log line, an error or an answer.

pub mod app;
pub mod clerk;
pub mod clock;
pub mod command;
pub mod config;
pub mod doctor;
pub mod door;
pub mod dotenv;
pub mod failpoint;
pub mod health;
pub mod model;
pub mod ops;
pub mod os;
pub mod policy;
pub mod procfs;
pub mod prompt;
pub mod reconcile;
pub mod sender;
pub mod store;
pub mod telemetry;
pub mod terminal;
pub mod thread;
pub mod upkeep;
pub mod webhook;
