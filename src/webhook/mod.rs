//! How one delivery is processed, `POST /webhooks/clerk`.
//!
//! [`extract::Verified`] (the whole body, within the [`budget`], with a good [`signature`]) → [`receive`] →
//! [`crate::clerk::event::parse`] → [`writer::Writer`] (waits for the commit) → [`answer`].
//!
//! Only [`answer`] chooses a status. 2xx means durable: Svix will not send that message again.

pub mod answer;
pub mod budget;
mod caution;
pub mod extract;
pub mod health;
pub mod lane;
mod log;
pub mod receive;
pub mod rejection;
pub mod request;
pub mod signature;
pub mod writer;
