//! What the claims of a Clerk session token say of a caller, and which of them no token has.

use super::guard::Value;

/// Claims that every token has, or many people share: they tell nobody apart.
const SHARED: &[&str] =
    &["role", "aud", "iss", "azp", "exp", "iat", "nbf", "v", "sts", "fva", "pla", "fea", "aal", "act"];

/// Claims of version 1 of Clerk's session tokens. Version 2, which every instance has had since April 2025, puts them under `o`.
const OF_VERSION_1: &[&str] = &["org_id", "org_role", "org_slug", "org_permissions"];

/// What the claim at that path is worth. `reads_both`: the condition reads claims of version 2 as well.
pub(super) fn value(path: &[String], reads_both: bool) -> Value {
    let Some(first) = path.first().map(String::as_str) else { return Value::Identity };
    if path.iter().any(|name| name == "user_metadata" || name == "unsafe_metadata") {
        return Value::OfCaller(format!("the claim {}", path.join(".")));
    }
    if let Some(inner) = first.strip_prefix("o.") {
        return Value::Dead(format!(
            "The token has no claim named {first}: it is the claim {inner} in the object o. Write ((select auth.jwt()) -> 'o' ->> '{inner}')."
        ));
    }
    if OF_VERSION_1.contains(&first) && !reads_both {
        return Value::Dead(format!(
            "The claim {first} is in version 1 of Clerk's session tokens only; version 2 has the object o. Use clerk_rls, or ((select auth.jwt()) -> 'o' ->> 'id')."
        ));
    }
    let second = path.get(1).map(String::as_str);
    match first {
        "o" if matches!(second, Some("rol" | "per" | "fpm")) => Value::Attribute,
        "org_role" | "org_permissions" => Value::Attribute,
        _ if SHARED.contains(&first) => Value::Attribute,
        _ => Value::Identity,
    }
}

/// Why the claim at that path is never that text.
pub(super) fn never(path: &[String], text: &str) -> Option<String> {
    match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["o", "rol"] => text.strip_prefix("org:").map(|role| format!(
            "The claim o.rol has the role without org:, so it is never '{text}'. Use (select clerk_rls.active_organization_role()), or compare it with '{role}'."
        )),
        _ => None,
    }
}

/// Whether Supabase's API sets that role for nobody who comes with a token of Clerk's.
pub(super) fn is_no_api_role(role: &str) -> bool {
    !matches!(role, "anon" | "authenticated")
}
