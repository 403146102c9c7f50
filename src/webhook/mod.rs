//! The way of one delivery: `POST /webhooks/clerk` → [`verify::Verified`] (raw bytes, signature, time) →
//! [`crate::clerk::event::parse`] → [`writer::Writer`] (waits for the commit) → a status.
//!
//! Statuses are chosen in [`receive`], but for requests that are not verified ([`verify::Rejection`]). 2xx means durable: Svix
//! will not send that message again.

pub mod budget;
pub mod lane;
pub mod receive;
pub mod verify;
pub mod writer;
