//! The frame of the messages to netfilter's parts of the kernel.

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(super) const ACKNOWLEDGE: u16 = 0x4;

/// `struct nlmsghdr` (machine order), then `struct nfgenmsg` (its resource in network order).
pub(super) fn put_message_header(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    protocol_family: u8,
    resource: u16,
) {
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[protocol_family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
}

/// Writes the length of a message into its header, now that it is known.
pub(super) fn close_message(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}
