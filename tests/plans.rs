//! Permissions that come and go with an organization's plan: no event of a membership tells, so those of billing do.

use crate::reconciling::ReconcileWorld;
use crate::support::{SECRET, rows};
use clerk_sync::model::Kind;
use clerk_sync::sender::Sender;
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::time::{Duration, Instant};
use testkit::clerk::{Event, Fault, Rule};
use testkit::wait::{until, until_within};

const CUSTOM: &str = "org:reports:read";

/// A mirror of some organizations, of which one has a plan with reports; that one, and one of its members.
async fn pro() -> (ReconcileWorld, String, String) {
    let world = ReconcileWorld::new().await;
    let (organization, member) = {
        let mut clerk = world.clerk.lock();
        clerk.populate(20, 3, 12, 1);
        for role in ["org:admin", "org:member"] {
            clerk.set_role_permissions(role, &["org:sys_memberships:read", CUSTOM]);
        }
        let organization = clerk.organizations.keys().next().unwrap().to_string();
        clerk.set_plan(&organization, "pro", &["reports"]);
        clerk.outbox.clear();
        let member = clerk.memberships_of(&organization).next().unwrap().user_id.clone();
        (organization, member)
    };
    world.complete().await;
    world.equals_source().await;
    world.later();
    (world, organization, member)
}

/// Whether the policies' own function lets that user read reports somewhere.
async fn may_read_reports(world: &ReconcileWorld, user: &str) -> bool {
    let mut owner = world.database.owner().await;
    owner.execute_raw("create or replace view public.reports as select clerk_rls.organization_ids_by_permission('org:reports:read') as id").await;
    let mut request = owner.begin().await.unwrap();
    let claims = json!({ "role": "authenticated", "sub": user, "v": 2 }).to_string();
    sqlx::query("select set_config('request.jwt.claims', $1, true)").bind(claims).execute(&mut *request).await.unwrap();
    !rows(&mut request, "select * from public.reports").await.is_empty()
}

trait Raw {
    async fn execute_raw(&mut self, sql: &'static str);
}

impl Raw for sqlx::PgConnection {
    async fn execute_raw(&mut self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self).await.unwrap();
    }
}

/// How long until they may not.
async fn until_denied(world: &ReconcileWorld, user: &str) -> Duration {
    let began = Instant::now();
    let is_denied = async || !may_read_reports(world, user).await;
    until_within(Duration::from_secs(60), "the permission goes", is_denied).await;
    began.elapsed()
}

fn ended(world: &ReconcileWorld) -> Event {
    let events = std::mem::take(&mut world.clerk.lock().outbox);
    events.into_iter().find(|event| event.event_type == "subscriptionItem.ended").expect("its end is told")
}

async fn send(sender: &Sender, event: &Event) {
    let attempt = sender.send(&event.message_id, event.body.as_bytes()).await.unwrap();
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (204, Some("pending")), "{attempt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_of_which_one_item_s_end_alone_is_told_takes_the_permission_away() {
    let (world, organization, member) = pro().await;
    assert!(may_read_reports(&world, &member).await);
    let server = world.serve().await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    world.clerk.lock().set_plan(&organization, "free", &[]);
    let event = ended(&world);
    world.clerk.forget_requests();
    send(&sender, &event).await;
    let took = until_denied(&world, &member).await;
    println!("without lag: denied after {took:.1?}");
    world.equals_source().await;
    // What it costs: one organization's members are listed, and no pass runs.
    let paths: Vec<String> = world.clerk.requests().iter().map(|request| request.path.clone()).collect();
    assert!(
        paths
            .iter()
            .all(|path| path == "/v1/instance" || *path == format!("/v1/organizations/{organization}/memberships")),
        "{paths:?}"
    );

    // An API that does not know of it for eight seconds yet.
    let (world, organization, member) = pro().await;
    server.stop().await;
    let server = world.serve().await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    world.clerk.lock().set_plan(&organization, "free", &[]);
    let event = ended(&world);
    world.silently(|clerk| clerk.set_plan(&organization, "pro", &["reports"]));
    send(&sender, &event).await;
    let lagging = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        world.silently(|clerk| clerk.set_plan(&organization, "free", &[]));
    };
    let (took, ()) = tokio::join!(until_denied(&world, &member), lagging);
    println!("with 8 s of lag: denied after {took:.1?}");
    assert!(took > Duration::from_secs(8));
    assert_eq!(world.database.count("clerk_sync.pending_listings").await, 0);
    server.stop().await;
}

/// At once, and when the last of them must have reached every replica.
#[tokio::test(flavor = "multi_thread")]
async fn many_events_of_one_payer_make_two_listings() {
    let (world, organization, _) = pro().await;
    let server = world.serve().await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    for _ in 0..5 {
        world.clerk.lock().set_plan(&organization, "pro", &["reports"]);
    }
    let events = std::mem::take(&mut world.clerk.lock().outbox);
    assert!(events.len() > 12);
    world.clerk.forget_requests();
    let began = Instant::now();
    for event in &events {
        send(&sender, event).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let sent = began.elapsed();
    until("the listings are made", async || world.database.count("clerk_sync.pending_listings").await == 0).await;
    let path = format!("/v1/organizations/{organization}/memberships");
    let listings = world.clerk.requests().iter().filter(|request| request.path == path).count();
    // (A machine so slow that sending took longer than ten seconds makes more of them.)
    let most = 2 + sent.as_secs() / 10;
    assert!((1..=most).contains(&(listings as u64)), "{listings} listings for {} events in {sent:?}", events.len());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_cannot_be_listed_holds_up_no_other_and_is_tried_again() {
    let (mut world, organization, member) = pro().await;
    // It must give up before the other's second listing is due, ten seconds after the first.
    world.patience = Duration::from_secs(2);
    let other = world.any(Kind::Organization, 2);
    world.clerk.add_fault(Rule::on(&format!("/v1/organizations/{other}/memberships"), Fault::Status(500)));
    world.clerk.lock().set_plan(&organization, "free", &[]);
    world.clerk.lock().outbox.clear();
    let mut session = world.database.database().connect().await.unwrap();
    session.request_listings(&[other.clone(), organization.clone()], "test").await.unwrap();
    let (listed, _) = world.reconciler().list_members().await.unwrap();
    assert_eq!(listed, 1);
    assert!(!may_read_reports(&world, &member).await);
    let left =
        world.database.rows("select organization_id, tries from clerk_sync.pending_listings order by tries").await;
    assert_eq!(
        left,
        [json!({ "organization_id": organization, "tries": 0 }), json!({ "organization_id": other, "tries": 1 })]
    );
    // A minute later.
    world.clerk.clear_faults();
    world
        .database
        .execute("update clerk_sync.pending_listings set next_at = now(), requested_at = now() - interval '1 minute'")
        .await;
    assert_eq!(world.reconciler().list_members().await.unwrap().0, 2);
    assert_eq!(world.database.count("clerk_sync.pending_listings").await, 0);
}

/// A listing that leaves out many is not believed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lacks_most_members_asks_for_a_pass() {
    let (world, organization, _) = pro().await;
    world.silently(|clerk| {
        let members: Vec<String> =
            clerk.memberships_of(&organization).map(|membership| membership.id.clone()).collect();
        assert!(members.len() > 2);
        members.iter().for_each(|id| clerk.remove_member(id));
    });
    let held = world.mirrored().await;
    let mut session = world.database.database().connect().await.unwrap();
    session.request_listings(std::slice::from_ref(&organization), "test").await.unwrap();
    world.reconciler().list_members().await.unwrap();
    assert_eq!(world.mirrored().await, held);
    let asked: Vec<Value> = world.database.rows("select kind from clerk_sync.pending_passes").await;
    assert_eq!(asked, [json!({ "kind": "membership" })]);
}

/// A person who pays is nobody's member for it, and other events of billing are no concern of the mirror.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_own_subscription_asks_for_nothing() {
    let world = crate::support::World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    let body = |event_type: &str, payer: Value| json!({ "object": "event", "type": event_type, "timestamp": crate::support::START, "data": { "id": "csub_1", "payer": payer } });
    let of_user = json!({ "object": "commerce_payer", "id": "cpayer_1", "user_id": ada });
    let of_organization =
        json!({ "object": "commerce_payer", "id": "cpayer_2", "organization_id": "org_33p35DIdf4cY0e57FKxXtu5CDHK" });
    for (event_type, payer, outcome) in [
        ("subscription.updated", of_user.clone(), "ignored"),
        ("subscriptionItem.active", of_user, "ignored"),
        ("subscription.updated", Value::Null, "ignored"),
        ("paymentAttempt.updated", of_organization.clone(), "ignored"),
        ("subscription.pastDue", of_organization.clone(), "pending"),
        ("subscriptionItem.freeTrialEnding", of_organization.clone(), "pending"),
        ("subscriptionItem.something_new", of_organization, "pending"),
    ] {
        assert_eq!(world.send_body(&body(event_type, payer)).await, outcome, "{event_type}");
    }
    assert_eq!(world.database.count("clerk_sync.pending_listings").await, 1);
}
