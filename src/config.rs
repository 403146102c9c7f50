//! What `serve` is told from outside, checked as a whole: every mistake at once, by the variable's name, never its value.

use crate::clerk::client;
use crate::model::InstanceCheck;
use crate::model::InstanceId;
use crate::reconcile::schedule::{self, Cron, Timetable};
use crate::store::Database;
use crate::upkeep::retention::{self, Retention};
use crate::webhook::signature::Verifier;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use url::Url;

const DATABASE_URL_HELP: &str = "Connection string of Postgres (direct connection or session pooler): postgres://USER:PASSWORD@HOST:5432/postgres?sslmode=verify-full&sslrootcert=FILE";

/// The environment of `serve`, each with its flag. All are text here, so that one faulty value does not hide the next.
#[derive(clap::Args, Clone, Default)]
pub struct Environment {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", help = DATABASE_URL_HELP)]
    pub database_url: Option<String>,

    /// The webhook endpoint's signing secret from the Clerk dashboard (whsec_…); while you rotate it, the old and the new one, separated by a comma;
    /// unset: every webhook gets a 503 response
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET", hide_env_values = true, value_name = "SECRETS")]
    pub signing_secret: Option<String>,

    /// The Clerk instance that the tables belong to (ins_…); unset: the instance of the secret key or, without a key, the instance that
    /// sends the first webhook. Webhooks of other instances are refused; `*` accepts them, to replay test files
    #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,

    /// Where to listen for webhooks and health checks, such as `127.0.0.1:8080`; unset: port 8080 on all addresses
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDRESS")]
    pub listen_addr: Option<String>,

    /// Listen on this port on all addresses, as hosting platforms set it; ignored if `LISTEN_ADDR` is set
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub port: Option<String>,

    /// Where to serve metrics and the status page, for operators only; unset: `127.0.0.1:9091`
    #[arg(long, env = "OPS_ADDR", value_name = "ADDRESS")]
    pub ops_addr: Option<String>,

    /// Bearer token (or HTTP Basic password) required for metrics and the status page; unset: none
    #[arg(long, env = "OPS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub ops_token: Option<String>,

    /// `true`: `/metrics` needs no token, for a Prometheus that cannot send one, such as Fly's; unset: `false`
    #[arg(long, env = "OPS_OPEN_METRICS", value_name = "BOOLEAN")]
    pub ops_open_metrics: Option<String>,

    #[command(flatten)]
    pub clerk: ClerkEnvironment,

    /// When to run a full reconcile, as a cron expression in UTC; unset: `17 3 * * *`, at 03:17 every night. Memberships are also compared
    /// every hour, if they are not more than about three million. `off`: no full reconcile, and no hourly one of the memberships
    #[arg(long, env = "RECONCILE_CRON", value_name = "CRON")]
    pub reconcile_cron: Option<String>,

    /// When to run an incremental reconcile, as a cron expression in UTC, or `off`; unset: `*/5 * * * *`, every five minutes. It compares
    /// recently changed users, all organizations, and how many users and memberships there are
    #[arg(long, env = "RECONCILE_QUICK_CRON", value_name = "CRON")]
    pub reconcile_quick_cron: Option<String>,

    #[command(flatten)]
    pub retention: RetentionEnvironment,
}

/// How long bookkeeping is kept, as text.
#[derive(clap::Args, Clone, Default)]
pub struct RetentionEnvironment {
    /// How long to keep processed message ids, such as `30d`, `12h` or `forever`; unset: `30d`
    #[arg(long, env = "RETENTION_RECEIPTS", value_name = "AGE")]
    pub retention_receipts: Option<String>,

    /// How long to keep the record of differences found by a reconcile; unset: `90d`
    #[arg(long, env = "RETENTION_FINDINGS", value_name = "AGE")]
    pub retention_findings: Option<String>,

    /// How long to keep dead letters; unset: `90d`
    #[arg(long, env = "RETENTION_DEAD_LETTERS", value_name = "AGE")]
    pub retention_dead_letters: Option<String>,
}

impl RetentionEnvironment {
    /// Checks all variables; `None`: mistakes were noted.
    pub fn check(&self, mistakes: &mut Vec<Mistake>) -> Option<Retention> {
        let unset = Retention::default();
        let mut age = |variable, text: &Option<String>, unset: Option<Duration>| {
            let age = given(text.as_deref()).map_or(Ok(unset), retention::parse_retention);
            note(mistakes, variable, text.as_deref(), age)
        };
        let receipts = age("RETENTION_RECEIPTS", &self.retention_receipts, unset.receipts);
        let findings = age("RETENTION_FINDINGS", &self.retention_findings, unset.findings);
        let dead_letters = age("RETENTION_DEAD_LETTERS", &self.retention_dead_letters, unset.dead_letters);
        Some(Retention { receipts: receipts?, findings: findings?, dead_letters: dead_letters? })
    }
}

/// How Clerk's Backend API is asked.
#[derive(clap::Args, Clone, Default)]
pub struct ClerkEnvironment {
    /// The secret key of the Clerk instance (`sk_live_…` or `sk_test_…`)
    #[arg(long, env = "CLERK_SECRET_KEY", hide_env_values = true, value_name = "KEY")]
    pub secret_key: Option<String>,

    /// Address of Clerk's Backend API; unset: `https://api.clerk.com`
    #[arg(long, env = "CLERK_API_URL", value_name = "URL")]
    pub api_url: Option<String>,

    /// Share of the Backend API rate limit that clerk-sync may use, in percent (1 to 100), or `off` for no limit; unset: 20
    #[arg(long, env = "CLERK_RATE_SHARE", value_name = "PERCENT")]
    pub rate_share: Option<String>,
}

/// Percent.
const DEFAULT_RATE_SHARE: u32 = 20;

impl ClerkEnvironment {
    /// Checks all variables; `None` without a key.
    fn check(&self, mistakes: &mut Vec<Mistake>) -> Option<Option<client::Options>> {
        let key = match given(self.secret_key.as_deref()) {
            Some(key) if !key.starts_with("sk_live_") && !key.starts_with("sk_test_") => {
                Err("must begin with sk_live_ or sk_test_".to_owned())
            }
            key => Ok(key),
        };
        let key = note(mistakes, "CLERK_SECRET_KEY", self.secret_key.as_deref(), key);
        let url = given(self.api_url.as_deref()).unwrap_or(client::Options::DEFAULT_URL);
        let url = api_url(url, given(self.secret_key.as_deref()));
        let url = note(mistakes, "CLERK_API_URL", self.api_url.as_deref(), url);
        let share = match given(self.rate_share.as_deref()) {
            Some("off") => Ok(None),
            Some(share) => match share.trim_end_matches('%').parse() {
                Ok(share @ 1..=100) => Ok(Some(share)),
                _ => Err("must be a percentage from 1 to 100".to_owned()),
            },
            None => Ok(Some(DEFAULT_RATE_SHARE)),
        };
        let share = note(mistakes, "CLERK_RATE_SHARE", self.rate_share.as_deref(), share);
        let (key, base_url, share) = (key?, url?, share?);
        Some(key.map(|key| client::Options {
            base_url,
            secret_key: key.to_owned().into(),
            rate: share.map(|share: u32| client::Options::limit_of(key) * share / 100),
            patience: client::Options::PATIENCE,
            give_up_after: client::Options::PATIENCE,
            clock_tolerance: Some(client::Options::CLOCK_TOLERANCE),
            on_trouble: None,
        }))
    }

    /// For a command that cannot do without a key.
    ///
    /// # Errors
    /// Every mistake.
    pub(crate) fn check_key(&self) -> Result<client::Options, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        match self.check(&mut mistakes) {
            Some(Some(options)) => Ok(options),
            Some(None) => {
                let problem =
                    "is not set: copy it from the dashboard's page of API keys (it begins with sk_)".to_owned();
                Err(vec![Mistake { variable: "CLERK_SECRET_KEY", problem }])
            }
            None => Err(mistakes),
        }
    }
}

/// What `serve` needs to run passes.
#[derive(Clone, Debug)]
pub struct Reconcile {
    pub clerk: client::Options,
    pub timetable: Timetable,
}

/// The checked form.
#[derive(Clone, Debug)]
pub struct Config {
    pub database: Database,
    /// Without a secret it verifies nothing, and each webhook gets a 503 response.
    pub verifier: Verifier,
    pub instance: InstanceCheck,
    pub listen_addr: SocketAddr,
    /// `None`: the default address, if it is free.
    pub ops_addr: Option<SocketAddr>,
    pub ops_token: Option<secrecy::SecretString>,
    pub ops_open_metrics: bool,
    /// `None`: without a secret key nothing is repaired.
    pub reconcile: Option<Reconcile>,
    pub retention: Retention,
}

impl Config {
    /// Whether metrics and status page can be read from other machines without a token.
    pub(crate) fn shows_status_to_others(&self) -> bool {
        self.ops_token.is_none() && self.ops_addr.is_some_and(|address| !address.ip().is_loopback())
    }
}

/// Where metrics are served if nobody says otherwise.
pub const DEFAULT_OPS_ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);

/// One variable and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    pub variable: &'static str,
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.variable, self.problem)
    }
}

/// All of them as one error.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Mistakes(pub Vec<Mistake>);

impl Environment {
    /// Checks all variables.
    ///
    /// # Errors
    /// Every mistake, in the order of the fields.
    pub fn check(&self) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let database = note(&mut mistakes, "DATABASE_URL", None, database(self.database_url.as_deref()));
        let secrets =
            given(self.signing_secret.as_deref()).map(|secrets| secrets.split(',').filter(|s| !s.trim().is_empty()));
        // Without one the service runs, and webhooks get a 503 response: the secret is made with the endpoint, which needs a URL.
        let verifier = match secrets {
            Some(secrets) => Verifier::new(secrets).map_err(|error| error.to_string()),
            None => Ok(Verifier::default()),
        };
        let verifier = note(&mut mistakes, "CLERK_WEBHOOK_SIGNING_SECRET", self.signing_secret.as_deref(), verifier);
        let instance = note(&mut mistakes, "CLERK_INSTANCE_ID", None, instance(self.instance_id.as_deref()));
        let ops_addr = given(self.ops_addr.as_deref()).map(|address| {
            address.parse().map_err(|_| "must be an address with a port, such as 127.0.0.1:9091".to_owned())
        });
        let ops_addr = note(&mut mistakes, "OPS_ADDR", self.ops_addr.as_deref(), ops_addr.transpose());
        let open_metrics = match given(self.ops_open_metrics.as_deref()) {
            Some("true") => Ok(true),
            None | Some("false") => Ok(false),
            Some(_) => Err("must be true or false".to_owned()),
        };
        let open_metrics = note(&mut mistakes, "OPS_OPEN_METRICS", self.ops_open_metrics.as_deref(), open_metrics);
        let listen_addr = listen_addr(self.listen_addr.as_deref(), self.port.as_deref())
            .map_err(|mistake| mistakes.push(mistake))
            .ok();
        let clerk = self.clerk.check(&mut mistakes);
        let cron = |value: &Option<String>, default| Cron::parse(given(value.as_deref()).unwrap_or(default));
        let (full, quick) = (&self.reconcile_cron, &self.reconcile_quick_cron);
        let full = note(&mut mistakes, "RECONCILE_CRON", full.as_deref(), cron(full, schedule::DEFAULT_FULL));
        let quick = note(&mut mistakes, "RECONCILE_QUICK_CRON", quick.as_deref(), cron(quick, schedule::DEFAULT_QUICK));
        let reconcile = clerk.zip(full).zip(quick).map(|((clerk, full), quick)| {
            clerk.map(|clerk| Reconcile { timetable: Timetable { full, quick, rate: clerk.rate }, clerk })
        });
        let retention = self.retention.check(&mut mistakes);
        let config = || {
            Some(Config {
                database: database?,
                verifier: verifier?,
                instance: instance?,
                listen_addr: listen_addr?,
                ops_addr: ops_addr?,
                ops_token: given(self.ops_token.as_deref()).map(|token| token.to_owned().into()),
                ops_open_metrics: open_metrics?,
                reconcile: reconcile?,
                retention: retention?,
            })
        };
        config().ok_or(mistakes)
    }
}

/// Where the API is. The secret key goes there with every call.
fn api_url(text: &str, key: Option<&str>) -> Result<String, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    let Some(url) = url else { return Err("must be a URL that begins with https://".to_owned()) };
    let is_this_machine = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or a password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end with its path, without ? and #".to_owned());
    }
    if url.scheme() == "http" && !is_this_machine && !key.is_some_and(|key| key.starts_with("sk_test_")) {
        return Err(
            "must begin with https://: with http, others on the network can read the secret key (http is accepted for this machine, and with a key that begins with sk_test_)"
                .to_owned(),
        );
    }
    // The version is ours to say; documentation has the address with and without it.
    Ok(text.trim_end_matches('/').trim_end_matches("/v1").to_owned())
}

/// Where `serve` listens for webhooks, from `LISTEN_ADDR` and `PORT`.
///
/// # Errors
/// The one that counts is wrong.
pub(crate) fn listen_addr(listen_addr: Option<&str>, port: Option<&str>) -> Result<SocketAddr, Mistake> {
    let (address, port) = (given(listen_addr), given(port));
    let (variable, parsed) = match (address, port) {
        (Some(address), _) => (
            "LISTEN_ADDR",
            address.parse().map_err(|_| "must be an address with a port, such as 0.0.0.0:8080".to_owned()),
        ),
        (None, Some(port)) => {
            ("PORT", port.parse().map_err(|_| "must be a port number".to_owned()).map(on_every_address))
        }
        (None, None) => ("LISTEN_ADDR", Ok(on_every_address(8080))),
    };
    parsed.map_err(|problem| Mistake { variable, problem: meant(address.or(port), problem) })
}

/// A database URL that must be there.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with the variable's name.
pub fn database(url: Option<&str>) -> Result<Database, String> {
    match given(url) {
        Some(url) => Database::parse(url).map_err(|problem| meant(Some(url), problem)),
        None => Err("is not set: copy the connection string from your Supabase project's Connect page".to_owned()),
    }
}

/// Which Clerk instance is meant; what stands there by mistake may be a secret, and is not shown.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with the variable's name.
pub fn instance(text: Option<&str>) -> Result<InstanceCheck, String> {
    match given(text) {
        Some("*") => Ok(InstanceCheck::Off),
        Some(id) if !id.starts_with("ins_") => Err(meant(Some(id), "must begin with ins_".to_owned())),
        id => Ok(InstanceCheck::Pinned(id.map(InstanceId::from))),
    }
}

/// The database of a command.
///
/// # Errors
/// What is wrong, by the variable's name.
pub(crate) fn named_database(url: Option<&str>) -> anyhow::Result<Database> {
    database(url).map_err(|problem| anyhow::anyhow!("DATABASE_URL {problem}"))
}

/// The value without white space round it; an empty one counts as not set.
pub(crate) fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|value| !value.is_empty())
}

/// Notes what is wrong with a variable's value.
fn note<T>(
    mistakes: &mut Vec<Mistake>,
    variable: &'static str,
    value: Option<&str>,
    result: Result<T, String>,
) -> Option<T> {
    result.map_err(|problem| mistakes.push(Mistake { variable, problem: meant(value, problem) })).ok()
}

/// Where quotation marks belong to a value, everything else that is wrong follows from them.
fn meant(value: Option<&str>, problem: String) -> String {
    if !value.is_some_and(|value| value.trim().starts_with(['"', '\'', '`'])) {
        return problem;
    }
    "begins with a quotation mark: docker's --env-file and some dashboards keep quotes as part of the value, so remove them"
        .to_owned()
}

const fn on_every_address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            database_url: Some("postgres://someone:s3cret@db.example.com:5432/postgres".to_owned()),
            signing_secret: Some("whsec_bm90IGEgcmVhbCBzZWNyZXQ=\n".to_owned()),
            ..Environment::default()
        }
    }

    #[test]
    fn a_good_environment_has_defaults_and_shows_no_secret() {
        let config = environment().check().unwrap();
        assert_eq!(config.listen_addr.to_string(), "0.0.0.0:8080");
        assert_eq!(config.instance, InstanceCheck::Pinned(None));
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("bm90"), "{shown}");
    }

    #[test]
    fn all_mistakes_come_at_once_by_name_and_without_values() {
        let environment = Environment {
            database_url: Some("postgres://someone:s3cret@db.example.com:6543/postgres".to_owned()),
            signing_secret: Some("whsec_%%%".to_owned()),
            instance_id: Some("sk_live_oops".to_owned()),
            listen_addr: Some("nonsense".to_owned()),
            ops_addr: Some("9091".to_owned()),
            ops_token: None,
            ops_open_metrics: Some("perhaps".to_owned()),
            port: None,
            clerk: ClerkEnvironment {
                secret_key: Some("pk_live_hidden".to_owned()),
                api_url: Some("ftp://example.com".to_owned()),
                rate_share: Some("200".to_owned()),
            },
            reconcile_cron: Some("nightly".to_owned()),
            reconcile_quick_cron: Some("off".to_owned()),
            retention: RetentionEnvironment {
                retention_receipts: Some("always".to_owned()),
                retention_findings: Some("forever".to_owned()),
                retention_dead_letters: Some("0d".to_owned()),
            },
        };
        let mistakes = environment.check().unwrap_err();
        let names: Vec<_> = mistakes.iter().map(|mistake| mistake.variable).collect();
        assert_eq!(
            names,
            [
                "DATABASE_URL",
                "CLERK_WEBHOOK_SIGNING_SECRET",
                "CLERK_INSTANCE_ID",
                "OPS_ADDR",
                "OPS_OPEN_METRICS",
                "LISTEN_ADDR",
                "CLERK_SECRET_KEY",
                "CLERK_API_URL",
                "CLERK_RATE_SHARE",
                "RECONCILE_CRON",
                "RETENTION_RECEIPTS",
                "RETENTION_DEAD_LETTERS"
            ]
        );
        let text: String = mistakes.iter().map(ToString::to_string).collect();
        for value in ["s3cret", "%%%", "oops", "nonsense", "hidden", "ftp", "nightly", "always", "perhaps"] {
            assert!(!text.contains(value), "{text}");
        }
    }

    #[test]
    fn listen_addr_wins_over_port() {
        let with = |listen_addr: Option<&str>, port: Option<&str>| {
            let environment = Environment {
                listen_addr: listen_addr.map(str::to_owned),
                port: port.map(str::to_owned),
                ..environment()
            };
            environment.check().map(|config| config.listen_addr.to_string())
        };
        assert_eq!(with(None, Some("3000")).unwrap(), "0.0.0.0:3000");
        assert_eq!(with(Some("[::1]:9000"), Some("3000")).unwrap(), "[::1]:9000");
        assert_eq!(with(None, Some("http")).unwrap_err()[0].variable, "PORT");
    }

    #[test]
    fn an_environment_without_a_secret_is_good_and_verifies_nothing() {
        for secret in [None, Some(""), Some(" ")] {
            let environment = Environment { signing_secret: secret.map(str::to_owned), ..environment() };
            assert!(!environment.check().unwrap().verifier.has_secret(), "{secret:?}");
        }
        assert!(environment().check().unwrap().verifier.has_secret());
    }

    #[test]
    fn empty_secrets_are_a_mistake() {
        for secret in [",", "whsec_", "whpk_abc", "whsec_bm90IGEgcmVhbCBzZWNyZXQ=,whsec_"] {
            let environment = Environment { signing_secret: Some(secret.to_owned()), ..environment() };
            assert_eq!(environment.check().unwrap_err()[0].variable, "CLERK_WEBHOOK_SIGNING_SECRET", "{secret}");
        }
    }
}
