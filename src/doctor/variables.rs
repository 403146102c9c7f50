//! The environment, as `serve` would judge it.

use super::Check;
use crate::config::{Config, Environment};
use crate::dotenv::Dotenv;

/// Those that decide whether anything works, each with where its value is found.
const MAIN: &[(&str, &str)] = &[
    (
        "DATABASE_URL",
        "Supabase dashboard → Connect → Session pooler or Direct connection (port 5432); put the password in, percent-encoded, and add \
         ?sslmode=verify-full&sslrootcert=FILE",
    ),
    (
        "CLERK_WEBHOOK_SIGNING_SECRET",
        "Clerk dashboard → Webhooks → the endpoint → Signing Secret; copy all of it, with whsec_",
    ),
    ("CLERK_SECRET_KEY", "Clerk dashboard → API keys → Secret keys; it begins with sk_live_ or sk_test_"),
    ("CLERK_INSTANCE_ID", "unset it, or set it to the id that begins with ins_ (Clerk dashboard → Settings)"),
];

/// What the file in the working directory has to do with them, if there is one. Its path may be somebody's name.
pub(super) fn of_file(dotenv: Option<&Dotenv>) -> Option<Check> {
    let dotenv = dotenv?;
    if dotenv.problems.is_empty() {
        let names = if dotenv.names.is_empty() { "nothing".to_owned() } else { dotenv.names.join(", ") };
        return Some(Check::ok(".env", format!("the working directory's is read; it names {names}")));
    }
    let says = format!("the working directory's {}", dotenv.problems.join("; it "));
    Some(Check::warn(".env", says, "correct the file, or set the variables in another way"))
}

/// One check for each main variable, and one for each other that is wrong.
pub(super) fn checks(environment: &Environment) -> Vec<Check> {
    let checked = environment.check();
    let open = checked.as_ref().is_ok_and(Config::shows_status_to_others);
    let mistakes = checked.err().unwrap_or_default();
    let mut checks: Vec<Check> = MAIN
        .iter()
        .map(|(name, fix)| match mistakes.iter().find(|mistake| mistake.variable == *name) {
            Some(mistake) => Check::fail(name, &mistake.problem, *fix),
            None => well_formed(environment, name, fix),
        })
        .collect();
    let others = mistakes.iter().filter(|mistake| MAIN.iter().all(|(name, _)| *name != mistake.variable));
    checks.extend(others.map(|mistake| {
        Check::fail(
            mistake.variable,
            &mistake.problem,
            format!("correct {0}, or unset it for its default", mistake.variable),
        )
    }));
    if open {
        let says = "is not set, and OPS_ADDR can be reached from other machines: they can read the status page";
        let fix = "OPS_TOKEN=$(openssl rand -hex 32); for a Prometheus that cannot send it, OPS_OPEN_METRICS=true";
        checks.push(Check::warn("OPS_TOKEN", says, fix));
    }
    checks
}

fn well_formed(environment: &Environment, name: &'static str, fix: &str) -> Check {
    let value = match name {
        "CLERK_SECRET_KEY" => &environment.clerk.secret_key,
        "CLERK_INSTANCE_ID" => &environment.instance_id,
        "CLERK_WEBHOOK_SIGNING_SECRET" => &environment.signing_secret,
        _ => return Check::ok(name, "is set and well-formed"),
    };
    match (name, value.as_deref().map(str::trim).filter(|value| !value.is_empty())) {
        ("CLERK_SECRET_KEY", None) => {
            Check::warn(name, "is not set: reconcile is disabled, and missed webhooks are never repaired", fix)
        }
        ("CLERK_WEBHOOK_SIGNING_SECRET", None) => Check::fail(
            name,
            "is not set: every webhook gets a 503 response",
            "Clerk dashboard → Webhooks → Add endpoint: https://YOUR-HOST/webhooks/clerk; copy its Signing Secret, all of it, with whsec_",
        ),
        ("CLERK_INSTANCE_ID", None) => Check::ok(name, "is not set: the secret key or the first webhook decides"),
        ("CLERK_INSTANCE_ID", Some("*")) => Check::warn(
            name,
            "is *: webhooks of any Clerk instance are written into the tables",
            "set it to your instance's id (ins_…), or unset it",
        ),
        _ => Check::ok(name, "is set and well-formed"),
    }
}
