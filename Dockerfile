# Images are named by tag; Renovate pins their digests (.github/renovate.json).
# Dependencies are built in a layer of their own, so that a change to the source does not build them again.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# Cargo reads the manifests of the whole workspace; of testkit and lab nothing is built.
COPY Cargo.toml Cargo.lock build.rs ./
COPY testkit/Cargo.toml testkit/Cargo.toml
COPY lab/Cargo.toml lab/Cargo.toml
RUN mkdir -p src tests migrations testkit/src lab/src && echo 'fn main() {}' | tee src/main.rs lab/src/main.rs \
 && touch src/lib.rs testkit/src/lib.rs tests/main.rs && cargo build --release --locked && rm -rf src
COPY migrations migrations
COPY .sqlx .sqlx
COPY src src
# What --version says: .git is not copied. docker build --build-arg CLERK_SYNC_COMMIT=$(git rev-parse HEAD) --build-arg CLERK_SYNC_DATE=…
ARG CLERK_SYNC_COMMIT=
ARG CLERK_SYNC_DATE=
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# A release replaces the stage above by the program that it has built already (--build-context build=FOLDER).
# No shell, no package manager; the user is not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/clerk-sync /usr/local/bin/clerk-sync
# No entry point, so that a platform's release command can be `clerk-sync migrate`.
CMD ["clerk-sync", "serve"]
