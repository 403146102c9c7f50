//! Histories of a hostile Clerk (`support/history.rs`): webhooks lost, doubled, shuffled and hours late, an API that lags or is stuck,
//! clocks that differ, times ahead of time, reconciles at any moment. Whatever happens, an acknowledged revocation stays in force
//! but for what is counted here, and the mirror ends as Clerk is.
//!
//! The oracle runs through thousands of them. The writer's SQL runs through some of the same, and must hold what the oracle holds.
//! `./x long` runs more; `CLERK_SYNC_HISTORIES` and `CLERK_SYNC_HISTORIES_FROM` say how many, and which.

use crate::support::database;
use crate::support::history::{Access, BEGIN, Effect, Event, HOUR, HostileClerk, LAG, MINUTE, SECOND, Truth, ms};
use crate::support::oracle::{Key, Mirror, Version, as_json};
use crate::support::tables::{EMPTY, expected, held};
use clerk_sync::model::{Batch, Change, EntityRef, Kind, Observation, Source};
use clerk_sync::store::Session;
use fastrand::Rng;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const MARGIN: i64 = 5 * MINUTE;
/// Histories in the gate.
const HISTORIES: u64 = 400;
const ON_POSTGRES: u64 = 24;

/// What revocations were acknowledged, and whether they stand.
#[derive(Clone, Default)]
struct RevocationChecker {
    /// By subject and place: the access that was left.
    revoked: BTreeMap<String, BTreeMap<usize, Access>>,
    seen: HashMap<String, BTreeMap<usize, Access>>,
    in_force: BTreeSet<(String, usize)>,
    /// Revocations that do not stand, and what undid them.
    bad: BTreeMap<(String, usize), (&'static str, &'static str)>,
    acknowledged: usize,
}

impl RevocationChecker {
    fn acknowledge(&mut self, effect: &Effect) {
        let Effect { subject, truth, before } = effect;
        self.seen.entry(subject.clone()).or_default().insert(truth.place, truth.access);
        if before.is_some_and(|before| truth.access < before) {
            self.revoked.entry(subject.clone()).or_default().insert(truth.place, truth.access);
            self.acknowledged += 1;
        }
    }

    fn check(&mut self, shown: &HashMap<String, (Key, Truth)>, mirror: &Mirror, by: &'static str) {
        for (subject, revoked) in &self.revoked {
            let shown = shown.get(subject);
            let seen = self.seen.entry(subject.clone()).or_default();
            if let Some((_, truth)) = shown {
                seen.insert(truth.place, truth.access);
            }
            for (place, left) in revoked {
                let stands = shown.is_none_or(|(_, truth)| {
                    truth.place >= *place
                        || truth.access <= *left
                        || seen.iter().any(|(later, access)| later > place && *access >= truth.access)
                });
                let revocation = (subject.clone(), *place);
                if stands {
                    self.in_force.insert(revocation);
                    continue;
                }
                let was_in_force = self.in_force.contains(&revocation);
                // It waits for a read by id, which is its own answer: 204 pending.
                if !was_in_force && by == "webhook" && shown.is_some_and(|(key, _)| mirror.pending.contains_key(key)) {
                    continue;
                }
                let class = if was_in_force { "undone" } else { "not in force" };
                self.bad.entry(revocation).or_insert((class, by));
            }
        }
    }
}

#[derive(Clone)]
enum Due {
    Deliver(Box<Event>),
    Pass(Vec<Kind>),
}

/// A mirror that a history happens to. With a session, the same happens on Postgres.
struct HistoryRun<'a> {
    clerk: HostileClerk,
    mirror: Mirror,
    checker: RevocationChecker,
    /// When what is pending is read, and what it was scheduled for.
    reads: BTreeMap<Key, (i64, i64, Option<i64>)>,
    todo: Vec<(i64, u32, Due)>,
    postgres: Option<(&'a mut Session, &'a mut PgConnection)>,
}

impl<'a> HistoryRun<'a> {
    /// With an empty mirror.
    fn new(
        clerk: HostileClerk,
        todo: Vec<(i64, u32, Due)>,
        postgres: Option<(&'a mut Session, &'a mut PgConnection)>,
    ) -> HistoryRun<'a> {
        let (mirror, checker) = (Mirror::default(), RevocationChecker::default());
        HistoryRun { clerk, mirror, checker, reads: BTreeMap::new(), todo, postgres }
    }
}

impl HistoryRun<'_> {
    async fn apply(&mut self, source: Source, changes: &[Change], by: &'static str) {
        let batch = Batch::of_changes(source, changes.iter());
        self.mirror.apply(&as_json(&batch));
        if let Some((session, _)) = &mut self.postgres {
            session.apply(&batch, changes.len()).await.expect("apply");
        }
        let shown = self.shown();
        self.checker.check(&shown, &self.mirror, by);
    }

    /// What the mirror shows of each subject, and where that stands in the true history.
    fn shown(&self) -> HashMap<String, (Key, Truth)> {
        let mut shown = HashMap::new();
        for (key, row) in &self.mirror.rows {
            let Some(Version { updated_at: Some(updated_at), content: Some(content), observed_at, .. }) =
                self.mirror.versions.get(key)
            else {
                continue;
            };
            let Some(truth) = self.clerk.truth(&key.1, *observed_at, *updated_at, *content) else { continue };
            let subject = match key.0.as_str() {
                "membership" => format!("membership of {}", row["user_id"].as_str().unwrap()),
                _ => key.1.clone(),
            };
            shown.insert(subject, (key.clone(), truth));
        }
        shown
    }

    async fn deliver(&mut self, events: &[Event], now: i64) {
        let changes: Vec<Change> = events.iter().map(|event| event.change.clone()).collect();
        for effect in events.iter().filter_map(|event| event.effect.as_ref()) {
            self.checker.acknowledge(effect);
        }
        self.apply(Source::Webhook, &changes, "webhook").await;
        for change in &changes {
            if let Observation::NeedsPass { kind, ripe_after, .. } = &change.observation {
                for after in [15 * SECOND, i64::from(*ripe_after) * SECOND + 15 * SECOND] {
                    self.todo.push((now + after, 0, Due::Pass(vec![*kind])));
                }
            }
        }
        self.schedule(now);
    }

    /// When what is pending will be read: at once where that may help, and again when Clerk's API cannot be behind any more.
    fn schedule(&mut self, now: i64) {
        self.reads.retain(|key, _| self.mirror.pending.contains_key(key));
        for (key, pending) in &self.mirror.pending {
            let wanted = (pending.settles_after, pending.due);
            if self.reads.get(key).is_some_and(|(_, settles_after, due)| (*settles_after, *due) == wanted) {
                continue;
            }
            let at = pending.due.unwrap_or(now.max(pending.settles_after + LAG + 2 * SECOND));
            self.reads.insert(key.clone(), (at, pending.settles_after, pending.due));
        }
    }

    /// Makes the reads that are due.
    async fn read_due(&mut self, now: i64) {
        let mut made = 0;
        while let Some((key, at)) = self
            .reads
            .iter()
            .map(|(key, (at, ..))| (key.clone(), *at))
            .min_by_key(|(_, at)| *at)
            .filter(|(_, at)| *at <= now)
        {
            made += 1;
            assert!(made < 1_000, "reads without end: {:?}", self.mirror.pending);
            self.read(std::slice::from_ref(&key), at, "asked read").await;
            if let Some(read) = self.reads.get_mut(&key).filter(|read| read.0 <= at) {
                read.0 = at + 30 * SECOND.max((at - BEGIN) / 1_000);
            }
        }
    }

    async fn read(&mut self, keys: &[Key], now: i64, by: &'static str) {
        let user = |key: &Key| self.mirror.pending.get(key).and_then(|pending| pending.pair.clone()).map(|pair| pair.1);
        let of_row = |key: &Key| self.mirror.rows.get(key).and_then(|row| row["user_id"].as_str().map(str::to_owned));
        let wanted: Vec<(String, Option<String>)> =
            keys.iter().map(|key| (key.1.clone(), user(key).or_else(|| of_row(key)))).collect();
        let (mut changes, observed_at) = self.clerk.read(&wanted, now);
        let present: BTreeSet<String> = changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect();
        for (kind, id) in keys.iter().filter(|(_, id)| !present.contains(id)) {
            let kind = Kind::ALL.into_iter().find(|of| of.as_str() == kind).unwrap();
            let observation = Observation::Deleted(EntityRef::new(kind, id.as_str()));
            changes.push(Change { observed_at: ms(observed_at), observation, mention: None });
        }
        self.apply(Source::Read, &changes, by).await;
        self.schedule(now);
    }

    /// A reconcile: list, confirm what is absent, read what is pending, and remember when it began.
    async fn pass(&mut self, kinds: &[Kind], now: i64) {
        for kind in kinds {
            let (changes, observed_at) = self.clerk.list(*kind, now);
            self.apply(Source::List, &changes, "pass").await;
            self.schedule(now);
            let listed: BTreeSet<&str> = changes.iter().filter_map(Change::id).collect();
            let is_absent = |key: &&Key| {
                key.0 == kind.as_str()
                    && !listed.contains(key.1.as_str())
                    && self.mirror.versions.get(key).is_some_and(|known| known.observed_at < observed_at - MARGIN)
            };
            let absent: Vec<Key> = self.mirror.rows.keys().filter(is_absent).cloned().collect();
            let pending = self.mirror.pending.keys().filter(|key| key.0 == kind.as_str() && !absent.contains(key));
            let pending: Vec<Key> = pending.cloned().collect();
            for keys in [absent, pending].iter().filter(|keys| !keys.is_empty()) {
                self.read(keys, now, "pass").await;
            }
            let mark = self.mirror.marks.entry(kind.to_string()).or_insert(observed_at);
            *mark = (*mark).max(observed_at);
            if let Some((_, owner)) = &mut self.postgres {
                let sql = format!(
                    "insert into clerk_sync.pass_watermarks as m (kind, started_at) values ('{kind}', {observed_at}) \
                     on conflict (kind) do update set started_at = greatest(m.started_at, excluded.started_at)"
                );
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut **owner).await.expect("a mark");
            }
        }
    }

    /// Everything that is due until then, in order.
    async fn until(&mut self, end: i64) {
        loop {
            self.todo.sort_by_key(|(at, order, _)| (*at, *order));
            let Some((at, _, _)) = self.todo.first().filter(|(at, ..)| *at <= end) else { break };
            let at = *at;
            self.read_due(at).await;
            let (_, _, due) = self.todo.remove(0);
            match due {
                Due::Pass(kinds) => self.pass(&kinds, at).await,
                Due::Deliver(event) => {
                    // What comes within the same tenth of a second may share a batch.
                    let mut events = vec![*event];
                    while let Some((_, _, Due::Deliver(_))) = self.todo.first().filter(|(next, ..)| *next <= at + 100) {
                        let (_, _, Due::Deliver(event)) = self.todo.remove(0) else { unreachable!() };
                        events.push(*event);
                    }
                    self.deliver(&events, at).await;
                }
            }
        }
        self.read_due(end).await;
    }

    fn table(&self) -> BTreeMap<String, (String, Access)> {
        let row = |(key, row): (&Key, &Value)| {
            let shown = match key.0.as_str() {
                "user" => {
                    let banned = row["banned"] != json!(false);
                    let name = row["first_name"].as_str().unwrap_or_default();
                    (format!("{name}{}", if banned { " banned" } else { "" }), i64::from(!banned))
                }
                "organization" => (row["name"].as_str().unwrap_or_default().to_owned(), 1),
                _ => {
                    let role = row["role"].as_str().unwrap();
                    (role.to_owned(), i64::try_from(crate::support::history::permissions(role).len()).unwrap())
                }
            };
            (key.1.clone(), shown)
        };
        self.mirror.rows.iter().map(row).collect()
    }
}

/// How a history ended.
#[derive(Default)]
struct HistoryEnd {
    one_pass: bool,
    two_passes: bool,
    too_much: bool,
    after_a_day: bool,
    late: bool,
    idle: bool,
    bad: Vec<(&'static str, &'static str)>,
    acknowledged: usize,
    doubts: usize,
    contradictions: usize,
}

fn gives_more(mirror: &BTreeMap<String, (String, Access)>, clerk: &BTreeMap<String, (String, Access)>) -> bool {
    mirror.iter().any(|(id, (_, access))| *access > clerk.get(id).map_or(0, |(_, access)| *access))
}

/// One history, from its first event to a reconcile that has nothing left to do.
async fn history(seed: u64, longest_stuck: i64, postgres: Option<(&mut Session, &mut PgConnection)>) -> HistoryEnd {
    let mut rng = Rng::with_seed(seed ^ 0x5eed);
    let mut clerk = HostileClerk::new(seed);
    let on_postgres = postgres.is_some();
    let (without_webhooks, restored) = (seed % 10 == 8, seed % 10 == 9 && !on_postgres);
    for _ in 0..rng.usize(2..=9) {
        clerk.step();
    }
    for _ in 0..[0, 0, 1, 1, 2][rng.usize(0..5)] {
        let event = clerk.events[rng.usize(0..clerk.events.len())].at;
        let from = event + [-3 * SECOND, 0, 1, 200, 3 * SECOND, 2 * MINUTE][rng.usize(0..6)];
        let long = [3 * MINUTE, 8 * MINUTE, HOUR, 5 * HOUR][rng.usize(0..4)].min(longest_stuck);
        clerk.stuck.push((from, from + long, [30, 100][rng.usize(0..2)]));
    }
    let mut end = clerk.stuck.iter().map(|(_, to, _)| *to).max().unwrap_or(0).max(clerk.now);
    let (mut todo, mut later) = (Vec::new(), Vec::new());
    let events = clerk.events.clone();
    for event in events {
        let luck = rng.f64();
        if luck < 0.15 || without_webhooks {
            later.push(event);
            continue;
        }
        let soon = [50, 200, 3 * SECOND][rng.usize(0..3)];
        let late = [30 * SECOND, 6 * MINUTE, 30 * MINUTE, 2 * HOUR][rng.usize(0..4)];
        let delay = if luck < 0.7 { soon } else { late };
        todo.push((event.at + delay, rng.u32(1..), Due::Deliver(Box::new(event.clone()))));
        end = end.max(event.at + delay);
        if rng.f64() < 0.3 {
            later.push(event.clone());
            let again = event.at + delay + [SECOND, 10 * MINUTE][rng.usize(0..2)];
            todo.push((again, rng.u32(1..), Due::Deliver(Box::new(event))));
            end = end.max(again);
        }
    }
    let all = Kind::ALL.to_vec();
    for _ in 0..[0, 1, 3, 8][rng.usize(0..4)] {
        todo.push((rng.i64(BEGIN..=end), 0, Due::Pass(all.clone())));
    }
    if rng.f64() < 0.4 {
        let first = BEGIN + rng.i64(0..HOUR);
        todo.extend(
            (0..).map(|n| first + n * HOUR).take_while(|at| *at < end).map(|at| (at, 0, Due::Pass(all.clone()))),
        );
    }
    let restored_at = restored.then(|| rng.i64(BEGIN..=end));
    let mut run = HistoryRun::new(clerk, todo, postgres);
    if let Some(at) = restored_at {
        run.until(at).await;
        let backup = run.mirror.clone();
        run.until(end).await;
        let lost = run.clerk.events.iter().filter(|event| event.at + 2 * HOUR >= at).cloned();
        later.extend(lost);
        (run.mirror, run.checker, run.reads) = (backup, RevocationChecker::default(), BTreeMap::new());
    }
    run.until(end).await;
    // Now Clerk is well. What was asked for runs, and then the passes of the timetable.
    end += 20 * MINUTE;
    run.until(end).await;
    let mut ending = HistoryEnd::default();
    let reconcile = async |run: &mut HistoryRun<'_>, at: i64| {
        run.until(at).await;
        run.pass(&all, at).await;
        run.until(at + MINUTE).await;
    };
    let first = end;
    reconcile(&mut run, first).await;
    ending.one_pass = run.table() == run.clerk.table();
    let mut last = first + 70 * MINUTE + rng.i64(0..HOUR);
    reconcile(&mut run, last).await;
    ending.two_passes = run.table() == run.clerk.table();
    ending.too_much = gives_more(&run.table(), &run.clerk.table());
    if !ending.two_passes {
        last += 25 * HOUR;
        reconcile(&mut run, last).await;
    }
    ending.after_a_day = run.table() == run.clerk.table();
    let before = run.table();
    rng.shuffle(&mut later);
    let late_at = last + 30 * MINUTE;
    for event in &later {
        run.deliver(std::slice::from_ref(event), late_at).await;
    }
    run.until(late_at + 10 * MINUTE).await;
    ending.late = run.table() == before;
    reconcile(&mut run, late_at + HOUR).await;
    let writes = run.mirror.writes;
    reconcile(&mut run, late_at + 3 * HOUR).await;
    reconcile(&mut run, late_at + 5 * HOUR).await;
    ending.idle = run.mirror.writes == writes;
    ending.bad = run.checker.bad.values().copied().collect();
    ending.acknowledged = run.checker.acknowledged;
    (ending.doubts, ending.contradictions) = (run.mirror.doubts, run.mirror.contradictions);
    if let Some((_, owner)) = run.postgres {
        let held = held(owner).await;
        let expected = expected(&run.mirror);
        for (key, value) in &expected {
            assert_eq!(held.get(key), Some(value), "seed {seed}: {key:?}");
        }
        assert_eq!(held.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "seed {seed}");
    }
    ending
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |number| number.parse().expect("a number"))
}

/// The oracle alone, in many histories: how many end wrong, and in which way.
struct HistoryTotals {
    histories: u64,
    counts: BTreeMap<String, usize>,
    first: BTreeMap<String, u64>,
    acknowledged: usize,
    not_standing: usize,
}

impl HistoryTotals {
    fn add(&mut self, seed: u64, what: String) {
        *self.counts.entry(what.clone()).or_default() += 1;
        self.first.entry(what).or_insert(seed);
    }

    async fn of(seeds: std::ops::Range<u64>, longest_stuck: i64) -> HistoryTotals {
        let (counts, first) = (BTreeMap::new(), BTreeMap::new());
        let mut sum =
            HistoryTotals { histories: seeds.end - seeds.start, counts, first, acknowledged: 0, not_standing: 0 };
        for seed in seeds {
            let ending = history(seed, longest_stuck, None).await;
            let ends = [
                ("after one reconcile: differs", !ending.one_pass),
                ("after two: differs", !ending.two_passes),
                ("after two: too much access", ending.too_much),
                ("after a day: differs", !ending.after_a_day),
                ("late deliveries change something", !ending.late),
                ("a reconcile without a cause writes", !ending.idle),
            ];
            for (what, _) in ends.into_iter().filter(|(_, is_so)| *is_so) {
                sum.add(seed, what.to_owned());
            }
            for (class, by) in &ending.bad {
                sum.add(seed, format!("revocation {class}, by {by}"));
            }
            sum.acknowledged += ending.acknowledged;
            sum.not_standing += ending.bad.len();
        }
        sum
    }

    fn count(&self, what: &str) -> usize {
        self.counts.get(what).copied().unwrap_or_default()
    }

    fn print(&self, title: &str) {
        println!(
            "{title}: {} histories, {} acknowledged revocations, {} do not stand",
            self.histories, self.acknowledged, self.not_standing
        );
        for (what, count) in &self.counts {
            println!("  {what:45} {count:6}   first: seed {}", self.first[what]);
        }
    }
}

/// How many of 100,000 acknowledged revocations do not stand: the search with which the rules were chosen found 125, this one 138.
const NOT_STANDING: usize = 220;

#[tokio::test]
async fn hostile_histories_end_as_clerk_is() {
    let from = from_environment("CLERK_SYNC_HISTORIES_FROM", 0);
    let many = from_environment("CLERK_SYNC_HISTORIES", HISTORIES);
    let sum = HistoryTotals::of(from..from + many, 5 * HOUR).await;
    sum.print("any replica");
    assert_eq!(sum.count("after two: too much access"), 0, "{:?}", sum.first);
    assert_eq!(sum.count("after a day: differs"), 0, "{:?}", sum.first);
    assert_eq!(sum.count("late deliveries change something"), 0, "{:?}", sum.first);
    assert_eq!(sum.count("a reconcile without a cause writes"), 0, "{:?}", sum.first);
    let allowed = 2 + sum.acknowledged * NOT_STANDING / 100_000;
    assert!(sum.not_standing <= allowed, "{} of {} do not stand", sum.not_standing, sum.acknowledged);
}

#[tokio::test]
async fn no_reconcile_undoes_a_revocation_while_replicas_are_stuck_for_up_to_fifty_minutes() {
    let from = from_environment("CLERK_SYNC_HISTORIES_FROM", 0) + 1_000_000;
    let many = from_environment("CLERK_SYNC_HISTORIES", HISTORIES);
    let sum = HistoryTotals::of(from..from + many, 50 * MINUTE).await;
    sum.print("replicas stuck for up to 50 minutes");
    assert_eq!(sum.count("revocation undone, by pass"), 0, "{:?}", sum.first);
    assert_eq!(sum.count("after two: too much access"), 0, "{:?}", sum.first);
}

/// What R9 costs where nothing is hostile: one event in fifty follows another one of these few objects within seconds, a third comes twice,
/// some late.
#[tokio::test]
async fn an_ordinary_history_asks_for_few_reads() {
    let (mut deliveries, mut doubts) = (0, 0);
    for seed in 0..60 {
        let (mut rng, mut clerk) = (Rng::with_seed(seed), HostileClerk::ordinary(seed));
        (0..200).for_each(|_| clerk.step());
        let mut todo: Vec<(i64, u32, Due)> = Vec::new();
        for event in clerk.events.clone() {
            let delay = [50, 200, 200, 3 * SECOND, 30 * SECOND][rng.usize(0..5)];
            todo.push((event.at + delay, rng.u32(1..), Due::Deliver(Box::new(event.clone()))));
            if rng.u8(0..3) == 0 {
                todo.push((event.at + delay + SECOND, rng.u32(1..), Due::Deliver(Box::new(event))));
            }
        }
        deliveries += todo.len();
        let end = clerk.now + HOUR;
        let mut run = HistoryRun::new(clerk, todo, None);
        run.until(end).await;
        doubts += run.mirror.doubts;
    }
    let in_a_thousand = doubts as f64 * 1_000.0 / deliveries as f64;
    println!("ordinary histories: {doubts} reads asked for by {deliveries} deliveries, {in_a_thousand:.1} in 1,000");
    assert!(in_a_thousand <= 5.0, "{in_a_thousand:.1} in 1,000");
}

#[tokio::test]
async fn the_writer_holds_what_the_oracle_holds_1() {
    on_postgres(0).await;
}

#[tokio::test]
async fn the_writer_holds_what_the_oracle_holds_2() {
    on_postgres(1).await;
}

async fn on_postgres(half: u64) {
    let database = database().await;
    let mut session = database.database().connect().await.expect("a session");
    let mut owner = database.owner().await;
    let many = from_environment("CLERK_SYNC_HISTORIES_ON_POSTGRES", ON_POSTGRES);
    for seed in (0..many).filter(|seed| seed % 2 == half) {
        sqlx::raw_sql(EMPTY).execute(&mut owner).await.expect("empty tables");
        history(from_environment("CLERK_SYNC_HISTORIES_FROM", 0) + seed, 5 * HOUR, Some((&mut session, &mut owner)))
            .await;
    }
}
