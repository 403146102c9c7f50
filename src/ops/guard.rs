//! Who may ask the private listener, and what browsers must not do with its answers.

use super::Shared;
use super::page::SCRIPT;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use std::net::Ipv6Addr;
use std::sync::{Arc, LazyLock};

/// Lets a request through that shows the token, as a program's bearer token or as a browser's password. Where none is required,
/// the host name must be one that no website can have: else a page of anybody's, whose name was made to lead here, could read
/// the answers in the browser of an operator.
pub(super) async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let is_open = match &shared.ops.token {
        Some(token) if shows(request.headers(), token) => return next.run(request).await,
        Some(_) => shared.ops.open_metrics && request.uri().path() == "/metrics",
        None => true,
    };
    if !is_open {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"clerk-sync: no user name, OPS_TOKEN as password\"")];
        return (StatusCode::UNAUTHORIZED, challenge, "OPS_TOKEN is needed\n").into_response();
    }
    if is_private(request.headers()) {
        return next.run(request).await;
    }
    let advice =
        "This host name needs OPS_TOKEN. Use an IP address, localhost or a private name such as NAME.internal.\n";
    (StatusCode::MISDIRECTED_REQUEST, advice).into_response()
}

/// No answer is stored, guessed at, or shown inside another page.
pub(super) async fn protect(mut response: Response) -> Response {
    // The page's own script, and what it asks for: the page.
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            BASE64.encode(Sha256::digest(SCRIPT))
        );
        HeaderValue::from_str(&policy).expect("it is ASCII")
    });
    for (name, value) in [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

fn shows(headers: &HeaderMap, token: &SecretString) -> bool {
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let token = token.expose_secret();
    // A browser's user name may be anything; ours is asked for without one.
    let as_password = format!("Basic {}", BASE64.encode(format!(":{token}")));
    is_same(shown, format!("Bearer {token}").as_bytes()) | is_same(shown, as_password.as_bytes())
}

/// In a time that does not tell where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Whether the request names its host in a way that no public name can: by address, by a single label, or under an ending that is
/// not given away.
fn is_private(headers: &HeaderMap) -> bool {
    const ENDINGS: [&str; 5] = ["localhost", "internal", "local", "flycast", "svc"];
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let Some(host) = host else { return false };
    let host = host.host().trim_end_matches('.').to_ascii_lowercase();
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(address) = in_brackets {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    // Browsers take every name whose last label is a number for an IPv4 address.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_ipv4 = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    is_ipv4 || (!host.is_empty() && !host.contains('.')) || ENDINGS.contains(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_tokens_are_the_same() {
        assert!(is_same(b"a", b"a") && !is_same(b"a", b"b") && !is_same(b"", b"a"));
    }

    #[test]
    fn a_token_may_hold_any_characters() {
        let token = SecretString::from("gänzlich geheim");
        let shown = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            shows(&headers, &token)
        };
        assert!(shown("Bearer gänzlich geheim".as_bytes()));
        assert!(shown(format!("Basic {}", BASE64.encode(":gänzlich geheim")).as_bytes()));
        assert!(!shown(b"Bearer ganzlich geheim") && !shown(b"Bearer ") && !shown(b""));
    }

    #[test]
    fn a_host_name_that_a_website_can_have_is_not_private() {
        let private = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            is_private(&headers)
        };
        for host in [
            "127.0.0.1:9091",
            "[::1]:9091",
            "[fdaa:0:1::3]:9091",
            "localhost",
            "LOCALHOST.:9091",
            "clerk-sync:9091",
            "app.internal:9091",
            "clerk-sync.default.svc:9091",
            "clerk-sync.default.svc.cluster.local",
        ] {
            assert!(private(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9091",
            "127.0.0.1.evil.example",
            "localhost.evil.com",
            "[::1",
            "",
            "a b",
            ".",
        ] {
            assert!(!private(host), "{host}");
        }
        assert!(!is_private(&HeaderMap::new()));
    }
}
