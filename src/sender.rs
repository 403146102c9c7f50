//! Signing and posting, as Svix does it.

use crate::webhook::answer::OUTCOME_HEADER;
use anyhow::Context as _;
use std::time::Duration;
use svix::webhooks::Webhook;

/// How long Svix waits for an answer (<https://docs.svix.com/retries>).
const PATIENCE: Duration = Duration::from_secs(15);

/// Posts messages to one endpoint with one signing secret.
#[derive(Debug)]
pub struct Sender {
    client: reqwest::Client,
    url: String,
    webhook: Webhook,
}

/// What the endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub status: u16,
    /// What became of the message, or the word that refuses it, where the endpoint says so.
    pub outcome: Option<String>,
    pub body: String,
}

impl Sender {
    /// # Errors
    /// The secret is none.
    pub fn new(url: impl Into<String>, secret: &str) -> anyhow::Result<Sender> {
        let webhook =
            Webhook::new(secret.trim()).map_err(|_| anyhow::anyhow!("the signing secret must begin with whsec_"))?;
        let (url, client) = (url.into(), reqwest::Client::builder().timeout(PATIENCE));
        // A proxy of the environment would read the bodies, and could not reach this machine's own server.
        let client = if url.starts_with("https://") { client } else { client.no_proxy() };
        Ok(Sender { client: client.build()?, url, webhook })
    }

    /// One attempt, signed now.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn send(&self, message_id: &str, body: &[u8]) -> anyhow::Result<Attempt> {
        self.send_at(message_id, crate::clock::now().get() / 1000, body).await
    }

    /// One attempt, signed as if made at `seconds`.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn send_at(&self, message_id: &str, seconds: i64, body: &[u8]) -> anyhow::Result<Attempt> {
        let signature = self.webhook.sign(message_id, seconds, body).context("cannot sign")?;
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", "Svix-Webhooks/1.100.0")
            .header("svix-id", message_id)
            .header("svix-timestamp", seconds)
            .header("svix-signature", signature)
            .body(body.to_vec());
        let response = request.send().await?;
        let status = response.status().as_u16();
        let outcome =
            response.headers().get(OUTCOME_HEADER).and_then(|outcome| outcome.to_str().ok()).map(str::to_owned);
        let body = response.text().await?;
        let outcome = outcome
            .or_else(|| serde_json::from_str::<serde_json::Value>(&body).ok()?["error"].as_str().map(str::to_owned));
        Ok(Attempt { status, outcome, body })
    }
}
