//! What a policy over the mirror lets each caller see, asked as PostgREST asks: settings first, then the role, in one
//! transaction (`PostgREST/postgrest` `src/library/PostgREST/Query/PreQuery.hs`).

use crate::support::{World, rows};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

/// Documents of two organizations under the one-line policy of the README, and under a plain join.
async fn documents(world: &World, acme: &str, other: &str) {
    let sql = format!(
        "create table public.documents (id int primary key, organization_id text not null);
         create table public.joined (like public.documents including all);
         alter table public.documents enable row level security;
         alter table public.joined enable row level security;
         create policy members on public.documents for select to authenticated
           using (organization_id = any (array(select clerk_rls.organization_ids())));
         create policy members on public.joined for select to authenticated
           using (exists (select from clerk.organization_memberships m
                           where m.organization_id = joined.organization_id and m.user_id = (select auth.jwt()) ->> 'sub'));
         insert into public.documents values (1, '{acme}'), (2, '{other}');
         insert into public.joined select * from public.documents;"
    );
    world.database.execute(&sql).await;
}

/// The rows that the holder of a token with these claims sees.
async fn seen(world: &World, claims: &Value, sql: &str) -> Vec<Value> {
    let mut owner = world.database.owner().await;
    let mut request = owner.begin().await.unwrap();
    let role = claims["role"].as_str().unwrap_or("anon").to_owned();
    sqlx::query("select set_config('request.jwt.claims', $1, true), set_config('role', $2, true)")
        .bind(claims.to_string())
        .bind(role)
        .execute(&mut *request)
        .await
        .unwrap();
    rows(&mut request, sql).await
}

/// Of both tables.
const NOTHING: [Vec<i64>; 2] = [Vec::new(), Vec::new()];

fn token(user: &str) -> Value {
    json!({ "role": "authenticated", "sub": user, "v": 2 })
}

async fn sees(world: &World, user: &str) -> [Vec<i64>; 2] {
    let ids = async |table: &str| {
        let rows = seen(world, &token(user), &format!("select id from public.{table} order by id")).await;
        rows.iter().map(|row| row["id"].as_i64().unwrap()).collect()
    };
    [ids("documents").await, ids("joined").await]
}

struct Tenants {
    world: World,
    acme: String,
    ada: String,
    ben: String,
    cleo: String,
}

async fn tenants() -> Tenants {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let ben = world.clerk.lock().create_user("Ben", "Bitdiddle");
    let cleo = world.clerk.lock().create_user("Cleo", "Night");
    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    let other = world.clerk.lock().create_organization("Other Works", &cleo);
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    documents(&world, &acme, &other).await;
    Tenants { world, acme, ada, ben, cleo }
}

#[tokio::test]
async fn members_see_their_organizations_documents_and_no_other() {
    let Tenants { world, ada, ben, cleo, .. } = tenants().await;
    assert_eq!(sees(&world, &ada).await, [vec![1], vec![1]]);
    assert_eq!(sees(&world, &ben).await, [vec![1], vec![1]]);
    assert_eq!(sees(&world, &cleo).await, [vec![2], vec![2]]);
    assert_eq!(sees(&world, "user_nobody").await, NOTHING);
    let stranger = json!({ "role": "authenticated" });
    assert_eq!(seen(&world, &stranger, "select id from public.documents").await, Vec::<Value>::new());
}

#[tokio::test]
async fn an_ex_member_sees_nothing_once_the_webhook_is_answered() {
    let Tenants { world, ben, .. } = tenants().await;
    let membership =
        world.clerk.lock().memberships.values().find(|membership| membership.user_id == ben).unwrap().id.clone();
    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&membership);
    world.deliver().await;
    assert_eq!(sees(&world, &ben).await, NOTHING, "with the same token");
}

#[tokio::test]
async fn banned_deprovisioned_and_deleted_users_and_members_of_deleted_organizations_see_nothing() {
    for case in ["banned", "deprovisioned", "deleted", "organization deleted"] {
        let Tenants { world, acme, ben, .. } = tenants().await;
        world.clerk.lock().now += 1_000;
        match case {
            "banned" => world.clerk.lock().update_user(&ben, |user| user.banned = true),
            "deprovisioned" => world.clerk.lock().update_user(&ben, |user| user.deprovisioned = true),
            "deleted" => world.clerk.lock().delete_user(&ben),
            _ => world.clerk.lock().delete_organization(&acme),
        }
        world.deliver().await;
        assert_eq!(sees(&world, &ben).await, NOTHING, "{case}");
    }
}

/// What a policy says of *other* people must hold too: here a note shows while its author belongs to the reader's organization.
#[tokio::test]
async fn a_plain_join_is_not_misled_by_memberships_of_people_who_may_not_act() {
    for case in ["nothing happens", "banned", "ban not known", "deprovisioned", "reader banned", "organization deleted"]
    {
        let Tenants { world, acme, ada, ben, .. } = tenants().await;
        world
            .database
            .execute(&format!(
                "create table public.notes (author text); insert into public.notes values ('{ben}');
                 alter table public.notes enable row level security;
                 create policy colleagues on public.notes for select to authenticated
                   using (exists (select from clerk.organization_memberships m where m.user_id = author));"
            ))
            .await;
        world.clerk.lock().now += 1_000;
        match case {
            "banned" => world.clerk.lock().update_user(&ben, |user| user.banned = true),
            "deprovisioned" => world.clerk.lock().update_user(&ben, |user| user.deprovisioned = true),
            "reader banned" => world.clerk.lock().update_user(&ada, |user| user.banned = true),
            _ => {}
        }
        world.deliver().await;
        match case {
            "ban not known" => {
                let sql = format!("update clerk.user_details set banned = null where id = '{ben}'");
                world.database.execute(&sql).await;
            }
            // The writer would have ended its memberships; a row that a person restored by hand must not count either.
            "organization deleted" => {
                let sql = format!("update clerk.organizations set deleted_at = now() where id = '{acme}'");
                world.database.execute(&sql).await;
            }
            _ => {}
        }
        let expected = usize::from(case == "nothing happens");
        assert_eq!(seen(&world, &token(&ada), "select author from public.notes").await.len(), expected, "{case}");
        if case != "nothing happens" {
            let memberships = format!("select id from clerk.organization_memberships where user_id = '{ben}'");
            assert_eq!(seen(&world, &token(&ada), &memberships).await.len(), 0, "{case}");
        }
        if matches!(case, "reader banned" | "organization deleted") {
            assert_eq!(sees(&world, &ada).await, NOTHING, "{case}");
        }
    }
}

#[tokio::test]
async fn a_session_status_that_is_neither_absent_nor_active_is_nobody() {
    let Tenants { world, ada, .. } = tenants().await;
    let claims = |status: Value| json!({ "role": "authenticated", "sub": ada, "v": 2, "sts": status });
    let unknown = ["pending", "PENDING", "Active", "active ", "", "revoked"].map(Value::from);
    for status in
        unknown.into_iter().chain([json!(["active"]), json!({ "active": true }), json!(true), json!(1), Value::Null])
    {
        for table in ["public.documents", "public.joined", "clerk.users", "clerk.organization_memberships"] {
            let rows = seen(&world, &claims(status.clone()), &format!("select * from {table}")).await;
            assert_eq!(rows.len(), 0, "{status}: {table}");
        }
    }
    assert_eq!(seen(&world, &claims(json!("active")), "select id from public.documents").await.len(), 1);
    assert_eq!(seen(&world, &token(&ada), "select id from public.documents").await.len(), 1, "absent");
}

/// Whatever a row of ours still says: a denial is asked by every function, view and policy.
#[tokio::test]
async fn a_denial_ends_access_by_every_function_and_policy_and_a_plain_join() {
    let conditions = [
        ("active_id", "organization_id = (select clerk_rls.active_organization_id())"),
        ("active_role", "(select clerk_rls.active_organization_role()) = 'org:member'"),
        ("by_role", "organization_id = any (array(select clerk_rls.organization_ids_by_role('org:member')))"),
        (
            "by_permission",
            "organization_id = any (array(select clerk_rls.organization_ids_by_permission('org:sys_memberships:read')))",
        ),
    ];
    for denied in ["nobody", "user", "membership", "organization"] {
        let Tenants { world, acme, ada, ben, .. } = tenants().await;
        let membership =
            world.clerk.lock().memberships.values().find(|membership| membership.user_id == ben).unwrap().id.clone();
        for (table, condition) in conditions {
            let sql = format!(
                "create table public.{table} as select * from public.documents where id = 1;
                 alter table public.{table} enable row level security; grant select on public.{table} to authenticated;
                 create policy p on public.{table} for select to authenticated using ({condition})"
            );
            world.database.execute(&sql).await;
        }
        let id = match denied {
            "user" => &ben,
            "membership" => &membership,
            _ => &acme,
        };
        if denied != "nobody" {
            let sql =
                format!("insert into clerk_sync.denials (kind, id, sqlstate) values ('{denied}', '{id}', '23503')");
            world.database.execute(&sql).await;
        }
        let may = usize::from(denied == "nobody");
        let claims = json!({ "role": "authenticated", "sub": ben, "v": 2, "o": { "id": acme } });
        for table in ["documents", "joined", "active_id", "active_role", "by_role", "by_permission"] {
            let rows = seen(&world, &claims, &format!("select id from public.{table}")).await;
            assert_eq!(rows.len(), may, "{denied} is denied: {table}");
        }
        let count = async |user: &str, sql: &str| seen(&world, &token(user), sql).await.len();
        assert_eq!(count(&ben, "select from clerk.organizations").await, may, "{denied}");
        assert_eq!(count(&ben, "select from clerk.organization_memberships").await, may * 2, "{denied}");
        let himself = usize::from(denied != "user");
        assert_eq!(count(&ben, "select from clerk.user_details").await, himself, "{denied}");
        // What a fellow member's policies say of him.
        let of_ben = format!("select from clerk.organization_memberships where user_id = '{ben}'");
        assert_eq!(count(&ada, &of_ben).await, may, "{denied}");
        assert_eq!(
            count(&ada, "select from public.documents").await,
            usize::from(denied != "organization"),
            "{denied}"
        );
    }
}

#[tokio::test]
async fn a_role_or_permission_counts_where_the_row_has_it_and_null_never_does() {
    let Tenants { world, ada, ben, .. } = tenants().await;
    let sees = async |user: &str, organizations: &str| {
        let policy = format!(
            "drop policy members on public.documents; create policy members on public.documents for select to authenticated \
             using (organization_id = any (array(select clerk_rls.{organizations})))"
        );
        world.database.execute(&policy).await;
        seen(&world, &token(user), "select id from public.documents").await.len()
    };
    for (organizations, of_ada, of_ben) in [
        ("organization_ids_by_role('org:admin')", 1, 0),
        ("organization_ids_by_role('org:member')", 0, 1),
        ("organization_ids_by_role(null)", 0, 0),
        ("organization_ids_by_permission('org:sys_memberships:read')", 1, 1),
        ("organization_ids_by_permission('org:sys_memberships:manage')", 1, 0),
        ("organization_ids_by_permission(null)", 0, 0),
    ] {
        assert_eq!(
            (sees(&ada, organizations).await, sees(&ben, organizations).await),
            (of_ada, of_ben),
            "{organizations}"
        );
    }
}

#[tokio::test]
async fn a_policy_runs_the_functions_and_a_direct_call_is_refused() {
    let Tenants { world, ada, .. } = tenants().await;
    assert_eq!(sees(&world, &ada).await, [vec![1], vec![1]]);
    let mut caller = world.database.owner().await;
    caller.execute("set role authenticated").await.unwrap();
    for sql in
        ["select clerk_rls.user_id()", "select * from clerk_rls.able_users", "select * from clerk_rls.live_memberships"]
    {
        let error = caller.execute(sql).await.unwrap_err().to_string();
        assert!(error.contains("permission denied for schema clerk_rls"), "{error}");
    }
}

#[tokio::test]
async fn a_policy_of_the_kit_reads_by_the_index_and_calls_its_function_once() {
    let Tenants { world, ada, .. } = tenants().await;
    world
        .database
        .execute(
            "insert into public.documents select n, 'org_' || n % 500 from generate_series(10, 20000) n;
             create index on public.documents (organization_id); analyze public.documents;",
        )
        .await;
    let mut owner = world.database.owner().await;
    let mut request = owner.begin().await.unwrap();
    sqlx::query("select set_config('request.jwt.claims', $1, true), set_config('role', 'authenticated', true)")
        .bind(token(&ada).to_string())
        .execute(&mut *request)
        .await
        .unwrap();
    let plan: Vec<String> =
        sqlx::query_scalar("explain (analyze, costs off, timing off) select * from public.documents")
            .fetch_all(&mut *request)
            .await
            .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("Index Cond: (organization_id = ANY"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
    let calls = plan.lines().find(|line| line.contains("ProjectSet")).expect("the call");
    assert!(calls.contains("loops=1"), "{plan}");
}

#[tokio::test]
async fn the_active_organization_is_the_tokens_only_if_a_row_says_so() {
    let Tenants { world, acme, ada, ben, cleo } = tenants().await;
    let sql = "select id from public.active";
    world
        .database
        .execute(
            "create table public.active (id int, organization_id text);
             insert into public.active select * from public.documents;
             alter table public.active enable row level security;
             create policy members on public.active for select to authenticated
               using (organization_id = (select clerk_rls.active_organization_id())
                      and (select clerk_rls.active_organization_role()) = 'org:admin')",
        )
        .await;
    let version_2 =
        |user: &str| json!({ "role": "authenticated", "sub": user, "v": 2, "o": { "id": acme, "rol": "admin" } });
    let template =
        |user: &str| json!({ "role": "authenticated", "sub": user, "org_id": acme, "org_role": "org:admin" });
    let sees = async |claims: Value| seen(&world, &claims, sql).await.len();
    assert_eq!(sees(version_2(&ada)).await, 1);
    assert_eq!(sees(template(&ada)).await, 1);
    assert_eq!(sees(version_2(&ben)).await, 0, "the token says admin, the row says member");
    assert_eq!(sees(version_2(&cleo)).await, 0, "the token says a member, no row does");
    let mixed = json!({ "role": "authenticated", "sub": ada, "v": 2, "org_id": acme });
    assert_eq!(sees(mixed).await, 0, "version 2 has it in o alone");
}

#[tokio::test]
async fn the_mirrors_own_tables_show_a_user_himself_and_his_people() {
    let Tenants { world, ada, ben, cleo, .. } = tenants().await;
    let ids = async |claims: &Value, table: &str| {
        let rows = seen(&world, claims, &format!("select id from clerk.{table} order by id")).await;
        rows.into_iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut people = vec![ada.clone(), ben.clone()];
    people.sort();
    assert_eq!(ids(&token(&ben), "users").await, people);
    assert_eq!(ids(&token(&ben), "user_details").await, [ben.as_str()]);
    assert_eq!(ids(&token(&ben), "organizations").await.len(), 1);
    assert_eq!(ids(&token(&ben), "organization_memberships").await.len(), 2);
    assert_eq!(ids(&token(&cleo), "users").await, [cleo]);
}
