//! Passes are as narrow as their cause: what is wrong with one kind, one organization or one count holds up nothing else, and a
//! report says what it does not know.

use crate::reconciling::ReconcileWorld;
use clerk_sync::model::{Kind, PassState};
use clerk_sync::reconcile::{PassRequest, Report, Silent};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::clerk::{Fault, Role, Rule};
use testkit::wait::until;

fn states(reports: &[Report]) -> Vec<PassState> {
    reports.iter().map(|report| report.state).collect()
}

/// The organization with the most members, and them.
fn largest(world: &ReconcileWorld) -> (String, Vec<String>) {
    let clerk = world.clerk.lock();
    let organization =
        clerk.organizations.keys().max_by_key(|id| clerk.memberships_of(id).count()).unwrap().to_string();
    let members = clerk.memberships_of(&organization).map(|membership| membership.id.clone()).collect();
    (organization, members)
}

impl ReconcileWorld {
    async fn memberships(&self) -> Report {
        let wanted = PassRequest::Kinds(vec![Kind::Membership]);
        self.reconciler().run(&wanted, "test", false, &mut Silent).await.unwrap().remove(0)
    }

    async fn role(&self, id: &str) -> Value {
        let sql = format!("select role from clerk.organization_memberships where id = '{id}'");
        self.database.rows(&sql).await.first().map_or(Value::Null, |row| row["role"].clone())
    }

    /// So many users more, each a member of that organization.
    fn fill(&self, organization: &str, members: usize) {
        self.silently(|clerk| {
            for n in 0..members {
                let user = clerk.create_user("Mem", &format!("Ber {n}"));
                clerk.add_member(organization, &user, "org:member");
            }
        });
    }

    async fn is_gone(&self, id: &str) -> bool {
        self.database.count(&format!("clerk.organization_memberships where id = '{id}'")).await == 0
    }
}

/// A downgrade and a removal in a healthy organization, of which no webhook tells: the membership that is left, and the one that is
/// not.
fn revoke(world: &ReconcileWorld, not_in: &str) -> (String, String) {
    world.clerk.lock().silently(|clerk| {
        let revoked = Role { key: "org:revoked".to_owned(), ..Role::default() };
        clerk.roles.insert(revoked.key.clone(), revoked);
        let others: Vec<String> = clerk
            .memberships
            .values()
            .filter(|membership| membership.organization_id != not_in)
            .map(|membership| membership.id.clone())
            .collect();
        clerk.set_role(&others[0], "org:revoked");
        clerk.remove_member(&others[1]);
        (others[0].clone(), others[1].clone())
    })
}

/// A4, `brake`. An organization with many memberships is gone, which is more than a pass may delete unasked: everything else is
/// done all the same, by the night's passes and by the hour's.
#[tokio::test(flavor = "multi_thread")]
async fn the_brake_holds_back_the_deletions_of_its_kind_alone() {
    let world = ReconcileWorld::filled(60, 6, 60, 1).await;
    let organization = world.any(Kind::Organization, 2);
    world.fill(&organization, 30);
    world.complete().await;
    world.later();
    world.silently(|clerk| clerk.delete_organization(&organization));
    let renamed = world.any(Kind::Organization, 0);
    world
        .silently(|clerk| clerk.update_organization(&renamed, |organization| organization.name = "Renamed".to_owned()));
    let (downgraded, removed) = revoke(&world, &organization);
    world.later();
    let dry = world.reconciler().run(&PassRequest::Kinds(Kind::ALL.to_vec()), "test", true, &mut Silent).await.unwrap();
    assert_eq!(states(&dry), [PassState::Complete, PassState::Braked, PassState::Complete]);
    assert_eq!(dry[2].undecided.held_back, world.database.count(&of(&organization)).await.unsigned_abs());
    let reports = world.run().await.unwrap();
    assert_eq!(states(&reports), [PassState::Complete, PassState::Braked, PassState::Complete], "{reports:#?}");
    assert_eq!(world.database.count("clerk.organizations where name = 'Renamed'").await, 1, "it was compared, too");
    assert_eq!(world.role(&downgraded).await, "org:revoked");
    assert!(world.is_gone(&removed).await);
    // What waits is told of both kinds, and nothing of it was deleted.
    let held = world.database.count(&of(&organization)).await.unsigned_abs();
    assert!(held > 30);
    assert_eq!((reports[1].undecided.held_back, reports[2].undecided.held_back), (1, held));
    // `brake_hourly`: the hour's pass is not skipped, and finds the next one.
    let (downgraded, removed) = revoke(&world, &organization);
    world.later();
    let hourly = world.memberships().await;
    assert_eq!((hourly.state, hourly.undecided.held_back), (PassState::Complete, held), "{hourly:?}");
    assert_eq!(world.role(&downgraded).await, "org:revoked");
    assert!(world.is_gone(&removed).await);
    // The number that a person was told first still lets go what was told with it.
    let again = world.run().await.unwrap();
    assert_eq!(again[1].state, PassState::Braked);
    let approved = PassRequest::Approved(reports[1].pass.unwrap());
    let reports = world.reconciler().run(&approved, "test", false, &mut Silent).await.unwrap();
    assert!(
        reports.iter().all(|report| report.state == PassState::Complete && report.undecided.total() == 0),
        "{reports:#?}"
    );
    world.equals_source().await;
}

fn of(organization: &str) -> String {
    format!("clerk.organization_memberships where organization_id = '{organization}'")
}

/// But where it would delete another row now, whoever said yes has not said it to that.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_for_the_rows_that_were_told() {
    let world = ReconcileWorld::filled(60, 4, 20, 1).await;
    let users: Vec<String> = world.clerk.lock().users.keys().map(ToString::to_string).collect();
    world.silently(|clerk| users[..11].iter().for_each(|id| clerk.delete_user(id)));
    let first = world.run().await.unwrap()[0].pass.unwrap();
    world.silently(|clerk| clerk.delete_user(&users[20]));
    world.later();
    let second = world.run().await.unwrap();
    assert_eq!(second[0].state, PassState::Braked);
    let approve = async |pass| world.reconciler().run(&PassRequest::Approved(pass), "test", false, &mut Silent).await;
    assert!(matches!(approve(first).await, Err(clerk_sync::reconcile::Error::NotBraked(_))));
    let reports = approve(second[0].pass.unwrap()).await.unwrap();
    assert_eq!((reports[0].state, reports[0].extra), (PassState::Complete, 12));
    world.equals_source().await;
}

/// A4, `brake_hourly`: memberships that went with their organization are its own weight, whoever lists first.
#[tokio::test(flavor = "multi_thread")]
async fn memberships_of_an_absent_organization_weigh_in_its_pass_alone() {
    let world = ReconcileWorld::filled(60, 6, 60, 1).await;
    let organization = world.any(Kind::Organization, 1);
    world.fill(&organization, 12);
    world.complete().await;
    world.later();
    world.silently(|clerk| clerk.delete_organization(&organization));
    let (downgraded, removed) = revoke(&world, &organization);
    world.later();
    let hourly = world.memberships().await;
    assert_eq!(hourly.state, PassState::Complete, "{hourly:?}");
    assert!(hourly.undecided.held_back >= 12, "{hourly:?}");
    assert_eq!(world.role(&downgraded).await, "org:revoked");
    assert!(world.is_gone(&removed).await);
    let asked = world.database.rows("select kind from clerk_sync.pending_passes").await;
    assert_eq!(asked, [json!({ "kind": "organization" })]);
}

/// A4, `users_braked`.
#[tokio::test(flavor = "multi_thread")]
async fn braked_users_keep_no_organization_and_no_membership_from_being_compared() {
    let world = ReconcileWorld::filled(60, 6, 60, 1).await;
    let organization = world.any(Kind::Organization, 3);
    let users: Vec<String> = world.clerk.lock().users.keys().take(20).map(ToString::to_string).collect();
    world.silently(|clerk| {
        users.iter().for_each(|id| clerk.delete_user(id));
        clerk.update_organization(&organization, |organization| organization.name = "Renamed".to_owned());
    });
    let (downgraded, removed) = revoke(&world, "");
    world.later();
    let reports = world.run().await.unwrap();
    assert_eq!(states(&reports), [PassState::Braked, PassState::Complete, PassState::Complete], "{reports:#?}");
    assert_eq!(world.role(&downgraded).await, "org:revoked");
    assert!(world.is_gone(&removed).await);
    assert_eq!(world.database.count("clerk.organizations where name = 'Renamed'").await, 1);
}

/// B3, `one_org`. Clerk says nothing of the members of one organization, for good: those of the others who have gone are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn one_org_of_whose_members_clerk_says_nothing_holds_up_no_other() {
    let world = ReconcileWorld::filled(60, 6, 70, 1).await;
    let (silent, members) = largest(&world);
    for fault in [Fault::Status(403), Fault::Status(500), Fault::Status(404)] {
        world.clerk.add_fault(Rule::on(&format!("/v1/organizations/{silent}/memberships"), fault.clone()));
        let gone = world.clerk.lock().memberships_of(&silent).next().map(|membership| membership.id.clone()).unwrap();
        world.silently(|clerk| clerk.remove_member(&gone));
        let (downgraded, removed) = revoke(&world, &silent);
        world.later();
        let began = Instant::now();
        let report = world.memberships().await;
        println!(
            "{fault:?}: {:?} after {:.1?}: {}",
            report.state,
            began.elapsed(),
            report.problem.clone().unwrap_or_default()
        );
        assert_eq!((report.state, report.undecided.unreadable), (PassState::Incomplete, 1), "{fault:?}: {report:?}");
        assert!(report.problem.unwrap().contains(&silent));
        assert_eq!(world.role(&downgraded).await, "org:revoked");
        assert!(world.is_gone(&removed).await && !world.is_gone(&gone).await, "{fault:?}");
        // It lists everything each time, and reads by id go on between passes.
        let report = world.memberships().await;
        assert!(!report.resumed && report.listed > 30, "{report:?}");
        assert_eq!(world.database.count(&format!("clerk_sync.pending_reads where id = '{gone}'")).await, 1);
        world.clerk.clear_faults();
        world.later();
        assert_eq!(world.memberships().await.state, PassState::Complete);
        assert!(world.is_gone(&gone).await);
    }
    assert!(members.len() > 4);
}

/// B3, `one_org_reads`.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_a_healthy_organization_is_not_given_up_with_another_s() {
    let world = ReconcileWorld::filled(30, 4, 40, 1).await;
    let (silent, members) = largest(&world);
    let (healthy, read) = {
        let clerk = world.clerk.lock();
        let other = clerk.memberships.values().find(|membership| membership.organization_id != silent).unwrap();
        (other.id.clone(), other.clone())
    };
    world.silently(|clerk| clerk.set_role(&healthy, "org:revoked"));
    world.later();
    let user = world.clerk.lock().memberships[&members[0]].user_id.clone();
    for (id, organization, user) in [(&members[0], &silent, &user), (&healthy, &read.organization_id, &read.user_id)] {
        let sql = format!(
            "insert into clerk_sync.pending_reads (kind, id, organization_id, user_id, reason, requested_at)
             values ('membership', '{id}', '{organization}', '{user}', 'test', now() - interval '1 minute')"
        );
        world.database.execute(&sql).await;
    }
    world.clerk.add_fault(Rule::on(&format!("/v1/organizations/{silent}/memberships"), Fault::Status(500)));
    world.reconciler().run_pending_reads().await.unwrap();
    assert_eq!(world.role(&healthy).await, "org:revoked");
    let open = world.database.rows("select id from clerk_sync.pending_reads").await;
    assert_eq!(open, [json!({ "id": members[0] })]);
}

/// B4, `total_off`. A total that is wrong for ever keeps nobody from being deleted or changed, and is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_total_that_is_off_by_one_for_ever_costs_no_repair() {
    for (by, kinds) in [(1, 2), (-1, 2)] {
        let world = ReconcileWorld::filled(60, 6, 80, 1).await;
        for path in ["/v1/organizations", "/v1/organization_memberships"] {
            world.clerk.add_fault(Rule::on(path, Fault::Miscounted(by)));
        }
        let (downgraded, removed) = revoke(&world, "");
        world.later();
        let began = Instant::now();
        let reports = world.run().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(states(&reports), [PassState::Complete; 3], "{reports:#?}");
        assert_eq!(world.role(&downgraded).await, "org:revoked");
        assert!(world.is_gone(&removed).await);
        let unlisted: Vec<u64> = reports.iter().map(|report| report.undecided.not_listed).collect();
        assert_eq!(unlisted, if by > 0 { [0, 1, 1] } else { [0, 0, 0] }, "{kinds}");
        world.equals_source().await;
    }
}

/// B6, `step_back`, `imports`. Clerk lists rows of one moment in another order each time: nobody alive is deleted, the pass says that
/// it saw not all of them, and it ends.
#[tokio::test(flavor = "multi_thread")]
async fn ties_in_no_order_end_and_are_told() {
    for rows in [1_000, 2_500] {
        let world = ReconcileWorld::new().await;
        world.clerk.lock().populate(10, 2, 0, 1);
        // All within one millisecond.
        world.fill(&world.any(Kind::Organization, 0), rows);
        world.complete().await;
        world.later();
        world.clerk.add_fault(Rule::on("/v1/organization_memberships", Fault::Shuffled));
        let held = world.mirrored().await.len();
        world.clerk.forget_requests();
        let report = world.memberships().await;
        let calls =
            world.clerk.requests().iter().filter(|request| request.path == "/v1/organization_memberships").count();
        println!(
            "{rows} rows of one moment: {:?} after {calls} pages, {} listed: {:?}",
            report.state, report.listed, report.problem
        );
        assert!(calls < 60, "{calls} pages");
        assert!(report.listed <= rows as u64, "distinct ones are counted: {}", report.listed);
        if report.listed < rows as u64 {
            assert!(
                report.state == PassState::Void || report.undecided.not_listed == rows as u64 - report.listed,
                "{report:?}"
            );
        }
        assert_eq!(world.mirrored().await.len(), held, "somebody alive was deleted");
    }
}

/// C3, `in_step`, and F7 of the set-up cases: a removal that the pass is not to judge yet is told, by words, numbers and exit code, and
/// `serve` asks again when it can be judged.
#[tokio::test(flavor = "multi_thread")]
async fn in_sync_is_not_said_of_rows_that_were_seen_too_lately() {
    let world = ReconcileWorld::filled(30, 3, 30, 1).await;
    let member = world.seen_and_removed().await;
    let run = async |arguments: &[&str]| {
        let output = world.command(arguments).await.output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    for arguments in [&["reconcile", "--dry-run"][..], &["reconcile"][..]] {
        let (code, text) = run(arguments).await;
        assert_eq!(code, 4, "{text}");
        let line = text.lines().find(|line| line.starts_with("membership")).unwrap();
        assert!(line.contains("SOME ROWS LEFT AS THEY ARE") && !line.contains("in sync"), "{text}");
        assert!(
            text.contains("1 row was left as it is. It changed less than five minutes before the comparison: clerk-sync compares it again after 20"),
            "{text}"
        );
    }
    assert!(!world.is_gone(&member).await);
    let (code, json) = run(&["reconcile", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    let report = &json["passes"][2];
    assert_eq!((code, &report["undecided"]["too_fresh"]), (4, &json!(1)), "{json}");
    let judge_after = report["judge_after"].as_i64().unwrap();
    // At that moment, and not before.
    world.clerk.lock().now = judge_after - 2_000;
    assert_eq!(world.memberships().await.undecided.too_fresh, 1);
    world.clerk.lock().now = judge_after + 2_000;
    // (The five minutes of the database's clock pass at once.)
    world.database.execute("update clerk_sync.passes set again_at = now() where again_at is not null").await;
    let server = world.serve().await;
    until("serve asks again", async || world.is_gone(&member).await).await;
    server.stop().await;
    let (code, text) = run(&["reconcile"]).await;
    assert!(code == 0 && text.contains("in sync"), "{text}");
    world.equals_source().await;
}
