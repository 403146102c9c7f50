#![recursion_limit = "256"] // for the JSON of a whole user in testbed
pub mod app;
pub mod clerk;
pub mod clock;
pub mod config;
pub mod health;
pub mod model;
pub mod replay;
pub mod sender;
pub mod store;
pub mod telemetry;
pub mod webhook;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "demo")]
pub mod testbed;
