//! One binary, so that it links once. A file is a behaviour; a test's name is the sentence that it proves.
#![allow(clippy::print_stdout, reason = "tests print their tables")]

mod support;

mod convergence;
mod fixtures;
mod layering;
mod migrating;
mod mirroring;
mod policies;
mod receiving;
mod replaying;
mod rules;
mod signatures;
