//! One signal that tells every task of the process to finish.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A handle by which a task learns that the process is to end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end: whoever holds it decides when. Dropping it counts as a request.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// A trigger and a handle.
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Asks every holder of a handle to finish.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Requests on SIGTERM, as the kubelet sends it, or SIGINT.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub async fn request_on_signal(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down");
        self.request();
        Ok(())
    }
}

impl Shutdown {
    /// Resolves once shutdown is requested. Cancel safe.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which is a request too.
        let _ended = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether shutdown has been requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
