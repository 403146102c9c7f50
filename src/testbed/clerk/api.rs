//! The Backend API of the simulated Clerk, over HTTP: enough of it to ask what is true.

use super::{Clerk, json};
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The instance, as it is shared between those who change it and those who ask.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Clerk>>);

impl Shared {
    pub fn new(clerk: Clerk) -> Shared {
        Shared(Arc::new(Mutex::new(clerk)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Clerk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `limit` and `offset`, as on every list.
#[derive(Deserialize)]
struct Page {
    #[serde(default = "ten")]
    limit: usize,
    #[serde(default)]
    offset: usize,
}

const fn ten() -> usize {
    10
}

impl Page {
    /// At most 500 rows a page, as Clerk has it.
    fn of(&self, rows: Vec<Value>) -> Vec<Value> {
        rows.into_iter().skip(self.offset).take(self.limit.min(500)).collect()
    }
}

/// `GET /v1/users` (a bare array), `/v1/organizations` and `/v1/organization_memberships` (`data` and `total_count`).
pub fn router(clerk: Shared) -> Router {
    Router::new()
        .route("/v1/users", get(users))
        .route("/v1/organizations", get(organizations))
        .route("/v1/organization_memberships", get(memberships))
        .with_state(clerk)
}

async fn users(State(clerk): State<Shared>, Query(page): Query<Page>) -> Json<Vec<Value>> {
    let rows = clerk.lock().users.values().map(json::user).collect();
    Json(page.of(rows))
}

async fn organizations(State(clerk): State<Shared>, Query(page): Query<Page>) -> Json<Value> {
    let rows: Vec<Value> = clerk.lock().organizations.values().map(json::organization).collect();
    let total_count = rows.len();
    Json(json!({ "data": page.of(rows), "total_count": total_count }))
}

async fn memberships(State(clerk): State<Shared>, Query(page): Query<Page>) -> Json<Value> {
    let rows: Vec<Value> = {
        let clerk = clerk.lock();
        let row = |membership: &super::Membership| {
            let organization = clerk.organizations.get(&membership.organization_id)?;
            Some(json::membership(membership, organization, clerk.users.get(&membership.user_id)?))
        };
        clerk.memberships.values().filter_map(row).collect()
    };
    let total_count = rows.len();
    Json(json!({ "data": page.of(rows), "total_count": total_count }))
}
