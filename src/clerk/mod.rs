//! What Clerk says, turned into [`crate::model`]: webhooks here, the Backend API later beside them.
//!
//! Clerk's own published examples break Clerk's own schema more often than not (26 of 45), so nothing is validated
//! strictly: a field of the wrong type spoils itself and no other, and only what decides access is never guessed.

pub mod event;
mod payload;
