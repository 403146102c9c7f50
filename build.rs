//! A migration that is added or changed is compiled in anew.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
