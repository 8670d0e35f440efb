//! The end of a process whose component another process has registered.
//!
//! Whoever hears it from the MDM declares it; whoever runs the process waits for it and ends. Asking on would be refused
//! for ever, and an operator would see two processes that both look alive. Only a verdict of the Raft log counts (a
//! refused command or a linearizable read): a leader that has just been elected may not know the newest registration yet,
//! and its word alone must not end the process that it does not know.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Whether this process was superseded. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Takeover(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    why: OnceLock<String>,
    declared: CancellationToken,
}

impl Takeover {
    /// This process was superseded; `why` is what the MDM said. The first word counts.
    pub fn declare(&self, why: String) {
        let _ = self.0.why.set(why);
        self.0.declared.cancel();
    }

    /// What the MDM said; none while nobody has taken over.
    pub fn why(&self) -> Option<&str> {
        self.0.why.get().map(String::as_str)
    }

    /// Returns when it is declared. Cancel-safe.
    pub async fn declared(&self) {
        self.0.declared.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_the_first_word() {
        let takeover = Takeover::default();
        assert_eq!(takeover.why(), None);
        let waiting = tokio::spawn({
            let takeover = takeover.clone();
            async move { takeover.declared().await }
        });
        takeover.declare("process 2 registered".into());
        takeover.declare("again".into());
        waiting.await.unwrap();
        assert_eq!(takeover.why(), Some("process 2 registered"));
    }
}
