//! Signature vectors under a stopped clock: accepted or refused, and for which reason.

use crate::support::extra_fixtures;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clerk_sync::model::Millis;
use clerk_sync::webhook::rejection::Rejection;
use clerk_sync::webhook::signature::{BadSecret, Verifier};
use serde_json::Value;
use std::path::Path;

#[test]
fn our_vectors_end_as_written() {
    assert_eq!(run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/svix/vectors.json")), 64);
}

#[test]
fn further_vectors_end_as_written() {
    if let Some(folder) = extra_fixtures() {
        assert!(run(&folder.join("svix/vectors.json")) > 60);
    }
}

#[test]
fn during_a_rotation_either_secret_will_do() {
    let (old, new) = ("whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQ=", "whsec_bmV3IG5ldyBuZXcgbmV3IG5ldyBuZXc=");
    let verifier = Verifier::new([new, old]).unwrap();
    for secret in [old, new] {
        let signature = svix::webhooks::Webhook::new(secret).unwrap().sign("msg_1", 1_760_000_000, b"{}").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("svix-id", HeaderValue::from_static("msg_1"));
        headers.insert("svix-timestamp", HeaderValue::from_static("1760000000"));
        headers.insert("svix-signature", HeaderValue::from_str(&signature).unwrap());
        let now = Millis::new(1_760_000_000_999).unwrap();
        assert!(verifier.verify(&headers, b"{}", now).is_ok());
        assert_eq!(verifier.verify(&headers, b"{ }", now), Err(Rejection::InvalidSignature));
    }
}

/// Runs all vectors of a file and returns how many there were.
fn run(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).expect("the vectors");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let vectors = file["vectors"].as_array().unwrap();
    for vector in vectors {
        let wanted = vector["policy"].as_str().unwrap_or_else(|| vector["expect"].as_str().unwrap());
        let outcome = verify(vector);
        assert!(wanted == "either" || wanted == outcome, "{}: wanted {wanted}, got {outcome}", vector["name"]);
    }
    vectors.len()
}

fn verify(vector: &Value) -> &'static str {
    let verifier = match Verifier::new([vector["secret"].as_str().unwrap()]) {
        Ok(verifier) => verifier,
        Err(BadSecret::Empty) => return "EmptySecret",
        Err(BadSecret::NotASecret | BadSecret::TooShort) => return "InvalidSecret",
    };
    let mut headers = HeaderMap::new();
    for header in vector["headers"].as_array().unwrap() {
        let name: HeaderName = header[0].as_str().unwrap().to_lowercase().parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(header[1].as_str().unwrap().as_bytes()).unwrap());
    }
    let body = decode_base64(vector["body_b64"].as_str().unwrap());
    let now = Millis::new(vector["now"].as_i64().unwrap() * 1000).unwrap();
    match verifier.verify(&headers, &body, now) {
        Ok(_) => "ok",
        Err(Rejection::MissingHeader(_)) => "MissingHeader",
        Err(Rejection::InvalidHeader(_)) => "InvalidHeader",
        Err(Rejection::MalformedHeader(_)) => "MalformedHeader",
        Err(Rejection::InvalidTimestamp) => "InvalidTimestamp",
        Err(Rejection::TimestampTooOld(_)) => "TimestampTooOld",
        Err(Rejection::TimestampTooNew(_)) => "TimestampTooNew",
        Err(Rejection::InvalidSignature) => "InvalidSignature",
        Err(Rejection::InvalidPayload) => "InvalidPayload",
        Err(other) => panic!("{other} is no matter of signatures"),
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter_map(|byte| ALPHABET.iter().position(|digit| *digit == byte));
    let bits: Vec<u8> = digits.flat_map(|digit| (0..6).rev().map(move |bit| u8::from(digit >> bit & 1 == 1))).collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit)).collect()
}
