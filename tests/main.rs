//! One binary, so that it links once. A file is a behaviour; a test's name is the sentence that it proves.
#![expect(clippy::print_stdout, reason = "tests print their figures")]
#![expect(unreachable_pub, reason = "in a binary nothing is reachable; pub marks what support offers")]

mod support;

mod agents;
mod bad_input;
mod convergence;
mod counterexamples;
mod deletions;
mod denials;
mod developing;
mod doctoring;
mod documents;
mod door;
mod faults;
mod first_hour;
mod fixtures;
mod hostile;
mod image;
mod lagging;
mod layering;
mod migrating;
mod mirroring;
mod npm;
mod operating;
mod outages;
mod outputs;
mod passes;
mod plain_words;
mod plans;
mod policies;
mod policy_check;
mod policy_holes;
mod poolers;
mod protocol;
mod receiving;
mod reconciling;
mod refusals;
mod released;
mod replaying;
mod restoring;
mod roles;
mod rules;
mod schema;
mod secrets;
mod setting_up;
mod signatures;
mod storms;
mod terminal;
mod two_releases;
mod upgrading;
mod upkeep;
mod words;
