//! An afternoon in the life of some small companies.

use crate::testbed::clerk::{Clerk, Event, Shared};

/// How long the story lasts at most, in ms on Clerk's clock: it ends before now.
pub(super) const LASTS: i64 = 4 * 3_600_000;

const FIRST_NAMES: [&str; 16] = [
    "Ada", "Ben", "Cleo", "Dina", "Emil", "Fay", "Gil", "Hana", "Ivo", "Jun", "Kaya", "Lev", "Mira", "Nils", "Oona",
    "Pia",
];
const LAST_NAMES: [&str; 8] = ["Abara", "Bell", "Costa", "Dunn", "Ekman", "Flores", "Grant", "Hale"];
const COMPANIES: [&str; 6] =
    ["Acme Widgets", "Blue Harbor", "Copper Kettle", "Delta Press", "Elm Street Labs", "Fjord Foods"];

/// Lets `changes` things happen, and returns the webhooks in the order of the changes.
pub(super) fn tell(clerk: &Shared, changes: u32, seed: u64) -> Vec<Event> {
    let mut clerk = clerk.lock();
    let mut rng = fastrand::Rng::with_seed(seed);
    let pause = LASTS / 2 / i64::from(changes.max(1));
    for company in COMPANIES {
        let founder = sign_up(&mut clerk, &mut rng);
        clerk.create_organization(company, &founder);
        clerk.now += pause;
    }
    for _ in 0..changes {
        clerk.now += rng.i64(1..=pause.max(2));
        something_happens(&mut clerk, &mut rng);
    }
    std::mem::take(&mut clerk.outbox)
}

fn something_happens(clerk: &mut Clerk, rng: &mut fastrand::Rng) {
    let user = rng.choice(clerk.users.keys()).cloned().unwrap_or_default();
    let organization = rng.choice(clerk.organizations.keys()).cloned().unwrap_or_default();
    let membership = rng.choice(clerk.memberships.keys()).cloned().unwrap_or_default();
    let role = if rng.u8(..) < 80 { "org:admin" } else { "org:member" };
    match rng.u8(0..100) {
        0..15 => {
            let user = sign_up(clerk, rng);
            if !organization.is_empty() {
                clerk.add_member(&organization, &user, role);
            }
        }
        15..35 if !organization.is_empty() && !user.is_empty() => {
            clerk.add_member(&organization, &user, role);
        }
        35..50 => clerk.set_role(&membership, role),
        50..65 => clerk.remove_member(&membership),
        65..80 => {
            let last_name = rng.choice(LAST_NAMES).unwrap_or("Bell");
            clerk.update_user(&user, |user| last_name.clone_into(&mut user.last_name));
        }
        80..85 => clerk.update_user(&user, |user| user.banned = !user.banned),
        85..90 => clerk.update_organization(&organization, |organization| {
            organization.name = match organization.name.strip_suffix(" Group") {
                Some(plain) => plain.to_owned(),
                None => format!("{} Group", organization.name),
            };
        }),
        90..94 => clerk.delete_user(&user),
        94..96 if clerk.organizations.len() > 3 => clerk.delete_organization(&organization),
        // Out and in again, as another: what a handler that keys by user and organization gets wrong.
        _ => {
            if let Some(left) = clerk.memberships.get(&membership).cloned() {
                clerk.remove_member(&membership);
                clerk.now += 40;
                clerk.add_member(&left.organization_id, &left.user_id, "org:member");
            }
        }
    }
}

fn sign_up(clerk: &mut Clerk, rng: &mut fastrand::Rng) -> String {
    let first_name = rng.choice(FIRST_NAMES).unwrap_or("Ada");
    let last_name = rng.choice(LAST_NAMES).unwrap_or("Bell");
    clerk.create_user(first_name, last_name)
}
