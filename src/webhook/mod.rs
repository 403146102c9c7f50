//! How one delivery is processed, `POST /webhooks/clerk`.
//!
//! [`extract::Verified`] (the whole body, within the [`body_memory`], with a good [`signature`]) → [`receive`] →
//! [`crate::clerk::event::parse`] → [`queue::WriteQueue`] (waits for the commit) → [`answer`].
//!
//! Only [`answer`] chooses a status. 2xx means durable: Svix will not send that message again.

pub mod answer;
pub mod body_memory;
mod caution;
pub mod extract;
pub mod health;
pub mod batch_writer;
mod log;
pub mod receive;
pub mod rejection;
pub mod request;
pub mod signature;
pub mod queue;
