//! The client of Clerk's Backend API.
//!
//! Reads alone, each with a limit on time, a share of the rate limit, and a bounded number of tries. What it answers is a
//! value of [`crate::model`] with the moment of Clerk's clock at which it was true.
//!
//! An error is never an empty list. `clerk/openapi-specs` `bapi/2026-05-12.yml` has the operations; the JS SDK's
//! `api/request.ts` the shapes of errors.

use super::budget::Budget;
use super::kinds::{self, Listing, ReadBy};
use super::listing::{self, Malformed, Page, Seen};
use super::retry::Retries;
use crate::model::{Change, EntityRef, InstanceId, Kind, Millis, Observation, PendingRead};
use crate::telemetry::{CLERK_CALLS, CLERK_FAILURES, CLERK_WAITS};
use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret as _, SecretString};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An unknown version is refused, none means the instance's own: so it is always sent.
const VERSION: &str = "2026-05-12";
/// Rows of a page; the API allows no more.
pub(crate) const PAGE_SIZE: usize = 500;
/// Ids in one question; the API allows no more.
pub(crate) const MAX_IDS_PER_REQUEST: usize = 100;
/// What an answer is made older by: replicas of Clerk's database may lag behind its clock (R1).
const REPLICA_LAG_MS: i64 = 10_000;
/// How long to retry a request about one organization or a few ids, pauses that Clerk asks for excepted: a problem with one must not
/// delay the others.
const SHORT_RETRY_TIME: Duration = Duration::from_secs(20);
/// Consecutive organizations without any response: after so many the API itself is down.
const MAX_CONSECUTIVE_UNAVAILABLE: usize = 3;
/// How much later than an answer's `Date` a time in it may be, in ms (R1, R5).
const SLACK: i64 = 1_000;
/// One try, from connecting to the last byte.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a command waits for a response before it prints that it is waiting.
const SILENCE: Duration = Duration::from_secs(4);
/// Tries of a call whose responses have a wrong `Date`: a single server of Clerk's may have a wrong clock.
const CLOCK_TRIES: u32 = 3;
/// A page of 500 users with all the metadata that Clerk allows has some 14 MB.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// Where the API is asked, as whom, and how much.
#[derive(Clone, Debug)]
pub struct Options {
    /// Without the version: `https://api.clerk.com`.
    pub base_url: String,
    pub secret_key: SecretString,
    /// Calls in 10 s; `None`: any number.
    pub rate: Option<u32>,
    /// For one call with all its tries, pauses included that Clerk asks for.
    pub patience: Duration,
    /// For one call with all its tries, where Clerk asks for no pause.
    pub give_up_after: Duration,
    /// How far the `Date` of an answer may be from the database's clock. It decides what is newer, so a wrong one would make later
    /// bans and removals look old. `None`: any, where time is simulated.
    pub clock_tolerance: Option<Duration>,
    /// Called, at most once for each call to the API, as soon as it does not succeed within [`SILENCE`]: with what is wrong, and for how
    /// long it is tried again. `None`: nobody waits for it.
    pub on_trouble: Option<fn(&str, Duration)>,
}

impl Options {
    pub(crate) const DEFAULT_URL: &'static str = "https://api.clerk.com";
    /// Longer than any pause that Clerk is known to ask for.
    pub const PATIENCE: Duration = Duration::from_secs(180);
    pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

    /// The documented limit of a key's instance, in calls per 10 s (`clerk/clerk-docs`,
    /// `guides/how-clerk-works/system-limits.mdx`).
    pub(crate) fn limit_of(secret_key: &str) -> u32 {
        if secret_key.starts_with("sk_live_") { 1_000 } else { 100 }
    }
}

/// Why the API did not answer. Names no key and no value of a body.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Clerk does not accept CLERK_SECRET_KEY ({0}): copy the key again from the dashboard's page of API keys")]
    Key(String),
    #[error("organizations are switched off in this Clerk instance")]
    OrganizationsOff,
    #[error("Clerk refuses the request: {0}")]
    Refused(String),
    #[error("Clerk does not find it: {0}")]
    NotFound(String),
    /// The user behind whom a page should begin is gone.
    #[error("Clerk does not find the user after which the page begins")]
    CursorGone,
    #[error("unexpected response from Clerk's API: {0}")]
    Unavailable(String),
    #[error("unexpected response from Clerk: {0}")]
    Malformed(#[from] Malformed),
    /// Rows and count disagree, so a missing row does not prove a deletion.
    #[error("unexpected response from Clerk: {rows} rows for a request by ids, and a count of {counted}")]
    Miscounted { rows: usize, counted: u64 },
    #[error(
        "Clerk's answer is dated {0} s {1} the database's clock: check the clocks of the database and of this machine"
    )]
    Clocks(u64, &'static str),
}

/// A page of a list that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageRequest {
    /// Users, oldest first, behind that one.
    AfterUser(Option<String>),
    /// Organizations or memberships, oldest first.
    Offset(usize),
    /// Users, the last changed first.
    RecentlyUpdated(usize),
}

/// The API of one instance.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    options: Options,
    budget: Budget,
    calls: AtomicU64,
    /// The database's clock, and when it was read.
    clock: Mutex<Option<(Instant, Millis)>>,
}

/// One try that succeeded.
struct Answer {
    body: Vec<u8>,
    /// By Clerk's clock.
    date: Millis,
    /// How long it took, in ms.
    elapsed: i64,
}

impl Answer {
    fn seen(&self) -> Seen {
        Seen { observed_at: self.date.plus(-self.elapsed).plus(-REPLICA_LAG_MS), bound: self.date.plus(SLACK) }
    }
}

/// What reads by id answered.
#[derive(Debug, Default)]
pub struct Read {
    pub changes: Vec<Change>,
    /// What could not be decided, and why not.
    pub undecided: Vec<Undecided>,
}

/// An object that a read did not decide.
#[derive(Clone, Debug)]
pub struct Undecided {
    pub read: PendingRead,
    /// For people: names the organization that Clerk says nothing of, if it is one.
    pub problem: String,
    /// Clerk does not know the organization.
    pub is_unknown: bool,
    /// Nobody answered: it is as if it had not been asked.
    pub is_silence: bool,
}

impl Read {
    fn leave<'a>(&mut self, reads: impl Iterator<Item = &'a PendingRead>, error: &Error) {
        self.undecided.extend(reads.map(|read| Undecided {
            read: read.clone(),
            problem: match &read.organization_id {
                Some(organization) => format!("the members of {}: {error}", organization.as_str()),
                None => error.to_string(),
            },
            is_unknown: matches!(error, Error::NotFound(_)),
            is_silence: matches!(error, Error::Unavailable(_)),
        }));
    }
}

/// One try that failed.
struct Failure {
    error: Error,
    /// Whether another try may succeed, and the pause that Clerk asks for.
    again: Option<Option<Duration>>,
}

impl Client {
    /// # Errors
    /// The program's TLS cannot be set up.
    pub fn new(options: Options) -> Result<Client, reqwest::Error> {
        let is_encrypted = options.base_url.starts_with("https://");
        let http = reqwest::Client::builder().https_only(is_encrypted);
        // A proxy of the environment would read the key; of what is encrypted it sees the host alone.
        let http = if is_encrypted { http } else { http.no_proxy() };
        let http = http
            .user_agent(concat!("clerk-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(ATTEMPT_TIMEOUT.min(options.patience))
            .build()?;
        let budget = Budget::new(options.rate);
        Ok(Client { http, options, budget, calls: AtomicU64::new(0), clock: Mutex::new(None) })
    }

    /// Calls so far, all tries counted.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// From now on the dates of answers must agree with this clock, which is the database's.
    pub(crate) fn trust_clock(&self, now: Millis) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now));
    }

    fn check_date(&self, answer: &Answer) -> Result<(), Error> {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(((read_at, clock), tolerance)) = clock.zip(self.options.clock_tolerance) else { return Ok(()) };
        let (since, tolerance) = (ms(read_at.elapsed()), ms(tolerance));
        let ahead = answer.date.get() - clock.plus(since).get();
        let seconds = ahead.unsigned_abs() / 1_000;
        // The answer may have been made at any moment of the call, and its date has whole seconds.
        if ahead > tolerance {
            Err(Error::Clocks(seconds, "ahead of"))
        } else if ahead < -(tolerance + answer.elapsed + 1_000) {
            Err(Error::Clocks(seconds, "behind"))
        } else {
            Ok(())
        }
    }

    /// Which instance the key belongs to, and the time by Clerk's clock (R1).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn instance(&self) -> Result<(InstanceId, Millis), Error> {
        self.get("/instance", &[], |body, seen| Ok((listing::instance(body)?, seen.observed_at))).await
    }

    /// Which instance the key belongs to, and what kind of instance that is, such as `development`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn environment(&self) -> Result<(InstanceId, String), Error> {
        self.get("/instance", &[], |body, _| Ok((listing::instance(body)?, listing::environment(body)?))).await
    }

    /// Which instance the key belongs to, and the `Date` of that answer as it came, in whole seconds: to hold clocks against
    /// each other. Nothing that is mirrored may take it for its time of observation.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn instance_and_date(&self) -> Result<(InstanceId, Millis), Error> {
        let retries = Retries::limited(self.options.patience, self.options.give_up_after);
        self.ask("/instance", &[], retries, |answer| Ok((listing::instance(&answer.body)?, answer.date))).await
    }

    /// One page.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn page(&self, kind: Kind, at: &PageRequest) -> Result<Page, Error> {
        let mut query = vec![("limit", PAGE_SIZE.to_string())];
        let (order, offset) = match at {
            PageRequest::AfterUser(after) => {
                query.extend(after.clone().map(|id| ("starting_after", id)));
                ("+created_at", 0)
            }
            PageRequest::Offset(offset) => ("+created_at", *offset),
            PageRequest::RecentlyUpdated(offset) => ("-updated_at", *offset),
        };
        query.push(("order_by", order.to_owned()));
        if offset > 0 {
            query.push(("offset", offset.to_string()));
        }
        self.get(kinds::of(kind).path, &query, |body, seen| {
            let page = listing::page(body, kind, seen)?;
            let (rows, end) = (page.changes.len(), (offset + page.changes.len()) as u64);
            // A few rows may be counted and not listed: whoever reads the list asks again, and says so.
            let lacks = |total: u64| end < total && (rows == 0 || end + listing::tolerance(total) < total);
            if rows < PAGE_SIZE && page.total.is_some_and(lacks) {
                return Err(Malformed(format!("a list of {}: {rows} rows, although there are more", kind.plural())));
            }
            Ok(page)
        })
        .await
    }

    /// A page of organizations, the oldest first, and how many members each has.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn organizations_with_members(&self, offset: usize) -> Result<(Page, Vec<Option<u64>>), Error> {
        let query = [
            ("limit", PAGE_SIZE.to_string()),
            ("order_by", "+created_at".to_owned()),
            ("offset", offset.to_string()),
            ("include_members_count", "true".to_owned()),
        ];
        self.get(kinds::of(Kind::Organization).path, &query, |body, observed_at| {
            Ok((listing::page(body, Kind::Organization, observed_at)?, listing::members_counts(body)?))
        })
        .await
    }

    /// How many there are.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(&self, kind: Kind) -> Result<u64, Error> {
        let api = kinds::of(kind);
        match api.listing {
            Listing::Cursor { count } => self.count_at(count, &[]).await,
            Listing::Offset => self.count_at(api.path, &[("limit", "1".to_owned())]).await,
        }
    }

    async fn count_at(&self, path: &str, query: &[(&str, String)]) -> Result<u64, Error> {
        self.get(path, query, |body, _| listing::count(body)).await
    }

    /// Reads objects by their ids: one change for each that could be decided, present or gone, and an error for each that could
    /// not, if it is about that one and not about all: a membership is asked for by its pair, and undecided where Clerk says nothing
    /// of the organization. (One without a pair is in neither.)
    ///
    /// # Errors
    /// See [`Error`]. An answer that holds what was not asked for is one.
    pub async fn read(&self, kind: Kind, wanted: &[PendingRead]) -> Result<Read, Error> {
        match kinds::of(kind).read_by {
            ReadBy::Id(parameter) => self.read_ids(kind, parameter, wanted).await,
            ReadBy::Pair => self.read_pairs(wanted).await,
        }
    }

    async fn read_pairs(&self, wanted: &[PendingRead]) -> Result<Read, Error> {
        let mut by_organization: BTreeMap<&str, Vec<&PendingRead>> = BTreeMap::new();
        for read in wanted {
            if let (Some(organization), Some(_)) = (&read.organization_id, &read.user_id) {
                by_organization.entry(organization.as_str()).or_default().push(read);
            }
        }
        let (mut result, mut silent) = (Read::default(), 0);
        for (organization, reads) in by_organization {
            for reads in reads.chunks(MAX_IDS_PER_REQUEST) {
                let asked: Vec<(&str, &str)> = reads
                    .iter()
                    .map(|read| (read.user_id.as_ref().map_or("", |user| user.as_str()), read.id.as_str()))
                    .collect();
                match self.members(organization, &asked).await {
                    Ok(changes) => {
                        silent = 0;
                        result.changes.extend(changes);
                    }
                    Err(error @ (Error::Key(_) | Error::OrganizationsOff)) => return Err(error),
                    Err(error) => {
                        silent = if matches!(error, Error::Unavailable(_)) { silent + 1 } else { 0 };
                        if silent == MAX_CONSECUTIVE_UNAVAILABLE {
                            return Err(error);
                        }
                        result.leave(reads.iter().copied(), &error);
                        break;
                    }
                }
            }
        }
        Ok(result)
    }

    /// If rows and count disagree, the ids are halved and requested again, until the ones that cause it are isolated.
    async fn read_ids(&self, kind: Kind, parameter: &str, wanted: &[PendingRead]) -> Result<Read, Error> {
        let mut result = Read::default();
        let mut waiting: Vec<&[PendingRead]> = wanted.chunks(MAX_IDS_PER_REQUEST).collect();
        while let Some(asked) = waiting.pop() {
            let ids: Vec<&str> = asked.iter().map(|read| read.id.as_str()).collect();
            match self.by_id(kind, parameter, &ids).await {
                Ok(changes) => result.changes.extend(changes),
                Err(Error::Miscounted { .. }) if asked.len() > 1 => {
                    let (one, other) = asked.split_at(asked.len() / 2);
                    waiting.extend([one, other]);
                }
                Err(error @ Error::Miscounted { .. }) => result.leave(asked.iter(), &error),
                Err(error) => return Err(error),
            }
        }
        Ok(result)
    }

    async fn by_id(&self, kind: Kind, parameter: &str, ids: &[&str]) -> Result<Vec<Change>, Error> {
        let api = kinds::of(kind);
        let mut query = vec![("limit", PAGE_SIZE.to_string())];
        query.extend(ids.iter().map(|id| (parameter, (*id).to_owned())));
        let (page, absent) = self
            .get_with_few_retries(api.path, &query, |body, seen| {
                let page = listing::page(body, kind, seen)?;
                let mut absent: HashSet<&str> = ids.iter().copied().collect();
                if !page.changes.iter().all(|change| change.id().is_some_and(|id| absent.remove(id))) {
                    return Err(Malformed(format!("a {kind} that was not requested")));
                }
                Ok((page, absent))
            })
            .await?;
        // Where a list does not say how many there are, whom it leaves out must not be counted either.
        let counted = match api.listing {
            Listing::Cursor { count } if !absent.is_empty() => Some(self.count_at(count, &query[1..]).await?),
            Listing::Cursor { .. } | Listing::Offset => page.total,
        };
        with_gone(Page { total: counted, ..page }, kind, absent.into_iter())
    }

    /// `asked`: users, and the memberships that they should have. A user may have another one by now.
    async fn members(&self, organization: &str, asked: &[(&str, &str)]) -> Result<Vec<Change>, Error> {
        let mut query = vec![("limit", PAGE_SIZE.to_string())];
        query.extend(asked.iter().map(|(user, _)| ("user_id", (*user).to_owned())));
        let path = memberships_path(Kind::Organization, organization).unwrap_or_default();
        let parse = |body: &[u8], seen| {
            let page = listing::page(body, Kind::Membership, seen)?;
            let users: HashSet<&str> = asked.iter().map(|(user, _)| *user).collect();
            let of_asked = |change: &Change| {
                change.mention.as_ref().is_some_and(|mention| {
                    mention.organization.id.as_str() == organization && users.contains(mention.user.id.as_str())
                })
            };
            if !page.changes.iter().all(of_asked) {
                return Err(Malformed("a membership that was not requested".to_owned()));
            }
            Ok(page)
        };
        let page = self.get_with_few_retries(&path, &query, parse).await?;
        let present: HashSet<String> =
            page.changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect();
        let absent = asked.iter().map(|(_, id)| *id).filter(|id| !present.contains(*id));
        with_gone(page, Kind::Membership, absent)
    }

    /// All memberships of an organization, or of a user. (Nothing else has any.)
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] where Clerk does not know the parent.
    pub async fn memberships_of(&self, parent: Kind, id: &str) -> Result<Vec<Change>, Error> {
        let Some(path) = memberships_path(parent, id) else { return Ok(Vec::new()) };
        let mut changes: Vec<Change> = Vec::new();
        loop {
            let query = [("limit", PAGE_SIZE.to_string()), ("offset", changes.len().to_string())];
            let page = self.get(&path, &query, |body, seen| listing::page(body, Kind::Membership, seen)).await?;
            let (rows, total) = (page.changes.len(), page.total.unwrap_or_default());
            changes.extend(page.changes);
            if changes.len() as u64 >= total {
                return Ok(changes);
            }
            if rows == 0 {
                return Err(Malformed("a list of memberships: no rows, although there are more".to_owned()).into());
            }
        }
    }

    /// One call with all its tries. `parse` gets the body and when it was made.
    async fn get<T>(
        &self,
        path: &str,
        query: &[(&str, String)],
        parse: impl Fn(&[u8], Seen) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let retries = Retries::limited(self.options.patience, self.options.give_up_after);
        self.ask(path, query, retries, |answer| {
            self.check_date(answer).and_then(|()| Ok(parse(&answer.body, answer.seen())?))
        })
        .await
    }

    /// The same for an answer that others must not wait for.
    async fn get_with_few_retries<T>(
        &self,
        path: &str,
        query: &[(&str, String)],
        parse: impl Fn(&[u8], Seen) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let retries = Retries::limited(self.options.patience, SHORT_RETRY_TIME.min(self.options.give_up_after));
        self.ask(path, query, retries, |answer| {
            self.check_date(answer).and_then(|()| Ok(parse(&answer.body, answer.seen())?))
        })
        .await
    }

    async fn ask<T>(
        &self,
        path: &str,
        query: &[(&str, String)],
        mut retries: Retries,
        parse: impl Fn(&Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (mut trouble, mut misdated) = (self.options.on_trouble, 0);
        let mut tell = |problem: &str, left: Duration| {
            if let Some(tell) = trouble.take() {
                tell(problem, left);
            }
        };
        loop {
            let asked = Instant::now();
            self.budget.take().await;
            metrics::histogram!(CLERK_WAITS).record(asked.elapsed());
            let attempt = self.attempt(path, query);
            tokio::pin!(attempt);
            let answer = match tokio::time::timeout(SILENCE, &mut attempt).await {
                Ok(answer) => answer,
                Err(_) => {
                    tell("Clerk's API has not answered yet", retries.left());
                    attempt.await
                }
            };
            let failure = match answer {
                Ok(answer) => match parse(&answer) {
                    Ok(value) => return Ok(value),
                    // An error page of something between us and Clerk, most likely, or one server's wrong clock.
                    Err(error) => Failure { error, again: Some(None) },
                },
                Err(failure) => failure,
            };
            metrics::counter!(CLERK_FAILURES).increment(1);
            misdated += u32::from(matches!(failure.error, Error::Clocks(..)));
            let Some(retry_after) = failure.again.filter(|_| misdated < CLOCK_TRIES) else { return Err(failure.error) };
            let Some(pause) = retries.pause(retry_after) else { return Err(failure.error) };
            tell(&failure.error.to_string(), retries.left());
            tracing::debug!(path, error = %failure.error, pause_ms = pause.as_millis(), "retrying a call to Clerk");
            if retry_after.is_some() {
                self.budget.block(pause);
            } else {
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn attempt(&self, path: &str, query: &[(&str, String)]) -> Result<Answer, Failure> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(CLERK_CALLS).increment(1);
        let began = Instant::now();
        let mut url = format!("{}/v1{path}", self.options.base_url.trim_end_matches('/'));
        for (index, (name, value)) in query.iter().enumerate() {
            url.push(if index == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.push_str(&segment(value));
        }
        let request = self
            .http
            .get(url)
            .bearer_auth(self.options.secret_key.expose_secret())
            .header("Clerk-API-Version", VERSION)
            .header("Accept", "application/json");
        let mut response = request.send().await.map_err(Failure::network)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::network)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(Malformed("more than 32 MiB".to_owned()).into());
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            let date = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(parse_date);
            let date = date.ok_or_else(|| Failure::from(Malformed("no Date header".to_owned())))?;
            Ok(Answer { body, date, elapsed: ms(began.elapsed()) })
        } else {
            Err(Failure::refused(status, &headers, &body))
        }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        Failure { error: malformed.into(), again: Some(None) }
    }
}

impl Failure {
    fn network(error: reqwest::Error) -> Failure {
        let what = if error.is_timeout() {
            "no complete response in time".to_owned()
        } else if error.is_connect() {
            "no connection".to_owned()
        } else {
            error.without_url().to_string()
        };
        Failure { error: Error::Unavailable(what), again: Some(None) }
    }

    fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        let complaint = listing::complaint(body);
        let code = complaint.code.as_deref().unwrap_or("without a code");
        let mut what = format!("{} {code}", status.as_u16());
        if let Some(parameter) = &complaint.parameter {
            what = format!("{what} ({parameter})");
        }
        if let Some(trace_id) = &complaint.trace_id {
            what = format!("{what}, trace {trace_id}");
        }
        let retry_after = || {
            let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<u32>().ok()?;
            Some(Duration::from_secs(seconds.into()))
        };
        let permanent = |error| Failure { error, again: None };
        match status.as_u16() {
            401 => permanent(Error::Key(what)),
            403 if code == "organization_not_enabled_in_instance" => permanent(Error::OrganizationsOff),
            404 => permanent(Error::NotFound(what)),
            422 if complaint.parameter.as_deref() == Some("starting_after") => permanent(Error::CursorGone),
            // A pause that is not retry_after is a second at least.
            429 => Failure {
                error: Error::Unavailable(what),
                again: Some(Some(retry_after().unwrap_or(Duration::from_secs(1)))),
            },
            408 | 500..=599 => Failure { error: Error::Unavailable(what), again: Some(retry_after()) },
            _ => permanent(Error::Refused(what)),
        }
    }
}

/// The rows of an answer by ids, and what it leaves out as gone, if it has all the rows that it counts.
fn with_gone<'a>(page: Page, kind: Kind, absent: impl Iterator<Item = &'a str>) -> Result<Vec<Change>, Error> {
    let Page { mut changes, total, observed_at } = page;
    let rows = changes.len();
    changes.extend(absent.map(|id| gone(kind, id, observed_at)));
    match total {
        Some(counted) if changes.len() > rows && counted != rows as u64 => Err(Error::Miscounted { rows, counted }),
        _ => Ok(changes),
    }
}

fn gone(kind: Kind, id: &str, observed_at: Millis) -> Change {
    Change { observed_at, observation: Observation::Deleted(EntityRef::new(kind, id)), mention: None }
}

/// Where the memberships of one object are listed, if it can have any.
fn memberships_path(parent: Kind, id: &str) -> Option<String> {
    let api = kinds::of(parent);
    Some(format!("{}/{}/{}", api.path, segment(id), api.memberships?))
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Percent-encoded, whatever stands in it: ids are opaque, and `+` means a space in a query.
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The form of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(date: &str) -> Option<Millis> {
    Millis::new(chrono::DateTime::parse_from_rfc2822(date).ok()?.timestamp_millis())
}
