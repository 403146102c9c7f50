//! The handler that most people write, given every benefit of the doubt: it verifies signatures, never fails, and has no
//! foreign keys to trip over. It upserts by id and deletes by id, in the order in which webhooks happen to arrive.

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::PgConnection;
use std::sync::Arc;
use svix::webhooks::Webhook;
use testkit::SECRET;
use tokio::sync::Mutex;

const SCHEMA: &str = "create schema naive;
    create table naive.users (id text primary key, name text, email text);
    create table naive.organizations (id text primary key, name text);
    create table naive.memberships (id text primary key, organization_id text, user_id text, role text)";

#[derive(Clone)]
struct Handler {
    webhook: Arc<Webhook>,
    connection: Arc<Mutex<PgConnection>>,
}

/// Its own tables, and its only route.
pub(super) async fn router(url: &str) -> anyhow::Result<Router> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
    let webhook = Arc::new(Webhook::new(SECRET).context("the demo's secret")?);
    let handler = Handler { webhook, connection: Arc::new(Mutex::new(connection)) };
    Ok(Router::new().route("/", post(receive)).with_state(handler))
}

async fn receive(State(handler): State<Handler>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if handler.webhook.verify(&body, &headers).is_err() {
        return StatusCode::BAD_REQUEST;
    }
    let Ok(event) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST };
    match handle(&mut *handler.connection.lock().await, &event).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn handle(connection: &mut PgConnection, event: &Value) -> Result<(), sqlx::Error> {
    let data = &event["data"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let query = match event["type"].as_str().unwrap_or_default() {
        "user.created" | "user.updated" => sqlx::query(
            "insert into naive.users values ($1, $2, $3) on conflict (id) do update set name = $2, email = $3",
        )
        .bind(text(&data["id"]))
        .bind(format!("{} {}", data["first_name"].as_str().unwrap_or(""), data["last_name"].as_str().unwrap_or("")))
        .bind(text(&data["email_addresses"][0]["email_address"])),
        "organization.created" | "organization.updated" => {
            sqlx::query("insert into naive.organizations values ($1, $2) on conflict (id) do update set name = $2")
                .bind(text(&data["id"]))
                .bind(text(&data["name"]))
        }
        "organizationMembership.created" | "organizationMembership.updated" => sqlx::query(
            "insert into naive.memberships values ($1, $2, $3, $4) on conflict (id) do update set role = $4",
        )
        .bind(text(&data["id"]))
        .bind(text(&data["organization"]["id"]))
        .bind(text(&data["public_user_data"]["user_id"]))
        .bind(text(&data["role"])),
        "user.deleted" => sqlx::query("delete from naive.users where id = $1").bind(text(&data["id"])),
        "organization.deleted" => sqlx::query("delete from naive.organizations where id = $1").bind(text(&data["id"])),
        "organizationMembership.deleted" => {
            sqlx::query("delete from naive.memberships where id = $1").bind(text(&data["id"]))
        }
        _ => return Ok(()),
    };
    query.execute(connection).await.map(drop)
}
