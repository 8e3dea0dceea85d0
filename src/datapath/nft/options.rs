//! The switches that change rules, not elements: part of the layout, so that a table made with others is made anew.

/// Which rules are there that not everybody wants. By default none: as kube-proxy does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Answers a TCP segment to a frontend that belongs to no known connection and begins none with a reset. Else the
    /// kernel takes it for a connection and leads it to any endpoint, in the middle of the stream.
    pub reset_mid_stream: bool,
    /// Drops forwarded packets from and to pods that connection tracking calls invalid.
    pub drop_invalid: bool,
}
