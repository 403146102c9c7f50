//! The simulated Clerk on a socket: one request after the other is written down, judged by the rate limit, struck by a
//! fault if it is due, and answered with the time of Clerk's own clock.

use super::Clerk;
use super::api::{self, ApiError};
use super::faults::{Fault, Faults, Rule};
use super::rate_limit::{RateLimit, whole_seconds};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// As it was sent, without the question mark.
    pub query: String,
    pub at: Instant,
}

type Hook = Box<dyn FnMut(&mut Clerk, &Request) + Send>;

/// The instance, as it is shared between those who change it and those who ask.
#[derive(Clone)]
pub struct Shared(Arc<Parts>);

struct Parts {
    clerk: Mutex<Clerk>,
    limit: Mutex<RateLimit>,
    faults: Mutex<Faults>,
    hook: Mutex<Option<Hook>>,
    requests: Mutex<Vec<Request>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.0.clerk).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Without a rate limit and without faults.
    pub fn new(clerk: Clerk) -> Shared {
        Shared(Arc::new(Parts {
            clerk: Mutex::new(clerk),
            limit: Mutex::new(RateLimit::new(None)),
            faults: Mutex::default(),
            hook: Mutex::default(),
            requests: Mutex::default(),
        }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Clerk> {
        lock(&self.0.clerk)
    }

    /// Limits the calls in ten seconds; Clerk's own limits are 1,000 for production and 100 for development.
    pub fn limit_rate(&self, calls_in_ten_seconds: Option<u32>) {
        lock(&self.0.limit).set(calls_in_ten_seconds);
    }

    /// How many calls were made to an endpoint before the time was up that a 429 of that endpoint had named.
    pub fn too_early(&self) -> u32 {
        lock(&self.0.limit).too_early
    }

    /// Adds to what goes wrong from here on.
    pub fn add_fault(&self, rule: Rule) {
        lock(&self.0.faults).0.push(rule);
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        lock(&self.0.faults).0.clear();
    }

    /// Calls this before each request, with the instance to change. It must not lock the instance again.
    pub fn before_each(&self, hook: impl FnMut(&mut Clerk, &Request) + Send + 'static) {
        *lock(&self.0.hook) = Some(Box::new(hook));
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.0.requests).clone()
    }

    pub fn forget_requests(&self) {
        lock(&self.0.requests).clear();
    }
}

/// A running Backend API. Dropping it closes its port and cuts every connection.
#[derive(Debug)]
pub struct Server {
    /// The address without a path: what `CLERK_API_URL` takes.
    pub url: String,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// # Errors
    /// The address is taken.
    pub async fn start(clerk: Shared, listen: SocketAddr) -> io::Result<Server> {
        let listener = TcpListener::bind(listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(answer).with_state(clerk);
        Ok(Server { url, accepting: tokio::spawn(accept(listener, router)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    // The date is Clerk's, or none.
    server.http1().timer(TokioTimer::new()).auto_date_header(false);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let cut = Cut::default();
                let service = TowerToHyperService::new(router.clone().layer(Extension(cut.clone())));
                let connection = server.serve_connection(TokioIo::new(Socket { stream, cut }), service).into_owned();
                open.spawn(async move {
                    let _ = connection.await;
                });
            }
        }
    }
}

async fn answer(
    State(shared): State<Shared>,
    Extension(cut): Extension<Cut>,
    request: axum::extract::Request,
) -> Response {
    let (head, _) = request.into_parts();
    let path = head.uri.path();
    let asked =
        Request { path: path.to_owned(), query: head.uri.query().unwrap_or_default().to_owned(), at: Instant::now() };
    let endpoint = api::endpoint(path);
    let mut refused = lock(&shared.0.limit).admit(&endpoint).err();
    let fault = if refused.is_none() { lock(&shared.0.faults).strike(path) } else { None };
    if let Some(Fault::TooManyRequests(seconds)) = fault {
        refused = Some(lock(&shared.0.limit).block(&endpoint, Duration::from_secs(seconds)));
    }
    let (now, reply) = {
        let mut clerk = shared.lock();
        clerk.tick();
        if let Some(hook) = lock(&shared.0.hook).as_mut() {
            hook(&mut clerk, &asked);
        }
        lock(&shared.0.requests).push(asked);
        let reply = match (&fault, refused) {
            (Some(Fault::TooManyRequests(_)), _) => Err(ApiError::too_many_in_no_words()),
            (_, Some(_)) => Err(ApiError::too_many()),
            (Some(Fault::Status(status)), _) => {
                Err(ApiError::server(StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)))
            }
            (Some(Fault::Unauthorized), _) => Err(ApiError::key()),
            (Some(Fault::Forbidden), _) => Err(ApiError::organizations_off()),
            (fault, _) => api::answer(&clerk, &head, fault.as_ref()),
        };
        (clerk.now, reply)
    };
    let trace_id = format!("{:032x}", fastrand::u128(..));
    let (status, body) = match reply {
        Ok(body) => (StatusCode::OK, body),
        Err(refusal) => (refusal.status, refusal.body(&trace_id)),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(date(now).map(|date| (header::DATE, date)));
    headers.extend(HeaderValue::try_from(trace_id).map(|id| (header::HeaderName::from_static("clerk-trace-id"), id)));
    headers.extend(refused.map(|time| (header::RETRY_AFTER, HeaderValue::from(whole_seconds(time)))));
    struck(fault, response, Bytes::from(body), &cut).await
}

/// As `Date` has it.
fn date(now: i64) -> Option<HeaderValue> {
    let date = chrono::DateTime::from_timestamp_millis(now)?.format("%a, %d %b %Y %H:%M:%S GMT");
    HeaderValue::try_from(date.to_string()).ok()
}

/// What the fault makes of the answer on its way.
async fn struck(fault: Option<Fault>, mut response: Response, body: Bytes, cut: &Cut) -> Response {
    let length = HeaderValue::from(body.len());
    let half = body.slice(..body.len() / 2);
    let headers = response.headers_mut();
    *response.body_mut() = match fault {
        Some(Fault::Reset) => {
            cut.0.store(true, Ordering::Relaxed);
            Body::empty()
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Html(status)) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            Body::from(
                "<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>Try again later.</body></html>",
            )
        }
        Some(Fault::WrongJson) => Body::from(r#"{"users":{"items":[]},"ok":true}"#),
        Some(Fault::NoDate) => {
            headers.remove(header::DATE);
            Body::from(body)
        }
        Some(Fault::Truncated) => {
            headers.insert(header::CONTENT_LENGTH, length);
            broken_off(half)
        }
        Some(Fault::TruncatedChunks) => broken_off(half),
        Some(Fault::Drip(pause)) => {
            headers.insert(header::CONTENT_LENGTH, length);
            Body::from_stream(stream::unfold(body, move |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(pause).await;
                let byte = rest.split_to(1);
                Some((Ok::<Bytes, io::Error>(byte), rest))
            }))
        }
        _ => Body::from(body),
    };
    response
}

/// A body that ends with its connection.
fn broken_off(body: Bytes) -> Body {
    Body::from_stream(stream::unfold(Some(body), |body| async move {
        match body {
            Some(body) => Some((Ok(body), None)),
            None => {
                // What was sent so far shall arrive.
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionAborted)), None))
            }
        }
    }))
}

/// Set, the connection is reset instead of being written to.
#[derive(Clone, Debug, Default)]
struct Cut(Arc<AtomicBool>);

struct Socket {
    stream: TcpStream,
    cut: Cut,
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, to)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::Relaxed) {
            self.stream.set_zero_linger()?;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
