# Images are named by tag; Renovate pins their digests (.github/renovate.json).
# Dependencies are built in a layer of their own, so that a change to the source does not build them again.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir -p src tests migrations && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/main.rs \
 && cargo build --release --locked --no-default-features && rm -rf src tests
COPY migrations migrations
COPY src src
RUN touch src/main.rs src/lib.rs && mkdir tests && touch tests/main.rs \
 && cargo build --release --locked --no-default-features

# No shell, no package manager; the user is not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/clerk-sync /usr/local/bin/clerk-sync
# No entry point, so that a platform's release command can be `clerk-sync migrate`.
CMD ["clerk-sync", "serve"]
