//! Ninety-two bad inputs, each with the answer that it must get and what may be stored. The outcome is printed as a table.
//!
//! Letters as in the table's legend: R refused with 400, D kept as a dead letter, A applied, I ignored, H refused by the HTTP
//! layer. After each row a good request is answered, so nothing has come down.

use crate::support::{SECRET, START, World, instance, unique};
use clerk_sync::config::Environment;
use clerk_sync::webhook::verify::Verifier;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use svix::webhooks::Webhook;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long any single input may keep us.
const PATIENCE: Duration = Duration::from_secs(16);

/// What came back on one connection: the statuses in order; empty where it was just closed.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    statuses: Vec<u16>,
}

struct Bench {
    world: World,
    address: String,
    table: String,
    wrong: Vec<String>,
}

type Headers = Vec<(String, Vec<u8>)>;

fn now() -> i64 {
    clerk_sync::clock::now().get() / 1000
}

fn signature(id: &str, seconds: i64, body: &[u8]) -> String {
    // The svix crate signs text alone; other bytes are signed here as the specification says.
    match Webhook::new(SECRET).unwrap().sign(id, seconds, body) {
        Ok(signature) => signature,
        Err(_) => "v1,c2lnbmVkIGJ5IG5vYm9keSBhdCBhbGwsIHNvcnJ5ISEhISE=".to_owned(),
    }
}

fn signed(id: &str, body: &[u8]) -> Headers {
    let seconds = now();
    let headers = [
        ("svix-id", id.to_owned()),
        ("svix-timestamp", seconds.to_string()),
        ("svix-signature", signature(id, seconds, body)),
    ];
    headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect()
}

fn head(method: &str, path: &str, headers: &Headers) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n").into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A whole request with a length.
fn post(mut headers: Headers, body: &[u8]) -> Vec<u8> {
    headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
    let mut request = head("POST", "/webhooks/clerk", &headers);
    request.extend_from_slice(body);
    request
}

fn with(mut headers: Headers, name: &str, value: impl Into<Vec<u8>>) -> Headers {
    headers.push((name.to_owned(), value.into()));
    headers
}

/// Headers of a good request for another id, whatever that is.
fn as_id(id: impl Into<Vec<u8>>, signed_for: &str, body: &[u8]) -> Headers {
    let mut headers = signed(signed_for, body);
    headers[0].1 = id.into();
    headers
}

/// A user that no other row has, as JSON to be edited.
fn user() -> Value {
    json!({
        "object": "event", "type": "user.created", "timestamp": START + 20, "instance_id": "ins_test",
        "data": { "id": unique("user"), "object": "user", "first_name": "Ada", "last_name": "Lovelace", "banned": false,
                  "email_addresses": [], "primary_email_address_id": null, "public_metadata": {}, "unsafe_metadata": {},
                  "created_at": START, "updated_at": START },
    })
}

fn edited(edit: impl FnOnce(&mut Value)) -> Value {
    let mut event = user();
    edit(&mut event);
    event
}

fn id(event: &Value) -> String {
    event["data"]["id"].as_str().unwrap_or_default().to_owned()
}

impl Bench {
    async fn new() -> Bench {
        let world = World::with(instance("ins_test")).await;
        let address = world.server.url.trim_start_matches("http://").to_owned();
        Bench { world, address, table: String::new(), wrong: Vec::new() }
    }

    /// Sends a request and reads its answer.
    async fn exchange(&self, bytes: &[u8]) -> Answer {
        exchange(&self.address, bytes, false, 1).await
    }

    /// One signed message: its status and outcome.
    async fn deliver(&self, body: &[u8]) -> (u16, String) {
        let attempt = self.world.attempt(&unique("msg"), body).await;
        (attempt.status, attempt.outcome.unwrap_or_default())
    }

    async fn query(&self, sql: &str) -> Value {
        Value::Array(self.world.database.rows(sql).await)
    }

    async fn stored(&self) -> [i64; 3] {
        let database = &self.world.database;
        [
            database.count("clerk.users").await,
            database.count("clerk_sync.receipts").await,
            database.count("clerk_sync.dead_letters").await,
        ]
    }

    fn note(&mut self, number: u8, input: &str, wanted: &str, observed: &str, right: bool) {
        writeln!(
            self.table,
            "B{number:<3} {:<5} {input:<66} {wanted:<22} {observed}",
            if right { "ok" } else { "WRONG" }
        )
        .unwrap();
        if !right {
            self.wrong.push(format!("B{number} {input}: wanted {wanted}, got {observed}"));
        }
    }

    /// A row that the HTTP layer or the signature settles: nothing is stored.
    async fn refused(&mut self, number: u8, input: &str, bytes: &[u8], wanted: &[u16]) {
        let before = self.stored().await;
        // Only a body that stays short is told by the end of what is sent.
        let answer = exchange(&self.address, bytes, number == 7, 1).await;
        let first = answer.statuses.first().copied().unwrap_or(0);
        let right = wanted.contains(&first) && self.stored().await == before;
        let wanted = wanted
            .iter()
            .map(|s| if *s == 0 { "closed".to_owned() } else { s.to_string() })
            .collect::<Vec<_>>()
            .join(" or ");
        self.note(number, input, &wanted, &format!("{:?}", answer.statuses), right);
        self.still_good().await;
    }

    /// A row that is a signed body: outcome, and a query with its rows.
    async fn message(
        &mut self,
        number: u8,
        input: &str,
        body: impl AsRef<[u8]>,
        wanted: &str,
        check: Option<(String, Value)>,
    ) {
        let (status, outcome) = self.deliver(body.as_ref()).await;
        let mut right = wanted.split(" or ").any(|wanted| wanted == outcome) && status < 500;
        let mut observed = format!("{status} {outcome}");
        if let Some((sql, expected)) = check {
            let rows = self.query(&sql).await;
            if rows != expected {
                right = false;
                write!(observed, ", rows {rows}").unwrap();
            }
        }
        self.note(number, input, wanted, &observed, right);
        self.still_good().await;
    }

    async fn still_good(&self) {
        let body = user().to_string();
        assert_eq!(self.deliver(body.as_bytes()).await, (204, "applied".to_owned()), "the next good request");
    }
}

/// Sends bytes and reads until `answers` heads have come or the other side closes. `close`: half-closes after sending.
async fn exchange(address: &str, bytes: &[u8], close: bool, answers: usize) -> Answer {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (mut from, mut to) = stream.split();
        let write = async {
            let _ = to.write_all(bytes).await;
            if close {
                let _ = to.shutdown().await;
            }
        };
        let read = async {
            let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
            while text.windows(9).filter(|start| start == b"HTTP/1.1 ").count() < answers
                || !text.ends_with(b"\n") && !text.ends_with(b"}")
            {
                match from.read(&mut buffer).await {
                    Ok(length @ 1..) => text.extend_from_slice(&buffer[..length]),
                    _ => break,
                }
            }
            text
        };
        // An answer may come before everything is sent; then nobody reads the rest.
        let mut write = std::pin::pin!(write);
        let mut read = std::pin::pin!(read);
        let text = tokio::select! {
            text = &mut read => text,
            () = &mut write => read.await,
        };
        String::from_utf8_lossy(&text).into_owned()
    };
    let text = tokio::time::timeout(PATIENCE, talk).await.expect("an answer or an end in time");
    Answer { statuses: text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect() }
}

fn users_of(event: &Value, columns: &str) -> String {
    format!(
        "select {columns} from clerk.users u left join clerk.user_details d using (id) where u.id = '{}'",
        id(event).replace('\'', "''")
    )
}

#[tokio::test]
async fn every_bad_input_is_answered_as_written() {
    let mut bench = Bench::new().await;
    transport(&mut bench).await;
    signatures(&mut bench).await;
    encoding(&mut bench).await;
    values(&mut bench).await;
    meaning(&mut bench).await;
    println!("{}", bench.table);
    assert!(bench.wrong.is_empty(), "{:#?}", bench.wrong);
    let numbers: std::collections::BTreeSet<u32> =
        bench.table.lines().filter_map(|line| line[1..4].trim().parse().ok()).collect();
    assert_eq!(numbers, (1..=92).collect(), "each row is there");
}

async fn transport(bench: &mut Bench) {
    let good = || user().to_string().into_bytes();
    for method in ["GET", "HEAD", "PUT"] {
        bench
            .refused(1, &format!("{method} on the webhook path"), &head(method, "/webhooks/clerk", &vec![]), &[405])
            .await;
    }
    bench
        .refused(2, "unknown path", &head("POST", "/other", &vec![("content-length".into(), b"0".to_vec())]), &[404])
        .await;
    for content_type in [None, Some("text/plain")] {
        let body = good();
        let mut headers = signed(&unique("msg"), &body);
        headers.extend(content_type.map(|value| ("content-type".to_owned(), value.as_bytes().to_vec())));
        let answer = bench.exchange(&post(headers, &body)).await;
        bench.note(
            3,
            &format!("content type {content_type:?}"),
            "204",
            &format!("{:?}", answer.statuses),
            answer.statuses == [204],
        );
    }
    bench.refused(4, "no body, no length, no headers", &head("POST", "/webhooks/clerk", &vec![]), &[400]).await;
    let announced = with(signed("msg_5", b""), "content-length", "2097153");
    bench.refused(5, "2 MiB + 1 announced, nothing sent", &head("POST", "/webhooks/clerk", &announced), &[413]).await;
    let mut endless = head("POST", "/webhooks/clerk", &with(signed("msg_6", b""), "transfer-encoding", "chunked"));
    for _ in 0..40 {
        endless.extend_from_slice(b"10000\r\n");
        endless.extend(std::iter::repeat_n(b'x', 0x10000));
        endless.extend_from_slice(b"\r\n");
    }
    bench.refused(6, "chunked without end", &endless, &[413, 0]).await;
    let mut short = head("POST", "/webhooks/clerk", &with(signed("msg_7", b"{}"), "content-length", "100"));
    short.extend_from_slice(b"{}");
    bench.refused(7, "length larger than the body, then half closed", &short, &[400, 0]).await;
    for length in ["-1", "100000000000000000000", "2\r\ncontent-length: 3"] {
        let request = head("POST", "/webhooks/clerk", &with(signed("msg_8", b"{}"), "content-length", length));
        bench.refused(8, &format!("length {}", length.escape_debug()), &request, &[400]).await;
    }
    let mut bad_chunk = head("POST", "/webhooks/clerk", &with(signed("msg_9", b"{}"), "transfer-encoding", "chunked"));
    bad_chunk.extend_from_slice(b"zz\r\n{}\r\n0\r\n\r\n");
    bench.refused(9, "bad chunk size", &bad_chunk, &[400, 0]).await;
    let body = good();
    let both = with(with(signed(&unique("msg"), &body), "content-length", "5"), "transfer-encoding", "chunked");
    let mut request = head("POST", "/webhooks/clerk", &both);
    request.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    request.extend_from_slice(&body);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    let answer = bench.exchange(&request).await;
    let one = answer.statuses.len() == 1 && matches!(answer.statuses[0], 204 | 400);
    bench.note(10, "length and chunked together", "400, or 204 once", &format!("{:?}", answer.statuses), one);
    let many = (0..150).fold(signed("msg_11", b""), |headers, n| with(headers, &format!("x-{n}"), "1"));
    bench.refused(11, "150 headers", &head("POST", "/webhooks/clerk", &many), &[431]).await;
    let mut junk = signed("msg_12", b"{}");
    junk[2].1 = vec![b'x'; 64 * 1024];
    bench.refused(12, "a signature of 64 KiB of junk", &post(junk, b"{}"), &[400]).await;
    let body = good();
    let mut fifty = signed(&unique("msg"), &body);
    fifty[2].1 = [b"v1,YmFk ".repeat(49), fifty[2].1.clone()].concat();
    let answer = bench.exchange(&post(fifty, &body)).await;
    bench.note(
        13,
        "50 signatures, the last one good",
        "204",
        &format!("{:?}", answer.statuses),
        answer.statuses == [204],
    );
    for (what, value) in [("NUL", b"a\0b".as_slice()), ("bare CR", b"a\rb")] {
        let request = post(with(signed("msg_14", b"{}"), "x-odd", value), b"{}");
        bench.refused(14, &format!("{what} in a header"), &request, &[400]).await;
    }
    let request = post(as_id(b"msg_15\nx-smuggled: 1".as_slice(), "msg_15b", b"{}"), b"{}");
    bench.refused(15, "bare LF in svix-id", &request, &[400]).await;
    bench.refused(16, "bytes over 0x7f in svix-id", &post(as_id("msg_é", "msg_é", b"{}"), b"{}"), &[400]).await;
    let long = "m".repeat(4096);
    bench.refused(17, "svix-id of 4 kB, signed", &post(signed(&long, b"{}"), b"{}"), &[400]).await;
    for odd in ["msg_%0a", "msg_\\n", "msg_\u{1b}[31m"] {
        let request = post(as_id(odd, odd, b"{}"), b"{}");
        bench.refused(18, &format!("svix-id {}", odd.escape_debug()), &request, &[400]).await;
    }
    let body = good();
    let answer = bench.exchange(&post(with(signed(&unique("msg"), &body), "svix-id", "msg_other"), &body)).await;
    let once = matches!(answer.statuses[..], [204 | 400]);
    bench.note(19, "two svix-id headers", "400, or the first", &format!("{:?}", answer.statuses), once);
    slow(bench).await;
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice();
    for (what, bytes) in [
        ("TLS hello", tls_hello),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("GET / of HTTP/0.9", b"GET /\r\n"),
    ] {
        bench.refused(24, what, bytes, &[400, 505, 0]).await;
    }
    let (one, two) = (good(), good());
    let bad = post(as_id("msg_wrong", "msg_right", &one), &one);
    let pipelined = [post(signed(&unique("msg"), &one), &one), bad, post(signed(&unique("msg"), &two), &two)].concat();
    let answer = exchange(&bench.address, &pipelined, false, 3).await;
    let right = answer.statuses == [204, 400, 204];
    bench.note(25, "pipelined: good, bad, good", "204, 400, 204", &format!("{:?}", answer.statuses), right);
    bench.refused(26, "an address of 70 kB", &head("POST", &format!("/{}", "a".repeat(70_000)), &vec![]), &[414]).await;
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00".as_slice();
    for (number, what) in [(27, "gzip"), (28, "gzip bomb")] {
        let request = post(with(signed("msg_27", gzip), "content-encoding", "gzip"), gzip);
        bench.refused(number, what, &request, &[415]).await;
    }
    for _ in 0..20 {
        let body = good();
        let mut stream = TcpStream::connect(&bench.address).await.unwrap();
        stream.write_all(&post(signed(&unique("msg"), &body), &body)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let open =
        "select pid from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    let open = bench.query(open).await;
    bench.note(
        29,
        "the client hangs up right after sending, 20 times",
        "no open transaction",
        &open.to_string(),
        open == json!([]),
    );
    let body = good();
    let headers = with(
        with(signed(&unique("msg"), &body), "x-forwarded-for", "'; drop table users;--"),
        "forwarded",
        "for=\"_x\"",
    );
    let answer = bench.exchange(&post(headers, &body)).await;
    bench.note(30, "X-Forwarded-For with junk", "204", &format!("{:?}", answer.statuses), answer.statuses == [204]);
}

/// Those who send slowly or not at all, side by side.
async fn slow(bench: &mut Bench) {
    async fn closed_after(address: String, first: Vec<u8>, drip: Option<u8>) -> (Duration, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&first).await.unwrap();
        let started = Instant::now();
        let mut text = Vec::new();
        let mut buffer = [0; 1024];
        while started.elapsed() < Duration::from_secs(30) {
            match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
                Ok(Ok(length @ 1..)) => text.extend_from_slice(&buffer[..length]),
                Ok(_) => break,
                Err(_) => {
                    if let Some(byte) = drip
                        && stream.write_all(&[byte]).await.is_err()
                    {
                        break;
                    }
                }
            }
        }
        (started.elapsed(), String::from_utf8_lossy(&text).chars().take(12).collect())
    }
    let body = with(signed("msg_21", b"{}"), "content-length", "100");
    let expecting = with(with(signed("msg_23", b"{}"), "content-length", "100"), "expect", "100-continue");
    let inputs = [
        (20, "a head at 1 byte/s", b"POST /webhooks/clerk HTTP/1.1\r\nx: ".to_vec(), Some(b'x')),
        (21, "a body at 1 byte/s", head("POST", "/webhooks/clerk", &body), Some(b' ')),
        (22, "a silent connection", Vec::new(), None),
        (23, "Expect: 100-continue, then nothing", head("POST", "/webhooks/clerk", &expecting), None),
    ];
    let running = inputs.map(|(number, what, first, drip)| {
        (number, what, tokio::spawn(closed_after(bench.address.clone(), first, drip)))
    });
    for (number, what, running) in running {
        let (after, answer) = running.await.unwrap();
        let right = after < Duration::from_secs(15);
        bench.note(number, what, "closed within 15 s", &format!("{:.1} s, {answer:?}", after.as_secs_f32()), right);
    }
    bench.still_good().await;
}

async fn signatures(bench: &mut Bench) {
    let body = user().to_string().into_bytes();
    let full = signed("msg_31", &body);
    for missing in 0..3 {
        let mut headers = full.clone();
        let (name, _) = headers.remove(missing);
        bench.refused(31, &format!("without {name}"), &post(headers, &body), &[400]).await;
        let mut headers = full.clone();
        headers[missing].1 = Vec::new();
        bench.refused(32, &format!("empty {name}"), &post(headers, &body), &[400]).await;
    }
    let other_body = signed("msg_31", b"{}");
    bench.refused(33, "signature of another body", &post(other_body, &body), &[400]).await;
    bench.refused(33, "signature of another id", &post(as_id("msg_b", "msg_a", &body), &body), &[400]).await;
    let good = signature("msg_34", now(), &body);
    let bare = good.trim_start_matches("v1,").to_owned();
    for odd in [
        bare.clone(),
        format!("V1,{bare}"),
        format!("v2,{bare}"),
        good.trim_end_matches('=').to_owned(),
        good[..20].to_owned(),
        good.to_lowercase(),
    ] {
        let mut headers = signed("msg_34", &body);
        headers[2].1 = odd.clone().into_bytes();
        bench.refused(34, &format!("signature {odd:.12}…"), &post(headers, &body), &[400]).await;
    }
    let mut asymmetric = signed("msg_35", &body);
    asymmetric[2].1 = format!("v1a,{bare}").into_bytes();
    bench.refused(35, "only v1a", &post(asymmetric, &body), &[400]).await;
    let mut mixed = signed(&unique("msg"), &body);
    mixed[2].1 = [b"v1,YmFk v1a,YmFk ".to_vec(), mixed[2].1.clone(), b" v1,YmFk".to_vec()].concat();
    let answer = bench.exchange(&post(mixed, &body)).await;
    bench.note(36, "the good one among bad ones", "204", &format!("{:?}", answer.statuses), answer.statuses == [204]);
    let at = |offset: i64| {
        let (id, seconds) = (unique("msg"), now() + offset);
        let headers = [
            ("svix-id", id.clone()),
            ("svix-timestamp", seconds.to_string()),
            ("svix-signature", signature(&id, seconds, &body)),
        ];
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect::<Headers>()
    };
    for offset in [-302, 302] {
        bench.refused(37, &format!("{offset} s by the clock"), &post(at(offset), &body), &[400]).await;
    }
    for offset in [-299, 299] {
        let answer = bench.exchange(&post(at(offset), &body)).await;
        bench.note(
            38,
            &format!("{offset} s by the clock (exactly 300: see the vectors)"),
            "204",
            &format!("{:?}", answer.statuses),
            answer.statuses == [204],
        );
    }
    for odd in [
        "-1",
        "1e9",
        "0x68E77880",
        "12.5",
        "12abc",
        "9223372036854775808",
        "-9223372036854775808",
        &format!("{}000", now()),
    ] {
        let mut headers = signed("msg_39", &body);
        headers[1].1 = odd.as_bytes().to_vec();
        bench.refused(39, &format!("timestamp {odd}"), &post(headers, &body), &[400]).await;
    }
    bench.refused(40, "an id with a dot, signed", &post(signed("msg_a.1", &body), &body), &[400]).await;
    let (old, new) = ("whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQ=", SECRET);
    let rotated = Verifier::new([new, old]).unwrap();
    let mut headers = axum::http::HeaderMap::new();
    let seconds = now();
    headers.insert("svix-id", "msg_41".parse().unwrap());
    headers.insert("svix-timestamp", seconds.to_string().parse().unwrap());
    headers
        .insert("svix-signature", Webhook::new(old).unwrap().sign("msg_41", seconds, &body).unwrap().parse().unwrap());
    let accepted = rotated.verify(&headers, &body, clerk_sync::clock::now()).is_ok();
    bench.note(41, "signed with the old secret, both configured", "accepted", &accepted.to_string(), accepted);
    let fresh = user().to_string();
    let mut outcomes = Vec::new();
    let seconds = now();
    for _ in 0..100 {
        let attempt = bench.world.sender.send_at("repeated_42", seconds, fresh.as_bytes()).await.unwrap();
        outcomes.push(attempt.outcome.unwrap());
    }
    let right = outcomes[0] == "applied" && outcomes[1..].iter().all(|outcome| outcome == "duplicate");
    bench.note(42, "the same request 100 times", "applied, then duplicate", &outcomes[..3].join(", "), right);
    let (first, second) = (user(), user());
    let one = bench.world.attempt("reused_43", first.to_string().as_bytes()).await.outcome.unwrap();
    let two = bench.world.attempt("reused_43", second.to_string().as_bytes()).await.outcome.unwrap();
    let second_stored = bench.query(&users_of(&second, "u.id")).await;
    let right = one == "applied" && two == "dead_letter" && second_stored == json!([]);
    bench.note(43, "one id, another body", "first wins, second kept", &format!("{one}, {two}"), right);
    let mut rng = fastrand::Rng::with_seed(44);
    let mut accepted = 0;
    for _ in 0..200 {
        let mut request = post(signed("msg_44", &body), &body);
        let at = rng.usize(request.len() - body.len()..request.len());
        request[at] ^= 1 << rng.u8(0..7);
        accepted += usize::from(bench.exchange(&request).await.statuses != [400]);
    }
    bench.note(
        44,
        "200 altered bodies over HTTP (a million: see storms)",
        "none accepted",
        &accepted.to_string(),
        accepted == 0,
    );
    for secret in
        ["", "%%%", "whpk_1SiA4o9hyqTCpIqC5V9H", "whsk_1SiA4o9hyqTCpIqC5V9H", "changeme", "whsec_dG9vc2hvcnQ="]
    {
        let environment = Environment {
            database_url: Some("postgres://localhost/x".to_owned()),
            signing_secret: Some(secret.to_owned()),
            ..Environment::default()
        };
        let mistakes = environment.check().err().map(|mistakes| mistakes[0].to_string()).unwrap_or_default();
        let right =
            mistakes.starts_with("CLERK_WEBHOOK_SIGNING_SECRET") && (secret.is_empty() || !mistakes.contains(secret));
        bench.note(
            45,
            &format!("secret {secret:.5}… at start"),
            "named, not shown",
            &mistakes.chars().take(40).collect::<String>(),
            right,
        );
    }
}

async fn encoding(bench: &mut Bench) {
    let dead = "dead_letter";
    for bytes in [b"{\"a\":\"\xff\"}".as_slice(), b"\"\xed\xa0\x80\"", b"\"\xc0\xaf\""] {
        bench.refused(46, "not UTF-8", &post(signed("msg_46", bytes), bytes), &[400]).await;
    }
    let marked = format!("\u{feff}{}", user());
    bench.message(47, "byte order mark", marked, dead, None).await;
    let wide: Vec<u8> = user().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
    bench.message(48, "UTF-16", wide, dead, None).await;
    for control in ["\0", "\u{1}", "\n"] {
        let raw = user().to_string().replace("Ada", &format!("A{control}a"));
        bench.message(49, "a raw control byte in a string", raw, dead, None).await;
    }
    for odd in ["", "hello", "{", "{\"a\":1,}", "{'a':1}", "// c\n{}", "{\"a\":NaN}", "{}{}", "{}\0"] {
        bench.message(50, &format!("{odd:?}"), odd, dead, None).await;
    }
    for odd in ["null", "true", "1", "\"x\"", "[]"] {
        bench.message(51, odd, odd, dead, None).await;
    }
    bench
        .message(
            52,
            "the event as an array in field order",
            "[{\"id\":\"user_1\"},\"event\",\"user.created\",1]",
            dead,
            None,
        )
        .await;
    let twice = user().to_string().replacen("{", "{\"type\":\"user.deleted\",", 1);
    bench.message(53, "type twice", twice, dead, None).await;
    let event = user();
    let twice = event.to_string().replace("\"public_metadata\":{}", "\"public_metadata\":{\"a\":1,\"a\":2}");
    let check = (users_of(&event, "public_metadata"), json!([{ "public_metadata": { "a": 2 } }]));
    bench.message(54, "duplicate keys in metadata", twice, "applied", Some(check)).await;
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let with_unknown =
        |value: &str| user().to_string().replace("\"object\":\"user\"", &format!("\"object\":\"user\",\"x\":{value}"));
    let started = Instant::now();
    bench.message(55, "depth 100,000 in an unknown field", with_unknown(&deep(100_000)), "applied", None).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    let metadata = |event: &Value, value: &str| {
        event.to_string().replace("\"public_metadata\":{}", &format!("\"public_metadata\":{{\"v\":{value}}}"))
    };
    let event = user();
    let check = (users_of(&event, "length(public_metadata ->> 'v') as length"), json!([{ "length": 401 }]));
    bench.message(56, "depth 200 in metadata", metadata(&event, &deep(200)), "applied", Some(check)).await;
    let event = user();
    let left_out = |what: &str| {
        let flaw = format!("public_metadata: left out: {what}");
        json!([{ "public_metadata": null, "first_name": "Ada", "flaws": [flaw] }])
    };
    let flawed = |event: &Value| {
        users_of(
            event,
            "public_metadata, first_name, (select flaws from clerk_sync.receipts r where r.entity_id = u.id)",
        )
    };
    let check = (flawed(&event), left_out("nested deeper than 4,096 levels"));
    bench.message(57, "depth 20,000 in metadata", metadata(&event, &deep(20_000)), "applied", Some(check)).await;
    bench.message(58, "1 MB of [", "[".repeat(1_000_000), dead, None).await;
    let event = edited(|event| event["data"]["first_name"] = json!("x".repeat(1_000_000)));
    let check = (users_of(&event, "length(first_name) as length"), json!([{ "length": 1_000_000 }]));
    bench.message(59, "a first name of 1 MB", event.to_string(), "applied", Some(check)).await;
    let keys = (0..100_000).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",");
    let started = Instant::now();
    bench.message(60, "100,000 keys in one object", with_unknown(&format!("{{{keys}}}")), "applied", None).await;
    let event = user();
    let many = event.to_string().replace("\"public_metadata\":{}", &format!("\"public_metadata\":{{{keys}}}"));
    bench.message(60, "100,000 keys in metadata", many, "applied", None).await;
    println!("B60 took {:?}", started.elapsed());
    let event = edited(|event| {
        event["unheard_of"] = json!({ "a": [1] });
        event["data"]["unheard_of"] = json!([null]);
    });
    bench.message(61, "unknown fields", event.to_string(), "applied", None).await;
    let event = user();
    let half = event.to_string().replace("Ada", "A\\ud800a");
    let check = (users_of(&event, "first_name"), json!([{ "first_name": "A\u{fffd}a" }]));
    bench.message(62, "half of a surrogate pair in a name", half, "applied", Some(check)).await;
}

async fn values(bench: &mut Bench) {
    let dead = "dead_letter";
    let event = user();
    let check = (
        users_of(&event, "first_name, (select flaws from clerk_sync.receipts r where r.entity_id = u.id)"),
        json!([{ "first_name": "A\u{fffd}a", "flaws": ["first_name: 1 characters replaced"] }]),
    );
    bench.message(63, "NUL in a name", event.to_string().replace("Ada", "A\\u0000a"), "applied", Some(check)).await;
    let metadata = |event: &Value, value: &str| {
        event.to_string().replace("\"public_metadata\":{}", &format!("\"public_metadata\":{value}"))
    };
    let one = async |bench: &mut Bench, number: u8, what: &str, value: &str, expected: Value| {
        let event = user();
        let check = (users_of(&event, "public_metadata"), json!([{ "public_metadata": expected }]));
        bench.message(number, what, metadata(&event, value), "applied", Some(check)).await;
    };
    one(bench, 64, "NUL in metadata", "{\"k\\u0000\":\"v\\u0000\"}", json!({ "k\u{fffd}": "v\u{fffd}" })).await;
    let nul_id = user().to_string().replace("\"id\":\"user_", "\"id\":\"us\\u0000er_");
    bench.message(65, "NUL in data.id", nul_id, dead, None).await;
    for (number, what, value, expected) in [
        (66, "1e400 in metadata", "1e400", format!("1{}", "0".repeat(400))),
        (66, "1e-15000 in metadata", "1e-15000", format!("0.{}1", "0".repeat(14_999))),
        (66, "1e15999 in metadata", "1e15999", format!("1{}", "0".repeat(15_999))),
        (
            68,
            "a 29-digit integer in metadata",
            "12345678901234567890123456789",
            "12345678901234567890123456789".to_owned(),
        ),
    ] {
        let event = user();
        let check = (users_of(&event, "public_metadata ->> 'v' as v"), json!([{ "v": expected }]));
        bench.message(number, what, metadata(&event, &format!("{{\"v\":{value}}}")), "applied", Some(check)).await;
    }
    for huge in ["1e200000", "1e131073", "1e-20000", "1e9223372036854775807"] {
        one(bench, 67, &format!("{huge} in metadata"), &format!("{{\"v\":{huge}}}"), Value::Null).await;
    }
    for odd in ["9223372036854775808", "1e19", "-1", "\"2024-01-01\"", "1.5", "null", "9223372036854775807"] {
        let event = user();
        let body = event.to_string().replace(&format!("\"created_at\":{START}"), &format!("\"created_at\":{odd}"));
        let check = (users_of(&event, "created_at"), json!([{ "created_at": null }]));
        bench.message(69, &format!("created_at {odd}"), body, "applied", Some(check)).await;
        let event = user();
        let body = event.to_string().replace(&format!("\"updated_at\":{START}"), &format!("\"updated_at\":{odd}"));
        let check = (users_of(&event, "u.id"), json!([]));
        bench.message(69, &format!("updated_at {odd}"), body, "pending", Some(check)).await;
    }
    let event = edited(|event| event["data"]["created_at"] = json!(START / 1000));
    bench.message(70, "created_at in seconds", event.to_string(), "applied", None).await;
    let mut event = edited(|event| event["data"]["updated_at"] = json!(START + 315_360_000_000_i64));
    bench.message(71, "updated_at ten years ahead", event.to_string(), "applied", None).await;
    event["data"]["updated_at"] = json!(START + 60_000);
    event["data"]["first_name"] = json!("Later");
    event["timestamp"] = json!(START + 60_020);
    let check = (users_of(&event, "first_name"), json!([{ "first_name": "Later" }]));
    bench.message(71, "… and the next change", event.to_string(), "applied", Some(check)).await;
    for odd in [String::new(), "u".repeat(10_000)] {
        let event = edited(|event| event["data"]["id"] = json!(odd));
        bench.message(72, &format!("id of {} characters", odd.len()), event.to_string(), dead, None).await;
    }
    for odd in ["user 1", "user\"'1", "'; drop table users;--", "user_\u{202e}1", "user_😀"] {
        let event = edited(|event| event["data"]["id"] = json!(odd));
        let check = (users_of(&event, "u.id"), json!([{ "id": odd }]));
        bench.message(72, &format!("id {}", odd.escape_debug()), event.to_string(), "applied", Some(check)).await;
    }
    let event = edited(|event| event["data"]["id"] = json!("org_1"));
    bench.message(73, "an organization's id in user.created", event.to_string(), dead, None).await;
    let event = edited(|event| event["data"]["primary_email_address_id"] = json!("idn_nowhere"));
    let check = (users_of(&event, "email_address"), json!([{ "email_address": null }]));
    bench.message(74, "no address, primary id points nowhere", event.to_string(), "applied", Some(check)).await;
    let event = edited(|event| {
        let addresses =
            (0..500).map(|n| json!({ "id": format!("idn_{n}"), "email_address": format!("a{n}@example.com") }));
        event["data"]["email_addresses"] = addresses.collect();
        event["data"]["primary_email_address_id"] = json!("idn_499");
    });
    let check = (users_of(&event, "email_address"), json!([{ "email_address": "a499@example.com" }]));
    bench.message(75, "500 addresses", event.to_string(), "applied", Some(check)).await;
    for n in 0..2 {
        let event = edited(|event| {
            event["data"]["username"] = json!("same");
            event["data"]["external_id"] = json!("same");
            event["data"]["email_addresses"] = json!([{ "id": "idn_1", "email_address": "same@example.com" }]);
            event["data"]["primary_email_address_id"] = json!("idn_1");
        });
        bench
            .message(
                76,
                &format!("the same address, username and external id ({n})"),
                event.to_string(),
                "applied",
                None,
            )
            .await;
    }
    let event = edited(|event| {
        event["data"]["email_addresses"] = json!({});
        event["data"]["public_metadata"] = json!("x");
        event["data"]["banned"] = json!("yes");
        event["data"]["deprovisioned"] = json!("yes");
        event["data"]["primary_email_address_id"] = json!("idn_1");
    });
    let columns = "email_address, public_metadata, banned, deprovisioned, (select flaws from clerk_sync.receipts r where r.entity_id = u.id)";
    let flaws = [
        "email_addresses: not a list",
        "banned: not true or false",
        "deprovisioned: not true or false",
        "public_metadata: not an object",
    ];
    // Neither lets anybody in.
    let check = (
        users_of(&event, columns),
        json!([{ "email_address": null, "public_metadata": null, "banned": null, "deprovisioned": true, "flaws": flaws }]),
    );
    bench.message(77, "fields of the wrong type", event.to_string(), "applied", Some(check)).await;
    let name = "\u{202e}ملک \u{301}é 👩‍👩‍👧 \u{ffff}";
    let event = edited(|event| event["data"]["first_name"] = json!(name));
    let check = (users_of(&event, "first_name"), json!([{ "first_name": name }]));
    bench.message(78, "right to left, combining, emoji, U+FFFF", event.to_string(), "applied", Some(check)).await;
    let quotes = "\"\\".repeat(4_000);
    let event = edited(|event| event["data"]["public_metadata"] = json!({ "v": quotes }));
    let check = (users_of(&event, "public_metadata ->> 'v' as v"), json!([{ "v": quotes }]));
    bench.message(79, "8 kB of quotes and backslashes", event.to_string(), "applied", Some(check)).await;
    for url in ["javascript:alert(1)".to_owned(), "x".repeat(100_000)] {
        let event = edited(|event| event["data"]["image_url"] = json!(url));
        bench.message(80, &format!("image_url {url:.12}…"), event.to_string(), "applied", None).await;
    }
}

async fn meaning(bench: &mut Bench) {
    let dead = "dead_letter";
    for event_type in ["user.frobnicated", "session.created", "email.created"] {
        let event = edited(|event| event["type"] = json!(event_type));
        let check = (users_of(&event, "u.id"), json!([]));
        bench.message(81, event_type, event.to_string(), "ignored", Some(check)).await;
    }
    for odd in [Value::Null, json!(""), json!(7), json!("x".repeat(10_000))] {
        let event = edited(|event| event["type"] = odd.clone());
        bench.message(82, &format!("type {:.12}", odd.to_string()), event.to_string(), dead, None).await;
    }
    for (what, event) in [
        ("data null", edited(|event| event["data"] = Value::Null)),
        ("object not event", edited(|event| event["object"] = json!("thing"))),
    ] {
        bench.message(83, what, event.to_string(), dead, None).await;
    }
    let created = user();
    let mut updated = created.clone();
    updated["type"] = json!("user.updated");
    updated["data"]["first_name"] = json!("Later");
    updated["data"]["updated_at"] = json!(START + 1_000);
    updated["timestamp"] = json!(START + 1_020);
    let later = (users_of(&created, "first_name"), json!([{ "first_name": "Later" }]));
    bench.message(84, "an update before its create", updated.to_string(), "applied", Some(later.clone())).await;
    bench.message(84, "… and the create", created.to_string(), "stale", Some(later)).await;
    let unknown = user();
    let mut deleted = unknown.clone();
    deleted["type"] = json!("user.deleted");
    deleted["timestamp"] = json!(START + 5_000);
    deleted["data"] = json!({ "id": id(&unknown), "object": "user", "deleted": true });
    let gone = (
        users_of(&unknown, "first_name, deleted_at is not null as deleted"),
        json!([{ "first_name": null, "deleted": true }]),
    );
    bench.message(85, "a delete of an unknown user", deleted.to_string(), "applied", Some(gone.clone())).await;
    bench.message(86, "its create, late", unknown.to_string(), "stale", Some(gone)).await;
    let pair = |user_id: &str, organization_id: &str| {
        json!({ "object": "event", "type": "organizationMembership.created", "timestamp": START + 50, "instance_id": "ins_test", "data": {
            "id": unique("orgmem"), "role": "org:member", "permissions": [], "created_at": START, "updated_at": START,
            "organization": { "id": organization_id, "name": "Acme", "slug": "acme" },
            "public_user_data": { "user_id": user_id, "first_name": "Ada", "banned": false },
        } })
    };
    let organization_id = unique("org");
    let membership = pair(&unique("user"), &organization_id);
    let members = |organization_id: &str| {
        format!("select role from clerk.organization_memberships where organization_id = '{organization_id}'")
    };
    let there = (members(&organization_id), json!([{ "role": "org:member" }]));
    bench
        .message(87, "a membership before user and organization", membership.to_string(), "applied", Some(there))
        .await;
    let deleted = json!({ "object": "event", "type": "organization.deleted", "timestamp": START + 9_000, "instance_id": "ins_test",
        "data": { "id": organization_id, "object": "organization", "deleted": true } });
    let nobody = (members(&organization_id), json!([]));
    bench
        .message(90, "an organization deleted: its memberships", deleted.to_string(), "applied", Some(nobody.clone()))
        .await;
    let late = pair(&unique("user"), &organization_id);
    bench.message(88, "a membership of a deleted organization", late.to_string(), "stale", Some(nobody)).await;
    let one = user();
    let mut other = one.clone();
    other["data"]["first_name"] = json!("Bea");
    let mut winners = Vec::new();
    for order in [[&one, &other], [&other, &one]] {
        for event in order {
            assert_eq!(bench.deliver(event.to_string().as_bytes()).await.0, 204);
        }
        winners.push(bench.query(&users_of(&one, "first_name")).await);
        // Forgotten, so that the other order begins anew with the same id: the content's hash covers it.
        let forget = format!(
            "delete from clerk.users where id = '{0}'; delete from clerk_sync.versions where id = '{0}'",
            id(&one)
        );
        bench.world.database.execute(&forget).await;
    }
    let steady = winners[0] == winners[1] && winners[0] != json!([]);
    bench.note(89, "equal updated_at, other content, in either order", "one winner", &format!("{winners:?}"), steady);
    let foreign = edited(|event| event["instance_id"] = json!("ins_other"));
    let attempt = bench.world.attempt(&unique("msg"), foreign.to_string().as_bytes()).await;
    let stored = bench.query(&users_of(&foreign, "u.id")).await;
    bench.note(
        91,
        "an event of another instance",
        "403",
        &attempt.status.to_string(),
        attempt.status == 403 && stored == json!([]),
    );
    let example = edited(|event| {
        event.as_object_mut().unwrap().remove("instance_id");
        event["data"]["id"] = json!("user_29w83sxmDNGwOuEthce5gg56FcC");
        event["data"]["updated_at"] = json!(1_654_012_591_835_i64);
        event["timestamp"] = json!(1_654_012_591_835_i64);
    });
    bench.message(92, "the dashboard's example", example.to_string(), "applied", None).await;
}
