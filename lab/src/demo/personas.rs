//! Who sees what: documents of each organization, read as each kind of user through the policy that `policy print` writes.

use super::compare::Names;
use super::wrapped;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::BTreeSet;
use testkit::clerk::Shared;

/// Users that are shown.
const SHOWN: usize = 6;

const DOCUMENTS: &str = "
create table public.documents (organization_id text primary key references clerk.organizations);
alter table public.documents enable row level security;
grant select on public.documents to authenticated;
create policy \"members read\" on public.documents for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids())));
insert into public.documents select id from clerk.organizations";

/// The table, and whether everybody sees what Clerk says and nothing else.
pub(super) struct Matrix {
    pub(super) text: String,
    pub(super) is_right: bool,
}

/// Asks as each of them.
pub(super) async fn matrix(clerk: &Shared, database_url: &str, names: &Names) -> anyhow::Result<Matrix> {
    let mut connection = PgConnection::connect(database_url).await?;
    sqlx::raw_sql(DOCUMENTS).execute(&mut connection).await?;
    let organizations: Vec<String> = sqlx::query_scalar("select organization_id from public.documents order by 1")
        .fetch_all(&mut connection)
        .await?;
    let mut gone: Vec<String> =
        sqlx::query_scalar("select id from clerk.users where deleted_at is not null order by id limit 1")
            .fetch_all(&mut connection)
            .await?;
    // A banned user, one without any organization, some with the most, one who is gone, and a stranger.
    let mut users: Vec<(String, String)> = {
        let clerk = clerk.lock();
        let places = |id: &str| clerk.memberships.values().filter(|membership| membership.user_id == id).count();
        let mut all: Vec<(usize, String, bool)> =
            clerk.users.values().map(|user| (places(&user.id), user.id.clone(), user.banned)).collect();
        all.sort_by(|a, b| b.cmp(a));
        let banned = all.iter().find(|(_, _, banned)| *banned).map(|(_, id, _)| (id.clone(), "banned"));
        let alone = all.iter().find(|(places, _, _)| *places == 0).map(|(_, id, _)| (id.clone(), "in no organization"));
        let members =
            all.iter().filter(|(places, _, banned)| *places > 0 && !banned).map(|(_, id, _)| (id.clone(), "member"));
        let shown = members.take(SHOWN - 3).chain(banned).chain(alone);
        shown.map(|(id, what)| (format!("{} ({what})", names.name(&id)), id)).collect()
    };
    users.extend(gone.drain(..).map(|id| (format!("{} (deleted)", names.name(&id)), id)));
    users.push(("a token of another application".to_owned(), "user_of_another_application".to_owned()));

    let (mut lines, mut is_right) = (Vec::new(), true);
    for (label, id) in users {
        let sees = seen(&mut connection, &id).await?;
        let may = allowed(clerk, &id, &organizations);
        let listed = |ids: &BTreeSet<String>| ids.iter().map(|id| names.name(id)).collect::<Vec<_>>().join(", ");
        let what = if sees.is_empty() { "nothing".to_owned() } else { listed(&sees) };
        let verdict = if sees == may { "" } else { " — WRONG, Clerk says otherwise" };
        lines.push(wrapped(&format!("  {label:<34} {what}{verdict}"), 37));
        is_right &= sees == may;
    }
    let text = lines.join("\n");
    Ok(Matrix { text, is_right })
}

/// What row-level security lets through, with that user's token.
pub(super) async fn seen(connection: &mut PgConnection, user_id: &str) -> anyhow::Result<BTreeSet<String>> {
    let claims = serde_json::json!({ "sub": user_id, "role": "authenticated" }).to_string();
    let mut transaction = connection.begin().await?;
    sqlx::query("select set_config('request.jwt.claims', $1, true)").bind(claims).execute(&mut *transaction).await?;
    sqlx::raw_sql("set local role authenticated").execute(&mut *transaction).await?;
    let sql = AssertSqlSafe("select organization_id from public.documents".to_owned());
    let seen: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(seen.into_iter().collect())
}

/// What Clerk says.
fn allowed(clerk: &Shared, user_id: &str, organizations: &[String]) -> BTreeSet<String> {
    let clerk = clerk.lock();
    let is_welcome = clerk.users.values().any(|user| user.id == user_id && !user.banned && !user.deprovisioned);
    let of_user = clerk.memberships.values().filter(|membership| is_welcome && membership.user_id == user_id);
    of_user.map(|membership| membership.organization_id.clone()).filter(|id| organizations.contains(id)).collect()
}
