//! A database that went back in time: restored from a backup, or failed over to a server that was behind. What it had acknowledged
//! is gone, and it does not say so.

use crate::reconciling::ReconcileWorld;
use crate::support::{SECRET, supabase};
use clerk_sync::model::{Kind, MessageId};
use clerk_sync::ops;
use clerk_sync::sender::Sender;
use clerk_sync::store::LastSeen;
use sqlx::AssertSqlSafe;
use std::time::Instant;
use testkit::postgres::SUPERUSER;
use testkit::wait::until;
use testkit::world::acknowledged;

async fn superuser(sql: &[&str]) {
    let mut superuser = supabase().connect(SUPERUSER, "postgres").await.unwrap();
    for sql in sql {
        sqlx::raw_sql(AssertSqlSafe((*sql).to_owned())).execute(&mut superuser).await.unwrap();
    }
}

/// B7, `restore`. Six kinds of change are acknowledged, then the database is what it was before: everything is right again within a
/// minute, by one run of passes that nobody asked for and that no timetable has.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_lost_acknowledged_events_is_noticed_and_repaired() {
    let world = ReconcileWorld::filled(40, 5, 60, 1).await;
    let name = world.database.name.clone();
    let backup = format!("{name}_backup");
    supabase().clone_database(&name, &backup).await.unwrap();
    let server = world.serve().await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    let members: Vec<String> = world.clerk.lock().memberships.keys().take(6).map(ToString::to_string).collect();
    let (banned, renamed) = (world.any(Kind::User, 7), world.any(Kind::Organization, 1));
    let events = {
        let mut clerk = world.clerk.lock();
        clerk.ban_user(&banned);
        clerk.set_role(&members[0], "org:member");
        clerk.set_role(&members[1], "org:admin");
        clerk.remove_member(&members[2]);
        let left = clerk.memberships[&members[3]].clone();
        clerk.remove_member(&members[3]);
        clerk.now += 40;
        clerk.add_member(&left.organization_id, &left.user_id, "org:member");
        clerk.update_organization(&renamed, |organization| organization.name = "Renamed".to_owned());
        std::mem::take(&mut clerk.outbox)
    };
    for event in &events {
        let attempt = acknowledged(async || sender.send(&event.message_id, event.body.as_bytes()).await.unwrap()).await;
        assert_eq!(attempt.status, 204, "{attempt:?}");
    }
    world.equals_source().await;
    world.later();
    let passes = world.database.count("clerk_sync.passes").await;
    let (old, terminate) = (
        format!("alter database {name} rename to {name}_lost"),
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
    );
    superuser(&[
        &format!("alter database {name} allow_connections false"),
        &terminate,
        &terminate,
        &old,
        &format!("alter database {backup} rename to {name}"),
    ])
    .await;
    assert_eq!(world.database.count("clerk_sync.receipts").await, 0, "it is as it was before");
    let restored = Instant::now();
    until("the restore is noticed", async || world.source() == world.mirrored().await).await;
    println!("right again {:.1?} after the restore", restored.elapsed());
    server.stop().await;
    let told = "select distinct reason from clerk_sync.passes order by id desc limit 1".replace("distinct ", "");
    let reason = &world.database.rows(&told).await[0]["reason"];
    assert_eq!(reason, "the database went back in time: an acknowledged message is missing");
    assert!(world.database.count("clerk_sync.passes").await >= passes);
    let status = world.database.database().status().await.unwrap();
    let verdict = ops::verdict::Verdict::of(&status, &ops::verdict::Setup::default());
    assert!(
        verdict.reasons.iter().any(|reason| reason.starts_with("The database lost data that it had confirmed")),
        "{verdict:?}"
    );
}

/// What is as it was is no alarm; each thing that is gone is one, once.
#[tokio::test(flavor = "multi_thread")]
async fn each_trace_that_is_gone_is_noticed_once() {
    let world = ReconcileWorld::filled(5, 1, 2, 1).await;
    let mut session = world.database.database().connect().await.unwrap();
    let last_seen = LastSeen::default();
    let receipt = |id: &str| {
        format!(
            "insert into clerk_sync.receipts (message_id, body_hash, event_type, outcome, field_errors) values ('{id}', '', 'x', 'applied', '{{}}')"
        )
    };
    for id in ["msg_1", "msg_2"] {
        world.database.execute(&receipt(id)).await;
        last_seen.note_receipt(&MessageId(id.to_owned()));
        assert!(!session.request_passes_if_restored(&last_seen).await.unwrap());
    }
    for (gone, what) in [
        ("delete from clerk_sync.receipts where message_id = 'msg_2'", "message"),
        ("delete from clerk_sync.passes where id = (select max(id) from clerk_sync.passes)", "reconcile"),
    ] {
        world.database.execute(gone).await;
        world.database.execute("delete from clerk_sync.pending_passes").await;
        assert!(session.request_passes_if_restored(&last_seen).await.unwrap(), "{what}");
        let asked = world.database.rows("select kind, reason from clerk_sync.pending_passes").await;
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert!(asked[0]["reason"].as_str().unwrap().contains(what), "{asked:?}");
        assert!(!session.request_passes_if_restored(&last_seen).await.unwrap());
    }
}
