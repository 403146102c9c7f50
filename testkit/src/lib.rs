//! What the laboratory and the tests stand on: a private Postgres that looks like a Supabase project, a simulated Clerk, a network
//! with faults, and the product as a process.
//!
//! Nothing of the product is simulated: the stand-ins are reached over a socket, as the real ones are.
#![recursion_limit = "256"] // for the JSON of a whole user

pub mod clerk;
pub mod find_postgres;
pub mod postgres;
pub mod program;
pub mod project;
pub mod proxy;
pub mod serve;
pub mod supabase;
pub mod traffic;
pub mod usage;
pub mod worker;
pub mod world;

pub use project::{Project, unique};
pub use worker::SECRET;
pub use world::{START, World};
