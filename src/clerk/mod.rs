//! What Clerk says, turned into [`crate::model`]: webhooks as they come, and the Backend API as we ask it.
//!
//! Clerk's own published examples break Clerk's own schema more often than not (26 of 45), so nothing is validated
//! strictly: a field of the wrong type spoils itself and no other, and only what decides access is never guessed.

pub mod budget;
pub mod client;
pub mod event;
pub mod kinds;
pub mod listing;
mod payload;
mod retry;
