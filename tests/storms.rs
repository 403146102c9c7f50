//! Many at once who mean no good: those who hang up, those who never finish, those who guess.

use crate::support::{SECRET, START, World};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clerk_sync::model::InstanceCheck;
use clerk_sync::model::Millis;
use clerk_sync::webhook::signature::Verifier;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use svix::webhooks::Webhook;
use testkit::clerk::{Clerk, Event};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn sign_ups(seed: u64, count: usize) -> Vec<Event> {
    let mut clerk = Clerk::new(seed, START);
    for _ in 0..count {
        clerk.now += 100;
        clerk.create_user("Ada", "Lovelace");
    }
    std::mem::take(&mut clerk.outbox)
}

fn request(event: &Event) -> Vec<u8> {
    let seconds = clerk_sync::clock::now().get() / 1000;
    let signature = Webhook::new(SECRET).unwrap().sign(&event.message_id, seconds, event.body.as_bytes()).unwrap();
    format!(
        "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nsvix-id: {}\r\nsvix-timestamp: {seconds}\r\nsvix-signature: {signature}\r\n\
         content-length: {}\r\n\r\n{}",
        event.message_id,
        event.body.len(),
        event.body
    )
    .into_bytes()
}

/// Sessions that stay inside a transaction: none may, ever.
async fn stuck(world: &World) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    sqlx::query_scalar(sql).fetch_one(&mut world.database.owner().await).await.unwrap()
}

/// F15. Twenty thousand requests are cut off at random within three milliseconds, while four honest clients work.
pub async fn senders_hang_up() -> String {
    const ABORTED: usize = 20_000;
    // Each client has a Clerk of its own.
    let world = Arc::new(World::of(InstanceCheck::Off).await);
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let storm = Arc::new(sign_ups(1, ABORTED / 10));
    let next = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let started = Instant::now();

    let aborting: Vec<_> = (0..24_u64)
        .map(|client| {
            let (storm, next, address) = (Arc::clone(&storm), Arc::clone(&next), address.clone());
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(client);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= ABORTED {
                        break;
                    }
                    let bytes = request(&storm[number % storm.len()]);
                    let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                    let sent = if rng.u8(..) < 40 { rng.usize(..bytes.len()) } else { bytes.len() };
                    let _ = stream.write_all(&bytes[..sent]).await;
                    tokio::time::sleep(Duration::from_micros(rng.u64(0..3_000))).await;
                }
            })
        })
        .collect();
    let honest: Vec<_> = (0..4_u64)
        .map(|client| {
            let (world, over) = (Arc::clone(&world), Arc::clone(&over));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                let events = sign_ups(100 + client, 20_000);
                for event in &events {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
                    assert_eq!(attempt.status, 204, "an honest client: {attempt:?}");
                    acknowledged.push(event.entity_id.clone());
                }
                acknowledged
            })
        })
        .collect();
    let mut most_stuck = 0;
    for client in aborting {
        most_stuck = most_stuck.max(stuck(&world).await);
        client.await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    let took = started.elapsed();
    let mut acknowledged = Vec::new();
    for client in honest {
        acknowledged.extend(client.await.unwrap());
    }
    let held: i64 = sqlx::query_scalar("select count(*) from clerk.users where id = any ($1)")
        .bind(&acknowledged)
        .fetch_one(&mut world.database.owner().await)
        .await
        .unwrap();
    assert_eq!(usize::try_from(held).unwrap(), acknowledged.len(), "acknowledged and there");
    assert_eq!((most_stuck, stuck(&world).await), (0, 0));
    let connections = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'clerk-sync' \
         and pid <> pg_backend_pid()";
    let connections: i64 = sqlx::query_scalar(connections).fetch_one(&mut world.database.owner().await).await.unwrap();
    assert!(connections <= 2, "{connections} connections");
    let acknowledged = acknowledged.len();
    format!(
        "{ABORTED} aborted in {took:.1?}; honest clients: {acknowledged} × 204, 0 × 503, 0 lost; 0 idle in transaction"
    )
}

/// A thousand connections send a byte a second, two thousand send nothing at all; good requests go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_connections_are_closed_and_hold_up_nobody() {
    let world = World::new().await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let mut sluggish = Vec::new();
    for _ in 0..1_000 {
        sluggish.push(tokio::spawn(until_closed(TcpStream::connect(&address).await.unwrap(), true)));
    }
    let mut times = Vec::new();
    let events = sign_ups(9, 300);
    for event in &events {
        let started = Instant::now();
        assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 204);
        times.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut longest = Duration::ZERO;
    for connection in sluggish {
        longest = longest.max(connection.await.unwrap());
    }
    times.sort();
    println!(
        "1,000 slow heads: all closed after {longest:.1?} at the latest; good requests meanwhile: p50 {:.1?}, p99 {:.1?}",
        times[150], times[297]
    );
    assert!(longest < Duration::from_secs(15), "{longest:?}");

    // One after the other, as the backlog of connections that are not accepted yet is bounded too.
    let mut silent = Vec::new();
    for _ in 0..2_000 {
        silent.push(tokio::spawn(until_closed(TcpStream::connect(&address).await.unwrap(), false)));
    }
    let mut longest = Duration::ZERO;
    for connection in silent {
        longest = longest.max(connection.await.unwrap());
    }
    println!("2,000 silent connections: all closed after {longest:.1?} at the latest");
    assert!(longest < Duration::from_secs(15), "{longest:?}");
    assert_eq!(world.attempt("msg_after", events[0].body.as_bytes()).await.status, 204);
}

/// Bodies that lack their last byte, of requests that may be Clerk's by their headers, hold all memory for the usual ones: those
/// that have been arriving for the longest time lose theirs to whoever finds no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stalls_makes_way() {
    const BODY: usize = 65_536;
    let world = World::new().await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let seconds = clerk_sync::clock::now().get() / 1000;
    let mut request = format!(
        "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nsvix-id: msg_stalled\r\nsvix-timestamp: {seconds}\r\n\
         svix-signature: v1,AAAA\r\ncontent-length: {BODY}\r\n\r\n"
    )
    .into_bytes();
    request.resize(request.len() + BODY - 1, b' ');
    let mut stalled = Vec::new();
    for _ in 0..160 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(&request).await.unwrap();
        stalled.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let events = sign_ups(12, 40);
    for event in &events {
        assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 204);
    }
    let mut answer = [0; 16];
    stalled[0].read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", answer.escape_ascii());
}

/// Who asks again and again and takes no answer loses his connection.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_hold_no_connection() {
    let world = World::new().await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let questions = b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n".repeat(1_000);
    let started = Instant::now();
    // Until its place is free again: then what is sent to it is refused.
    while started.elapsed() < Duration::from_secs(40) {
        match tokio::time::timeout(Duration::from_secs(1), stream.write_all(&questions)).await {
            Ok(Err(_)) => break,
            Ok(Ok(())) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    println!("answers that nobody takes: the connection ended after {:.1?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// How long the server bears with a connection that sends a head byte by byte, or nothing.
async fn until_closed(mut stream: TcpStream, drip: bool) -> Duration {
    let started = Instant::now();
    let mut buffer = [0; 64];
    if drip {
        let _ = stream.write_all(b"POST /webhooks/clerk HTTP/1.1\r\nx: ").await;
    }
    while started.elapsed() < Duration::from_secs(30) {
        match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => break,
            Err(_) if drip => {
                if stream.write_all(b"x").await.is_err() {
                    break;
                }
            }
            Err(_) => {}
        }
    }
    started.elapsed()
}

/// A million altered copies of good requests, checked as the server checks them.
#[test]
fn no_altered_request_is_accepted() {
    const MUTATIONS: usize = 1_000_000;
    let verifier = Verifier::new([SECRET]).unwrap();
    let webhook = Webhook::new(SECRET).unwrap();
    let seconds = 1_760_000_000_i64;
    let now = Millis::new(seconds * 1000).unwrap();
    let mut rng = fastrand::Rng::with_seed(44);
    let body = br#"{"data":{"id":"user_1","object":"user","first_name":"Ada"},"object":"event","type":"user.created"}"#
        .to_vec();
    let id = "msg_2fxMutations";
    let good = [id.to_owned(), seconds.to_string(), webhook.sign(id, seconds, &body).unwrap()];
    let check = |values: &[String; 3], body: &[u8]| {
        let mut headers = HeaderMap::new();
        for (name, value) in ["svix-id", "svix-timestamp", "svix-signature"].into_iter().zip(values) {
            let Ok(value) = HeaderValue::from_str(value) else { return false };
            headers.insert(HeaderName::from_static(name), value);
        }
        verifier.verify(&headers, body, now).is_ok()
    };
    assert!(check(&good, &body), "the original");
    let (mut accepted, mut unaltered) = (0, 0);
    for _ in 0..MUTATIONS {
        let (mut values, mut altered) = (good.clone(), body.clone());
        for _ in 0..rng.usize(1..=3) {
            match rng.usize(0..5) {
                which @ 0..3 => {
                    let mut bytes = std::mem::take(&mut values[which]).into_bytes();
                    mutate(&mut bytes, &mut rng);
                    values[which] = bytes.into_iter().map(char::from).collect();
                }
                _ => mutate(&mut altered, &mut rng),
            }
        }
        // What the signature covers: the id, the number, the body; and the good signature may stand among others.
        let same = values[0] == good[0]
            && values[1].parse() == Ok(seconds)
            && values[2].split(' ').any(|item| item == good[2])
            && altered == body;
        unaltered += usize::from(same);
        accepted += usize::from(!same && check(&values, &altered));
    }
    println!("{MUTATIONS} mutations: {accepted} altered ones accepted ({unaltered} came out unaltered)");
    assert_eq!(accepted, 0);
    assert!(unaltered < MUTATIONS / 10);
}

/// One small change: a byte flipped, removed, doubled, inserted, or the rest cut off.
fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    let at = rng.usize(..=bytes.len().saturating_sub(1));
    match rng.u8(0..5) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.u8(0..7),
        1 if !bytes.is_empty() => {
            bytes.remove(at);
        }
        2 if !bytes.is_empty() => bytes.insert(at, bytes[at]),
        3 => bytes.insert(at, rng.u8(32..127)),
        _ => bytes.truncate(at),
    }
}
