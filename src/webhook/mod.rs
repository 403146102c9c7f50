//! How one delivery is processed, `POST /webhooks/clerk`.
//!
//! [`extract::Verified`] (the whole body, within the [`body_memory`], with a good [`signature`]) → [`receive`] →
//! [`crate::clerk::event::parse`] → [`queue::WriteQueue`] (waits for the commit) → [`answer`].
//!
//! Only [`answer`] chooses a status. 2xx means durable: Svix will not send that message again.

pub mod answer;
mod batch_size;
pub mod batch_writer;
pub mod body_memory;
pub mod extract;
pub mod health;
mod log;
pub mod queue;
pub mod receive;
pub mod rejection;
pub mod request;
pub mod signature;
