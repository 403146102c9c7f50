//! What `demo` and the tests stand on: a private Postgres that looks like a Supabase project, and a simulated Clerk.
//!
//! Nothing of our own is simulated: the stand-ins are reached over a socket, as the real ones are.

pub mod clerk;
pub mod installation;
pub mod open;
pub mod postgres;
pub mod proxy;
pub mod supabase;
pub mod traffic;
pub mod usage;
pub mod worker;

/// A line on standard output, for the commands that stand on this.
pub(crate) fn say(line: &str) {
    crate::terminal::text(line);
}
