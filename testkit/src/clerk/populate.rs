//! A whole population at once, as after an import.

use super::{Clerk, Membership, Organization, User};

const FIRST_NAMES: [&str; 8] = ["Ada", "Ben", "Cleo", "Dina", "Emil", "Fay", "Gil", "Hana"];
const LAST_NAMES: [&str; 7] = ["Abara", "Bell", "Costa", "Dunn", "Ekman", "Flores", "Grant"];

impl Clerk {
    /// Adds so many users, organizations and memberships, of which no webhook tells. They were created in this order up to
    /// now, `tie` at a time: imports make many in one millisecond.
    pub fn populate(&mut self, users: usize, organizations: usize, memberships: usize, tie: usize) {
        let tie = tie.max(1);
        // The last group is a second old, the one before it two.
        let (now, all) = (self.now, users + organizations + memberships);
        let created_at = |position: usize| {
            let groups_since = all.div_ceil(tie) - position / tie;
            now - 1_000 * i64::try_from(groups_since).unwrap_or_default()
        };
        let mut user_ids = Vec::with_capacity(users);
        for index in 0..users {
            let created_at = created_at(index);
            let first_name = FIRST_NAMES[index % FIRST_NAMES.len()];
            let last_name = LAST_NAMES[index % LAST_NAMES.len()];
            let user = User {
                id: self.id_of("user", created_at),
                first_name: first_name.to_owned(),
                last_name: last_name.to_owned(),
                email_address: format!(
                    "{}.{}.{index}@example.com",
                    first_name.to_lowercase(),
                    last_name.to_lowercase()
                ),
                created_at,
                updated_at: created_at + 18,
                ..User::default()
            };
            user_ids.push(user.id.clone());
            self.users.insert(user);
        }
        let creator = |index: usize| user_ids.get(index % users.max(1)).cloned().unwrap_or_default();
        let mut organization_ids = Vec::with_capacity(organizations);
        for index in 0..organizations {
            let created_at = created_at(users + index);
            let organization = Organization {
                id: self.id_of("org", created_at),
                name: format!("Company {index}"),
                slug: format!("company-{index}"),
                created_by: creator(index),
                created_at,
                updated_at: created_at,
                ..Organization::default()
            };
            organization_ids.push(organization.id.clone());
            self.organizations.insert(organization);
        }
        // Turn by turn each organization gets its next member; the members of one stand beside those of the next.
        let members = memberships.div_ceil(organizations.max(1));
        for index in 0..memberships.min(users * organizations) {
            let (turn, organization) = (index / organizations, index % organizations);
            let created_at = created_at(users + organizations + index);
            let membership = Membership {
                id: self.id_of("orgmem", created_at),
                organization_id: organization_ids[organization].clone(),
                user_id: user_ids[(organization * members + turn) % users].clone(),
                role: if turn == 0 { "org:admin" } else { "org:member" }.to_owned(),
                created_at,
                updated_at: created_at,
                ..Membership::default()
            };
            self.insert_membership(membership);
        }
    }
}
