//! What goes on in a Clerk instance: people come, change, join, leave and are deleted.

use super::clerk::Clerk;

const FIRST_NAMES: [&str; 16] = [
    "Ada", "Ben", "Cleo", "Dina", "Emil", "Fay", "Gil", "Hana", "Ivo", "Jun", "Kaya", "Lev", "Mira", "Nils", "Oona",
    "Pia",
];
const LAST_NAMES: [&str; 8] = ["Abara", "Bell", "Costa", "Dunn", "Ekman", "Flores", "Grant", "Hale"];

/// Lets one thing happen, which is one webhook or two.
pub fn change(clerk: &mut Clerk, rng: &mut fastrand::Rng) {
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

/// Somebody new: the id.
pub fn sign_up(clerk: &mut Clerk, rng: &mut fastrand::Rng) -> String {
    let first_name = rng.choice(FIRST_NAMES).unwrap_or("Ada");
    let last_name = rng.choice(LAST_NAMES).unwrap_or("Bell");
    clerk.create_user(first_name, last_name)
}
