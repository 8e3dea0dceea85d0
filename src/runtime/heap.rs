//! How the C library keeps what it was given back: as little as it can.
//!
//! The first lists of a large cluster pass through several times the memory that stays in use. The library's default is an
//! arena for each thread, of which none returns to the system what is free in its middle, and a limit for large blocks that
//! rises with each one freed: at 10,000 Services that was 12 MiB more at rest and 10 MiB more at the highest.
//!
//! Another allocator would be a C library more to build: of those tried, jemalloc saved 3 MiB more at rest, but takes the
//! size of pages from the machine that it is built on, and mimalloc took 12 MiB more than the default.

#![allow(unsafe_code, reason = "no safe crate has these two calls; neither takes a pointer")]

/// One arena for all threads, and large blocks go back at once. To be called while there is one thread.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 128 << 10;
        let settings = [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)];
        for (setting, value) in settings {
            // SAFETY: changes numbers of the allocator, under its own lock.
            let is_set = unsafe { libc::mallopt(setting, value) } == 1;
            if !is_set {
                tracing::debug!(setting, value, "the C library does not take a setting of its allocator");
            }
        }
    }
}

/// Returns what is free to the system, after much was. Takes some milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: gives back pages in which nothing is in use, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
