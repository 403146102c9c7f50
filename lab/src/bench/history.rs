//! What a Clerk instance of some size sends: a population that the mirror holds already, and what becomes of it.

use sqlx::Executor as _;
use std::fmt::Write as _;
use testkit::clerk::{Clerk, Event};
use testkit::postgres::SUPERUSER;
use testkit::supabase::Supabase;
use testkit::traffic::sign_up;

/// How many there are of each kind.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) users: usize,
    pub(super) organizations: usize,
    pub(super) memberships: usize,
}

impl Size {
    /// So many users, and as many memberships, in organizations of twenty.
    pub(super) const fn of(users: usize) -> Size {
        Size { users, organizations: users.div_ceil(20), memberships: users }
    }

    /// A part of it.
    pub(super) const fn part(self, of: usize) -> Size {
        Size {
            users: self.users / of,
            organizations: self.organizations.div_ceil(of),
            memberships: self.memberships / of,
        }
    }
}

/// Events without end, of which four in ten are updates, drawn from a seed.
pub(super) struct History {
    pub(super) clerk: Clerk,
    rng: fastrand::Rng,
    users: Vec<String>,
    organizations: Vec<String>,
    memberships: Vec<String>,
}

/// Hours before now at which it begins: its clock moves faster than ours.
const EARLIER: i64 = 12;

impl History {
    /// Begins with a population of which nothing is told.
    pub(super) fn new(size: Size) -> History {
        let mut clerk = Clerk::new(1, clerk_sync::clock::now().get() - EARLIER * 3_600_000);
        clerk.populate(size.users, size.organizations, size.memberships, 1);
        let ids = |keys: &mut dyn Iterator<Item = &std::sync::Arc<str>>| keys.map(ToString::to_string).collect();
        History {
            rng: fastrand::Rng::with_seed(1),
            users: ids(&mut clerk.users.keys()),
            organizations: ids(&mut clerk.organizations.keys()),
            memberships: ids(&mut clerk.memberships.keys()),
            clerk,
        }
    }

    /// The next so many events.
    pub(super) fn next(&mut self, count: usize) -> Vec<Event> {
        while self.clerk.outbox.len() < count {
            self.clerk.now += 10;
            self.happen();
        }
        let rest = self.clerk.outbox.split_off(count);
        std::mem::replace(&mut self.clerk.outbox, rest)
    }

    /// One thing, which is one event, two, or none.
    fn happen(&mut self) {
        let History { clerk, rng, users, organizations, memberships } = self;
        let any = |ids: &[String], rng: &mut fastrand::Rng| rng.choice(ids).cloned().unwrap_or_default();
        let role = if rng.bool() { "org:admin" } else { "org:member" };
        match rng.u8(0..100) {
            0..32 => users.push(sign_up(clerk, rng)),
            32..35 => {
                let creator = any(users, rng);
                if clerk.users.contains_key(&creator) {
                    organizations.push(clerk.create_organization("Company", &creator));
                }
            }
            35..53 => memberships.push(clerk.add_member(&any(organizations, rng), &any(users, rng), role)),
            53..75 => {
                let note = rng.u32(..).to_string();
                clerk.update_user(&any(users, rng), |user| user.username = Some(note));
            }
            75..78 => clerk.update_organization(&any(organizations, rng), |organization| {
                organization.name = format!("Company {}", organization.updated_at);
            }),
            78..94 => clerk.set_role(&any(memberships, rng), role),
            94..99 => clerk.remove_member(&any(memberships, rng)),
            _ => clerk.delete_user(&any(users, rng)),
        }
    }

    /// Puts the population into an empty mirror, as a first pass would have.
    pub(super) async fn fill(&self, supabase: &Supabase, project: &str) -> anyhow::Result<()> {
        let mut superuser = supabase.connect(SUPERUSER, project).await?;
        superuser.execute(sqlx::raw_sql(STAGE)).await?;
        let Clerk { users, organizations, memberships, .. } = &self.clerk;
        let mut rows = String::new();
        for row in users.values() {
            let (email, at) = (&row.email_address, row.created_at);
            writeln!(rows, "user\t{}\t{}\t{}\t{email}\t\\N\t\\N\t{at}", row.id, row.first_name, row.last_name)?;
        }
        for row in organizations.values() {
            writeln!(rows, "organization\t{}\t{}\t{}\t\\N\t\\N\t\\N\t{}", row.id, row.name, row.slug, row.created_at)?;
        }
        for row in memberships.values() {
            let (organization, user) = (&row.organization_id, &row.user_id);
            writeln!(
                rows,
                "membership\t{}\t\\N\t\\N\t{}\t{organization}\t{user}\t{}",
                row.id, row.role, row.created_at
            )?;
        }
        let mut copy = superuser.copy_in_raw("copy bench_stage from stdin").await?;
        copy.send(rows.as_bytes()).await?;
        copy.finish().await?;
        superuser.execute(sqlx::raw_sql(FILL)).await?;
        superuser.execute(sqlx::raw_sql("vacuum analyze")).await?;
        Ok(())
    }
}

const STAGE: &str = "create unlogged table bench_stage (kind text, id text, a text, b text, c text, organization_id text, user_id text, at bigint)";

/// Without looking up foreign keys, which hold; in the order of creation, as rows come.
const FILL: &str = "
set session_replication_role = replica;
insert into clerk.users (id, first_name, last_name, image_url, has_image)
  select id, a, b, 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9', false from bench_stage where kind = 'user';
insert into clerk.user_details (id, email_address, email_address_verified, banned, locked, deprovisioned, public_metadata, unsafe_metadata,
                                created_at, updated_at)
  select id, c, true, false, false, false, '{\"plan\": \"pro\"}', '{}', to_timestamp(at / 1000.0), to_timestamp(at / 1000.0)
    from bench_stage where kind = 'user';
insert into clerk.organizations (id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at, updated_at)
  select id, a, b, 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9', false, 5, '{}', to_timestamp(at / 1000.0), to_timestamp(at / 1000.0)
    from bench_stage where kind = 'organization';
insert into clerk.organization_memberships (id, organization_id, user_id, role, permissions, public_metadata, created_at, updated_at)
  select id, organization_id, user_id, c, '{}', '{}', to_timestamp(at / 1000.0), to_timestamp(at / 1000.0)
    from bench_stage where kind = 'membership';
insert into clerk_sync.generations (organization_id, user_id, created_at, membership_id)
  select organization_id, user_id, at, id from bench_stage where kind = 'membership';
insert into clerk_sync.versions (kind, id, state, observed_at, updated_at, content)
  select kind, id, 'live', at, at, 0 from bench_stage;
drop table bench_stage;
";
