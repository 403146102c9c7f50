//! What `serve` is told from outside, checked as a whole: every mistake at once, by the variable's name, never its value.

use crate::model::InstanceId;
use crate::store::Database;
use crate::webhook::verify::Verifier;
use crate::webhook::writer::InstanceCheck;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const DATABASE_URL_HELP: &str = "Postgres, directly or by the session pooler: \
     postgres://USER:PASSWORD@HOST:5432/postgres?sslmode=verify-full&sslrootcert=FILE";

/// The environment of `serve`, each with its flag. All are text here, so that one faulty value does not hide the next.
#[derive(clap::Args, Clone)]
pub struct Environment {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", help = DATABASE_URL_HELP)]
    pub database_url: Option<String>,

    /// The endpoint's signing secret from the Clerk dashboard (whsec_…); several, comma separated, during a rotation
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET", hide_env_values = true, value_name = "SECRETS")]
    pub signing_secret: Option<String>,

    /// The Clerk instance to mirror (ins_…). Unset: the first webhook decides. `*`: any, for replays of fixtures
    #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,

    /// Where to listen for webhooks and health checks, such as `127.0.0.1:8080`; unset: port 8080 of every address
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDRESS")]
    pub listen_addr: Option<String>,

    /// Listen on this port of every address, as platforms ask; the address above wins
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub port: Option<String>,

    /// Where to serve metrics, for operators alone; unset: `127.0.0.1:9091`
    #[arg(long, env = "OPS_ADDR", value_name = "ADDRESS")]
    pub ops_addr: Option<String>,
}

/// The checked form.
#[derive(Clone, Debug)]
pub struct Config {
    pub database: Database,
    pub verifier: Verifier,
    pub instance: InstanceCheck,
    pub listen_addr: SocketAddr,
    /// `None`: the default address, if it is free.
    pub ops_addr: Option<SocketAddr>,
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

impl Environment {
    /// Checks all variables.
    ///
    /// # Errors
    /// Every mistake, in the order of the fields.
    pub fn check(&self) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let database = note(&mut mistakes, "DATABASE_URL", database(self.database_url.as_deref()));
        let secrets =
            given(self.signing_secret.as_deref()).map(|secrets| secrets.split(',').filter(|s| !s.trim().is_empty()));
        let verifier = match secrets {
            Some(secrets) => Verifier::new(secrets).map_err(|error| error.to_string()),
            None => Err("is not set: copy it from the endpoint's page in the Clerk dashboard (it begins with whsec_)"
                .to_owned()),
        };
        let verifier = note(&mut mistakes, "CLERK_WEBHOOK_SIGNING_SECRET", verifier);
        let instance = match given(self.instance_id.as_deref()) {
            Some("*") => Ok(InstanceCheck::Off),
            Some(id) if !id.starts_with("ins_") => Err("is no instance id: it begins with ins_".to_owned()),
            id => Ok(InstanceCheck::Pinned(id.map(InstanceId::from))),
        };
        let instance = note(&mut mistakes, "CLERK_INSTANCE_ID", instance);
        let ops_addr = given(self.ops_addr.as_deref())
            .map(|address| address.parse().map_err(|_| "is no address with a port, such as 127.0.0.1:9091".to_owned()));
        let ops_addr = note(&mut mistakes, "OPS_ADDR", ops_addr.transpose());
        let (variable, listen_addr) = match (given(self.listen_addr.as_deref()), given(self.port.as_deref())) {
            (Some(address), _) => (
                "LISTEN_ADDR",
                address.parse().map_err(|_| "is no address with a port, such as 0.0.0.0:8080".to_owned()),
            ),
            (None, Some(port)) => {
                ("PORT", port.parse().map_err(|_| "is no port number".to_owned()).map(on_every_address))
            }
            (None, None) => ("LISTEN_ADDR", Ok(on_every_address(8080))),
        };
        let listen_addr = note(&mut mistakes, variable, listen_addr);
        match (database, verifier, instance, listen_addr, ops_addr) {
            (Some(database), Some(verifier), Some(instance), Some(listen_addr), Some(ops_addr)) => {
                Ok(Config { database, verifier, instance, listen_addr, ops_addr })
            }
            _ => Err(mistakes),
        }
    }
}

/// A database URL that must be there.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with the variable's name.
pub fn database(url: Option<&str>) -> Result<Database, String> {
    match given(url) {
        Some(url) => Database::parse(url),
        None => Err("is not set: copy the connection string from your Supabase project's Connect page".to_owned()),
    }
}

/// The value without white space round it; an empty one counts as not set.
fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|value| !value.is_empty())
}

fn note<T>(mistakes: &mut Vec<Mistake>, variable: &'static str, result: Result<T, String>) -> Option<T> {
    result.map_err(|problem| mistakes.push(Mistake { variable, problem })).ok()
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
            instance_id: None,
            listen_addr: None,
            port: None,
            ops_addr: None,
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
            port: None,
        };
        let mistakes = environment.check().unwrap_err();
        let names: Vec<_> = mistakes.iter().map(|mistake| mistake.variable).collect();
        assert_eq!(
            names,
            ["DATABASE_URL", "CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_INSTANCE_ID", "OPS_ADDR", "LISTEN_ADDR"]
        );
        let text: String = mistakes.iter().map(ToString::to_string).collect();
        for value in ["s3cret", "%%%", "oops", "nonsense"] {
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
    fn empty_secrets_are_a_mistake() {
        for secret in ["", " ", ",", "whsec_", "whpk_abc", "whsec_bm90IGEgcmVhbCBzZWNyZXQ=,whsec_"] {
            let environment = Environment { signing_secret: Some(secret.to_owned()), ..environment() };
            assert_eq!(environment.check().unwrap_err()[0].variable, "CLERK_WEBHOOK_SIGNING_SECRET", "{secret}");
        }
    }
}
