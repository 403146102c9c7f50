//! Ninety-two bad inputs, each with the answer that it must get and what may be stored: each prints its rows of a table.
//!
//! After each row a good request is applied, so nothing has come down.

use crate::support::{SECRET, START, World, instance, unique};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use clerk_sync::config::Environment;
use clerk_sync::webhook::signature::Verifier;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};
use svix::webhooks::Webhook;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;

/// Makes a test of each row or group of rows, and a list of their numbers and names.
macro_rules! bad_inputs {
    ($($name:ident: $number:literal, $input:literal => $scenario:expr;)*) => {
        const ALL: &[(u8, &str)] = &[$(($number, stringify!($name))),*];
        $(
            #[test]
            fn $name() {
                run($number, $input, $scenario);
            }
        )*
    };
}

bad_inputs! {
    b01_methods_other_than_post: 1, "methods other than POST" => methods_other_than_post;
    b02_unknown_path: 2, "unknown path" => unknown_path;
    b03_content_types: 3, "content types" => content_types;
    b04_nothing_but_a_request_line: 4, "no body, no length, no headers" => nothing_but_a_request_line;
    b05_body_too_large: 5, "2 MiB + 1 announced, nothing sent" => body_too_large;
    b06_chunked_without_end: 6, "chunked without end" => chunked_without_end;
    b07_length_larger_than_the_body: 7, "length larger than the body, then half closed" => length_larger_than_the_body;
    b08_invalid_lengths: 8, "invalid lengths" => invalid_lengths;
    b09_invalid_chunk_size: 9, "bad chunk size" => invalid_chunk_size;
    b10_length_and_chunked: 10, "length and chunked together" => length_and_chunked;
    b11_too_many_headers: 11, "150 headers" => too_many_headers;
    b12_signature_of_64_kib: 12, "a signature of 64 KiB of junk" => signature_of_64_kib;
    b13_many_signatures: 13, "50 signatures, the last one good" => many_signatures;
    b14_control_bytes_in_a_header: 14, "control bytes in a header" => control_bytes_in_a_header;
    b15_line_feed_in_the_message_id: 15, "bare LF in svix-id" => line_feed_in_the_message_id;
    b16_message_id_beyond_ascii: 16, "bytes over 0x7f in svix-id" => message_id_beyond_ascii;
    b17_long_message_id: 17, "svix-id of 4 kB, signed" => long_message_id;
    b18_message_id_of_other_characters: 18, "other characters in svix-id" => message_id_of_other_characters;
    b19_two_message_ids: 19, "two svix-id headers" => two_message_ids;
    b20_slow_head: 20, "a head at 1 byte/s" => async |row| stalled(row, 0).await;
    b21_slow_body: 21, "a body at 1 byte/s" => async |row| stalled(row, 1).await;
    b22_silent_connection: 22, "a silent connection" => async |row| stalled(row, 2).await;
    b23_continue_expected_then_nothing: 23, "Expect: 100-continue, then nothing" => async |row| stalled(row, 3).await;
    b24_other_protocols: 24, "other protocols" => other_protocols;
    b25_pipelined_requests: 25, "pipelined: good, bad, good" => pipelined_requests;
    b26_long_path: 26, "an address of 70 kB" => long_path;
    b27_gzip: 27, "gzip" => gzip;
    b28_gzip_bomb: 28, "gzip bomb" => gzip;
    b29_client_hangs_up: 29, "the client hangs up right after sending, 20 times" => client_hangs_up;
    b30_forwarded_for_junk: 30, "X-Forwarded-For with junk" => forwarded_for_junk;
    b31_header_missing: 31, "a missing header" => header_missing;
    b32_header_empty: 32, "an empty header" => header_empty;
    b33_signature_of_something_else: 33, "a signature of something else" => signature_of_something_else;
    b34_altered_signatures: 34, "altered signatures" => altered_signatures;
    b35_asymmetric_signature_alone: 35, "only v1a" => asymmetric_signature_alone;
    b36_good_signature_among_bad_ones: 36, "the good one among bad ones" => good_signature_among_bad_ones;
    b37_timestamp_too_far_from_now: 37, "a timestamp too far from now" => timestamp_too_far_from_now;
    b38_timestamp_just_near_enough: 38, "a timestamp just near enough" => timestamp_just_near_enough;
    b39_invalid_timestamps: 39, "invalid timestamps" => invalid_timestamps;
    b40_message_id_with_a_dot: 40, "an id with a dot, signed" => message_id_with_a_dot;
    b41_old_secret_after_rotation: 41, "signed with the old secret, both configured" => old_secret_after_rotation;
    b42_same_request_100_times: 42, "the same request 100 times" => same_request_100_times;
    b43_one_message_id_for_two_bodies: 43, "one id, another body" => one_message_id_for_two_bodies;
    b44_altered_bodies: 44, "200 altered bodies over HTTP (a million: see storms)" => altered_bodies;
    b45_invalid_secrets: 45, "invalid secrets" => invalid_secrets;
    b46_not_utf8: 46, "not UTF-8" => not_utf8;
    b47_byte_order_mark: 47, "byte order mark" => byte_order_mark;
    b48_utf16: 48, "UTF-16" => utf16;
    b49_control_bytes_in_a_string: 49, "a raw control byte in a string" => control_bytes_in_a_string;
    b50_not_json: 50, "not JSON" => not_json;
    b51_json_that_is_not_an_object: 51, "JSON that is not an object" => json_that_is_not_an_object;
    b52_event_as_an_array: 52, "the event as an array in field order" => event_as_an_array;
    b53_type_twice: 53, "type twice" => type_twice;
    b54_duplicate_keys_in_metadata: 54, "duplicate keys in metadata" => duplicate_keys_in_metadata;
    b55_depth_100_000_in_an_unknown_field: 55, "depth 100,000 in an unknown field" => depth_100_000_in_an_unknown_field;
    b56_depth_200_in_metadata: 56, "depth 200 in metadata" => depth_200_in_metadata;
    b57_depth_20_000_in_metadata: 57, "depth 20,000 in metadata" => depth_20_000_in_metadata;
    b58_open_brackets: 58, "1 MB of [" => open_brackets;
    b59_first_name_of_1_mb: 59, "a first name of 1 MB" => first_name_of_1_mb;
    b60_100_000_keys: 60, "100,000 keys" => keys_100_000;
    b61_unknown_fields: 61, "unknown fields" => unknown_fields;
    b62_half_a_surrogate_pair: 62, "half of a surrogate pair in a name" => half_a_surrogate_pair;
    b63_nul_in_a_name: 63, "NUL in a name" => nul_in_a_name;
    b64_nul_in_metadata: 64, "NUL in metadata" => nul_in_metadata;
    b65_nul_in_an_id: 65, "NUL in data.id" => nul_in_an_id;
    b66_numbers_beyond_a_double: 66, "numbers beyond a double" => numbers_beyond_a_double;
    b67_numbers_beyond_postgres: 67, "numbers beyond Postgres" => numbers_beyond_postgres;
    b68_integer_of_29_digits: 68, "a 29-digit integer in metadata" => integer_of_29_digits;
    b69_invalid_times: 69, "invalid times" => invalid_times;
    b70_created_at_in_seconds: 70, "created_at in seconds" => created_at_in_seconds;
    b71_updated_at_in_ten_years: 71, "updated_at ten years ahead" => updated_at_in_ten_years;
    b72_odd_ids: 72, "odd ids" => odd_ids;
    b73_id_of_another_kind: 73, "an organization's id in user.created" => id_of_another_kind;
    b74_primary_address_that_is_not_there: 74, "no address, primary id points nowhere" => primary_address_that_is_not_there;
    b75_500_addresses: 75, "500 addresses" => addresses_500;
    b76_unique_fields_shared: 76, "two users with the same unique fields" => unique_fields_shared;
    b77_fields_of_the_wrong_type: 77, "fields of the wrong type" => fields_of_the_wrong_type;
    b78_unusual_characters: 78, "right to left, combining, emoji, U+FFFF" => unusual_characters;
    b79_quotes_and_backslashes: 79, "8 kB of quotes and backslashes" => quotes_and_backslashes;
    b80_odd_image_urls: 80, "odd image URLs" => odd_image_urls;
    b81_other_event_types: 81, "other event types" => other_event_types;
    b82_invalid_event_types: 82, "invalid event types" => invalid_event_types;
    b83_not_an_event: 83, "not an event" => not_an_event;
    b84_update_before_its_create: 84, "an update before its create" => update_before_its_create;
    b85_delete_of_an_unknown_user: 85, "a delete of an unknown user" => delete_of_an_unknown_user;
    b86_create_after_its_delete: 86, "its create, late" => create_after_its_delete;
    b87_membership_before_its_parents: 87, "a membership before user and organization" => membership_before_its_parents;
    b88_membership_of_a_deleted_organization: 88, "a membership of a deleted organization" => membership_of_a_deleted_organization;
    b89_equal_times_other_content: 89, "equal updated_at, other content, in either order" => equal_times_other_content;
    b90_organization_deleted: 90, "an organization deleted: its memberships" => organization_deleted;
    b91_event_of_another_instance: 91, "an event of another instance" => event_of_another_instance;
    b92_dashboards_example: 92, "the dashboard's example" => dashboards_example;
}

#[test]
fn every_number_has_its_bad_input() {
    assert_eq!(ALL.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=92).collect::<Vec<_>>());
    for (number, name) in ALL {
        assert!(name.starts_with(&format!("b{number:02}_")), "{number} {name}");
    }
}

/// How long any single input may keep us.
const PATIENCE: Duration = Duration::from_secs(16);

/// What is kept as a dead letter.
const DEAD: &str = "dead_letter";

/// Servers go on when the test that started them ends.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // They take ten seconds, in which they do nothing, and begin first: when their tests' turn comes, most of that is over.
    std::thread::spawn(|| RUNTIME.block_on(STALLED.get_or_init(send_slowly)));
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// Worlds that no test uses now. Each is used by one test at a time, which may count what it stored.
static FREE: Mutex<Vec<World>> = Mutex::new(Vec::new());

/// Gives a test a world for itself, and looks at what it noted.
fn run(number: u8, input: &str, scenario: impl AsyncFnOnce(&mut Rows)) {
    RUNTIME.block_on(async {
        let free = FREE.lock().unwrap().pop();
        let world = match free {
            Some(world) => world,
            None => World::of(instance("ins_test")).await,
        };
        let mut rows = Rows { number, input: input.to_owned(), world, noted: 0, wrong: Vec::new() };
        scenario(&mut rows).await;
        assert!(rows.noted > 0, "nothing was noted");
        assert!(rows.wrong.is_empty(), "{:#?}", rows.wrong);
        FREE.lock().unwrap().push(rows.world);
    });
}

/// The rows of one number, and the world in which they come about.
struct Rows {
    number: u8,
    input: String,
    world: World,
    noted: usize,
    wrong: Vec<String>,
}

impl Rows {
    /// What the next row sends, where the number has several.
    fn of(&mut self, input: impl Into<String>) -> &mut Rows {
        self.input = input.into();
        self
    }

    /// Sends a request and reads the statuses of its answer.
    async fn exchange(&self, bytes: &[u8]) -> Vec<u16> {
        exchange(self.address(), bytes, false, 1).await
    }

    fn address(&self) -> &str {
        self.world.server.url.trim_start_matches("http://")
    }

    /// One signed message: its status and outcome.
    async fn deliver(&self, body: &[u8]) -> (u16, String) {
        let attempt = self.world.attempt(&unique("msg"), body).await;
        (attempt.status, attempt.outcome.unwrap_or_default())
    }

    /// A message before the one that the row is about.
    async fn applied(&self, event: &Value) {
        assert_eq!(self.deliver(event.to_string().as_bytes()).await, (204, "applied".to_owned()));
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

    /// Prints a row. Then the next good request must be applied.
    async fn note(&mut self, wanted: &str, observed: &str, right: bool) {
        let (number, input, verdict) = (self.number, &self.input, if right { "ok" } else { "WRONG" });
        println!("B{number:<3} {verdict:<5} {input:<66} {wanted:<22} {observed}");
        self.noted += 1;
        if !right {
            self.wrong.push(format!("B{number} {input}: wanted {wanted}, got {observed}"));
        }
        self.applied(&user()).await;
    }

    /// A row that the HTTP layer or the signature settles: nothing is stored. 0: closed without an answer.
    async fn refused(&mut self, bytes: &[u8], wanted: &[u16]) {
        self.refused_when(bytes, false, wanted).await;
    }

    async fn refused_when(&mut self, bytes: &[u8], half_closed: bool, wanted: &[u16]) {
        let before = self.stored().await;
        let statuses = exchange(self.address(), bytes, half_closed, 1).await;
        let first = statuses.first().copied().unwrap_or(0);
        let right = wanted.contains(&first) && self.stored().await == before;
        let wanted = wanted
            .iter()
            .map(|s| if *s == 0 { "closed".to_owned() } else { s.to_string() })
            .collect::<Vec<_>>()
            .join(" or ");
        self.note(&wanted, &format!("{statuses:?}"), right).await;
    }

    /// A row that is a good request for all that.
    async fn accepted(&mut self, bytes: &[u8]) {
        let statuses = self.exchange(bytes).await;
        self.note("204", &format!("{statuses:?}"), statuses == [204]).await;
    }

    /// A row that is a signed body: its outcome.
    async fn message(&mut self, body: impl AsRef<[u8]>, wanted: &str) {
        let (status, outcome) = self.deliver(body.as_ref()).await;
        self.note(wanted, &format!("{status} {outcome}"), outcome == wanted && status < 500).await;
    }

    /// A row that is a signed body: its outcome, and what a query shows then.
    async fn message_and_rows(&mut self, body: impl AsRef<[u8]>, wanted: &str, sql: &str, expected: Value) {
        let (status, outcome) = self.deliver(body.as_ref()).await;
        let rows = self.query(sql).await;
        let shown = if rows == expected { String::new() } else { format!(", rows {rows}") };
        let right = outcome == wanted && status < 500 && rows == expected;
        self.note(wanted, &format!("{status} {outcome}{shown}"), right).await;
    }
}

type Headers = Vec<(String, Vec<u8>)>;

fn now() -> i64 {
    clerk_sync::clock::now().get() / 1000
}

fn signature(id: &str, seconds: i64, body: &[u8]) -> String {
    // The svix crate signs text alone; other bytes are signed here as its specification says.
    Webhook::new(SECRET).unwrap().sign(id, seconds, body).unwrap_or_else(|_| {
        let key = BASE64.decode(SECRET.trim_start_matches("whsec_")).unwrap();
        let signed = [format!("{id}.{seconds}.").as_bytes(), body].concat();
        format!("v1,{}", BASE64.encode(hmac_sha256(&key, &signed)))
    })
}

/// RFC 2104, for keys of at most 64 bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| (0..64).map(|n| key.get(n).copied().unwrap_or(0) ^ byte).collect::<Vec<u8>>();
    let inner = Sha256::digest([pad(0x36).as_slice(), message].concat());
    Sha256::digest([pad(0x5c).as_slice(), &inner].concat()).to_vec()
}

#[test]
fn other_bytes_are_signed_as_text_is() {
    let key = BASE64.decode(SECRET.trim_start_matches("whsec_")).unwrap();
    let by_hand = format!("v1,{}", BASE64.encode(hmac_sha256(&key, b"msg_1.1760000000.{}")));
    assert_eq!(by_hand, Webhook::new(SECRET).unwrap().sign("msg_1", 1_760_000_000, b"{}").unwrap());
}

fn signed(id: &str, body: &[u8]) -> Headers {
    signed_at(id, now(), body)
}

fn signed_at(id: &str, seconds: i64, body: &[u8]) -> Headers {
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

/// The head of a request to the right place.
fn post_head(headers: &Headers) -> Vec<u8> {
    head("POST", "/webhooks/clerk", headers)
}

/// A whole request with a length.
fn post(headers: Headers, body: &[u8]) -> Vec<u8> {
    let mut request = post_head(&with(headers, "content-length", body.len().to_string()));
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

/// The body of a message that would be applied.
fn good() -> Vec<u8> {
    user().to_string().into_bytes()
}

fn edited(edit: impl FnOnce(&mut Value)) -> Value {
    let mut event = user();
    edit(&mut event);
    event
}

/// The event with other metadata, which need not be JSON.
fn with_metadata(event: &Value, metadata: &str) -> String {
    event.to_string().replace("\"public_metadata\":{}", &format!("\"public_metadata\":{metadata}"))
}

/// A user with a field that nobody knows.
fn with_unknown_field(value: &str) -> String {
    user().to_string().replace("\"object\":\"user\"", &format!("\"object\":\"user\",\"x\":{value}"))
}

/// A number within so many arrays.
fn nested(levels: usize) -> String {
    format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
}

/// The members of an object with 100,000 keys.
fn many_keys() -> String {
    (0..100_000).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",")
}

fn id(event: &Value) -> String {
    event["data"]["id"].as_str().unwrap_or_default().to_owned()
}

/// Sends bytes and reads until `answers` heads have come or the other side closes: the statuses in order. `half_close`: after sending.
async fn exchange(address: &str, bytes: &[u8], half_close: bool, answers: usize) -> Vec<u16> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (mut from, mut to) = stream.split();
        let write = async {
            let _ = to.write_all(bytes).await;
            if half_close {
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
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// The user's row and details.
fn users_of(event: &Value, columns: &str) -> String {
    format!(
        "select {columns} from clerk.users u left join clerk.user_details d using (id) where u.id = '{}'",
        id(event).replace('\'', "''")
    )
}

/// What the message's receipt says about fields that could not be taken as they are.
const FIELD_ERRORS: &str = "(select field_errors from clerk_sync.receipts r where r.entity_id = u.id)";

async fn methods_other_than_post(rows: &mut Rows) {
    for method in ["GET", "HEAD", "PUT"] {
        let request = head(method, "/webhooks/clerk", &vec![]);
        rows.of(format!("{method} on the webhook path")).refused(&request, &[405]).await;
    }
}

async fn unknown_path(rows: &mut Rows) {
    rows.refused(&head("POST", "/other", &with(vec![], "content-length", "0")), &[404]).await;
}

async fn content_types(rows: &mut Rows) {
    for content_type in [None, Some("text/plain")] {
        let body = good();
        let mut headers = signed(&unique("msg"), &body);
        headers.extend(content_type.map(|value| ("content-type".to_owned(), value.as_bytes().to_vec())));
        rows.of(format!("content type {content_type:?}")).accepted(&post(headers, &body)).await;
    }
}

async fn nothing_but_a_request_line(rows: &mut Rows) {
    rows.refused(&post_head(&vec![]), &[400]).await;
}

async fn body_too_large(rows: &mut Rows) {
    rows.refused(&post_head(&with(signed("msg_5", b""), "content-length", "2097153")), &[413]).await;
}

async fn chunked_without_end(rows: &mut Rows) {
    let mut endless = post_head(&with(signed("msg_6", b""), "transfer-encoding", "chunked"));
    for _ in 0..40 {
        endless.extend_from_slice(b"10000\r\n");
        endless.extend(std::iter::repeat_n(b'x', 0x10000));
        endless.extend_from_slice(b"\r\n");
    }
    rows.refused(&endless, &[413, 0]).await;
}

async fn length_larger_than_the_body(rows: &mut Rows) {
    let mut short = post_head(&with(signed("msg_7", b"{}"), "content-length", "100"));
    short.extend_from_slice(b"{}");
    // Only the end of what is sent shows that the body stays short.
    rows.refused_when(&short, true, &[400, 0]).await;
}

async fn invalid_lengths(rows: &mut Rows) {
    for length in ["-1", "100000000000000000000", "2\r\ncontent-length: 3"] {
        let request = post_head(&with(signed("msg_8", b"{}"), "content-length", length));
        rows.of(format!("length {}", length.escape_debug())).refused(&request, &[400]).await;
    }
}

async fn invalid_chunk_size(rows: &mut Rows) {
    let mut request = post_head(&with(signed("msg_9", b"{}"), "transfer-encoding", "chunked"));
    request.extend_from_slice(b"zz\r\n{}\r\n0\r\n\r\n");
    rows.refused(&request, &[400, 0]).await;
}

async fn length_and_chunked(rows: &mut Rows) {
    let body = good();
    let both = with(with(signed(&unique("msg"), &body), "content-length", "5"), "transfer-encoding", "chunked");
    let mut request = post_head(&both);
    request.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    request.extend_from_slice(&body);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    let statuses = rows.exchange(&request).await;
    let is_one = matches!(statuses[..], [204 | 400]);
    rows.note("400, or 204 once", &format!("{statuses:?}"), is_one).await;
}

async fn too_many_headers(rows: &mut Rows) {
    let many = (0..150).fold(signed("msg_11", b""), |headers, n| with(headers, &format!("x-{n}"), "1"));
    rows.refused(&post_head(&many), &[431]).await;
}

async fn signature_of_64_kib(rows: &mut Rows) {
    let mut headers = signed("msg_12", b"{}");
    headers[2].1 = vec![b'x'; 64 * 1024];
    rows.refused(&post(headers, b"{}"), &[400]).await;
}

async fn many_signatures(rows: &mut Rows) {
    let body = good();
    let mut fifty = signed(&unique("msg"), &body);
    fifty[2].1 = [b"v1,YmFk ".repeat(49), fifty[2].1.clone()].concat();
    rows.accepted(&post(fifty, &body)).await;
}

async fn control_bytes_in_a_header(rows: &mut Rows) {
    for (what, value) in [("NUL", b"a\0b".as_slice()), ("bare CR", b"a\rb")] {
        let request = post(with(signed("msg_14", b"{}"), "x-odd", value), b"{}");
        rows.of(format!("{what} in a header")).refused(&request, &[400]).await;
    }
}

async fn line_feed_in_the_message_id(rows: &mut Rows) {
    let headers = as_id(b"msg_15\nx-smuggled: 1".as_slice(), "msg_15b", b"{}");
    rows.refused(&post(headers, b"{}"), &[400]).await;
}

async fn message_id_beyond_ascii(rows: &mut Rows) {
    rows.refused(&post(as_id("msg_é", "msg_é", b"{}"), b"{}"), &[400]).await;
}

async fn long_message_id(rows: &mut Rows) {
    rows.refused(&post(signed(&"m".repeat(4096), b"{}"), b"{}"), &[400]).await;
}

async fn message_id_of_other_characters(rows: &mut Rows) {
    for odd in ["msg_%0a", "msg_\\n", "msg_\u{1b}[31m"] {
        let request = post(as_id(odd, odd, b"{}"), b"{}");
        rows.of(format!("svix-id {}", odd.escape_debug())).refused(&request, &[400]).await;
    }
}

async fn two_message_ids(rows: &mut Rows) {
    let body = good();
    let statuses = rows.exchange(&post(with(signed(&unique("msg"), &body), "svix-id", "msg_other"), &body)).await;
    let is_one = matches!(statuses[..], [204 | 400]);
    rows.note("400, or the first", &format!("{statuses:?}"), is_one).await;
}

/// What became of those who send slowly or not at all: after how long the connection was closed, and how the answer began.
static STALLED: OnceCell<[(Duration, String); 4]> = OnceCell::const_new();

/// B20 to B23, side by side.
async fn send_slowly() -> [(Duration, String); 4] {
    let world = World::of(instance("ins_test")).await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let body = with(signed("msg_21", b"{}"), "content-length", "100");
    let expecting = with(with(signed("msg_23", b"{}"), "content-length", "100"), "expect", "100-continue");
    let sent = [
        (b"POST /webhooks/clerk HTTP/1.1\r\nx: ".to_vec(), Some(b'x')),
        (post_head(&body), Some(b' ')),
        (Vec::new(), None),
        (post_head(&expecting), None),
    ];
    let [head, body, silent, expecting] =
        sent.map(|(first, drip)| tokio::spawn(closed_after(address.clone(), first, drip)));
    let ends = [head.await.unwrap(), body.await.unwrap(), silent.await.unwrap(), expecting.await.unwrap()];
    let next = world.attempt(&unique("msg"), &good()).await;
    assert_eq!(next.outcome.as_deref(), Some("applied"), "the next good request");
    ends
}

/// Sends this, then nothing, or a byte each second, until the other side closes.
async fn closed_after(address: String, first: Vec<u8>, drip: Option<u8>) -> (Duration, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&first).await.unwrap();
    let started = Instant::now();
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
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

async fn stalled(rows: &mut Rows, index: usize) {
    let (after, answer) = &STALLED.get_or_init(send_slowly).await[index];
    let observed = format!("{:.1} s, {answer:?}", after.as_secs_f32());
    rows.note("closed within 15 s", &observed, *after < Duration::from_secs(15)).await;
}

async fn other_protocols(rows: &mut Rows) {
    for (what, bytes) in [
        ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice()),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("GET / of HTTP/0.9", b"GET /\r\n"),
    ] {
        rows.of(what).refused(bytes, &[400, 505, 0]).await;
    }
}

async fn pipelined_requests(rows: &mut Rows) {
    let (one, two) = (good(), good());
    let bad = post(as_id("msg_wrong", "msg_right", &one), &one);
    let pipelined = [post(signed(&unique("msg"), &one), &one), bad, post(signed(&unique("msg"), &two), &two)].concat();
    let statuses = exchange(rows.address(), &pipelined, false, 3).await;
    rows.note("204, 400, 204", &format!("{statuses:?}"), statuses == [204, 400, 204]).await;
}

async fn long_path(rows: &mut Rows) {
    rows.refused(&head("POST", &format!("/{}", "a".repeat(70_000)), &vec![]), &[414]).await;
}

async fn gzip(rows: &mut Rows) {
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00".as_slice();
    rows.refused(&post(with(signed("msg_27", gzip), "content-encoding", "gzip"), gzip), &[415]).await;
}

async fn client_hangs_up(rows: &mut Rows) {
    for _ in 0..20 {
        let body = good();
        let mut stream = TcpStream::connect(rows.address()).await.unwrap();
        stream.write_all(&post(signed(&unique("msg"), &body), &body)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let open =
        "select pid from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    let open = rows.query(open).await;
    rows.note("no open transaction", &open.to_string(), open == json!([])).await;
}

async fn forwarded_for_junk(rows: &mut Rows) {
    let body = good();
    let headers = with(signed(&unique("msg"), &body), "x-forwarded-for", "'; drop table users;--");
    rows.accepted(&post(with(headers, "forwarded", "for=\"_x\""), &body)).await;
}

async fn header_missing(rows: &mut Rows) {
    let body = good();
    for missing in 0..3 {
        let mut headers = signed("msg_31", &body);
        let (name, _) = headers.remove(missing);
        rows.of(format!("without {name}")).refused(&post(headers, &body), &[400]).await;
    }
}

async fn header_empty(rows: &mut Rows) {
    let body = good();
    for empty in 0..3 {
        let mut headers = signed("msg_31", &body);
        headers[empty].1 = Vec::new();
        let input = format!("empty {}", headers[empty].0);
        rows.of(input).refused(&post(headers, &body), &[400]).await;
    }
}

async fn signature_of_something_else(rows: &mut Rows) {
    let body = good();
    let other_body = signed("msg_31", b"{}");
    rows.of("signature of another body").refused(&post(other_body, &body), &[400]).await;
    let other_id = as_id("msg_b", "msg_a", &body);
    rows.of("signature of another id").refused(&post(other_id, &body), &[400]).await;
}

async fn altered_signatures(rows: &mut Rows) {
    let body = good();
    let mut headers = signed("msg_34", &body);
    let good = String::from_utf8(headers[2].1.clone()).unwrap();
    let bare = good.trim_start_matches("v1,");
    for odd in [
        bare.to_owned(),
        format!("V1,{bare}"),
        format!("v2,{bare}"),
        good.trim_end_matches('=').to_owned(),
        good[..20].to_owned(),
        good.to_lowercase(),
    ] {
        headers[2].1 = odd.clone().into_bytes();
        rows.of(format!("signature {odd:.12}…")).refused(&post(headers.clone(), &body), &[400]).await;
    }
}

async fn asymmetric_signature_alone(rows: &mut Rows) {
    let body = good();
    let mut headers = signed("msg_35", &body);
    headers[2].1.splice(..2, *b"v1a");
    rows.refused(&post(headers, &body), &[400]).await;
}

async fn good_signature_among_bad_ones(rows: &mut Rows) {
    let body = good();
    let mut mixed = signed(&unique("msg"), &body);
    mixed[2].1 = [b"v1,YmFk v1a,YmFk ".to_vec(), mixed[2].1.clone(), b" v1,YmFk".to_vec()].concat();
    rows.accepted(&post(mixed, &body)).await;
}

async fn timestamp_too_far_from_now(rows: &mut Rows) {
    let body = good();
    for offset in [-302, 302] {
        let request = post(signed_at(&unique("msg"), now() + offset, &body), &body);
        rows.of(format!("{offset} s by the clock")).refused(&request, &[400]).await;
    }
}

async fn timestamp_just_near_enough(rows: &mut Rows) {
    let body = good();
    for offset in [-299, 299] {
        let request = post(signed_at(&unique("msg"), now() + offset, &body), &body);
        rows.of(format!("{offset} s by the clock (exactly 300: see the vectors)")).accepted(&request).await;
    }
}

async fn invalid_timestamps(rows: &mut Rows) {
    let body = good();
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
        rows.of(format!("timestamp {odd}")).refused(&post(headers, &body), &[400]).await;
    }
}

async fn message_id_with_a_dot(rows: &mut Rows) {
    let body = good();
    rows.refused(&post(signed("msg_a.1", &body), &body), &[400]).await;
}

async fn old_secret_after_rotation(rows: &mut Rows) {
    let (old, new) = ("whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQ=", SECRET);
    let rotated = Verifier::new([new, old]).unwrap();
    let (body, seconds) = (good(), now());
    let signature = Webhook::new(old).unwrap().sign("msg_41", seconds, &body).unwrap();
    let mut headers = axum::http::HeaderMap::new();
    headers.insert("svix-id", "msg_41".parse().unwrap());
    headers.insert("svix-timestamp", seconds.to_string().parse().unwrap());
    headers.insert("svix-signature", signature.parse().unwrap());
    let is_accepted = rotated.verify(&headers, &body, clerk_sync::clock::now()).is_ok();
    rows.note("accepted", &is_accepted.to_string(), is_accepted).await;
}

async fn same_request_100_times(rows: &mut Rows) {
    let (body, seconds) = (good(), now());
    let mut outcomes = Vec::new();
    for _ in 0..100 {
        let attempt = rows.world.sender().send_at("repeated_42", seconds, &body).await.unwrap();
        outcomes.push(attempt.outcome.unwrap());
    }
    let right = outcomes[0] == "applied" && outcomes[1..].iter().all(|outcome| outcome == "duplicate");
    rows.note("applied, then duplicate", &outcomes[..3].join(", "), right).await;
}

async fn one_message_id_for_two_bodies(rows: &mut Rows) {
    let (first, second) = (user(), user());
    let one = rows.world.attempt("reused_43", first.to_string().as_bytes()).await.outcome.unwrap();
    let two = rows.world.attempt("reused_43", second.to_string().as_bytes()).await.outcome.unwrap();
    let second_stored = rows.query(&users_of(&second, "u.id")).await;
    let right = one == "applied" && two == DEAD && second_stored == json!([]);
    rows.note("first wins, second kept", &format!("{one}, {two}"), right).await;
}

async fn altered_bodies(rows: &mut Rows) {
    let body = good();
    let mut rng = fastrand::Rng::with_seed(44);
    let mut accepted = 0;
    for _ in 0..200 {
        let mut request = post(signed("msg_44", &body), &body);
        let at = rng.usize(request.len() - body.len()..request.len());
        request[at] ^= 1 << rng.u8(0..7);
        accepted += usize::from(rows.exchange(&request).await != [400]);
    }
    rows.note("none accepted", &accepted.to_string(), accepted == 0).await;
}

async fn invalid_secrets(rows: &mut Rows) {
    // An empty one is no secret: `first_hour` shows that serve starts and says so.
    for secret in ["%%%", "whpk_1SiA4o9hyqTCpIqC5V9H", "whsk_1SiA4o9hyqTCpIqC5V9H", "changeme", "whsec_dG9vc2hvcnQ="] {
        let environment = Environment {
            database_url: Some("postgres://localhost/x".to_owned()),
            signing_secret: Some(secret.to_owned()),
            ..Environment::default()
        };
        let mistakes = environment.check().err().map(|mistakes| mistakes[0].to_string()).unwrap_or_default();
        let right = mistakes.starts_with("CLERK_WEBHOOK_SIGNING_SECRET") && !mistakes.contains(secret);
        let beginning: String = mistakes.chars().take(40).collect();
        rows.of(format!("secret {secret:.5}… at start")).note("named, not shown", &beginning, right).await;
    }
}

async fn not_utf8(rows: &mut Rows) {
    for bytes in [b"{\"a\":\"\xff\"}".as_slice(), b"\"\xed\xa0\x80\"", b"\"\xc0\xaf\""] {
        rows.refused(&post(signed("msg_46", bytes), bytes), &[400]).await;
    }
}

async fn byte_order_mark(rows: &mut Rows) {
    rows.message(format!("\u{feff}{}", user()), DEAD).await;
}

async fn utf16(rows: &mut Rows) {
    let wide: Vec<u8> = user().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
    rows.message(wide, DEAD).await;
}

async fn control_bytes_in_a_string(rows: &mut Rows) {
    for control in ["\0", "\u{1}", "\n"] {
        rows.message(user().to_string().replace("Ada", &format!("A{control}a")), DEAD).await;
    }
}

async fn not_json(rows: &mut Rows) {
    for odd in ["", "hello", "{", "{\"a\":1,}", "{'a':1}", "// c\n{}", "{\"a\":NaN}", "{}{}", "{}\0"] {
        rows.of(format!("{odd:?}")).message(odd, DEAD).await;
    }
}

async fn json_that_is_not_an_object(rows: &mut Rows) {
    for odd in ["null", "true", "1", "\"x\"", "[]"] {
        rows.of(odd).message(odd, DEAD).await;
    }
}

async fn event_as_an_array(rows: &mut Rows) {
    rows.message("[{\"id\":\"user_1\"},\"event\",\"user.created\",1]", DEAD).await;
}

async fn type_twice(rows: &mut Rows) {
    rows.message(user().to_string().replacen('{', "{\"type\":\"user.deleted\",", 1), DEAD).await;
}

async fn duplicate_keys_in_metadata(rows: &mut Rows) {
    let event = user();
    let expected = json!([{ "public_metadata": { "a": 2 } }]);
    let sql = users_of(&event, "public_metadata");
    rows.message_and_rows(with_metadata(&event, "{\"a\":1,\"a\":2}"), "applied", &sql, expected).await;
}

async fn depth_100_000_in_an_unknown_field(rows: &mut Rows) {
    let started = Instant::now();
    rows.message(with_unknown_field(&nested(100_000)), "applied").await;
    assert!(started.elapsed() < Duration::from_secs(2));
}

async fn depth_200_in_metadata(rows: &mut Rows) {
    let event = user();
    let body = with_metadata(&event, &format!("{{\"v\":{}}}", nested(200)));
    let sql = users_of(&event, "length(public_metadata ->> 'v') as length");
    rows.message_and_rows(body, "applied", &sql, json!([{ "length": 401 }])).await;
}

async fn depth_20_000_in_metadata(rows: &mut Rows) {
    let event = user();
    let body = with_metadata(&event, &format!("{{\"v\":{}}}", nested(20_000)));
    let sql = users_of(&event, &format!("public_metadata, first_name, {FIELD_ERRORS}"));
    let flaw = "public_metadata: left out: nested deeper than 4,096 levels";
    let expected = json!([{ "public_metadata": null, "first_name": "Ada", "field_errors": [flaw] }]);
    rows.message_and_rows(body, "applied", &sql, expected).await;
}

async fn open_brackets(rows: &mut Rows) {
    rows.message("[".repeat(1_000_000), DEAD).await;
}

async fn first_name_of_1_mb(rows: &mut Rows) {
    let event = edited(|event| event["data"]["first_name"] = json!("x".repeat(1_000_000)));
    let sql = users_of(&event, "length(first_name) as length");
    rows.message_and_rows(event.to_string(), "applied", &sql, json!([{ "length": 1_000_000 }])).await;
}

async fn keys_100_000(rows: &mut Rows) {
    let object = format!("{{{}}}", many_keys());
    rows.of("100,000 keys in one object").message(with_unknown_field(&object), "applied").await;
    rows.of("100,000 keys in metadata").message(with_metadata(&user(), &object), "applied").await;
}

async fn unknown_fields(rows: &mut Rows) {
    let event = edited(|event| {
        event["unheard_of"] = json!({ "a": [1] });
        event["data"]["unheard_of"] = json!([null]);
    });
    rows.message(event.to_string(), "applied").await;
}

async fn half_a_surrogate_pair(rows: &mut Rows) {
    let event = user();
    let half = event.to_string().replace("Ada", "A\\ud800a");
    let expected = json!([{ "first_name": "A\u{fffd}a" }]);
    rows.message_and_rows(half, "applied", &users_of(&event, "first_name"), expected).await;
}

async fn nul_in_a_name(rows: &mut Rows) {
    let event = user();
    let body = event.to_string().replace("Ada", "A\\u0000a");
    let sql = users_of(&event, &format!("first_name, {FIELD_ERRORS}"));
    let expected = json!([{ "first_name": "A\u{fffd}a", "field_errors": ["first_name: 1 characters replaced"] }]);
    rows.message_and_rows(body, "applied", &sql, expected).await;
}

async fn nul_in_metadata(rows: &mut Rows) {
    let event = user();
    let body = with_metadata(&event, "{\"k\\u0000\":\"v\\u0000\"}");
    let expected = json!([{ "public_metadata": { "k\u{fffd}": "v\u{fffd}" } }]);
    rows.message_and_rows(body, "applied", &users_of(&event, "public_metadata"), expected).await;
}

async fn nul_in_an_id(rows: &mut Rows) {
    rows.message(user().to_string().replace("\"id\":\"user_", "\"id\":\"us\\u0000er_"), DEAD).await;
}

/// A number in metadata keeps each of its digits.
async fn number_is_kept(rows: &mut Rows, value: &str, expected: &str) {
    let event = user();
    let body = with_metadata(&event, &format!("{{\"v\":{value}}}"));
    let sql = users_of(&event, "public_metadata ->> 'v' as v");
    rows.message_and_rows(body, "applied", &sql, json!([{ "v": expected }])).await;
}

async fn numbers_beyond_a_double(rows: &mut Rows) {
    for (value, expected) in [
        ("1e400", format!("1{}", "0".repeat(400))),
        ("1e-15000", format!("0.{}1", "0".repeat(14_999))),
        ("1e15999", format!("1{}", "0".repeat(15_999))),
    ] {
        number_is_kept(rows.of(format!("{value} in metadata")), value, &expected).await;
    }
}

async fn numbers_beyond_postgres(rows: &mut Rows) {
    for huge in ["1e200000", "1e131073", "1e-20000", "1e9223372036854775807"] {
        let event = user();
        let body = with_metadata(&event, &format!("{{\"v\":{huge}}}"));
        let (sql, expected) = (users_of(&event, "public_metadata"), json!([{ "public_metadata": null }]));
        rows.of(format!("{huge} in metadata")).message_and_rows(body, "applied", &sql, expected).await;
    }
}

async fn integer_of_29_digits(rows: &mut Rows) {
    number_is_kept(rows, "12345678901234567890123456789", "12345678901234567890123456789").await;
}

async fn invalid_times(rows: &mut Rows) {
    for odd in ["9223372036854775808", "1e19", "-1", "\"2024-01-01\"", "1.5", "null", "9223372036854775807"] {
        let with = |event: &Value, field: &str| {
            event.to_string().replace(&format!("\"{field}\":{START}"), &format!("\"{field}\":{odd}"))
        };
        let event = user();
        let (sql, expected) = (users_of(&event, "created_at"), json!([{ "created_at": null }]));
        let body = with(&event, "created_at");
        rows.of(format!("created_at {odd}")).message_and_rows(body, "applied", &sql, expected).await;
        let event = user();
        let (body, sql) = (with(&event, "updated_at"), users_of(&event, "u.id"));
        rows.of(format!("updated_at {odd}")).message_and_rows(body, "pending", &sql, json!([])).await;
    }
}

async fn created_at_in_seconds(rows: &mut Rows) {
    let event = edited(|event| event["data"]["created_at"] = json!(START / 1000));
    rows.message(event.to_string(), "applied").await;
}

async fn updated_at_in_ten_years(rows: &mut Rows) {
    let mut event = edited(|event| event["data"]["updated_at"] = json!(START + 315_360_000_000_i64));
    rows.message(event.to_string(), "applied").await;
    event["data"]["updated_at"] = json!(START + 60_000);
    event["data"]["first_name"] = json!("Later");
    event["timestamp"] = json!(START + 60_020);
    let (sql, expected) = (users_of(&event, "first_name"), json!([{ "first_name": "Later" }]));
    rows.of("… and the next change").message_and_rows(event.to_string(), "applied", &sql, expected).await;
}

async fn odd_ids(rows: &mut Rows) {
    for odd in [String::new(), "u".repeat(10_000)] {
        let event = edited(|event| event["data"]["id"] = json!(odd));
        rows.of(format!("id of {} characters", odd.len())).message(event.to_string(), DEAD).await;
    }
    for odd in ["user 1", "user\"'1", "'; drop table users;--", "user_\u{202e}1", "user_😀"] {
        let event = edited(|event| event["data"]["id"] = json!(odd));
        let (sql, expected) = (users_of(&event, "u.id"), json!([{ "id": odd }]));
        let row = rows.of(format!("id {}", odd.escape_debug()));
        row.message_and_rows(event.to_string(), "applied", &sql, expected).await;
    }
}

async fn id_of_another_kind(rows: &mut Rows) {
    let event = edited(|event| event["data"]["id"] = json!("org_1"));
    rows.message(event.to_string(), DEAD).await;
}

async fn primary_address_that_is_not_there(rows: &mut Rows) {
    let event = edited(|event| event["data"]["primary_email_address_id"] = json!("idn_nowhere"));
    let (sql, expected) = (users_of(&event, "email_address"), json!([{ "email_address": null }]));
    rows.message_and_rows(event.to_string(), "applied", &sql, expected).await;
}

async fn addresses_500(rows: &mut Rows) {
    let event = edited(|event| {
        let addresses =
            (0..500).map(|n| json!({ "id": format!("idn_{n}"), "email_address": format!("a{n}@example.com") }));
        event["data"]["email_addresses"] = addresses.collect();
        event["data"]["primary_email_address_id"] = json!("idn_499");
    });
    let (sql, expected) = (users_of(&event, "email_address"), json!([{ "email_address": "a499@example.com" }]));
    rows.message_and_rows(event.to_string(), "applied", &sql, expected).await;
}

async fn unique_fields_shared(rows: &mut Rows) {
    for n in 0..2 {
        let event = edited(|event| {
            event["data"]["username"] = json!("same");
            event["data"]["external_id"] = json!("same");
            event["data"]["email_addresses"] = json!([{ "id": "idn_1", "email_address": "same@example.com" }]);
            event["data"]["primary_email_address_id"] = json!("idn_1");
        });
        let row = rows.of(format!("the same address, username and external id ({n})"));
        row.message(event.to_string(), "applied").await;
    }
}

async fn fields_of_the_wrong_type(rows: &mut Rows) {
    let event = edited(|event| {
        event["data"]["email_addresses"] = json!({});
        event["data"]["public_metadata"] = json!("x");
        event["data"]["banned"] = json!("yes");
        event["data"]["deprovisioned"] = json!("yes");
        event["data"]["primary_email_address_id"] = json!("idn_1");
    });
    let sql = users_of(&event, &format!("email_address, public_metadata, banned, deprovisioned, {FIELD_ERRORS}"));
    let field_errors = [
        "email_addresses: not a list",
        "banned: not true or false",
        "deprovisioned: not true or false",
        "public_metadata: not an object",
    ];
    // Neither lets anybody in.
    let expected = json!([{ "email_address": null, "public_metadata": null, "banned": null, "deprovisioned": true, "field_errors": field_errors }]);
    rows.message_and_rows(event.to_string(), "applied", &sql, expected).await;
}

async fn unusual_characters(rows: &mut Rows) {
    let name = "\u{202e}ملک \u{301}é 👩‍👩‍👧 \u{ffff}";
    let event = edited(|event| event["data"]["first_name"] = json!(name));
    let (sql, expected) = (users_of(&event, "first_name"), json!([{ "first_name": name }]));
    rows.message_and_rows(event.to_string(), "applied", &sql, expected).await;
}

async fn quotes_and_backslashes(rows: &mut Rows) {
    let quotes = "\"\\".repeat(4_000);
    let event = edited(|event| event["data"]["public_metadata"] = json!({ "v": quotes }));
    let sql = users_of(&event, "public_metadata ->> 'v' as v");
    rows.message_and_rows(event.to_string(), "applied", &sql, json!([{ "v": quotes }])).await;
}

async fn odd_image_urls(rows: &mut Rows) {
    for url in ["javascript:alert(1)".to_owned(), "x".repeat(100_000)] {
        let event = edited(|event| event["data"]["image_url"] = json!(url));
        rows.of(format!("image_url {url:.12}…")).message(event.to_string(), "applied").await;
    }
}

async fn other_event_types(rows: &mut Rows) {
    for event_type in ["user.frobnicated", "session.created", "email.created"] {
        let event = edited(|event| event["type"] = json!(event_type));
        let sql = users_of(&event, "u.id");
        rows.of(event_type).message_and_rows(event.to_string(), "ignored", &sql, json!([])).await;
    }
}

async fn invalid_event_types(rows: &mut Rows) {
    for odd in [Value::Null, json!(""), json!(7), json!("x".repeat(10_000))] {
        let event = edited(|event| event["type"] = odd.clone());
        rows.of(format!("type {:.12}", odd.to_string())).message(event.to_string(), DEAD).await;
    }
}

async fn not_an_event(rows: &mut Rows) {
    let no_data = edited(|event| event["data"] = Value::Null);
    rows.of("data null").message(no_data.to_string(), DEAD).await;
    let thing = edited(|event| event["object"] = json!("thing"));
    rows.of("object not event").message(thing.to_string(), DEAD).await;
}

async fn update_before_its_create(rows: &mut Rows) {
    let created = user();
    let mut updated = created.clone();
    updated["type"] = json!("user.updated");
    updated["data"]["first_name"] = json!("Later");
    updated["data"]["updated_at"] = json!(START + 1_000);
    updated["timestamp"] = json!(START + 1_020);
    let (sql, later) = (users_of(&created, "first_name"), json!([{ "first_name": "Later" }]));
    rows.message_and_rows(updated.to_string(), "applied", &sql, later.clone()).await;
    rows.of("… and the create").message_and_rows(created.to_string(), "stale", &sql, later).await;
}

/// The webhook of this user's deletion; and a query of what is left then.
fn deletion(created: &Value) -> (Value, String, Value) {
    let mut deleted = created.clone();
    deleted["type"] = json!("user.deleted");
    deleted["timestamp"] = json!(START + 5_000);
    deleted["data"] = json!({ "id": id(created), "object": "user", "deleted": true });
    let sql = users_of(created, "first_name, deleted_at is not null as deleted");
    (deleted, sql, json!([{ "first_name": null, "deleted": true }]))
}

async fn delete_of_an_unknown_user(rows: &mut Rows) {
    let (deleted, sql, left) = deletion(&user());
    rows.message_and_rows(deleted.to_string(), "applied", &sql, left).await;
}

async fn create_after_its_delete(rows: &mut Rows) {
    let created = user();
    let (deleted, sql, left) = deletion(&created);
    rows.applied(&deleted).await;
    rows.message_and_rows(created.to_string(), "stale", &sql, left).await;
}

/// A user that nobody knows becomes a member of the organization.
fn membership(organization_id: &str) -> Value {
    json!({ "object": "event", "type": "organizationMembership.created", "timestamp": START + 50, "instance_id": "ins_test", "data": {
        "id": unique("orgmem"), "role": "org:member", "permissions": [], "created_at": START, "updated_at": START,
        "organization": { "id": organization_id, "name": "Acme", "slug": "acme" },
        "public_user_data": { "user_id": unique("user"), "first_name": "Ada", "banned": false },
    } })
}

fn organization_deletion(organization_id: &str) -> Value {
    json!({ "object": "event", "type": "organization.deleted", "timestamp": START + 9_000, "instance_id": "ins_test",
        "data": { "id": organization_id, "object": "organization", "deleted": true } })
}

fn roles_in(organization_id: &str) -> String {
    format!("select role from clerk.organization_memberships where organization_id = '{organization_id}'")
}

async fn membership_before_its_parents(rows: &mut Rows) {
    let organization_id = unique("org");
    let (sql, expected) = (roles_in(&organization_id), json!([{ "role": "org:member" }]));
    rows.message_and_rows(membership(&organization_id).to_string(), "applied", &sql, expected).await;
}

async fn membership_of_a_deleted_organization(rows: &mut Rows) {
    let organization_id = unique("org");
    rows.applied(&membership(&organization_id)).await;
    rows.applied(&organization_deletion(&organization_id)).await;
    let late = membership(&organization_id);
    rows.message_and_rows(late.to_string(), "stale", &roles_in(&organization_id), json!([])).await;
}

async fn equal_times_other_content(rows: &mut Rows) {
    let one = user();
    let mut other = one.clone();
    other["data"]["first_name"] = json!("Bea");
    let mut winners = Vec::new();
    for order in [[&one, &other], [&other, &one]] {
        for event in order {
            assert_eq!(rows.deliver(event.to_string().as_bytes()).await.0, 204);
        }
        winners.push(rows.query(&users_of(&one, "first_name")).await);
        // Forgotten, so that the other order begins anew with the same id: the content's hash covers it.
        let forget = format!(
            "delete from clerk.users where id = '{0}'; delete from clerk_sync.versions where id = '{0}'",
            id(&one)
        );
        rows.world.database.execute(&forget).await;
    }
    let is_steady = winners[0] == winners[1] && winners[0] != json!([]);
    rows.note("one winner", &format!("{winners:?}"), is_steady).await;
}

async fn organization_deleted(rows: &mut Rows) {
    let organization_id = unique("org");
    rows.applied(&membership(&organization_id)).await;
    let deleted = organization_deletion(&organization_id);
    rows.message_and_rows(deleted.to_string(), "applied", &roles_in(&organization_id), json!([])).await;
}

async fn event_of_another_instance(rows: &mut Rows) {
    let foreign = edited(|event| event["instance_id"] = json!("ins_other"));
    let attempt = rows.world.attempt(&unique("msg"), foreign.to_string().as_bytes()).await;
    let stored = rows.query(&users_of(&foreign, "u.id")).await;
    rows.note("403", &attempt.status.to_string(), attempt.status == 403 && stored == json!([])).await;
}

async fn dashboards_example(rows: &mut Rows) {
    let example = edited(|event| {
        event.as_object_mut().unwrap().remove("instance_id");
        event["data"]["id"] = json!("user_29w83sxmDNGwOuEthce5gg56FcC");
        event["data"]["updated_at"] = json!(1_654_012_591_835_i64);
        event["timestamp"] = json!(1_654_012_591_835_i64);
    });
    rows.message(example.to_string(), "applied").await;
}
