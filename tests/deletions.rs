//! The delete of a large organization or user: acknowledged at once, denied at once, and removed without holding up anybody.

use crate::support::{self, Project, World, rows};
use clerk_sync::model::{Batch, Change, EntityRef, Kind, Millis, Observation, Source};
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::time::{Duration, Instant};
use testkit::wait::until;

/// So many members of one organization, as passes would have written them; the organization's id, and one of them.
async fn members(database: &Project, organization: &str, count: usize) -> String {
    let sql = format!(
        "insert into clerk.users (id, first_name) select 'user_of{organization}' || n, 'Mem' from generate_series(1, {count}) n;
         insert into clerk.user_details (id, banned, created_at)
           select 'user_of{organization}' || n, false, '2025-01-01' from generate_series(1, {count}) n;
         insert into clerk.organization_memberships (id, organization_id, user_id, role, permissions, created_at, updated_at)
           select 'orgmem_of{organization}' || n, '{organization}', 'user_of{organization}' || n, 'org:member', '{{}}', '2025-01-01', '2025-01-01'
             from generate_series(1, {count}) n;
         insert into clerk_sync.generations (organization_id, user_id, created_at, membership_id)
           select organization_id, user_id, 1735689600000, id from clerk.organization_memberships where id like 'orgmem_of{organization}%';
         insert into clerk_sync.versions (kind, id, state, observed_at, updated_at, content)
           select 'membership', id, 'live', 1735689600000, 1735689600000, 0 from clerk.organization_memberships where id like 'orgmem_of{organization}%'
           union all
           select 'user', user_id, 'live', 1735689600000, 1735689600000, 0 from clerk.organization_memberships where id like 'orgmem_of{organization}%';
         analyze clerk.organization_memberships; analyze clerk_sync.versions; analyze clerk.users;"
    );
    database.execute(&sql).await;
    format!("user_of{organization}1")
}

/// The rows that this user sees.
async fn seen(database: &Project, user: &str, sql: &str) -> Vec<Value> {
    let mut owner = database.owner().await;
    let mut request = owner.begin().await.unwrap();
    let claims = json!({ "role": "authenticated", "sub": user, "v": 2 }).to_string();
    sqlx::query("select set_config('request.jwt.claims', $1, true), set_config('role', 'authenticated', true)")
        .bind(claims)
        .execute(&mut *request)
        .await
        .unwrap();
    rows(&mut request, sql).await
}

async fn count(database: &Project, kind: Kind) -> u64 {
    database.database().connect().await.unwrap().count(kind).await.unwrap()
}

/// A2, `big_org`. Its delete used to end all memberships in one statement: 100,000 of them took 2.8 s, while nobody else could
/// write, and 150,000 never ended.
#[tokio::test(flavor = "multi_thread")]
async fn the_delete_of_a_big_org_is_acknowledged_and_denies_at_once() {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let organization = world.clerk.lock().create_organization("Big Org", &ada);
    world.deliver().await;
    let before = count(&world.database, Kind::Membership).await;
    let member = members(&world.database, &organization, 20_000).await;
    assert_eq!(count(&world.database, Kind::Membership).await, before + 20_000);
    let documents = format!(
        "create table public.joined (organization_id text not null); alter table public.joined enable row level security;
         create policy members on public.joined for select to authenticated
           using (exists (select from clerk.organization_memberships m
                           where m.organization_id = joined.organization_id and m.user_id = (select auth.jwt()) ->> 'sub'));
         insert into public.joined values ('{organization}')"
    );
    world.database.execute(&documents).await;
    assert_eq!(seen(&world.database, &member, "select * from public.joined").await.len(), 1);

    world.clerk.lock().delete_organization(&organization);
    let event = world.clerk.lock().outbox.pop().unwrap();
    assert_eq!(world.send(&event).await, "applied");
    // Its rows are still there, and count for nothing.
    let left = format!("clerk.organization_memberships where organization_id = '{organization}'");
    assert!(world.database.count(&left).await > 0);
    for sql in [
        "select * from public.joined",
        "select * from clerk.organization_memberships",
        "select * from clerk.organizations",
    ] {
        assert_eq!(seen(&world.database, &member, sql).await, [] as [Value; 0], "{sql}");
    }
    assert_eq!(count(&world.database, Kind::Membership).await, before - 1);
    let mut session = world.database.database().connect().await.unwrap();
    let id = format!("orgmem_of{organization}7");
    assert!(session.mirrored(Kind::Membership, &[&id]).await.unwrap().is_empty());
    assert!(session.live_rows(Kind::Membership, &[&id]).await.unwrap().is_empty());
    let from = Millis::new(0).unwrap();
    assert!(session.ids_created_between(Kind::Membership, from, None, None, 10).await.unwrap().is_empty());
    // Sent again, it has nothing to do.
    assert_eq!(world.send(&event).await, "duplicate");

    // Others write between its statements, of which none is long.
    let others = async {
        let mut slowest = Duration::ZERO;
        for n in 0..40 {
            let user = world.clerk.lock().create_user("Other", &format!("No {n}"));
            for event in world.due() {
                let began = Instant::now();
                assert_eq!(world.send(&event).await, "applied", "{user}");
                slowest = slowest.max(began.elapsed());
            }
        }
        slowest
    };
    let (removed, slowest) = tokio::join!(session.remove_memberships_of_deleted(), others);
    let removed = removed.unwrap();
    println!(
        "{} rows: longest statement {:?}; slowest of 40 deliveries beside it {slowest:?}",
        removed.rows, removed.longest
    );
    assert_eq!(removed.refused, 0);
    assert_eq!(world.database.count(&left).await, 0);
    let versions = "clerk_sync.versions where kind = 'membership' and state = 'live'";
    assert_eq!(world.database.count(versions).await, i64::try_from(before).unwrap() - 1);
    assert_eq!(world.database.count("clerk_sync.deleted_parents").await, 0);
    assert_eq!(session.remove_memberships_of_deleted().await.unwrap().rows, 0);
}

/// Not only an event's, and not only an organization's.
#[tokio::test(flavor = "multi_thread")]
async fn serve_removes_what_is_left_of_a_big_org_by_itself() {
    let database = support::database().await;
    database.execute("insert into clerk.organizations (id, created_at) values ('org_big', '2025-01-01')").await;
    members(&database, "org_big", 300).await;
    gone(&database, Kind::Organization, "org_big", Source::Webhook).await;
    assert_eq!(database.count("clerk.organization_memberships").await, 300);
    let server = support::Server::start(database.database(), clerk_sync::model::InstanceCheck::Pinned(None)).await;
    until("what is left is removed", async || {
        database.count("clerk.organization_memberships").await == 0
            && database.count("clerk_sync.deleted_parents").await == 0
    })
    .await;
    server.stop().await;
}

async fn gone(database: &Project, kind: Kind, id: &str, source: Source) {
    let observed_at = Millis::new(support::START).unwrap();
    let change = Change { observed_at, observation: Observation::Deleted(EntityRef::new(kind, id)), mention: None };
    let mut session = database.database().connect().await.unwrap();
    session.apply(&Batch::of_changes(source, [&change].into_iter()), 1).await.unwrap();
}

/// What a pass took for gone and a read then shows: it is not back before the last of its old memberships is gone, or they would
/// be back with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_comes_back_without_what_was_left_of_its_memberships() {
    let database = support::database().await;
    database.execute("insert into clerk.organizations (id, created_at) values ('org_back', '2025-01-01')").await;
    members(&database, "org_back", 300).await;
    gone(&database, Kind::Organization, "org_back", Source::Read).await;
    let body = json!({ "object": "organization", "id": "org_back", "name": "Back", "slug": "back", "created_at": 1_735_689_600_000_i64,
                       "updated_at": support::START, "public_metadata": {} });
    let page = format!(r#"{{"data":[{body}],"total_count":1}}"#);
    let later = Millis::new(support::START + 86_500_000).unwrap();
    let seen = clerk_sync::clerk::listing::Seen { observed_at: later, bound: later };
    let read = clerk_sync::clerk::listing::page(page.as_bytes(), Kind::Organization, seen).unwrap().changes;
    let mut session = database.database().connect().await.unwrap();
    let mut outcome = async || {
        let verdicts = session.apply(&Batch::of_changes(Source::Read, read.iter()), 1).await.unwrap();
        verdicts[0].clone().unwrap().outcome.as_str()
    };
    assert_eq!(outcome().await, "pending");
    let open = "select id, reason from clerk_sync.pending_reads";
    assert_eq!(database.rows(open).await, [json!({ "id": "org_back", "reason": "being emptied" })]);
    clerk_sync::upkeep::remove_memberships_of_deleted(&database.database()).await.unwrap();
    assert_eq!(outcome().await, "applied");
    assert!(database.rows(open).await.is_empty());
    assert_eq!(database.count("clerk.organization_memberships").await, 0);
    assert_eq!(database.count("clerk.organizations where name = 'Back' and deleted_at is null").await, 1);
}

/// What the application hangs on one row holds up that row alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_database_does_not_let_go_holds_up_no_other() {
    let database = support::database().await;
    database.execute("insert into clerk.organizations (id, created_at) values ('org_held', '2025-01-01')").await;
    members(&database, "org_held", 1_000).await;
    database
        .execute(
            "create table public.seats (membership_id text references clerk.organization_memberships);
             insert into public.seats values ('orgmem_oforg_held500')",
        )
        .await;
    gone(&database, Kind::Organization, "org_held", Source::Webhook).await;
    let removed = clerk_sync::upkeep::remove_memberships_of_deleted(&database.database()).await.unwrap();
    assert_eq!((removed.rows, removed.refused), (999, 1));
    assert_eq!(count(&database, Kind::Membership).await, 0);
    database.execute("drop table public.seats").await;
    let removed = clerk_sync::upkeep::remove_memberships_of_deleted(&database.database()).await.unwrap();
    assert_eq!((removed.rows, removed.refused), (1, 0));
    assert_eq!(database.count("clerk_sync.deleted_parents").await, 0);
}

/// What A2 costs, measured: `cargo test --release --test main -- --ignored a_delete_costs`, on a machine that does nothing else.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures, and fills 200,000 rows"]
async fn a_delete_costs_the_same_for_ten_members_and_for_200_000() {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let big = world.clerk.lock().create_organization("Big Org", &ada);
    let small: Vec<String> =
        (0..40).map(|n| world.clerk.lock().create_organization(&format!("Small {n}"), &ada)).collect();
    world.deliver().await;
    for organization in &small {
        members(&world.database, organization, 9).await;
    }
    members(&world.database, &big, 200_000).await;
    world.database.execute("vacuum analyze").await;
    let mut took = Vec::new();
    for (n, organization) in small.iter().enumerate() {
        world.clerk.lock().delete_organization(organization);
        let event = world.clerk.lock().outbox.pop().unwrap();
        let began = Instant::now();
        world.send(&event).await;
        // The first ones warm up.
        if n >= 10 {
            took.push(began.elapsed());
        }
    }
    took.sort();
    world.clerk.lock().delete_organization(&big);
    let event = world.clerk.lock().outbox.pop().unwrap();
    let began = Instant::now();
    world.send(&event).await;
    let of_big = began.elapsed();
    let mut session = world.database.database().connect().await.unwrap();
    let mut beside = Vec::new();
    let others = async {
        loop {
            world.clerk.lock().create_user("Other", "User");
            let event = world.clerk.lock().outbox.pop().unwrap();
            let began = Instant::now();
            world.send(&event).await;
            beside.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let began = Instant::now();
    let removed = tokio::select! {
        removed = session.remove_memberships_of_deleted() => removed.unwrap(),
        () = others => unreachable!("they have no end"),
    };
    let took_all = began.elapsed();
    beside.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("organization.deleted, 10 members: p50 {median:.2?}, max {worst:.2?}; 200,000 members: {of_big:.2?}");
    println!("{} rows in {took_all:.1?}, longest statement {:.2?}", removed.rows, removed.longest);
    println!(
        "{} deliveries beside it: p50 {:.2?}, p99 {:.2?}, max {:.2?}",
        beside.len(),
        beside[beside.len() / 2],
        beside[beside.len() * 99 / 100],
        beside[beside.len() - 1]
    );
    assert!(of_big < median.mul_f64(1.5).max(worst), "{of_big:?}");
    assert!(removed.longest < Duration::from_millis(20), "{removed:?}");
}
