//! R1 to R8 by name, each with the story that it prevents, told through real webhooks.

use crate::support::{START, World, unique};
use serde_json::{Value, json};
use testkit::clerk::Event;

/// The events that are due, taken out.
fn due(world: &mut World) -> Vec<Event> {
    world.due()
}

fn one(world: &mut World) -> Event {
    let mut events = due(world);
    assert_eq!(events.len(), 1, "one event is due");
    events.remove(0)
}

/// The same event with other bytes here and there, as a message of its own.
fn edited(event: &Event, edit: impl FnOnce(&mut Value)) -> Event {
    let mut body: Value = serde_json::from_str(&event.body).unwrap();
    edit(&mut body);
    Event { message_id: unique("msg"), body: body.to_string(), ..event.clone() }
}

async fn first_name(world: &World, user: &str) -> Option<String> {
    let sql = "select first_name from clerk.users where id = $1";
    sqlx::query_scalar(sql).bind(user).fetch_optional(&mut world.database.owner().await).await.unwrap().flatten()
}

/// Ada with an organization, and Ben beside her; everything delivered.
async fn acme() -> (World, String, String, String) {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let ben = world.clerk.lock().create_user("Ben", "Bitdiddle");
    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    world.deliver().await;
    (world, acme, ada, ben)
}

#[tokio::test]
async fn r1_equal_updated_at_with_a_later_envelope_wins() {
    let (mut world, _, ada, _) = acme().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Augusta".to_owned());
    let first = one(&mut world);
    let later = edited(&first, |body| {
        body["timestamp"] = json!(body["timestamp"].as_i64().unwrap() + 50);
        body["data"]["first_name"] = json!("Countess");
    });
    assert_eq!(world.send(&later).await, "applied");
    assert_eq!(world.send(&first).await, "stale");
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Countess"));
}

#[tokio::test]
async fn r1_an_object_that_changes_again_after_months_is_written() {
    const DAY: i64 = 86_400_000;
    let (mut world, acme, ada, ben) = acme().await;
    let member = world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    // From 36 days on the product of two such differences is more than 64 bits hold.
    for days in [36, 90, 250] {
        world.clerk.lock().now += days * DAY;
        world.clerk.lock().update_user(&ada, |user| user.first_name = format!("After {days}"));
        let event = one(&mut world);
        assert_eq!(world.send(&event).await, "applied");
        assert_eq!(first_name(&world, &ada).await, Some(format!("After {days}")));
        world.clerk.lock().set_role(&member, if days == 90 { "org:member" } else { "org:admin" });
        let event = one(&mut world);
        assert_eq!(world.send(&event).await, "applied");
        world.equals_source().await;
    }
    // An event from before all that, late.
    let at = world.clerk.lock().now - 300 * DAY;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Early".to_owned());
    let late = edited(&one(&mut world), |body| {
        body["timestamp"] = json!(at);
        body["data"]["updated_at"] = json!(at);
    });
    assert_eq!(world.send(&late).await, "stale");
}

#[tokio::test]
async fn r1_a_full_tie_has_one_winner_in_any_order() {
    let mut winners = Vec::new();
    for turned in [false, true] {
        let (mut world, _, ada, _) = acme().await;
        world.clerk.lock().now += 1_000;
        world.clerk.lock().update_user(&ada, |user| user.first_name = "Augusta".to_owned());
        let one = one(&mut world);
        let other = edited(&one, |body| body["data"]["first_name"] = json!("Countess"));
        for event in if turned { [&other, &one] } else { [&one, &other] } {
            world.send(event).await;
        }
        winners.push(first_name(&world, &ada).await);
    }
    assert_eq!(winners[0], winners[1]);
}

#[tokio::test]
async fn r1_an_updated_at_far_ahead_does_not_freeze_the_row() {
    let (mut world, _, ada, _) = acme().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Future".to_owned());
    let mistaken = edited(&one(&mut world), |body| body["data"]["updated_at"] = json!(START * 2));
    assert_eq!(world.send(&mistaken).await, "applied");
    world.clerk.lock().now += 10_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Present".to_owned());
    let next = one(&mut world);
    assert_eq!(world.send(&next).await, "applied");
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Present"));
}

#[tokio::test]
async fn r2_a_read_that_contradicts_is_believed_after_an_hour_and_leaves_a_floor() {
    let (mut world, _, ada, _) = acme().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Ahead".to_owned());
    let ahead = one(&mut world);
    world.send(&ahead).await;
    // Clerk's updated_at steps back: what a list shows ten minutes later carries an older one. Or the API is behind.
    let read = |at: i64| batch("list", at, &ada, START + 500, "Truth");
    assert_eq!(apply(&world, &read(START + 600_000)).await, ["stale"]);
    assert_eq!(apply(&world, &read(START + 4_199_999)).await, ["stale"], "not for an hour yet");
    assert_eq!(apply(&world, &read(START + 4_200_000)).await, ["applied"]);
    let late = edited(&ahead, |body| {
        body["timestamp"] = json!(START + 3_200_000);
        body["data"]["updated_at"] = json!(START + 3_200_000);
    });
    assert_eq!(world.send(&late).await, "stale", "it was observed before the floor");
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Truth"));
}

#[tokio::test]
async fn r3_an_equal_list_read_writes_nothing_and_mends_a_row_changed_by_hand() {
    let (world, _, ada, _) = acme().await;
    let read = batch("list", START + 600_000, &ada, START + 500, "Ada");
    assert_eq!(apply(&world, &read).await, ["applied"]);
    let before = world.database.written().await;
    let later = batch("list", START + 900_000, &ada, START + 500, "Ada");
    assert_eq!(apply(&world, &later).await, ["unchanged"]);
    assert_eq!(world.database.written().await, before);
    world.database.execute(&format!("update clerk.users set first_name = 'Tampered' where id = '{ada}'")).await;
    apply(&world, &later).await;
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Ada"));
}

#[tokio::test]
async fn r3_a_webhook_with_equal_content_stores_its_version() {
    let (mut world, _, ada, _) = acme().await;
    let mut versions = Vec::new();
    for name in ["Bea", "Ada"] {
        world.clerk.lock().now += 1_000;
        world.clerk.lock().update_user(&ada, |user| user.first_name = name.to_owned());
        versions.push(one(&mut world));
    }
    // A → B → A, and B comes last: it must not stay.
    assert_eq!(world.send(&versions[1]).await, "applied");
    assert_eq!(world.send(&versions[0]).await, "stale");
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Ada"));
}

#[tokio::test]
async fn r4_a_delete_counts_by_its_event_although_its_updated_at_is_days_old() {
    let (mut world, acme, _, ben) = acme().await;
    let membership = world.clerk.lock().add_member(&acme, &ben, "org:admin");
    world.clerk.lock().now += 1_000;
    world.clerk.lock().set_role(&membership, "org:member");
    world.deliver().await;
    world.clerk.lock().now += 5 * 86_400_000;
    world.clerk.lock().remove_member(&membership);
    let removed = one(&mut world);
    assert_eq!(world.send(&removed).await, "applied");
    assert!(world.database.members(&acme).await.iter().all(|(user, _)| *user != ben));
}

#[tokio::test]
async fn r4_a_late_update_does_not_revive_a_deleted_user() {
    let (mut world, acme, ada, _) = acme().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Late".to_owned());
    let late = one(&mut world);
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
    assert_eq!(world.send(&late).await, "stale");
    assert_eq!(first_name(&world, &ada).await, None);
    assert!(world.database.members(&acme).await.is_empty(), "the memberships went with the user");
    let rows =
        world.database.rows("select deleted_at is not null as deleted from clerk.users where first_name is null").await;
    assert_eq!(rows, [json!({ "deleted": true })], "the identity stays for foreign keys");
}

#[tokio::test]
async fn r4_a_delete_of_an_id_never_seen_leaves_a_tombstone() {
    let mut world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let created = one(&mut world);
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
    assert_eq!(world.send(&created).await, "stale");
    assert_eq!(first_name(&world, &ada).await, None);
}

#[tokio::test]
async fn r4_a_delete_in_seconds_beats_what_was_created_within_that_second() {
    let mut world = World::new().await;
    world.clerk.lock().now = START + 400;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    world.clerk.lock().delete_user(&ada);
    let deleted = edited(&one(&mut world), |body| body["timestamp"] = json!(START / 1000));
    assert_eq!(world.send(&deleted).await, "applied");
    assert_eq!(first_name(&world, &ada).await, None);
}

#[tokio::test]
async fn r4_a_delete_without_an_id_changes_nothing_and_calls_for_a_pass() {
    let (world, _, ada, _) = acme().await;
    let before = world.database.mirror().await;
    let body = json!({ "object": "event", "type": "user.deleted", "timestamp": START, "data": { "object": "user", "deleted": true } });
    assert_eq!(world.send_body(&body).await, "pending");
    assert_eq!(world.database.mirror().await, before);
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Ada"));
    let asked = world.database.rows("select kind, reason from clerk_sync.pending_passes").await;
    assert_eq!(asked, [json!({ "kind": "user", "reason": "a delete without an id" })]);
}

#[tokio::test]
async fn r4_only_a_person_undoes_the_tombstone_of_an_event() {
    let (world, _, ada, _) = acme().await;
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
    for (source, days) in [("list", 0), ("read", 0), ("read", 30)] {
        let read = batch(source, START + 900_000 + days * 86_400_000, &ada, START, "Ada");
        assert_eq!(apply(&world, &read).await, ["stale"], "{source} after {days} days");
    }
    assert_eq!(first_name(&world, &ada).await, None);
    assert_eq!(apply(&world, &batch("undelete", START + 900_000, &ada, START, "Ada")).await, ["applied"]);
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Ada"));
}

#[tokio::test]
async fn r4_a_tombstone_inferred_from_absence_yields_to_a_read_that_a_later_change_asks_for() {
    let (mut world, _, ada, _) = acme().await;
    let absent = json!({ "source": "list", "deletions": [{ "n": 0, "kind": "user", "id": ada, "observed_at": START + 4_000_000 }] });
    assert_eq!(apply(&world, &absent).await, ["applied"]);
    assert_eq!(first_name(&world, &ada).await, None);
    world.clerk.lock().now = START + 4_100_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Back".to_owned());
    let back = one(&mut world);
    assert_eq!(world.send(&back).await, "pending", "the change may be older than the delete that was lost");
    assert_eq!(first_name(&world, &ada).await, None);
    assert_eq!(apply(&world, &batch("list", START + 4_120_000, &ada, START + 4_100_000, "Back")).await, ["stale"]);
    assert_eq!(apply(&world, &batch("read", START + 4_120_000, &ada, START + 4_100_000, "Back")).await, ["applied"]);
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Back"));
    assert_eq!(world.database.count("clerk_sync.pending_reads").await, 0, "the read has decided");
    let older = json!({ "source": "list", "deletions": [{ "n": 0, "kind": "user", "id": ada, "observed_at": START + 4_050_000 }] });
    assert_eq!(apply(&world, &older).await, ["stale"], "absent before it was seen again");
}

#[tokio::test]
async fn r5_a_late_delete_of_the_old_membership_leaves_the_new_one() {
    let (mut world, acme, ada, ben) = acme().await;
    let old = world.clerk.lock().add_member(&acme, &ben, "org:admin");
    world.deliver().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&old);
    let removed = one(&mut world);
    world.clerk.lock().now += 1_000;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    assert_eq!(members(&world, &acme, &ada).await, [(ben.clone(), "org:member".to_owned())]);
    assert_eq!(world.send(&removed).await, "applied", "the old id gets its tombstone");
    assert_eq!(members(&world, &acme, &ada).await, [(ben, "org:member".to_owned())]);
}

#[tokio::test]
async fn r5_an_old_admin_membership_never_outlives_the_newer_one_whatever_was_lost() {
    let (mut world, acme, ada, ben) = acme().await;
    let old = world.clerk.lock().add_member(&acme, &ben, "org:admin");
    let joined = one(&mut world);
    world.send(&joined).await;
    world.clerk.lock().silently(|clerk| clerk.remove_member(&old)); // this delete is lost for good
    world.clerk.lock().now += 1_000;
    let new = world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    assert_eq!(members(&world, &acme, &ada).await, [(ben.clone(), "org:member".to_owned())]);
    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&new);
    world.deliver().await;
    assert_eq!(members(&world, &acme, &ada).await, [], "the newer one deleted");
    let again = edited(&joined, |_| {});
    assert_eq!(world.send(&again).await, "stale");
    assert_eq!(members(&world, &acme, &ada).await, []);
}

#[tokio::test]
async fn r5_a_delete_of_the_newer_membership_alone_ends_the_older_one() {
    let (world, acme, ada, ben) = acme().await;
    let old = world.clerk.lock().add_member(&acme, &ben, "org:admin");
    world.deliver().await;
    let new = world.clerk.lock().silently(|clerk| {
        clerk.remove_member(&old);
        clerk.now += 1_000;
        clerk.add_member(&acme, &ben, "org:member")
    });
    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&new);
    world.deliver().await;
    assert_eq!(members(&world, &acme, &ada).await, [], "only the last of four events came, and it was enough");
}

#[tokio::test]
async fn r6_a_membership_before_its_user_and_organization_is_stored_with_stubs() {
    let mut world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    let events = due(&mut world);
    assert_eq!(world.send(&events[2]).await, "applied");
    assert_eq!(world.database.members(&acme).await, [(ada.clone(), "org:admin".to_owned())]);
    let stub = "select u.first_name, d.email_address, d.banned from clerk.users u join clerk.user_details d using (id)";
    assert_eq!(
        world.database.rows(stub).await,
        [json!({ "first_name": "Ada", "email_address": null, "banned": false })]
    );
    world.send(&events[0]).await;
    let full = json!({ "first_name": "Ada", "email_address": "ada.lovelace@example.com", "banned": false });
    assert_eq!(world.database.rows(stub).await, [full], "a full observation beats any stub, however old it is");
    world.send(&events[1]).await;
    assert_eq!(world.database.members(&acme).await.len(), 1);
}

#[tokio::test]
async fn r6_an_embedded_copy_never_overwrites_a_full_observation() {
    let (mut world, acme, _, ben) = acme().await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    let embeds_old_name = one(&mut world);
    world.clerk.lock().update_organization(&acme, |organization| organization.name = "Acme Gadgets".to_owned());
    world.deliver().await;
    world.send(&embeds_old_name).await;
    let names = world.database.rows("select name from clerk.organizations").await;
    assert_eq!(names, [json!({ "name": "Acme Gadgets" })]);
}

#[tokio::test]
async fn r6_a_membership_of_a_deleted_organization_is_not_stored() {
    let (mut world, acme, _, ben) = acme().await;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    let joined = one(&mut world);
    world.clerk.lock().delete_organization(&acme);
    world.deliver().await;
    assert_eq!(world.send(&joined).await, "stale");
    assert_eq!(world.database.members(&acme).await, []);
    let rows = world.database.rows("select name, deleted_at is not null as deleted from clerk.organizations").await;
    assert_eq!(rows, [json!({ "name": null, "deleted": true })]);
}

#[tokio::test]
async fn r7_what_came_before_the_last_pass_is_stale_or_kept_for_a_read() {
    let (mut world, acme, ada, ben) = acme().await;
    let mark = START + 3_600_000;
    world
        .database
        .execute(&format!(
            "insert into clerk_sync.pass_watermarks select k, {mark} from unnest(array['user', 'organization', 'membership']) k"
        ))
        .await;
    world.clerk.lock().now = START + 2_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Late".to_owned());
    let late = one(&mut world);
    assert_eq!(world.send(&late).await, "stale", "we hold the row, and the pass has read it since");
    world.clerk.lock().now = START + 60_000;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Later".to_owned());
    let later = one(&mut world);
    assert_eq!(world.send(&later).await, "applied", "the row is older: the pass has read a replica that was behind");
    let joined_long_ago = {
        world.clerk.lock().add_member(&acme, &ben, "org:admin");
        one(&mut world)
    };
    assert_eq!(world.send(&joined_long_ago).await, "pending", "the pass did not see it: is it over, or was it lost?");
    assert_eq!(members(&world, &acme, &ada).await, [], "nobody gets in on a doubt");
    let cleo = world.clerk.lock().create_user("Cleo", "Night");
    let dan_created = one(&mut world);
    assert_eq!(world.send(&dan_created).await, "pending");
    assert_eq!(first_name(&world, &cleo).await, None);
    let asked = world
        .database
        .rows("select kind, organization_id, user_id, reason from clerk_sync.pending_reads order by kind")
        .await;
    assert_eq!(
        asked,
        [
            json!({ "kind": "membership", "organization_id": acme, "user_id": ben, "reason": "doubtful" }),
            json!({ "kind": "user", "organization_id": null, "user_id": null, "reason": "doubtful" }),
        ]
    );
    world.clerk.lock().now = mark;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Now".to_owned());
    world.deliver().await;
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Now"));
}

#[tokio::test]
async fn r7_a_doubtful_parent_is_read_instead_of_stubbed() {
    let mut world = World::new().await;
    world
        .database
        .execute(&format!("insert into clerk_sync.pass_watermarks values ('user', {})", START + 3_600_000))
        .await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    let events = due(&mut world);
    assert_eq!(world.send(&events[2]).await, "pending");
    assert_eq!(world.database.members(&acme).await, []);
    let asked = world.database.rows("select kind, id from clerk_sync.pending_reads order by kind desc").await;
    assert_eq!(asked[0], json!({ "kind": "user", "id": ada }));
    assert_eq!(asked[1], json!({ "kind": "organization", "id": acme }), "a stub is to be read as well");
    assert_eq!(asked[2]["kind"], "membership", "and the membership waits for its user");
    assert_eq!(asked.len(), 3);
}

#[tokio::test]
async fn r8_two_replicas_given_crossing_histories_of_one_pair_end_right() {
    let (mut world, acme, ada, ben) = acme().await;
    let instance = crate::support::instance(&world.clerk.lock().instance_id);
    let other = crate::support::Server::start(world.database.database(), instance).await;
    let other = clerk_sync::sender::Sender::new(other.webhook_url(), crate::support::SECRET).unwrap();
    let mut last = String::new();
    for round in 0..10 {
        let role = if round % 2 == 0 { "org:admin" } else { "org:member" };
        last = world.clerk.lock().add_member(&acme, &ben, role);
        world.clerk.lock().now += 500;
        if round < 9 {
            world.clerk.lock().remove_member(&last);
            world.clerk.lock().now += 500;
        }
    }
    let mut events = due(&mut world);
    fastrand::Rng::with_seed(8).shuffle(&mut events);
    let sent = events.iter().enumerate().map(|(n, event)| {
        let sender = if n % 2 == 0 { &**world.sender() } else { &other };
        sender.send(&event.message_id, event.body.as_bytes())
    });
    for attempt in futures_util::future::join_all(sent).await {
        assert_eq!(attempt.unwrap().status, 204);
    }
    assert_eq!(members(&world, &acme, &ada).await, [(ben, "org:member".to_owned())]);
    let ids = world.database.rows(&format!("select id from clerk.organization_memberships where id = '{last}'")).await;
    assert_eq!(ids.len(), 1);
}

/// The members beside the organization's creator.
async fn members(world: &World, organization: &str, creator: &str) -> Vec<(String, String)> {
    world.database.members(organization).await.into_iter().filter(|(user, _)| user != creator).collect()
}

/// A batch with one user, as a pass would send it.
fn batch(source: &str, observed_at: i64, id: &str, updated_at: i64, first_name: &str) -> Value {
    json!({
        "source": source,
        "changes": [{
            "n": 0, "kind": "user", "id": id, "observed_at": observed_at, "updated_at": updated_at, "content": first_name.len(),
            "denial": 0, "row_number": 1,
        }],
        "users": [{ "id": id, "first_name": first_name, "last_name": "Lovelace", "banned": false }],
    })
}

async fn apply(world: &World, batch: &Value) -> Vec<String> {
    let sql =
        "select outcome from clerk_sync.apply(jsonb_populate_record(null::clerk_sync.batch_v1, $1::jsonb)) order by n";
    sqlx::query_scalar(sql).bind(batch.to_string()).fetch_all(&mut world.database.worker().await).await.unwrap()
}

#[tokio::test]
async fn r1_a_time_far_ahead_is_not_believed_without_an_envelope_either() {
    let (world, _, ada, _) = acme().await;
    world.clerk.lock().update_user(&ada, |user| user.first_name = "Future".to_owned());
    for timestamp in [Value::Null, json!("soon"), json!(i64::MIN)] {
        let mistaken = edited(&world.clerk.lock().outbox[0].clone(), |body| {
            body["timestamp"] = timestamp;
            body["data"]["updated_at"] = json!(4_100_000_000_000_i64);
        });
        assert_eq!(world.send(&mistaken).await, "pending");
    }
    assert_eq!(first_name(&world, &ada).await.as_deref(), Some("Ada"));
}

#[tokio::test]
async fn r4_a_parent_that_comes_back_brings_its_membership_in_the_same_batch() {
    let (mut world, acme, _, ben) = acme().await;
    let absent = json!({ "source": "list", "deletions": [{ "n": 0, "kind": "user", "id": ben, "observed_at": START + 4_000_000 }] });
    assert_eq!(apply(&world, &absent).await, ["applied"]);
    world.clerk.lock().now = START + 4_100_000;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    let joined = one(&mut world);
    assert_eq!(world.send(&joined).await, "pending", "nobody announced that he was gone: he may come back");
    let asked = json!({ "kind": "membership", "id": joined.entity_id });
    assert_eq!(world.database.rows("select kind, id from clerk_sync.pending_reads").await, [asked]);
    let back = |n: i64, kind: &str, id: &str| {
        json!({ "n": n, "kind": kind, "id": id, "observed_at": START + 4_100_010, "updated_at": START + 4_100_000, "content": 1, "denial": 0, "row_number": 1,
                "first_name": "Ben", "banned": false, "organization_id": acme, "user_id": ben, "role": "org:member", "permissions": [],
                "created_at": START + 4_100_000 })
    };
    let (membership, user) = (back(0, "membership", &joined.entity_id), back(1, "user", &ben));
    let both = json!({
        "source": "read", "changes": [membership, user], "users": [user], "memberships": [membership]
    });
    assert_eq!(apply(&world, &both).await, ["applied", "applied"]);
    assert_eq!(world.database.members(&acme).await.len(), 2);
}

#[tokio::test]
async fn r6_a_parent_removed_by_hand_is_stubbed_again() {
    let (world, acme, ada, ben) = acme().await;
    world.database.execute(&format!("delete from clerk.users where id = '{ben}'")).await;
    world.clerk.lock().now += 1_000;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    assert_eq!(members(&world, &acme, &ada).await, [(ben, "org:member".to_owned())]);
}

#[tokio::test]
async fn a_pending_read_learns_what_later_events_know_and_is_not_asked_of_the_dead() {
    let (mut world, acme, _, ben) = acme().await;
    world.clerk.lock().add_member(&acme, &ben, "org:member");
    let joined = one(&mut world);
    let drop = |name: &'static str| move |body: &mut Value| drop(body["data"].as_object_mut().unwrap().remove(name));
    assert_eq!(world.send(&edited(&joined, drop("public_user_data"))).await, "pending");
    assert_eq!(world.send(&edited(&joined, drop("role"))).await, "pending");
    let asked = "select organization_id, user_id from clerk_sync.pending_reads";
    assert_eq!(world.database.rows(asked).await, [json!({ "organization_id": acme, "user_id": ben })]);
    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&joined.entity_id);
    world.deliver().await;
    assert_eq!(world.database.rows(asked).await, Vec::<Value>::new(), "the delete settles it");
    assert_eq!(world.send(&edited(&joined, drop("role"))).await, "stale");
    assert_eq!(world.database.rows(asked).await, Vec::<Value>::new());
}
