//! A whole life of a user, an organization and a membership, as the application's database sees it.

use crate::support::{self, World};
use clerk_sync::model::{Batch, Kind, Millis, Observation, Outcome, Source};
use serde_json::json;

#[tokio::test]
async fn each_event_of_a_life_shows_in_the_rows() {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    let user = "select u.first_name, d.email_address, d.email_address_verified as verified, d.public_metadata from clerk.users u join clerk.user_details d using (id)";
    let row = json!({ "first_name": "Ada", "email_address": "ada.lovelace@example.com", "verified": true, "public_metadata": { "plan": "pro" } });
    assert_eq!(world.database.rows(user).await, [row], "the primary address is not the first of the list");

    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    world.deliver().await;
    let organization = "select name, slug, deleted_at from clerk.organizations";
    assert_eq!(
        world.database.rows(organization).await,
        [json!({ "name": "Acme Widgets", "slug": "acme-widgets", "deleted_at": null })]
    );
    assert_eq!(world.database.members(&acme).await, [(ada.clone(), "org:admin".to_owned())]);

    let ben = world.clerk.lock().create_user("Ben", "Bitdiddle");
    let membership = world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.clerk.lock().now += 10_000;
    world.clerk.lock().set_role(&membership, "org:admin");
    world.clerk.lock().update_organization(&acme, |organization| organization.name = "Acme Gadgets".to_owned());
    world.deliver().await;
    let role = "select role, permissions from clerk.organization_memberships m join clerk.users u on u.id = m.user_id where first_name = 'Ben'";
    let admin =
        json!({ "role": "org:admin", "permissions": ["org:sys_memberships:manage", "org:sys_memberships:read"] });
    assert_eq!(world.database.rows(role).await, [admin]);
    assert_eq!(world.database.rows(organization).await[0]["name"], "Acme Gadgets");

    world.clerk.lock().now += 1_000;
    world.clerk.lock().remove_member(&membership);
    world.deliver().await;
    assert_eq!(world.database.members(&acme).await, [(ada.clone(), "org:admin".to_owned())]);

    world.clerk.lock().now += 1_000;
    world.clerk.lock().delete_organization(&acme);
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
    assert_eq!(world.database.members(&acme).await, []);
    let left = "select (select count(*) from clerk.users where deleted_at is null) as users, \
         (select count(*) from clerk.user_details) as details, (select count(*) from clerk.organizations where deleted_at is null) as organizations";
    assert_eq!(world.database.rows(left).await, [json!({ "users": 1, "details": 1, "organizations": 0 })]);
}

#[tokio::test]
async fn private_metadata_is_stored_nowhere() {
    let world = World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    world.clerk.lock().create_organization("Acme Widgets", &ada);
    world.deliver().await;
    let everything = world.database.rows(
        "select to_jsonb(u)::text || to_jsonb(d)::text as row from clerk.users u join clerk.user_details d using (id) \
         union all select to_jsonb(o)::text from clerk.organizations o union all select to_jsonb(r)::text from clerk_sync.receipts r",
    );
    assert!(!everything.await.iter().any(|row| row.to_string().contains("never to be stored")));
}

#[tokio::test]
async fn an_object_of_each_kind_is_listed_written_and_read_back() {
    let database = support::database().await;
    let mut session = database.database().connect_for_passes().await.unwrap();
    for kind in Kind::ALL {
        let change = support::an_object(kind);
        let id = change.id().unwrap().to_owned();
        let Observation::Live { entity, .. } = &change.observation else { panic!("{change:?}") };
        assert_eq!((entity.kind(), entity.id()), (kind, id.as_str()), "what the kind's parser makes");
        let batch = Batch::of_changes(Source::List, std::iter::once(&change));
        let verdicts = session.apply(&batch, 1).await.unwrap();
        assert_eq!(verdicts[0].as_ref().map(|verdict| verdict.outcome), Some(Outcome::Applied), "{kind}");
        let rows = session.mirrored(kind, &[&id]).await.unwrap();
        assert_eq!(rows.iter().map(|row| &row.entity).collect::<Vec<_>>(), [entity], "{kind}");
        assert_eq!(session.count(kind).await.unwrap(), 1, "{kind}");
        assert_eq!(session.live_rows(kind, &[&id]).await.unwrap().len(), 1, "{kind}");
        let made = session.ids_created_between(kind, Millis::MIN, None, None, 10).await.unwrap();
        assert_eq!(made.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), [id], "{kind}");
    }
}
