//! A session token: what it claims, and what its holder would see. Its signature is not checked: that takes Clerk's public
//! keys, and Supabase does it. So the claims are reported, not trusted.

use super::{Check, some_of};
use crate::clock;
use crate::model::{Millis, span};
use crate::store::Database;
use crate::store::diagnostics::Caller;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use std::time::Duration;

/// Seconds by which Supabase's API lets times be off.
const LEEWAY: i64 = 30;

const FRESH: &str = "copy a new one: await window.Clerk.session.getToken() in the browser's console";

#[derive(Debug)]
struct Token {
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

/// What stands in the token, unproven.
fn decode(text: &str) -> Result<Token, &'static str> {
    let text = text.trim();
    let text = text.strip_prefix("Bearer ").unwrap_or(text).trim();
    let parts: Vec<&str> = text.split('.').collect();
    let [header, claims, _] = parts[..] else {
        return Err("it is not a valid JWT: a JWT has three parts, separated by dots");
    };
    let object = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
        serde_json::from_slice::<Map<String, Value>>(&bytes).ok()
    };
    match (object(header), object(claims)) {
        (Some(header), Some(claims)) => Ok(Token { header, claims }),
        _ => Err("it is not a valid JWT: its parts must be JSON in base64"),
    }
}

/// An id, a role or a URL; anything else might be a name or an address.
fn shown(text: &str) -> &str {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_-:/.".contains(&b);
    if !text.is_empty() && text.len() <= 120 && text.bytes().all(is_plain) { text } else { "(not shown)" }
}

impl Token {
    fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim).and_then(Value::as_str)
    }

    /// A moment, as far as it can be one.
    fn seconds(&self, claim: &str) -> Option<i64> {
        let seconds = Duration::try_from_secs_f64(self.claims.get(claim)?.as_f64()?).ok()?.as_secs();
        Some(i64::try_from(seconds).unwrap_or(i64::MAX).min(Millis::MAX.get() / 1000))
    }

    fn is_v2(&self) -> bool {
        self.claims.get("v").is_some_and(|v| v == 2 || v == "2")
    }

    /// The active organization and the role in it, as `clerk_rls` reads the former.
    fn organization(&self) -> (Option<&str>, Option<&str>) {
        if self.is_v2() {
            let of = |name: &str| self.claims.get("o")?.get(name)?.as_str();
            (of("id"), of("rol"))
        } else {
            (self.text("org_id"), self.text("org_role"))
        }
    }
}

/// `instance`: the mirror's, or the secret key's.
pub(super) async fn examine(text: &str, instance: Option<&str>, database: Option<&Database>) -> Vec<Check> {
    let token = match decode(text) {
        Ok(token) => token,
        Err(problem) => {
            let mut checks = vec![Check::fail("token", problem, FRESH)];
            let rest = ["token-role", "token-time", "token-issuer", "token-rows"];
            checks.extend(rest.map(|name| Check::skip(name, "the token cannot be read")));
            return checks;
        }
    };
    let mut checks = vec![
        claims(&token),
        role(token.text("role")),
        time(token.seconds("exp"), token.seconds("nbf").or(token.seconds("iat")), clock::now().get() / 1000),
        issuer(&token, instance),
    ];
    checks.push(rows(&token, database).await);
    checks
}

fn claims(token: &Token) -> Check {
    let names: Vec<String> = token.claims.keys().map(|name| shown(name).to_owned()).collect();
    let names = some_of(&names, 30, ", ");
    let kind = if token.is_v2() {
        "session token of version 2"
    } else if token.claims.contains_key("sid") {
        "session token of version 1"
    } else {
        "token of a JWT template"
    };
    let organization = match token.organization() {
        (Some(id), role) => {
            let role = role.map(|role| format!(" as {}", shown(role))).unwrap_or_default();
            format!("active organization {}{role}", shown(id))
        }
        (None, _) => "no active organization".to_owned(),
    };
    Check::ok("token", format!("{kind}, signature not checked; {organization}; claims: {names}"))
}

fn role(role: Option<&str>) -> Check {
    const NAME: &str = "token-role";
    const FIX: &str = "Clerk dashboard → Integrations → Supabase → activate (it adds \"role\": \"authenticated\" to session \
                       tokens), and Supabase dashboard → Authentication → Third-party → add Clerk; then sign in again";
    match role {
        Some("authenticated") => Check::ok(NAME, "authenticated"),
        None => Check::fail(NAME, "there is no claim role: Supabase treats the request as anon, without an error", FIX),
        Some("service_role") => {
            Check::fail(NAME, "service_role: it bypasses every policy", "never put this role into a user's token")
        }
        Some(role) => Check::fail(NAME, format!("{}: our policies are for authenticated", shown(role)), FIX),
    }
}

fn time(expires: Option<i64>, begins: Option<i64>, now: i64) -> Check {
    const NAME: &str = "token-time";
    match (expires, begins) {
        (Some(expires), _) if expires + LEEWAY < now => Check::warn(
            NAME,
            format!("it expired {} ago: Supabase refuses it (session tokens live 60 s)", span(now - expires)),
            FRESH,
        ),
        (_, Some(begins)) if begins > now + LEEWAY => Check::warn(
            NAME,
            format!("it is not valid before {} from now: Supabase refuses it until then", span(begins - now)),
            "compare the clocks (see the check clock)",
        ),
        (Some(expires), _) => Check::ok(NAME, format!("it is valid for another {}", span(expires - now))),
        (None, _) => Check::warn(NAME, "it never expires, so it is not a session token of Clerk", FRESH),
    }
}

fn issuer(token: &Token, instance: Option<&str>) -> Check {
    const NAME: &str = "token-issuer";
    if token.header.get("alg").and_then(Value::as_str).is_some_and(|alg| alg.starts_with("HS")) {
        return Check::warn(
            NAME,
            "signed with a shared secret, as the JWT template \"supabase\" was: deprecated since April 2025",
            "Clerk dashboard → Integrations → Supabase, and getToken() without a template",
        );
    }
    let Some(issuer) = token.text("iss") else {
        return Check::fail(NAME, "there is no claim iss: Supabase cannot find the keys to check it with", FRESH);
    };
    // The key's id is the instance's.
    let signed_by = token.header.get("kid").and_then(Value::as_str).filter(|kid| kid.starts_with("ins_"));
    if let (Some(signed_by), Some(instance)) = (signed_by, instance)
        && signed_by != instance
    {
        return Check::fail(
            NAME,
            format!("signed by {}, and the tables are a copy of {}", shown(signed_by), shown(instance)),
            "use one Clerk instance for the application, the webhooks and CLERK_SECRET_KEY",
        );
    }
    let party = token.text("azp").map(|azp| format!(", for {}", shown(azp))).unwrap_or_default();
    let says = format!("{}{party}; Supabase's third-party provider must name the same domain", shown(issuer));
    Check::ok(NAME, says)
}

async fn rows(token: &Token, database: Option<&Database>) -> Check {
    const NAME: &str = "token-rows";
    let Some(user_id) = token.text("sub") else {
        return Check::fail(NAME, "there is no claim sub, so it belongs to no user", FRESH);
    };
    if token.text("role") != Some("authenticated") {
        return Check::skip(NAME, "with this role none of our policies applies, and it sees no row of the mirror");
    }
    let Some(database) = database else {
        return Check::skip(NAME, super::no_database(None));
    };
    let claims = Value::Object(token.claims.clone()).to_string();
    let Ok(mut inspector) = database.inspect().await else {
        return Check::skip(NAME, super::no_database(Some(database)));
    };
    match inspector.caller(&claims, user_id).await {
        Ok(caller) => sight(token, user_id, &caller),
        Err(error) if error.sqlstate().as_deref() == Some("42501") => Check::skip(
            NAME,
            "this database role may not become authenticated, or may not read our tables: set MIGRATE_DATABASE_URL to the owner's connection string",
        ),
        Err(error) => Check::fail(NAME, error.summary(), "fix the problems above, then run doctor again"),
    }
}

/// What the holder sees, and why not more.
fn sight(token: &Token, user_id: &str, caller: &Caller) -> Check {
    const NAME: &str = "token-rows";
    let user = shown(user_id);
    let Some(rows) = &caller.rows else {
        return Check::skip(NAME, "authenticated may not read our tables: see missing-rights");
    };
    let rows: Vec<String> = rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    let sees = format!("it sees rows of clerk: {}", rows.join(", "));
    if caller.user_id.is_none() {
        let (why, fix) = match caller.state.as_deref() {
            _ if token.claims.get("sts").is_some_and(|sts| sts != "active" && sts != "pending") => (
                "the claim sts is neither active nor absent, and an unknown status gives no access".to_owned(),
                "sign in again; if it stays, the token comes from a template that sets sts: remove that claim"
                    .to_owned(),
            ),
            _ if token.text("sts") == Some("pending") => (
                "the session is pending: the user still owes Clerk a task, such as choosing an organization".to_owned(),
                "finish the task after signing in; Clerk's libraries treat such a session as signed out".to_owned(),
            ),
            Some("deleted") => {
                (format!("{user} is deleted at Clerk"), "nothing to fix: sign in as a user who exists".to_owned())
            }
            None => (
                format!("{user} is not in the tables"),
                format!(
                    "clerk-sync refresh {user}; if Clerk does not know it either, the token belongs to another instance"
                ),
            ),
            Some("stub") => (
                format!(
                    "{user} is known only from a membership; until it is known whether they are banned, they have no access"
                ),
                format!("clerk-sync refresh {user}"),
            ),
            Some(_) if caller.denied => (
                format!("{user} is denied: access ended at Clerk, but something refuses the new row"),
                "see the check denials".to_owned(),
            ),
            Some(_) if caller.banned == Some(true) => {
                (format!("{user} is banned"), "nothing to fix; Clerk dashboard → the user → Unban".to_owned())
            }
            Some(_) if caller.deprovisioned == Some(true) => {
                (format!("{user} is deprovisioned by the identity provider"), "nothing to fix here".to_owned())
            }
            Some(_) => (
                format!("it is not known yet whether {user} is banned; until then they have no access"),
                format!("clerk-sync refresh {user}"),
            ),
        };
        return Check::fail(NAME, format!("clerk_rls.user_id() is null: {why}; {sees}"), fix);
    }
    let organizations: Vec<String> = caller.organization_ids.iter().map(|id| shown(id).to_owned()).collect();
    let of = if organizations.is_empty() { "no organization".to_owned() } else { some_of(&organizations, 5, ", ") };
    let says = format!("as {user}, member of {of}, {sees}");
    match token.organization().0 {
        Some(active) if caller.active_organization_id.as_deref() != Some(active) => Check::warn(
            NAME,
            format!("{says}; the tables have no membership of its active organization {}", shown(active)),
            format!("clerk-sync refresh {}", shown(active)),
        ),
        _ => Check::ok(NAME, says),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use serde_json::json;

    fn jwt(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2lnbmF0dXJl", part(header), part(claims))
    }

    #[test]
    fn both_versions_of_the_token_are_read() {
        let v2 = json!({ "v": 2, "sub": "user_a", "o": { "id": "org_a", "rol": "admin", "slg": "acme" } });
        let token = decode(&format!("Bearer {}\n", jwt(&json!({ "alg": "RS256" }), &v2))).unwrap();
        assert_eq!(token.organization(), (Some("org_a"), Some("admin")));
        let says = claims(&token).found;
        assert!(says.contains("version 2") && says.contains("org_a as admin") && !says.contains("acme"), "{says}");
        let v1 = json!({ "sid": "sess_a", "org_id": "org_a", "org_role": "org:admin", "o": { "id": "org_b" } });
        let token = decode(&jwt(&json!({}), &v1)).unwrap();
        assert_eq!(token.organization(), (Some("org_a"), Some("org:admin")));
        assert!(claims(&token).found.contains("version 1"));
    }

    #[test]
    fn nonsense_is_no_token() {
        for text in ["", "a.b", "a.b.c", "....", "e30.e30", "e30.W10.x", "e30.e30.x.y"] {
            assert!(decode(text).is_err(), "{text}");
        }
        assert!(decode("e30.e30.x").is_ok());
    }

    #[test]
    fn addresses_in_claims_are_not_shown() {
        assert_eq!(shown("ada@example.com"), "(not shown)");
        assert_eq!(shown("Ada Lovelace"), "(not shown)");
        assert_eq!(shown("https://clerk.example.com"), "https://clerk.example.com");
    }

    #[test]
    fn times_are_judged_with_the_leeway_of_supabase() {
        assert_eq!(time(Some(100), Some(40), 90).status, Status::Ok);
        assert_eq!(time(Some(100), Some(40), 129).status, Status::Ok);
        assert_eq!(time(Some(100), Some(40), 131).status, Status::Warn);
        assert_eq!(time(Some(1000), Some(400), 90).status, Status::Warn);
        assert_eq!(time(None, None, 90).status, Status::Warn);
        let claims = json!({ "exp": 1.7e9, "nbf": i64::MAX, "iat": -5, "auth_time": "yesterday", "x": 1e300 });
        let token = decode(&jwt(&json!({}), &claims)).unwrap();
        assert_eq!(token.seconds("exp"), Some(1_700_000_000));
        assert_eq!(token.seconds("nbf"), Some(Millis::MAX.get() / 1000));
        assert_eq!([token.seconds("iat"), token.seconds("auth_time"), token.seconds("x")], [None; 3]);
    }

    #[test]
    fn another_instance_and_a_shared_secret_are_told() {
        let token = |header: Value| decode(&jwt(&header, &json!({ "iss": "https://clerk.example.com" }))).unwrap();
        assert_eq!(issuer(&token(json!({ "alg": "RS256", "kid": "ins_a" })), Some("ins_a")).status, Status::Ok);
        assert_eq!(issuer(&token(json!({ "alg": "RS256", "kid": "ins_a" })), Some("ins_b")).status, Status::Fail);
        assert_eq!(issuer(&token(json!({ "alg": "HS256" })), None).status, Status::Warn);
    }
}
