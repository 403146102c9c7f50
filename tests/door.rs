//! Crowds of connections that are nobody's customers: whoever has something to deliver gets in all the same.
//!
//! The crowds stand before the real program, as a process of its own with the file limit of its own.

use crate::support::BUSY;
use axum::Router;
use axum::routing::get;
use clerk_sync::door::{self, Limits, VerifiedSender};
use clerk_sync::sender::Sender;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::clerk::Clerk;
use testkit::worker::{SECRET, Worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The limit of open files that many systems begin with.
const FEW_FILES: usize = 1_024;

/// The program, and a script that starts it with few files, where that is asked for.
struct LimitedWorker {
    world: testkit::World<Worker>,
    script: Option<PathBuf>,
}

impl LimitedWorker {
    async fn start(files: Option<usize>) -> LimitedWorker {
        let clerk = Clerk::new(3, clerk_sync::clock::now().get() - 600_000);
        let world = testkit::World::builder().clerk(clerk).start().await.unwrap();
        let mut options = world.worker_options([]).unwrap();
        let script = files.map(|files| {
            let script = std::env::temp_dir().join(format!(
                "clerk-sync-few-files-{}-{}",
                std::process::id(),
                world.database.name
            ));
            let text = format!("#!/bin/sh\nulimit -n {files}\nexec {} \"$@\"\n", options.program.display());
            std::fs::write(&script, text).unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
            options.program.clone_from(&script);
            script
        });
        LimitedWorker { world: world.with(Worker::start(options).await.unwrap()), script }
    }

    /// Sends 100 deliveries over ten seconds, every other one on a connection of its own. Returns the answers, and the longest
    /// time that one took.
    async fn honest_deliveries(&mut self) -> (Vec<String>, Duration) {
        (0..100).for_each(|_| drop(self.world.clerk.lock().create_user("Hon", "Est")));
        let kept = Arc::clone(self.world.sender());
        let mut sending = JoinSet::new();
        for (n, event) in self.world.due().into_iter().enumerate() {
            let sender = if n % 2 == 0 {
                Arc::clone(&kept)
            } else {
                Arc::new(Sender::new(self.world.server.webhook_url(), SECRET).unwrap())
            };
            sending.spawn(async move {
                let began = Instant::now();
                let attempt =
                    timeout(Duration::from_secs(15), sender.send(&event.message_id, event.body.as_bytes())).await;
                let answer = match attempt {
                    Ok(Ok(attempt)) => attempt.outcome.unwrap_or_default(),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "none within 15 s".to_owned(),
                };
                (answer, began.elapsed())
            });
            sleep(Duration::from_millis(100)).await;
        }
        let answers = sending.join_all().await;
        let longest = answers.iter().map(|(_, took)| *took).max().unwrap();
        (answers.into_iter().map(|(answer, _)| answer).collect(), longest)
    }

    /// Lets a crowd take all places and keep them; meanwhile 100 of 100 honest deliveries must be accepted.
    async fn withstands(&mut self, what: &str, connections: usize, habit: Habit) {
        let crowd = Crowd::gather(self.world.server.address, connections, habit).await;
        let (answers, longest) = self.honest_deliveries().await;
        let usage = self.world.server.usage();
        let (accepted, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer == "applied");
        println!(
            "{what}: {} of 100 honest deliveries accepted, the slowest after {longest:.1?}; the crowd connected {} times; \
             {} files, {} MiB at most",
            accepted.len(),
            crowd.connected.load(Ordering::Relaxed),
            usage.handles,
            usage.peak / 1024
        );
        drop(crowd);
        assert!(others.is_empty(), "{what}: {others:?}");
    }
}

impl Drop for LimitedWorker {
    fn drop(&mut self) {
        self.script.iter().for_each(|script| drop(std::fs::remove_file(script)));
    }
}

/// What each connection of a crowd does. One that is closed connects again.
#[derive(Clone)]
enum Habit {
    Idle,
    /// A tiny request every 7 s.
    Ping,
    /// This much of a request and then, if so, a byte every half second.
    Unfinished {
        request: Arc<[u8]>,
        drips: bool,
    },
}

struct Crowd {
    connected: Arc<AtomicUsize>,
    _members: JoinSet<()>,
}

impl Crowd {
    /// Returns once each of its members has connected.
    async fn gather(address: SocketAddr, connections: usize, habit: Habit) -> Crowd {
        let connected = Arc::<AtomicUsize>::default();
        let mut members = JoinSet::new();
        for n in 0..connections {
            let (connected, habit) = (Arc::clone(&connected), habit.clone());
            members.spawn(async move {
                loop {
                    if let Ok(stream) = TcpStream::connect(address).await {
                        connected.fetch_add(1, Ordering::Relaxed);
                        live(stream, &habit).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
            // As the backlog of connections that are not accepted yet is bounded.
            if n % 100 == 99 {
                sleep(Duration::from_millis(20)).await;
            }
        }
        while connected.load(Ordering::Relaxed) < connections {
            sleep(Duration::from_millis(10)).await;
        }
        Crowd { connected, _members: members }
    }
}

/// Behaves so until the other side closes the connection.
async fn live(mut stream: TcpStream, habit: &Habit) {
    let (first, then, pause): (&[u8], &[u8], Duration) = match habit {
        Habit::Idle => (b"", b"", Duration::from_secs(60)),
        Habit::Ping => (PING, PING, Duration::from_secs(7)),
        Habit::Unfinished { request, drips } => (request, if *drips { b" " } else { b"" }, Duration::from_millis(500)),
    };
    const PING: &[u8] = b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
    let mut buffer = [0; 1_024];
    let mut next = first;
    loop {
        if stream.write_all(next).await.is_err() {
            return;
        }
        next = then;
        let pause = tokio::time::Instant::now() + pause;
        loop {
            match tokio::time::timeout_at(pause, stream.read(&mut buffer)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return,
                Err(_) => break,
            }
        }
    }
}

/// A request of 64 kB that lacks `missing` bytes. With headers as Svix sends them, but for the signature, or without any.
fn unfinished(is_forged: bool, missing: usize) -> Arc<[u8]> {
    const BODY: usize = 65_536;
    let seconds = clerk_sync::clock::now().get() / 1000;
    let forged =
        format!("svix-id: msg_forged\r\nsvix-timestamp: {seconds}\r\nsvix-signature: v1,{}=\r\n", "A".repeat(43));
    let headers = if is_forged { forged.as_str() } else { "" };
    let mut request =
        format!("POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\n{headers}content-length: {BODY}\r\n\r\n").into_bytes();
    request.resize(request.len() + BODY - missing, b' ');
    request.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_of_idle_and_of_pinging_connections_keep_no_delivery_out() {
    let _turn = BUSY.lock().await;
    let mut program = LimitedWorker::start(None).await;
    program.withstands("2,200 idle connections", 2_200, Habit::Idle).await;
    program.withstands("2,200 pinging connections", 2_200, Habit::Ping).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_keep_no_delivery_out_where_files_are_few() {
    let _turn = BUSY.lock().await;
    let mut program = LimitedWorker::start(Some(FEW_FILES)).await;
    program.withstands("2,200 idle connections, 1,024 files", 2_200, Habit::Idle).await;
    program.withstands("2,200 pinging connections, 1,024 files", 2_200, Habit::Ping).await;
    assert!(program.world.server.usage().handles < FEW_FILES, "{:?}", program.world.server.usage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_of_bodies_that_never_end_keep_no_delivery_out() {
    let _turn = BUSY.lock().await;
    let mut program = LimitedWorker::start(None).await;
    for (what, is_forged) in [("unsigned", false), ("badly signed", true)] {
        let habit = Habit::Unfinished { request: unfinished(is_forged, 1), drips: false };
        program.withstands(&format!("800 {what} bodies of 64 kB"), 800, habit).await;
    }
    let habit = Habit::Unfinished { request: unfinished(true, 65_000), drips: true };
    program.withstands("2,200 badly signed bodies, a byte every half second", 2_200, habit).await;
}

const LIMITS: Limits = Limits { connections: 3, head: Duration::from_secs(60), life: Duration::from_secs(60) };

/// A small server of its own: `/` answers at once, `/welcome` also says that the sender is welcome, `/wait` answers when told.
async fn small(limits: Limits) -> (SocketAddr, Arc<Notify>, Arc<AtomicUsize>) {
    let (told, exhausted) = (Arc::new(Notify::new()), Arc::<AtomicUsize>::default());
    let waiting = Arc::clone(&told);
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/welcome", get(async || (axum::Extension(VerifiedSender), "welcome")))
        .route("/wait", get(async move || waiting.notified().await));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, counted) = (listener.local_addr().unwrap(), Arc::clone(&exhausted));
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    tokio::spawn(door::serve(listener, router, limits, count, std::future::pending()));
    (address, told, exhausted)
}

async fn ask(stream: &mut TcpStream, path: &str) -> Option<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.ok()?;
    answer(stream).await
}

/// The next answer within three seconds; `None`: the connection has ended.
async fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = [0; 1_024];
    let length = timeout(Duration::from_secs(3), stream.read(&mut buffer)).await.expect("an answer or an end").ok()?;
    (length > 0).then(|| String::from_utf8_lossy(&buffer[..length]).into_owned())
}

async fn has_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 16];
    matches!(timeout(Duration::from_millis(300), stream.read(&mut buffer)).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_connection_that_is_idle_longest_makes_room_and_a_welcome_one_last() {
    let (address, ..) = small(LIMITS).await;
    let connect = async || TcpStream::connect(address).await.unwrap();
    let (mut welcome, mut second, mut third) = (connect().await, connect().await, connect().await);
    assert!(ask(&mut welcome, "/welcome").await.unwrap().ends_with("welcome"));
    assert!(ask(&mut third, "/").await.unwrap().ends_with("here"));
    assert!(ask(&mut second, "/").await.unwrap().ends_with("here"));
    let mut fourth = connect().await;
    assert!(ask(&mut fourth, "/").await.unwrap().ends_with("here"));
    assert!(has_ended(&mut third).await && !has_ended(&mut second).await && !has_ended(&mut welcome).await);
    let (mut fifth, mut sixth) = (connect().await, connect().await);
    assert!(ask(&mut fifth, "/welcome").await.unwrap().ends_with("welcome"));
    assert!(ask(&mut sixth, "/welcome").await.unwrap().ends_with("welcome"));
    assert!(has_ended(&mut second).await && has_ended(&mut fourth).await);
    assert!(ask(&mut welcome, "/").await.unwrap().ends_with("here"), "still there");
    let (began, mut seventh) = (Instant::now(), connect().await);
    assert!(ask(&mut seventh, "/").await.unwrap().ends_with("here"), "all of them welcome, one goes all the same");
    assert!(began.elapsed() > Duration::from_secs(1), "but not at once: their clients will send again");
    assert!(has_ended(&mut fifth).await && !has_ended(&mut welcome).await);
}

/// Else a crowd that connects again and again would push out whoever is about to send.
#[tokio::test]
async fn a_connection_keeps_its_place_for_a_moment_until_its_request_can_have_come() {
    let (address, ..) = small(LIMITS).await;
    let began = Instant::now();
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(TcpStream::connect(address).await.unwrap());
    }
    sleep(door::GRACE / 2).await;
    assert!(ask(&mut first, "/").await.is_some_and(|answer| answer.ends_with("here")));
    let last = others.last_mut().unwrap();
    assert!(ask(last, "/").await.is_some_and(|answer| answer.ends_with("here")), "in its turn");
    assert!(began.elapsed() >= door::GRACE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_that_is_being_handled_is_never_cut_off() {
    let (address, told, exhausted) = small(LIMITS).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /wait HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        waiting.push(stream);
    }
    sleep(Duration::from_millis(100)).await;
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut buffer = [0; 64];
    assert!(timeout(Duration::from_millis(500), late.read(&mut buffer)).await.is_err(), "there is no place");
    assert!(exhausted.load(Ordering::Relaxed) > 0, "and that is said");
    told.notify_one();
    assert!(answer(&mut late).await.unwrap().ends_with("here"), "the first that is done makes room");
    told.notify_waiters();
    let mut answered = 0;
    for stream in &mut waiting {
        answered += usize::from(answer(stream).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    }
    assert_eq!(answered, 3);
}

#[tokio::test]
async fn a_connection_has_a_longest_life_and_ends_with_an_answer() {
    let life = Duration::from_millis(400);
    let (address, ..) = small(Limits { life, ..LIMITS }).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(!ask(&mut stream, "/").await.unwrap().contains("connection: close"));
    sleep(life + Duration::from_millis(50)).await;
    let last = ask(&mut stream, "/").await.unwrap();
    assert!(last.contains("connection: close") && last.ends_with("here"), "{last}");
    assert!(has_ended(&mut stream).await);
}
