//! What the process may use.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes as many file descriptors as the process may have at all: the customary 1024 are for programs that `select`, and a
/// node may have a listening socket for each of some thousand Services.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot have more file descriptors");
    }
}
