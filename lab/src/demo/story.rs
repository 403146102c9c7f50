//! An afternoon in the life of some small companies.

use testkit::clerk::{Event, Shared};
use testkit::traffic;

/// How long the story lasts at most, in ms on Clerk's clock: it ends before now, and [`EVENING`] follows.
pub(super) const LASTS: i64 = 4 * 3_600_000;

/// From its end to the pass at night, in ms: within the hour of a webhook's word what is absent is not gone for sure (R4).
pub(super) const EVENING: i64 = 2 * 3_600_000;

const COMPANIES: [&str; 6] =
    ["Acme Widgets", "Blue Harbor", "Copper Kettle", "Delta Press", "Elm Street Labs", "Fjord Foods"];

/// Lets `changes` things happen, and returns the webhooks in the order of the changes.
pub(super) fn tell(clerk: &Shared, changes: u32, seed: u64) -> Vec<Event> {
    let mut clerk = clerk.lock();
    let mut rng = fastrand::Rng::with_seed(seed);
    let pause = LASTS / 2 / i64::from(changes.max(1));
    for company in COMPANIES {
        let founder = traffic::sign_up(&mut clerk, &mut rng);
        clerk.create_organization(company, &founder);
        clerk.now += pause;
    }
    for _ in 0..changes {
        clerk.now += rng.i64(1..=pause.max(2));
        traffic::change(&mut clerk, &mut rng);
    }
    std::mem::take(&mut clerk.outbox)
}
