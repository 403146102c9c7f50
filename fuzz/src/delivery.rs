//! Verify, parse and fold whatever comes: bodies, parted by the byte 0xff (which no text has), and headers.
#![no_main]

use axum::http::{HeaderMap, HeaderValue};
use clerk_sync::clerk::event;
use clerk_sync::model::{Batch, Delivery, Item, Message, MessageId, Millis, Row, Source, Stub, FoldedChange};
use clerk_sync::webhook::signature::Verifier;
use std::collections::HashSet;
use std::sync::LazyLock;
use svix::webhooks::Webhook;

const SECRET: &str = "whsec_dGhlIGZ1enplciBzaWducyB3aXRoIHRoaXM=";
const SECONDS: i64 = 1_760_000_000;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new([SECRET]).expect("a secret"));
static WEBHOOK: LazyLock<Webhook> = LazyLock::new(|| Webhook::new(SECRET).expect("a secret"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let now = Millis::new(SECONDS * 1000).expect("a time");
    let mut deliveries = Vec::new();
    unsigned_is_refused(data, now);
    for (n, body) in data.split(|byte| *byte == 0xff).enumerate() {
        // Hashing is most of the time: the first stands for all.
        if n == 0 {
            signed_is_accepted(body, now);
        }
        let Ok(event) = event::parse(body, now) else { continue };
        let Some(change) = event.change else { continue };
        let message = Message {
            id: MessageId(format!("msg_{n}")),
            body_hash: n.to_string(),
            event_type: event.event_type,
            entity_id: event.entity.map(|entity| entity.id),
            instance_id: event.instance_id,
            event_at: event.event_at,
            field_errors: event.field_errors,
        };
        deliveries.push(Delivery { message: Some(message), item: Item::Change(Box::new(change)) });
    }
    let batch = Batch::fold(Source::Webhook, true, deliveries.iter());
    for rows in [&batch.changes, &batch.stubs] {
        let mut seen = HashSet::new();
        for FoldedChange { row, .. } in rows {
            assert!(seen.insert((row.kind(), row.id())), "two winners");
            assert!(!row.id().is_empty() && row.id().len() <= 255);
            fits_postgres(&match row {
                Row::Live(entity) => serde_json::to_string(entity).expect("JSON"),
                Row::Stub(Stub::User(user)) => serde_json::to_string(user).expect("JSON"),
                Row::Stub(Stub::Organization(organization)) => serde_json::to_string(organization).expect("JSON"),
                Row::Gone(entity) => serde_json::to_string(&entity.id).expect("JSON"),
            });
        }
    }
});

fn signed_is_accepted(body: &[u8], now: Millis) {
    let Ok(signature) = WEBHOOK.sign("msg_0", SECONDS, body) else { return };
    let headers = headers(b"msg_0", SECONDS.to_string().as_bytes(), signature.as_bytes()).expect("headers");
    VERIFIER.verify(&headers, body, now).expect("a good signature is accepted");
}

/// The input as headers: nothing that was not signed passes.
fn unsigned_is_refused(body: &[u8], now: Millis) {
    let mut parts = body.splitn(3, |byte| *byte == b'\n');
    let (id, timestamp, signature) = (parts.next(), parts.next(), parts.next());
    if let Some(headers) = headers(id.unwrap_or(b"msg_1"), timestamp.unwrap_or(b"1760000000"), signature.unwrap_or(b"v1,")) {
        assert!(VERIFIER.verify(&headers, body, now).is_err());
    }
}

fn headers(id: &[u8], timestamp: &[u8], signature: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert("svix-id", HeaderValue::from_bytes(id).ok()?);
    headers.insert("svix-timestamp", HeaderValue::from_bytes(timestamp).ok()?);
    headers.insert("svix-signature", HeaderValue::from_bytes(signature).ok()?);
    Some(headers)
}

/// No NUL in any spelling, and no deeper than Postgres parses.
fn fits_postgres(batch: &str) {
    assert!(!batch.contains('\0'));
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in batch.bytes().enumerate() {
        match (in_string, byte) {
            (true, _) if escaped => {
                assert!(byte != b'u' || &batch[at + 1..at + 5] != "0000", "an escaped NUL");
                escaped = false;
            }
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth -= 1,
            _ => {}
        }
        assert!(depth < 4_200);
    }
}
