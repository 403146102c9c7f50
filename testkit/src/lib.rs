//! What the laboratory and the tests stand on: a private Postgres that looks like a Supabase project, a simulated Clerk, a network
//! with faults, and the product as a process.
//!
//! Nothing of the product is simulated: the stand-ins are reached over a socket, as the real ones are.
#![recursion_limit = "256"] // for the JSON of a whole user

#[cfg(feature = "product")]
pub mod clerk;
pub mod find_postgres;
pub mod postgres;
#[cfg(feature = "product")]
pub mod program;
#[cfg(feature = "product")]
pub mod project;
#[cfg(feature = "product")]
pub mod proxy;
#[cfg(feature = "product")]
pub mod serve;
pub mod supabase;
#[cfg(feature = "product")]
pub mod traffic;
#[cfg(feature = "product")]
pub mod usage;
pub mod wait;
#[cfg(feature = "product")]
pub mod worker;
#[cfg(feature = "product")]
pub mod world;

#[cfg(feature = "product")]
pub use project::{Project, unique};
#[cfg(feature = "product")]
pub use worker::SECRET;
#[cfg(feature = "product")]
pub use world::{START, World};
