//! A Kubernetes client whose sockets live in the control plane's network namespace.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Runtime};

/// A runtime inside a network namespace, and a client that works on it.
pub struct Api {
    // Dropped without waiting: a caller may itself be on a runtime.
    runtime: Option<Runtime>,
    client: Client,
}

impl Api {
    /// A client with this kubeconfig, in this namespace.
    pub fn new(netns: File, kubeconfig: &Path) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lab-control")
            .on_thread_start(move || {
                if let Err(error) = setns(&netns, CloneFlags::CLONE_NEWNET) {
                    writeln!(std::io::stderr().lock(), "failed to enter the control plane's namespace: {error}").ok();
                }
            })
            .enable_all()
            .build()?;
        let kubeconfig = kubeconfig.to_owned();
        let made = runtime.spawn(async move {
            let kubeconfig = Kubeconfig::read_from(&kubeconfig)?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Ok::<_, anyhow::Error>(Client::try_from(config)?)
        });
        let client = wait_on(&runtime, made)?.context("failed to make a client for the lab's API server")?;
        Ok(Self { runtime: Some(runtime), client })
    }

    /// The client. Its requests must be made inside [`Api::block_on`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Run `future` in the control plane's namespace and wait for it.
    pub fn block_on<F>(&self, future: F) -> Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let runtime = self.runtime.as_ref().context("the client's runtime is gone")?;
        wait_on(runtime, runtime.spawn(future))
    }

    /// Run `future` in the control plane's namespace, in the background.
    pub fn spawn<F>(&self, future: F) -> Result<tokio::task::JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Ok(self.runtime.as_ref().context("the client's runtime is gone")?.spawn(future))
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Wait for a task from a thread of the caller's, which is in another namespace and may be on another runtime.
fn wait_on<T: Send + 'static>(runtime: &Runtime, task: tokio::task::JoinHandle<T>) -> Result<T> {
    let waited = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(task)).join());
    match waited {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error).context("the task ended without a value"),
        Err(_) => anyhow::bail!("the task's waiter panicked"),
    }
}
