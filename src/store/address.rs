//! What a connection string says. Where it is wrong: what was probably meant, and never what stands there, for it holds a
//! password.

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use std::path::PathBuf;
use url::Url;

/// A connection string that can be used.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) options: PgConnectOptions,
    /// The file with the certificates of authorities, if it names one.
    pub(super) root_certificate: Option<PathBuf>,
}

/// How well the way to the server is protected by what the connection string asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The server is on this machine: a Unix socket, or a loopback address.
    Local,
    /// The server's certificate is checked.
    Verified,
    /// Encrypted, by whoever answers.
    Unverified,
    /// Encrypted if whoever answers likes.
    Optional,
    Off,
}

impl Tls {
    /// What is wrong with it, as a whole sentence without its end; `None`: nothing.
    pub const fn weakness(self) -> Option<&'static str> {
        match self {
            Tls::Local | Tls::Verified => None,
            Tls::Unverified => {
                Some("the database connection is encrypted, but the server's certificate is not checked")
            }
            Tls::Optional => Some(
                "the database connection is encrypted only if the server offers it, and its certificate is not checked",
            ),
            Tls::Off => Some("the database connection is not encrypted"),
        }
    }

    /// What to do about it.
    pub(crate) const FIX: &'static str = "add ?sslmode=verify-full&sslrootcert=FILE to the connection string (FILE is the CA certificate from the \
         Supabase dashboard → Database settings → SSL configuration)";
}

/// Copied from the dashboard or from our documentation, and not filled in.
const PLACEHOLDERS: &[&str] =
    &["[your-password]", "%5byour-password%5d", "[your-project-ref]", "postgres.ref:", "db.ref.", "-region.pooler."];

/// What sslmode may be.
const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Parameters in whose values an `@` means nothing.
const MAY_HOLD_AT: &[&str] = &["user", "password", "dbname", "host", "application_name", "options", "sslrootcert"];

/// Reads a connection string.
///
/// # Errors
/// The end of a sentence that begins with the variable's name. It repeats nothing of the text.
pub(super) fn parse(text: &str) -> Result<Address, String> {
    check_scheme(text)?;
    check_placeholders(text)?;
    check_special_characters(text)?;
    check_host_and_port(text)?;
    let mut url: Url = text.parse().map_err(|_| INVALID.to_owned())?;
    check_parameters(&url)?;
    let mut root_certificate = std::env::var_os("PGSSLROOTCERT").map(PathBuf::from);
    let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    url.query_pairs_mut().clear();
    for (name, value) in &parameters {
        if matches!(name.as_str(), "sslrootcert" | "ssl-root-cert" | "ssl-ca") {
            // libpq's word for the system's authorities, which are trusted anyway.
            if value == "system" {
                continue;
            }
            root_certificate = Some(PathBuf::from(value));
        }
        url.query_pairs_mut().append_pair(name, value);
    }
    // sqlx warns of parameters that it does not know, with their values: a mistyped password would be logged.
    let parsed = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        PgConnectOptions::from_url(&url)
    });
    let mut options = parsed.map_err(|_| INVALID.to_owned())?;
    let is_transaction_mode = parameters.iter().any(|(name, value)| name == "pgbouncer" && value == "true");
    if options.get_port() == 6543 || is_transaction_mode {
        return Err(
            "points at a transaction-mode pooler (port 6543 or pgbouncer=true), where prepared statements are \
                    mixed up between clients; use the direct connection or the session pooler (port 5432)"
                .to_owned(),
        );
    }
    // sqlx 0.9.0 looks up the name "[::1]".
    if let Some(host) = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let host = host.to_owned();
        options = options.host(&host);
    }
    // As libpq has it, and as sqlx documents it, but 0.9.0 checks nothing then.
    if matches!(options.get_ssl_mode(), PgSslMode::Require) && root_certificate.is_some() {
        options = options.ssl_mode(PgSslMode::VerifyCa);
    }
    // PgBouncer refuses it unless it is configured not to; since Postgres 12 it changes nothing for the better.
    let options = options.extra_float_digits(None).application_name("clerk-sync").disable_statement_logging();
    Ok(Address { options, root_certificate })
}

const INVALID: &str = "is not a valid connection string: it must look like postgres://USER:PASSWORD@HOST:5432/postgres, with \
     the special characters of the password percent-encoded";

fn check_scheme(text: &str) -> Result<(), String> {
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return Ok(());
    }
    let found = if text.starts_with("https://") || text.starts_with("http://") {
        "is a web address, not a connection string: "
    } else if text.starts_with("jdbc:") {
        "is a connection string for Java: "
    } else if text.contains("postgres://") || text.contains("postgresql://") {
        "has something before postgres://, such as the variable's name or a command: "
    } else if text.contains("host=") {
        "is a list of KEY=value pairs: "
    } else {
        ""
    };
    let copy = "copy it from the Supabase dashboard → Connect";
    Err(if found.is_empty() {
        format!("must begin with postgres://; {copy}")
    } else {
        format!("{found}it must begin with postgres://; {copy}")
    })
}

fn check_placeholders(text: &str) -> Result<(), String> {
    let text = text.to_ascii_lowercase();
    if PLACEHOLDERS.iter().any(|placeholder| text.contains(placeholder)) {
        return Err(
            "still has a placeholder, such as [YOUR-PASSWORD]: put the database password (Supabase dashboard → \
                    Database settings), or the project's own host and user, in its place"
                .to_owned(),
        );
    }
    Ok(())
}

/// What comes before the first character that ends the part with user, password and host, and what comes after.
fn split(text: &str) -> (&str, &str) {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// An `@` behind what was read as the host gives away that the password went on.
fn check_special_characters(text: &str) -> Result<(), String> {
    let (_, rest) = split(text);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (query, fragment) = query.split_once('#').unwrap_or((query, ""));
    let in_query = query.split_once('@').is_some_and(|(before, _)| {
        let parameter = before.rsplit('&').next().unwrap_or_default();
        !parameter.split_once('=').is_some_and(|(name, _)| MAY_HOLD_AT.contains(&name))
    });
    if path.contains('@') || fragment.contains('@') || in_query {
        return Err(
            "has a #, / or ? in the password (or user) that is not percent-encoded, so the host is read from the \
                    wrong place: write %23 for #, %2F for /, %3F for ?"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_host_and_port(text: &str) -> Result<(), String> {
    let (authority, _) = split(text);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = match host.rsplit_once(']') {
        Some((_, port)) => port.strip_prefix(':'),
        None if host.matches(':').count() > 1 => {
            return Err("has an IPv6 address without brackets: write it as [2001:db8::1]:5432".to_owned());
        }
        None => host.split_once(':').map(|(_, port)| port),
    };
    check_port(port.unwrap_or_default())
}

fn check_port(port: &str) -> Result<(), String> {
    if port.is_empty() || port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Ok(());
    }
    Err("has a port that is not a number from 1 to 65535; if that is part of the password, percent-encode the special \
         characters before it"
        .to_owned())
}

fn check_parameters(url: &Url) -> Result<(), String> {
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value.to_ascii_lowercase().as_str()) => {
                let modes = SSL_MODES.join(", ");
                let meant = match &*value {
                    "no-verify" => "; what Node calls no-verify is require, and verify-full is safe",
                    _ => "",
                };
                return Err(format!("has an unknown sslmode: it must be one of {modes}{meant}"));
            }
            "port" => check_port(&value)?,
            "hostaddr" if value.parse::<std::net::IpAddr>().is_err() => {
                return Err("has a hostaddr that is not an IP address".to_owned());
            }
            _ => {}
        }
    }
    Ok(())
}

impl Address {
    pub(super) fn tls(&self) -> Tls {
        if self.is_local() {
            return Tls::Local;
        }
        match self.options.get_ssl_mode() {
            PgSslMode::VerifyFull | PgSslMode::VerifyCa => Tls::Verified,
            PgSslMode::Require => Tls::Unverified,
            PgSslMode::Prefer => Tls::Optional,
            // sqlx 0.9.0 never encrypts with `allow`.
            PgSslMode::Allow | PgSslMode::Disable => Tls::Off,
        }
    }

    /// Whether no network is between us. A name that merely leads here could lead elsewhere tomorrow.
    fn is_local(&self) -> bool {
        let host = self.options.get_host();
        self.options.get_socket().is_some()
            || host.starts_with('/')
            || host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// Whether the certificate file, where one is needed, can be used.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(super) async fn check_root_certificate(&self) -> Result<(), &'static str> {
        let verifies = matches!(self.options.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa);
        let Some(file) = self.root_certificate.as_ref().filter(|_| verifies) else { return Ok(()) };
        match tokio::fs::read(file).await {
            Ok(bytes) if contains(&bytes, b"-----BEGIN CERTIFICATE-----") => Ok(()),
            Ok(_) => Err("has no certificate in it (-----BEGIN CERTIFICATE-----)"),
            Err(error) => Err(match error.kind() {
                std::io::ErrorKind::NotFound => "does not exist",
                std::io::ErrorKind::IsADirectory => "is a folder",
                std::io::ErrorKind::PermissionDenied => "may not be read by this program",
                _ => "cannot be read",
            }),
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> PgConnectOptions {
        parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}")).options
    }

    #[test]
    fn each_wrong_connection_string_is_told_by_what_was_meant_and_never_shown() {
        for (text, says) in [
            ("postgres://postgres:#secret@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:123#secret@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:12/secret@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:?secret@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:?secret=1@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:a@b/secret@db.example.com:5432/postgres", "percent-encoded"),
            ("postgres://postgres:a@b?secret@db.example.com:5432/postgres?sslmode=require", "percent-encoded"),
            ("postgres://postgres:secret@db.example.com:5432/postgres?sslmode=no-verify", "Node calls no-verify"),
            ("postgres://postgres:secret@db.example.com:5432/postgres?sslmode=required", "one of disable, allow"),
            ("postgres://postgres:secret@db.example.com/postgres?port=secret", "port that is not a number"),
            ("postgres://postgres:secret@db.example.com:secret/postgres", "port that is not a number"),
            ("postgres://postgres:secret@db.example.com/postgres?hostaddr=secret", "not an IP address"),
            ("postgres://postgres:secret@2001:db8::1:5432/postgres", "brackets"),
            (
                "postgres://postgres.abc:[YOUR-PASSWORD]@aws-1-eu-west-1.pooler.supabase.com:5432/postgres",
                "placeholder",
            ),
            ("postgres://postgres.REF:secret@aws-0-REGION.pooler.supabase.com:5432/postgres", "placeholder"),
            ("https://secret.supabase.co", "web address"),
            ("jdbc:postgresql://db.example.com/postgres?password=secret", "Java"),
            ("DATABASE_URL=postgres://postgres:secret@db.example.com/postgres", "before postgres://"),
            ("host=db.example.com user=postgres password=secret", "KEY=value"),
            ("secret", "must begin with postgres://"),
            ("postgres://postgres:secret@db.example.com:6543/postgres", "transaction-mode"),
            ("postgres://postgres:secret@db.example.com/postgres?pgbouncer=true", "transaction-mode"),
        ] {
            let problem = parse(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(problem.contains(says), "{text}: {problem}");
            assert!(!problem.contains("secret") && !problem.contains("example"), "{problem}");
        }
    }

    #[test]
    fn what_is_right_is_not_suspected() {
        let of = |text: &str| {
            let options = options(text);
            (options.get_host().to_owned(), options.get_port(), options.get_username().to_owned())
        };
        let host = |host: &str, port, user: &str| (host.to_owned(), port, user.to_owned());
        assert_eq!(
            of("postgres://postgres:p%23%2F%3F@db.example.com:5432/postgres"),
            host("db.example.com", 5432, "postgres")
        );
        assert_eq!(of("postgres://postgres:a@b@db.example.com/postgres"), host("db.example.com", 5432, "postgres"));
        assert_eq!(of("postgres://db.example.com/postgres?user=a@b"), host("db.example.com", 5432, "a@b"));
        assert_eq!(
            of("postgres://u:p@db.example.com/postgres?application_name=a@b"),
            host("db.example.com", 5432, "u")
        );
        assert_eq!(of("postgres://u@[::1]:5433/postgres"), host("::1", 5433, "u"));
        assert_eq!(of("postgres:///postgres?host=::1&port=5433&user=u"), host("::1", 5433, "u"));
        assert_eq!(of("postgresql://u@db.example.com:5432"), host("db.example.com", 5432, "u"));
        assert!(parse("postgres://u:pgbouncer=true@db.example.com/postgres").is_ok());
    }

    #[test]
    fn the_parameters_of_a_connection_string_survive() {
        let text = "postgres://u@db.example.com/a%20b?sslmode=verify-full&sslrootcert=%2Ftmp%2Fa%20b.crt&options=-c%20geqo%3Doff";
        let address = parse(text).unwrap();
        assert_eq!(address.root_certificate, Some(PathBuf::from("/tmp/a b.crt")));
        assert_eq!(address.options.get_options(), Some("-c geqo=off"));
        assert_eq!(address.options.get_database(), Some("a b"));
        assert_eq!(address.tls(), Tls::Verified);
        assert_eq!(parse("postgres://u@db.example.com/?sslrootcert=system").unwrap().root_certificate, None);
    }

    #[test]
    fn only_a_checked_certificate_or_this_machine_is_a_safe_way() {
        let tls = |text: &str| parse(text).unwrap().tls();
        let url = "postgres://u:p@db.example.com/postgres";
        assert_eq!(tls(url), Tls::Optional);
        assert_eq!(tls(&format!("{url}?sslmode=disable")), Tls::Off);
        assert_eq!(tls(&format!("{url}?sslmode=allow")), Tls::Off);
        assert_eq!(tls(&format!("{url}?sslmode=require")), Tls::Unverified);
        assert_eq!(tls(&format!("{url}?sslmode=require&sslrootcert=ca.crt")), Tls::Verified);
        assert_eq!(tls(&format!("{url}?sslmode=verify-ca")), Tls::Verified);
        assert_eq!(tls(&format!("{url}?sslmode=verify-full")), Tls::Verified);
        for local in ["localhost", "127.0.0.1", "127.0.0.2", "[::1]", "%2Ftmp"] {
            assert_eq!(tls(&format!("postgres://u@{local}/postgres")), Tls::Local, "{local}");
        }
        for name in ["localhost.example.com", "127.1", "db", "10.0.0.1", "[fd00::1]"] {
            assert_eq!(tls(&format!("postgres://u@{name}/postgres?sslmode=disable")), Tls::Off, "{name}");
        }
    }
}
